"""Precisions of ONNX graphs."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from onnx import numpy_helper

from latency_models.backends.base import BackendError, make_backend
from latency_models.backends.graph_file import graph_bytes, load_graph
from latency_models.backends.onnx import export_onnx
from latency_models.backends.quantize import at_precision, is_quantized, quantize_int8, weight_products
from latency_models.backends.quantize_static import quantize_static
from latency_models.backends.quantize_weights import quantize_int4
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


def arrays(*sizes):
    return [{name: value.numpy() for name, value in example_inputs(*size).items()} for size in sizes]


def test_static_int8_is_calibrated_on_inputs_of_any_shapes(graph):
    quantized = quantize_static(graph, arrays((2, 7), (1, 5), (4, 9)))
    operators = [node.op_type for node in quantized.graph.node]
    assert operators.count("MatMul") == 24
    # A pair for the activations and one side for the weights of every projection; attention's own products are fp32.
    assert operators.count("QuantizeLinear") >= 9
    assert len(weight_products(graph)) == 18
    assert cosine(graph, quantized) > 0.97
    assert is_quantized(quantized)
    with pytest.raises(BackendError, match="at least one calibration input"):
        quantize_static(graph, [])
    assert quantize_static(graph, arrays((2, 7)), nodes=[]) is graph


def test_symmetric_static_int8_has_no_zero_points_beside_zero(graph):
    quantized = quantize_static(graph, arrays((2, 7)), symmetric=True)
    points = [numpy_helper.to_array(t) for t in quantized.graph.initializer if t.name.endswith("zero_point")]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)


def test_int4_weights_in_both_forms(graph):
    operators = quantize_int4(graph)
    assert sum(node.op_type == "MatMulNBits" for node in operators.graph.node) == 18
    plain = quantize_int4(graph, form="qdq")
    assert {node.domain for node in plain.graph.node} == {""}
    assert sum(node.op_type == "DequantizeLinear" for node in plain.graph.node) == 18
    assert next(entry.version for entry in plain.opset_import if not entry.domain) == 21
    for quantized in (operators, plain):
        assert 0.8 < cosine(graph, quantized) < 0.9999
        assert quantized.ByteSize() < graph.ByteSize()
    one = quantize_int4(graph, nodes=weight_products(graph)[:1])
    assert sum(node.op_type == "MatMulNBits" for node in one.graph.node) == 1
    assert quantize_int4(graph, nodes=[]) is graph
    with pytest.raises(BackendError, match="no node 'nothing'"):
        quantize_int4(graph, nodes=["nothing"])


def test_the_tools_leave_logging_as_it_was(graph):
    logger = logging.getLogger()
    before = (logger.level, list(logger.handlers), logger.manager.disable)
    quantize_int4(graph)
    assert (logger.level, list(logger.handlers), logger.manager.disable) == before


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
