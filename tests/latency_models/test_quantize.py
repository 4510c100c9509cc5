"""Precisions of ONNX graphs."""

from __future__ import annotations

import numpy as np
import pytest

from latency_models.backends.base import BackendError, make_backend
from latency_models.backends.graph_file import graph_bytes, load_graph
from latency_models.backends.onnx import export_onnx
from latency_models.backends.quantize import at_precision, is_quantized, quantize_int8
from latency_models.device import Device
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs
from tests.models import tiny_bert


@pytest.fixture(scope="module")
def graph():
    return export_onnx(Pooled(tiny_bert()), example_inputs(), POOLED_NAMES)


def cosine(first, second):
    runs = [make_backend(Device("x", "onnxruntime")).compile(graph, example_inputs()) for graph in (first, second)]
    a, b = (run.outputs()["sentence_embedding"] for run in runs)
    return float((a * b).sum(axis=1).min())


def test_int8_keeps_the_direction_of_embeddings(graph):
    quantized = quantize_int8(graph)
    assert cosine(graph, quantized) > 0.98
    operators = [node.op_type for node in quantized.graph.node]
    assert operators.count("MatMulInteger") == 18
    # Scores and weighted values are products of two activations.
    assert operators.count("MatMul") == 6
    scales = [t for t in quantized.graph.initializer if t.name.endswith("_scale") and "output.dense" in t.name]
    assert all(list(t.dims) == [32] for t in scales)


def test_embeddings_are_stored_as_int8_where_asked(graph):
    assert quantize_int8(graph, embeddings=True).ByteSize() < quantize_int8(graph).ByteSize()
    assert cosine(graph, quantize_int8(graph, embeddings=True)) > 0.97


def test_some_products_only(graph):
    names = [node.name for node in graph.graph.node if node.op_type == "MatMul" and "layer.0.inter" in node.name]
    quantized = quantize_int8(graph, nodes=names)
    assert sum(node.op_type == "MatMulInteger" for node in quantized.graph.node) == 1
    assert quantize_int8(graph, nodes=[]) is graph
    with pytest.raises(BackendError, match="no node 'nothing'"):
        quantize_int8(graph, nodes=["nothing"])


def test_a_quantised_graph_is_not_quantised_again(graph):
    quantized = quantize_int8(graph)
    assert is_quantized(quantized)
    assert not is_quantized(graph)
    assert at_precision(quantized, "int8") is quantized
    assert at_precision(graph, "fp32") is graph


def test_fp16_keeps_inputs_and_outputs(graph):
    half = at_precision(graph, "fp16")
    assert half.ByteSize() < 0.7 * graph.ByteSize()
    assert cosine(graph, half) > 0.999
    with pytest.raises(BackendError, match="but got 'fp4'"):
        at_precision(graph, "fp4")


def test_graphs_come_as_proto_bytes_or_path(graph, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(graph_bytes(graph))
    assert load_graph(path) == load_graph(graph_bytes(graph)) == load_graph(graph)
    expected = make_backend(Device("x", "onnxruntime")).compile(graph, example_inputs()).outputs()
    for source in (path, str(path), path.read_bytes()):
        found = make_backend(Device("x", "onnxruntime")).compile(source, example_inputs()).outputs()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_what_is_no_graph_is_refused(tmp_path):
    with pytest.raises(BackendError, match="No such file"):
        load_graph(tmp_path / "absent.onnx")
    with pytest.raises(BackendError, match="not an ONNX file"):
        load_graph(b"\xff\x01 nonsense")
    with pytest.raises(BackendError, match="got int"):
        load_graph(3)
