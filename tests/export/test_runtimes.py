"""Exports in the files of every runtime that is installed: verified, judged and measured."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from latency_models.backends.base import BackendError, make_backend
from latency_models.device import Device
from nas.distillation.teacher import TeacherOutputs
from nas.export import artefacts as artefacts_module
from nas.export.artefacts import ARTEFACTS, FORMATS, PRECISIONS, chosen, write_artefact
from nas.export.export import ExportedModel, calibration_inputs, export_candidate
from nas.export.measure import device_of, measure, subjects_of
from nas.export.quality import judge
from nas.export.reference import Reference, as_numpy
from nas.export.verify import ExportError, run_part, verify
from search_spaces.cost import Workload
from tests.export.conftest import Exported

DEVICE = Device("onnxruntime_cpu", "onnxruntime")


@pytest.fixture(scope="module")
def everything(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    return export_candidate(
        exported.model, exported.subnet, exported.space.shape, exported.task, tmp_path_factory.mktemp("all") / "model",
        name="small", teacher="tiny", formats=("transformers", "onnx", "openvino"), precisions=PRECISIONS,
        calibration_samples=4, metadata={"study": "first"},
    )  # fmt: skip


def test_every_format_and_precision_is_written_and_checked(everything: ExportedModel) -> None:
    assert len(everything.artefacts) == 10
    checked = {check.artefact for check in everything.checks}
    assert {artefact.file for artefact in everything.artefacts} < checked
    assert all(check.passed for check in everything.checks)
    differences = [check.absolute for check in everything.checks if check.artefact == "model.onnx"]
    assert 0 < max(differences) < 1e-3
    assert everything.size_mb["openvino fp16"] < everything.size_mb["openvino fp32"]
    assert everything.size_mb["onnx int4"] < everything.size_mb["onnx fp32"]
    for artefact in everything.artefacts:
        shapes = {check.shape for check in everything.checks if check.artefact == artefact.file}
        assert len(shapes) >= 3


def test_files_say_what_they_are(everything: ExportedModel, exported: Exported) -> None:
    import openvino

    for file in everything.graphs.values():
        told = {entry.key: entry.value for entry in onnx.load(file, load_external_data=False).metadata_props}
        assert told["study"] == "first"
        assert told["teacher"] == "tiny"
        assert told["subnet"] == exported.subnet.to_json()
        assert told["version.onnxruntime"]
    model = openvino.Core().read_model(str(everything.directory / "openvino_model_int8.xml"))
    assert model.get_rt_info(["hwnas", "study"]).astype(str) == "first"


def test_onnx_files_take_any_batch_and_any_length(everything: ExportedModel) -> None:
    for file in everything.graphs.values():
        graph = onnx.load(file).graph
        for entry in graph.input:
            assert [dim.dim_param for dim in entry.type.tensor_type.shape.dim] == ["batch_size", "sequence_length"]
        assert [entry.name for entry in graph.output] == ["last_hidden_state", "sentence_embedding"]


def test_one_format_alone_has_no_weights_of_another(exported: Exported, tmp_path: Path) -> None:
    found = export_candidate(
        exported.model, exported.subnet, exported.space.shape, exported.task, tmp_path / "onnx-only",
        formats=("onnx",), precisions=("fp32",),
    )  # fmt: skip
    names = {path.name for path in found.directory.iterdir()}
    assert "model.safetensors" not in names
    assert {"model.onnx", "tokenizer.json", "model_card.md", "metrics.json"} <= names


def test_tensorrt_is_refused_in_one_line_where_it_is_not_whole(exported: Exported, tmp_path: Path) -> None:
    arguments = (exported.model, exported.subnet, exported.space.shape, exported.task, tmp_path / "engine")
    with pytest.raises(BackendError, match=r"TensorRT|tensorrt|torch sees no CUDA device"):
        export_candidate(*arguments, formats=("tensorrt",), precisions=("fp32",))
    assert not list(tmp_path.iterdir())


def test_tensorrt_builds_engines_from_calibrated_graphs(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    class Builder:
        def build(self, graph, inputs):
            built.append((graph, inputs))
            return b"an engine"

    def make(device):
        built.append(device)
        return Builder()

    monkeypatch.setattr("latency_models.backends.base.make_backend", make)
    graph = onnx.load(exported.result.graphs["fp32"])
    calibration = calibration_inputs(exported.task, 3)
    device = Device("trt", "tensorrt", provider="cuda", options={"max_batch_size": 8})
    write_artefact(ARTEFACTS["tensorrt int8"], graph, tmp_path, calibration=calibration, device=device)
    assert (tmp_path / "model_int8.engine").read_bytes() == b"an engine"
    assert built[0] == replace(device, precision="int8")
    operators = {node.op_type for node in built[1][0].graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert built[1][1] is calibration[-1]


def test_choices_are_rows_of_the_table() -> None:
    assert len({row.file for row in ARTEFACTS.values()}) == len(ARTEFACTS)
    assert [row.key for row in chosen(("transformers",), ("fp32",))] == []
    assert {row.key for row in chosen(("tensorrt",), ("int8_static",))} == {"tensorrt int8"}
    assert len(chosen(FORMATS, PRECISIONS)) == len(ARTEFACTS) - 1, "mixed precision is the subnet's own, not chosen"


def test_calibration_runs_over_short_and_long_texts(exported: Exported) -> None:
    inputs = calibration_inputs(exported.task, 4)
    lengths = [one["input_ids"].shape[1] for one in inputs]
    assert len(inputs) == 4
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    assert len(calibration_inputs(exported.task, 99)) == 8


def test_an_engine_of_another_file_fails_the_check(everything: ExportedModel, exported: Exported) -> None:
    reference = Reference.from_model(exported.model, exported.task)
    wrong = replace(reference, outputs=tuple({n: -v for n, v in one.items()} for one in reference.outputs))
    checks = run_part("openvino int8", everything.directory, wrong, tolerances())
    assert not any(check.passed for check in checks)


def tolerances():
    from nas.export.verify import Tolerances

    return Tolerances()


def test_a_full_disk_leaves_nothing_that_looks_finished(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(artefacts_module, "_write_onnx", full)
    with pytest.raises(ExportError, match=r"x cannot be written: No space left on device\."):
        export_candidate(exported.model, exported.subnet, exported.space.shape, exported.task, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_metrics_are_made_of_the_verified_folder_before_it_gets_its_name(exported: Exported, tmp_path: Path) -> None:
    seen = {}

    def metrics(folder, checks):
        seen["files"] = {path.name for path in folder.iterdir()}
        seen["final"] = (tmp_path / "x").exists()
        return {"quality": {"onnx fp32": {"checks": len(checks)}}}

    found = export_candidate(
        exported.model, exported.subnet, exported.space.shape, exported.task, tmp_path / "x", metrics=metrics,
        precisions=("fp32",),
    )  # fmt: skip
    assert "model.onnx" in seen["files"]
    assert seen["final"] is False
    assert json.loads((found.directory / "metrics.json").read_text())["quality"]["onnx fp32"]["checks"] >= 6

    def broken(folder, checks):
        raise ExportError("no")

    with pytest.raises(ExportError, match="no"):
        export_candidate(
            exported.model, exported.subnet, exported.space.shape, exported.task, tmp_path / "y", metrics=broken,
            precisions=("fp32",),
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_all_runtimes_are_judged_on_the_task(everything: ExportedModel, exported: Exported, tmp_path: Path) -> None:
    task = exported.task
    teacher = TeacherOutputs(task, (), str(tmp_path), model=task.load_model())
    scores = {
        key: judge(ARTEFACTS[key], everything.directory, task, teacher, device_of(ARTEFACTS[key], DEVICE))["cosine"]
        for key in ("onnx fp32", "openvino fp32", "openvino int8")
    }
    assert scores["openvino fp32"] == pytest.approx(scores["onnx fp32"], abs=1e-5)
    assert scores["openvino int8"] == pytest.approx(scores["onnx fp32"], abs=0.05)


def test_files_are_measured_beside_the_teachers(everything: ExportedModel, exported: Exported) -> None:
    rows = [ARTEFACTS["onnx fp32"], ARTEFACTS["onnx int8"], ARTEFACTS["openvino fp32"]]
    subjects = subjects_of(rows, everything.directory, DEVICE)
    teachers = subjects_of(rows[:2], exported.result.directory, DEVICE, teacher=True)

    def inputs(batch_size):
        return as_numpy(exported.task.example_inputs(Workload(batch_size, 8)))

    protocol = {"warmup_seconds": 0.0, "burst": 2, "min_visits": 5, "max_seconds": 0.05, "chunk_size": 8}
    found = measure([*teachers, *subjects], teachers[0], inputs, batch_size=1, batches=(2,), protocol=protocol)
    assert list(found) == ["teacher onnx fp32", "teacher onnx int8", "onnx fp32", "onnx int8", "openvino fp32"]
    for figures in found.values():
        assert 0 < figures["min_ms"] <= figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"]
        assert figures["runs"] >= 10
        assert figures["throughput_best_per_s"] >= figures["throughput_batch_1_per_s"] > 0
        assert figures["throughput_best_batch_size"] in (1, 2)
        assert 20 < figures["peak_memory_mb"] < 2000
        assert figures["size_mb"] > 0
        low, value, high = (figures["speedup_teacher_fp32"][key] for key in ("low", "value", "high"))
        assert low <= value <= high
    assert "speedup_same_precision" in found["onnx int8"]
    assert "speedup_same_precision" not in found["onnx fp32"]
    assert "energy_mj" not in found["onnx int8"] or found["onnx int8"]["energy_source"]


def test_files_carry_their_precision_to_the_device() -> None:
    target = Device("a", "onnxruntime", 2, "int8", options={"quantization": "static", "graph_optimization": "basic"})
    assert device_of(ARTEFACTS["onnx int8"], target) == replace(
        target, precision="fp32", options={"graph_optimization": "basic"}
    )
    other = device_of(ARTEFACTS["openvino int8"], target)
    assert (other.backend, other.threads, other.provider) == ("openvino", 2, "cpu")
    assert device_of(ARTEFACTS["tensorrt fp16"], target).provider == "cuda"


def test_openvinos_own_files_are_read_and_missing_ones_told(everything: ExportedModel, tmp_path: Path) -> None:
    inputs = {name: np.ones((1, 4), dtype=np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    backend = make_backend(Device("x", "openvino"))
    assert backend.compile(everything.directory / "openvino_model.xml", inputs).outputs()
    with pytest.raises(BackendError, match="No such file"):
        backend.compile(tmp_path / "absent.xml", inputs)


def test_verify_checks_whatever_lies_there(everything: ExportedModel, exported: Exported) -> None:
    found = verify(everything.directory, Reference.from_model(exported.model, exported.task))
    assert {check.artefact for check in found} == {check.artefact for check in everything.checks}
