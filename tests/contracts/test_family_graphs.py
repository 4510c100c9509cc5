"""Every family's exported graph can be cut down to its subnets' graphs, which compute what the extracted models do."""

from __future__ import annotations

import collections
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from latency_models.backends import graph_twin
from latency_models.backends.base import make_backend
from latency_models.backends.graph_template import GraphTemplate, GraphTemplateError
from latency_models.backends.onnx import export_onnx
from latency_models.backends.quantize import is_quantized, projection_products, quantize_int8
from latency_models.backends.template_key import template_key
from latency_models.backends.template_store import read, write
from latency_models.device import Device
from search_spaces.families import blocks_of
from search_spaces.subnet import SKIPPED
from tests.contracts.test_families import MODEL_TYPES, made
from tests.contracts.test_hidden_sizes import narrow

CPU = Device("cpu", "onnxruntime")
# The graphs of XLM-RoBERTa and CamemBERT are RoBERTa's: one export less to wait for.
TYPES = [model_type for model_type in MODEL_TYPES if model_type not in ("xlm-roberta", "camembert")]


class Deployed(nn.Module):
    """A model whose forward gives its first output alone."""

    def __init__(self, model: Any, *, causal: bool) -> None:
        super().__init__()
        self.model = model
        self.options = {"use_cache": False} if causal else {}

    def forward(self, **inputs: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model(**inputs, **self.options)[0],)


def deployed(model_type: str, subnet: Any) -> Deployed:
    it = made(model_type)
    return Deployed(it.supernet.extract(subnet), causal=it.supernet.family.causal)


@cache
def template(model_type: str) -> GraphTemplate:
    it = made(model_type)
    return GraphTemplate.from_model(deployed(model_type, it.space.teacher), it.inputs, ["output"])


def edited(model_type: str, subnet: Any) -> onnx.ModelProto:
    skipped = [index for index, block in enumerate(subnet.blocks) if block.skipped]
    return template(model_type).edit(made(model_type).supernet.linear_weights(subnet), skipped)


def difference(graph: onnx.ModelProto, module: nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """Largest difference at tokens that are no padding: what a query that sees only padding gives is left open."""
    found = next(iter(make_backend(CPU).compile(graph, inputs).outputs().values()))
    with torch.inference_mode():
        expected = module(**inputs)[0].numpy()
    assert found.shape == expected.shape
    mask = inputs["attention_mask"][:, :, None].numpy() if "attention_mask" in inputs else 1.0
    return float((abs(found - expected) * mask).max() / abs(expected).max())


@pytest.mark.parametrize("model_type", TYPES)
def test_edited_graphs_compute_what_extracted_models_do(model_type):
    it = made(model_type)
    inputs = {name: values[:3, :7] if values.dim() == 2 else values[:3] for name, values in it.inputs.items()}
    without_first = it.space.teacher.with_block(0, SKIPPED)
    for subnet in (it.space.teacher, without_first, *it.space.sample(np.random.default_rng(0), 6)):
        graph, module = edited(model_type, subnet), deployed(model_type, subnet)
        onnx.checker.check_model(graph, full_check=True)
        assert difference(graph, module, inputs) < 1e-5, subnet
        # All projections that are left are found by name, so that each block can have its own precision.
        linears = [m for m in blocks_of(module.model).modules() if isinstance(m, nn.Linear | Conv1D)]
        assert len(projection_products(graph, it.space.shape.family, subnet.kept)) == len(linears)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_stored_template_is_edited_as_the_exported_one(model_type):
    it, exported = made(model_type), template(model_type)
    teacher = deployed(model_type, it.space.teacher)
    data = write(exported, teacher)
    again = read(data, teacher)
    assert len(data) < 0.8 * sum(weight.nbytes for weight in teacher.parameters())
    assert template_key(teacher, it.inputs, ["output"])
    for subnet in (it.space.teacher, *it.space.sample(np.random.default_rng(1), 3)):
        weights = it.supernet.linear_weights(subnet)
        skipped = [index for index, block in enumerate(subnet.blocks) if block.skipped]
        graphs = [t.edit(weights, skipped).SerializeToString(deterministic=True) for t in (again, exported)]
        assert graphs[0] == graphs[1], subnet


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_edited_graphs_have_the_operators_and_weights_of_fresh_exports(model_type):
    it = made(model_type)
    subnet = it.space.sample(np.random.default_rng(3), 1)[0]
    graph, fresh = edited(model_type, subnet), export_onnx(deployed(model_type, subnet), it.inputs, ["output"])
    count = lambda g: collections.Counter(n.op_type for n in g.graph.node if n.op_type not in ("Identity", "Concat"))  # noqa: E731
    assert count(graph) == count(fresh)
    floats = lambda g: sum(np.prod(t.dims) for t in g.graph.initializer if t.data_type == 1)  # noqa: E731
    assert floats(graph) == floats(fresh)
    assert [i.name for i in graph.graph.input] == [i.name for i in fresh.graph.input]


def test_fresh_exports_of_transposed_projections_can_be_quantised():
    it = made("gpt2")
    graph = export_onnx(deployed("gpt2", it.space.teacher), it.inputs, ["output"])
    names = projection_products(graph, "gpt2", range(3))
    assert len(names) == 12
    assert is_quantized(quantize_int8(graph, nodes=names))


def test_a_stream_that_is_brought_back_behind_the_base_model_is_exported_so():
    it = narrow("gpt2")
    module = Deployed(it.supernet.extract(replace(it.space.teacher, hidden_size=16)), causal=True)
    graph = export_onnx(module, it.inputs, ["output"])
    assert difference(graph, module, it.inputs) < 1e-5


def test_a_graph_whose_integers_no_size_explains_is_refused(monkeypatch):
    """The caller falls back to exporting every subnet."""
    it = made("vit")
    original = graph_twin.twin

    def other_sizes(*arguments):
        model, (kv_heads, group, ffn) = original(*arguments)
        return model, (kv_heads + 1, group, ffn)

    monkeypatch.setattr("latency_models.backends.graph_template.twin", other_sizes)
    with pytest.raises(GraphTemplateError, match="becomes 5 at other sizes"):
        GraphTemplate.from_model(deployed("vit", it.space.teacher), it.inputs, ["output"])
