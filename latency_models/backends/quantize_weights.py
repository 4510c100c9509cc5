"""Int4 weights by ONNX Runtime's own tool: a quarter of fp16's memory; whether it is faster is for a profile to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from latency_models.backends.graph_file import load_graph
from latency_models.backends.quantize import Form, check_nodes, copied, quiet, weight_products, without_shapes

if TYPE_CHECKING:
    from onnx import ModelProto

# Inputs that share a scale. 32 is the smallest that all of the runtimes have kernels for.
BLOCK_SIZE = 32


def quantize_int4(
    model: Any, *, nodes: Sequence[str] | None = None, form: Form = "operators", block_size: int = BLOCK_SIZE
) -> ModelProto:
    """Quantise weights to int4 in blocks, rounded to the nearest; activations stay as they are.

    Args:
        model: An fp32 graph (``ModelProto``, bytes or path); it is not changed.
        nodes: Names of the ``MatMul`` nodes to quantise; all products with constant weights when None.
        form: ``operators`` (``MatMulNBits``, for ONNX Runtime, which computes with int8 activations then) or ``qdq``
            (symmetric, in ONNX's own operators of opset 21).
        block_size: Inputs of a product that share a scale.

    Returns:
        A new graph.

    Raises:
        BackendError: A node is not in the graph.
    """
    graph = load_graph(model)
    check_nodes(graph, nodes)
    wanted = weight_products(graph) if nodes is None else list(nodes)
    if not wanted:
        return graph
    operators = form == "operators"
    with quiet():
        from onnxruntime.quantization import QuantFormat
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        tool = MatMulNBitsQuantizer(
            copied(graph),
            bits=4,
            block_size=block_size,
            is_symmetric=not operators,
            accuracy_level=4 if operators else None,
            nodes_to_exclude=[name for name in weight_products(graph) if name not in wanted],
            quant_format=QuantFormat.QOperator if operators else QuantFormat.QDQ,
        )
        tool.process()
    return without_shapes(tool.model.model)
