"""Graphs of trained subnets, made without an export, compute what the subnets compute."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from torch import nn

from latency_models.backends.base import make_backend
from latency_models.backends.graph_students import student_graph
from latency_models.backends.graph_template import GraphTemplate, GraphTemplateError
from latency_models.device import Device
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs, largest_difference, prune_bert
from tests.models import randomise, tiny_bert


@pytest.fixture(scope="module")
def template() -> GraphTemplate:
    return GraphTemplate.from_model(Pooled(tiny_bert()), example_inputs(), POOLED_NAMES)


def kept(skipped: tuple[int, ...]) -> list[int]:
    return [index for index in range(3) if index not in skipped]


@pytest.mark.parametrize("skipped", [(), (0,), (1, 2)])
def test_every_weight_is_the_trained_model_s_own(template, skipped):
    model = prune_bert(tiny_bert(), [1, 4, 3], [8, 64, 24], [0, 3, 0], skipped).model
    trained = randomise(copy.deepcopy(model), seed=7)
    graph = student_graph(template, Pooled(trained), kept(skipped))
    onnx.checker.check_model(graph, full_check=True)
    inputs = example_inputs(2, 9)
    run = make_backend(Device("cpu", "onnxruntime")).compile(graph, inputs)
    assert largest_difference(run, Pooled(trained), inputs) < 1e-4
    assert largest_difference(run, Pooled(model), inputs) > 1e-2


def test_weights_that_the_exporter_made_of_others_are_not_kept(template):
    renamed = copy.deepcopy(Pooled(tiny_bert()))
    renamed.model.embeddings.LayerNorm = nn.Sequential(renamed.model.embeddings.LayerNorm)
    with pytest.raises(GraphTemplateError, match=r"embeddings\.LayerNorm"):
        student_graph(template, renamed, [0, 1, 2])


def test_tensors_that_the_exporter_merged_are_not_shared():
    teacher = tiny_bert()
    with torch.no_grad():
        for block in teacher.encoder.layer:
            block.output.LayerNorm.bias.zero_()
    merged = GraphTemplate.from_model(Pooled(teacher), example_inputs(), POOLED_NAMES)
    with pytest.raises(GraphTemplateError, match="of its own"):
        student_graph(merged, Pooled(randomise(copy.deepcopy(teacher), seed=7)), [0, 1, 2])


def test_a_buffer_that_the_exporter_reshaped_is_kept(template, monkeypatch):
    """Torch 2.11's exporter folds the views of rotary frequencies that others leave in the graph."""
    model = Pooled(tiny_bert())
    model.register_buffer("frequencies", torch.linspace(1, 0, 8))
    edit = GraphTemplate.edit

    def folded(*arguments):
        graph = edit(*arguments)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values, "unsqueeze_13"))
        return graph

    monkeypatch.setattr(GraphTemplate, "edit", folded)
    values = model.frequencies.numpy()[None, :, None]
    assert "unsqueeze_13" in {tensor.name for tensor in student_graph(template, model, [0, 1, 2]).graph.initializer}
    values = 2 * values
    with pytest.raises(GraphTemplateError, match="'unsqueeze_13' is no parameter"):
        student_graph(template, model, [0, 1, 2])
