"""Exported folders: what is in them, that they run with stock runtimes, and that a wrong artefact fails the export."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from huggingface_hub import ModelCard
from onnx import numpy_helper

from nas.export.export import check_target, export_candidate, write_metrics
from nas.export.model_card import Card, load_snippet, transformers_snippet
from nas.export.reference import Reference
from nas.export.verify import (
    Check,
    ExportError,
    Tolerances,
    at_tokens,
    run_part,
    scaled_difference,
    verify,
    whole_cosine,
)
from search_spaces.checkpoint import load_subnet
from tests.export.conftest import Exported


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.result.directory, tmp_path / "copy"))


@pytest.fixture(scope="module")
def reference(exported: Exported) -> Reference:
    return Reference.from_model(exported.model, exported.task)


def test_the_folder_is_complete_and_nothing_is_left_beside_it(exported: Exported) -> None:
    folder = exported.result.directory
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json", "model.safetensors", "subnet.json", "tokenizer.json", "model.onnx", "model_int8.onnx",
        "metrics.json", "model_card.md", "card.json",
    } <= names  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert exported.result.size_mb["onnx int8"] < exported.result.size_mb["onnx fp32"]
    assert not [path for path in folder.rglob("*") if path.suffix in {".pt", ".bin", ".pkl"}]


def test_every_artefact_was_compared_at_several_shapes(exported: Exported) -> None:
    checks = exported.result.checks
    assert {check.artefact for check in checks} == {"model.onnx", "model_int8.onnx", "tokenizer", "transformers"}
    shapes = {check.shape for check in checks if check.artefact == "model.onnx"}
    assert len(shapes) >= 3
    assert {shape[0] for shape in shapes} == {1, 4}
    assert max(check.value for check in checks if check.artefact == "model.onnx") <= 1e-4
    assert max(check.value for check in checks if check.artefact == "transformers") <= 1e-6


def test_the_saved_model_is_the_extracted_one_bit_for_bit(exported: Exported) -> None:
    loaded = load_subnet(exported.result.directory).state_dict()
    for name, tensor in exported.model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


def test_the_cards_lines_run_with_onnxruntime_and_tokenizers_alone(exported: Exported, tmp_path: Path) -> None:
    script = load_snippet(str(exported.result.directory), "model_int8.onnx", "sentence_embedding", 16)
    forbidden = "import sys\nassert not {'torch', 'transformers', 'nas', 'search_spaces'} & set(sys.modules)\n"
    code = script + "print(embeddings.shape)\n" + forbidden
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 32)"


def test_the_card_tells_what_was_measured_and_how_to_run(exported: Exported) -> None:
    text = (exported.result.directory / "model_card.md").read_text()
    assert "| onnx fp32 | 1.50 | 2.00 [1.90, 2.10] | - |" in text.replace("\\", "")
    assert "| onnx int8 | - | - | 0.890 |" in text
    assert "block 0:" in text
    assert load_snippet(".", "model_int8.onnx", "sentence_embedding", 16) in text
    assert transformers_snippet(".", "sentence_embedding") in text
    assert str(exported.result.directory) not in text  # The folder can be moved.


def test_metrics_can_be_written_after_the_model_was_measured(copy: Path) -> None:
    metrics = {"measured": {"onnx int8": {"p50_ms": 0.75, "energy_source": "rapl"}}}
    write_metrics(copy, metrics)
    assert json.loads((copy / "metrics.json").read_text()) == metrics
    assert "0.750" in (copy / "model_card.md").read_text()
    quality = {"accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9, "runs": 60, "ece": float("nan")}
    write_metrics(copy, {"quality": {"transformers": quality}})
    assert json.loads((copy / "metrics.json").read_text())["quality"]["transformers"]["ece"] is None
    page = ModelCard.load(copy / "model_card.md")
    assert "| transformers | 0.800 [0.700, 0.900] | 60 |" in page.text.replace("\\", "")
    assert page.data.library_name == "transformers"
    assert page.data.pipeline_tag == "sentence-similarity"
    (copy / "card.json").unlink()
    with pytest.raises(ValueError, match="is it a folder that `nas export` wrote"):
        write_metrics(copy, {})


def test_a_changed_weight_in_the_graph_fails_and_is_located(copy: Path, reference: Reference) -> None:
    graph = onnx.load(copy / "model.onnx")
    weight = next(w for w in graph.graph.initializer if len(w.dims) == 2 and w.dims[0] == 32)
    changed = numpy_helper.to_array(weight).copy()
    changed[0, 0] += 0.5
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(graph, copy / "model.onnx")
    with pytest.raises(ExportError, match=r"model\.onnx: \w+ at \d+ x \d+: difference must be <= 0\.0001, but is"):
        verify(copy, reference)


def test_a_damaged_file_fails_with_the_runtimes_reason(copy: Path, reference: Reference) -> None:
    (copy / "model_int8.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match=r"onnx int8 of .* cannot be loaded again"):
        verify(copy, reference)


def test_weights_of_another_model_fail(copy: Path, reference: Reference) -> None:
    wrong = dataclasses.replace(reference, first=tuple(2 * array for array in reference.first))
    checks = run_part("transformers", copy, wrong, Tolerances())
    assert not any(check.passed for check in checks)


def test_another_tokenizer_fails(copy: Path, reference: Reference) -> None:
    data = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["word1"], vocabulary["word2"] = vocabulary["word2"], vocabulary["word1"]
    (copy / "tokenizer.json").write_text(json.dumps(data))
    (check,) = run_part("tokenizer", copy, reference, Tolerances())
    assert check.value >= 1
    assert "tokens must be <= 0" in str(check)


def test_int8_is_judged_by_the_cosine(copy: Path, reference: Reference) -> None:
    checks = run_part("onnx int8", copy, reference, Tolerances(int8_cosine=0.999999))
    assert {check.rule for check in checks} == {"cosine"}
    assert not all(check.passed for check in checks)


def test_a_failed_export_leaves_the_older_folder_alone(exported: Exported, copy: Path) -> None:
    before = (copy / "model.safetensors").read_bytes()
    graph = onnx.load(copy / "model.onnx")
    graph.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(
            np.zeros_like(numpy_helper.to_array(graph.graph.initializer[0])), graph.graph.initializer[0].name
        )
    )
    with pytest.raises(ExportError):
        export_candidate(
            exported.model, exported.subnet, exported.space.shape, exported.task, copy, graph=graph,
            precisions=("fp32",),
        )  # fmt: skip
    assert (copy / "model.safetensors").read_bytes() == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_an_export_replaces_an_older_folder_and_takes_a_ready_graph(exported: Exported, copy: Path) -> None:
    (copy / "old.txt").write_text("x")
    graph = onnx.load(copy / "model.onnx")
    result = export_candidate(
        exported.model, exported.subnet, exported.space.shape, exported.task, copy, graph=graph, precisions=("fp32",)
    )  # fmt: skip
    assert not (copy / "old.txt").exists()
    assert not (copy / "model_int8.onnx").exists()
    assert list(result.graphs) == ["fp32"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_export_is_never_replaced(exported: Exported, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "thesis"
    if kind == "folder":
        target.mkdir()
    kept = target / "thesis.txt" if kind == "folder" else target
    kept.write_text("years of work")
    arguments = (exported.model, exported.subnet, exported.space.shape, exported.task)
    with pytest.raises(ValueError, match=r"must be new, or an earlier export, but .*thesis is something else"):
        export_candidate(*arguments, target)
    assert kept.read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [target]
    check_target(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty")


def test_an_unknown_precision_is_refused_before_anything_is_written(exported: Exported, tmp_path: Path) -> None:
    arguments = (exported.model, exported.subnet, exported.space.shape, exported.task, tmp_path / "x")
    with pytest.raises(
        ValueError, match="`precision` must be among fp32, fp16, int8, int8_static, int4, but got 'int3'"
    ):
        export_candidate(*arguments, precisions=("int3",))
    with pytest.raises(
        ValueError, match="`format` must be among transformers, onnx, openvino, tensorrt, but got 'tflite'"
    ):
        export_candidate(*arguments, formats=("tflite",))
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_users_named_like_the_package_is_not_imported(
    copy: Path, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nas.py").write_text("raise SystemExit('wrong')")
    monkeypatch.chdir(tmp_path)
    (copy / "model_int8.onnx").unlink()
    assert verify(copy, reference)


def test_references_round_trip(reference: Reference, tmp_path: Path) -> None:
    reference.save(tmp_path)
    loaded = Reference.load(tmp_path)
    assert loaded.tokens == reference.tokens
    for own, other in zip(reference.outputs, loaded.outputs, strict=True):
        assert own.keys() == other.keys()
        assert all(np.array_equal(own[name], other[name]) for name in own)


def test_differences_are_relative_to_the_outputs_scale() -> None:
    assert scaled_difference(np.array([100.0, 1.01]), np.array([100.0, 1.0])) == pytest.approx(1e-4)
    assert scaled_difference(np.zeros(2), np.zeros(3)) == float("inf")
    assert np.isnan(whole_cosine(np.zeros((1, 2)), np.zeros((1, 3))))
    assert whole_cosine(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0]])) == pytest.approx(1.0)
    doubt, sure = [0.01, -0.01], [3.0, -3.0]
    assert whole_cosine(np.array([doubt, sure]), np.array([doubt[::-1], sure])) > 0.999
    assert whole_cosine(np.array([sure[::-1], sure]), np.array([sure, sure])) == pytest.approx(0.0)


def test_nan_never_passes() -> None:
    assert not Check("model.onnx", "x", (1, 2), "difference", float("nan"), 1e-4).passed
    assert not Check("model_int8.onnx", "x", (1, 2), "cosine", float("nan"), 0.9).passed


def test_cards_of_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Card.from_json("[]")


def test_only_tokens_that_are_no_padding_are_compared() -> None:
    inputs = {"input_ids": np.ones((2, 3)), "attention_mask": np.array([[1, 1, 1], [1, 0, 0]])}
    expected = np.ones((2, 3, 4))
    padding, real = expected.copy(), expected.copy()
    padding[1, 2], real[1, 0] = 9.0, 1.5
    assert scaled_difference(at_tokens(padding, inputs), at_tokens(expected, inputs)) == 0.0
    assert scaled_difference(at_tokens(real, inputs), at_tokens(expected, inputs)) == 0.5
    # An output that lacks tokens, or has others' shape, is still told.
    assert scaled_difference(at_tokens(expected[:, :2], inputs), at_tokens(expected, inputs)) == float("inf")
    # Of one row a sentence, and without a mask, everything counts.
    assert at_tokens(np.ones((2, 3)), inputs).shape == (2, 3)
    assert at_tokens(expected, {"pixel_values": np.ones((2, 3))}).shape == (2, 3, 4)
