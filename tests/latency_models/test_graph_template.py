"""Edited graphs are the graphs of the pruned models."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latency_models.backends.base import make_backend
from latency_models.backends.graph_template import GraphTemplate, GraphTemplateError
from latency_models.backends.onnx import export_onnx
from latency_models.backends.quantize import at_precision, projection_products
from latency_models.device import Device
from search_spaces.elastic import LinearWeights
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs, largest_difference, prune_bert
from tests.models import tiny_bert

CPU = Device("cpu", "onnxruntime")


@pytest.fixture(scope="module")
def teacher():
    return tiny_bert()


@pytest.fixture(scope="module")
def template(teacher):
    return GraphTemplate.from_model(Pooled(teacher), example_inputs(), POOLED_NAMES)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    heads=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    ffn=st.lists(st.sampled_from([8, 24, 64]), min_size=3, max_size=3),
    ranks=st.lists(st.sampled_from([0, 3, 8]), min_size=3, max_size=3),
    skipped=st.sets(st.integers(0, 2), max_size=3),
    batch=st.integers(1, 3),
    length=st.integers(1, 12),
)
def test_edited_graph_equals_torch(teacher, template, heads, ffn, ranks, skipped, batch, length):
    pruned = prune_bert(teacher, heads, ffn, ranks, tuple(skipped))
    graph = template.edit(pruned.linear_weights, pruned.skipped)
    onnx.checker.check_model(graph, full_check=True)
    inputs = example_inputs(batch, length)
    run = make_backend(CPU).compile(graph, inputs)
    assert list(run.outputs()) == list(POOLED_NAMES)
    assert largest_difference(run, Pooled(pruned.model), inputs) < 1e-4


def test_edited_graph_has_the_nodes_and_weights_of_a_fresh_export(teacher, template):
    pruned = prune_bert(teacher, [1, 2, 3], [8, 24, 64], [0, 3, 8], (1,))
    edited = template.edit(pruned.linear_weights, pruned.skipped)
    fresh = export_onnx(Pooled(pruned.model), example_inputs(), POOLED_NAMES)
    count = lambda graph: sorted(node.op_type for node in graph.graph.node if node.op_type != "Identity")  # noqa: E731
    assert count(edited) == count(fresh)
    size = lambda graph: sum(np.prod(t.dims) for t in graph.graph.initializer if t.data_type == 1)  # noqa: E731
    assert size(edited) == size(fresh)
    assert [i.name for i in edited.graph.input] == [i.name for i in fresh.graph.input]
    assert [o.name for o in edited.graph.output] == [o.name for o in fresh.graph.output]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_runtime_makes_the_same_of_an_edited_graph_as_of_a_fresh_export(teacher, template, tmp_path, precision):
    """Else what is profiled is not what is deployed: other fusions are other kernels, and other times."""
    pruned = prune_bert(teacher, [1, 2, 3], [8, 24, 64], [0, 0, 0], ())
    graphs = (
        template.edit(pruned.linear_weights, pruned.skipped),
        export_onnx(Pooled(pruned.model), example_inputs(), POOLED_NAMES),
    )
    edited, fresh = (optimised(at_precision(graph, precision), tmp_path / "optimised.onnx") for graph in graphs)
    assert edited == fresh
    # Where ONNX Runtime fused these, a model of six blocks took up to a third longer.
    assert "SkipLayerNormalization" not in fresh


def optimised(graph, file):
    """How often ONNX Runtime's own optimiser leaves each operator."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(file), 3
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(file).graph.node)


def test_edit_leaves_the_template_as_it_was(teacher, template):
    inputs = example_inputs()
    before = make_backend(CPU).compile(template.edit({}), inputs).outputs()
    pruned = prune_bert(teacher, [1, 1, 1], [8, 8, 8], [3, 3, 3], (0, 2))
    template.edit(pruned.linear_weights, pruned.skipped)
    after = make_backend(CPU).compile(template.edit({}), inputs).outputs()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_template_owns_its_weights():
    model = tiny_bert(seed=3)
    template = GraphTemplate.from_model(Pooled(model), example_inputs(), POOLED_NAMES)
    before = template.edit({}).SerializeToString(deterministic=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert template.edit({}).SerializeToString(deterministic=True) == before


def test_biases_come_and_go(teacher, template):
    path = "encoder.layer.1.output.dense"
    linear = teacher.get_submodule(path)
    graph = template.edit({path: LinearWeights(linear.weight, None)})
    inputs = example_inputs()
    without = tiny_bert()
    without.get_submodule(path).bias.data.zero_()
    run = make_backend(CPU).compile(graph, inputs)
    assert largest_difference(run, Pooled(without), inputs) < 1e-4


def test_bias_is_added_where_the_teacher_has_none():
    model = tiny_bert()
    path = "encoder.layer.0.intermediate.dense"
    bias = model.get_submodule(path).bias
    without = tiny_bert()
    without.get_submodule(path).bias = None
    template = GraphTemplate.from_model(Pooled(without), example_inputs(), POOLED_NAMES)
    graph = template.edit({path: LinearWeights(model.get_submodule(path).weight, bias)})
    run = make_backend(CPU).compile(graph, example_inputs())
    assert largest_difference(run, Pooled(model), example_inputs()) < 1e-4


def test_classifier_is_edited_by_paths_with_the_base_model_before_them():
    teacher = tiny_bert(labels=3)

    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, **inputs):
            return (self.model(**inputs).logits,)

    template = GraphTemplate.from_model(Logits(teacher), example_inputs(), ["logits"])
    pruned = prune_bert(teacher, [2, 1, 3], [16, 8, 24], [0, 4, 0], (2,), prefix="bert.")
    run = make_backend(CPU).compile(template.edit(pruned.linear_weights, pruned.skipped), example_inputs())
    assert largest_difference(run, Logits(pruned.model), example_inputs()) < 1e-4


def test_names_of_products_select_blocks(teacher, template):
    pruned = prune_bert(teacher, [2, 2, 2], [8, 8, 8], [3, 0, 0])
    edited = template.edit(pruned.linear_weights)
    exported = export_onnx(Pooled(pruned.model), example_inputs(), POOLED_NAMES)
    for graph in (edited, exported):
        assert len(projection_products(graph, "bert", [0])) == 8
        assert len(projection_products(graph, "bert", [0, 2])) == 14
        assert projection_products(graph, "bert", []) == []


def test_graphs_tell_nothing_of_the_machine(teacher, template):
    text = (
        template.edit({}).SerializeToString()
        + export_onnx(Pooled(teacher), example_inputs(), POOLED_NAMES).SerializeToString()
    )
    assert b"site-packages" not in text
    assert b".py" not in text


def test_unknown_paths_and_blocks_are_refused(template):
    with pytest.raises(ValueError, match=r"no projection 'encoder\.layer\.9"):
        template.edit({"encoder.layer.9.output.dense": LinearWeights(torch.zeros(2, 2), None)})
    with pytest.raises(ValueError, match="numbered 0 to 2, but got 3"):
        template.edit({}, [3])


def test_a_module_without_transformers_model_is_refused():
    with pytest.raises(GraphTemplateError, match="contains no transformers model"):
        GraphTemplate.from_model(torch.nn.Linear(2, 2), {"input": torch.zeros(2, 2)}, ["y"])
