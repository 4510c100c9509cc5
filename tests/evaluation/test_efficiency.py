"""Costs of deployed models: counts agree with the search space's own, and what is measured has its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from latency_models.backends.onnx import export_onnx
from latency_models.device import Device
from latency_models.meters import PeakMemory
from latency_models.profiler import Profiler
from nas.evaluation.efficiency import GraphSubject, count_macs, measure_efficiency
from nas.tasks.deployed import GraphModel
from nas.tasks.text import SentenceEmbedding, TextClassification
from search_spaces.cost import Workload, cost
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from tests.models import tiny_bert
from tests.tasks.test_kinds import regression

WORKLOAD = Workload(batch_size=2, sequence_length=8)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TextClassification:
    return regression(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def graph(task: TextClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    model = export_onnx(task.deployable(task.load_model()), task.example_inputs(Workload(2, 8)), task.output_names)
    onnx.save(model, str(path))
    return path


def test_operations_agree_with_the_search_spaces_own_count() -> None:
    model = tiny_bert()
    shape = ModelShape.from_model(model)
    space = SearchSpace.from_choices(shape, {"heads": [2, 4]})
    inputs = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    expected = cost(shape, space.teacher, WORKLOAD).macs
    assert count_macs(model, inputs) == expected


def test_a_model_beside_its_reference(task: TextClassification, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter:
        source = "test counter"
        count = 0.0

        def joules(self) -> float:
            Meter.count += 1.0
            return Meter.count

    monkeypatch.setattr("latency_models.deployed.find_energy_meter", lambda _: Meter())
    monkeypatch.setattr("latency_models.deployed.peak_memory", lambda *_: PeakMemory(123.0))
    deployed = GraphSubject("m", graph, task.load_model())
    told: list[str] = []
    sections = measure_efficiency(
        [deployed, GraphSubject("graph alone", graph)],
        deployed,
        Device(name="onnxruntime_cpu", backend="onnxruntime", threads=1),
        WORKLOAD,
        task.example_inputs(WORKLOAD),
        Profiler(warmup_seconds=0.0, burst=2, min_visits=5, max_seconds=0.1),
        seconds=0.01,
        say=told.append,
    )
    first, second = sections
    latency = first["latency_ms"]
    assert latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
    assert latency["n"] >= 10
    assert first["throughput"] == pytest.approx(2e3 / latency["p50"])
    assert first["speedup"]["low"] <= first["speedup"]["value"] <= first["speedup"]["high"]
    assert first["size_mb"] == pytest.approx(graph.stat().st_size / 1e6)
    assert first["peak_memory_mb"] == 123.0
    assert first["energy"]["source"] == "test counter"
    assert first["energy"]["millijoules"] == pytest.approx(1000 / first["energy"]["runs"])
    assert first["parameters"] == sum(parameter.numel() for parameter in task.load_model().parameters())
    # Nobody can tell the operations of a graph alone.
    assert (second["parameters"], second["macs"]) == (None, None)
    assert told == ["latency", "memory of m", "memory of graph alone"]


def test_without_a_counter_there_is_no_energy(
    task: TextClassification, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latency_models.deployed.find_energy_meter", lambda _: None)
    section = measure_efficiency(
        [GraphSubject("m", graph)],
        GraphSubject("m", graph),
        Device(name="onnxruntime_cpu", backend="onnxruntime", threads=1),
        WORKLOAD,
        task.example_inputs(WORKLOAD),
        Profiler(warmup_seconds=0.0, burst=1, min_visits=5, max_seconds=0.02),
        memory=False,
    )[0]
    assert section["energy"] is None
    assert section["peak_memory_mb"] is None


def test_graphs_of_other_exporters_take_other_types(task: TextClassification, graph: Path) -> None:
    model: Any = onnx.load(str(graph))
    for node in model.graph.input:
        node.type.tensor_type.elem_type = onnx.TensorProto.INT32
        cast = onnx.helper.make_node("Cast", [node.name], [f"{node.name}_64"], to=onnx.TensorProto.INT64)
        for other in model.graph.node:
            for place, name in enumerate(other.input):
                if name == node.name:
                    other.input[place] = f"{node.name}_64"
        model.graph.node.insert(0, cast)
    batch = task.samples.batch("test", [0, 1])
    expected = GraphModel(str(graph))(**batch).logits
    assert torch.equal(GraphModel(model.SerializeToString())(**batch).logits, expected)


def test_an_encoder_that_pools_nothing_is_pooled(tmp_path: Path) -> None:
    from tests.tasks.test_kinds import similarity

    task = similarity(tmp_path)
    assert isinstance(task, SentenceEmbedding)
    model = task.load_model()
    whole = export_onnx(task.deployable(model), task.example_inputs(Workload(2, 8)), task.output_names)
    del whole.graph.output[1]
    batch = task.samples.batch("test", [0, 1, 2])
    with torch.inference_mode():
        expected = task.outputs(model, batch)["embedding"]
    found = task.outputs(GraphModel(whole.SerializeToString()), batch)["embedding"]  # type: ignore[arg-type]
    assert torch.allclose(found, expected, atol=1e-5)
