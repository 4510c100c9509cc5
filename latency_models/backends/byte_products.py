"""Int8 weights as integers that a CPU multiplies without overflow.

ONNX Runtime multiplies unsigned activations by signed weights. x86 processors without VNNI add two such products in 16
bits, which saturates: 255 * 127 twice is more than 32,767. Weights stored as unsigned integers around 128 stand for the
same numbers and are multiplied in 32 bits there; with VNNI the signed ones are exact, and faster.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from latency_models.backends.graph_file import load_graph
from latency_models.device import cpu_flags

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_EXACT = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})
# Where the weight stands among a node's inputs, and where its zero point.
_PLACES = {"MatMulInteger": (1, 3), "DequantizeLinear": (0, 2)}


def saturates() -> bool:
    """Whether this processor's products of unsigned and signed bytes may overflow."""
    return platform.machine().lower() in ("x86_64", "amd64") and not _EXACT & cpu_flags()


def suited(model: Any, *, unsigned: bool | None = None) -> Any:
    """The graph with the weights of its integer products stored as they are exact on a CPU.

    Args:
        model: A graph (``ModelProto``, bytes or path); it is not changed.
        unsigned: Whether to store them as unsigned integers around 128; None where this machine's CPU needs it.

    Returns:
        A new graph, or the given one where nothing is to be stored otherwise.
    """
    from onnx import ModelProto, numpy_helper

    unsigned = saturates() if unsigned is None else unsigned
    wanted = np.dtype(np.uint8 if unsigned else np.int8)
    graph = load_graph(model)
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    found = {
        name: zero for name, zero in _weights(graph, stored) if numpy_helper.to_array(stored[name]).dtype != wanted
    }
    if not found:
        return model
    changed = ModelProto.FromString(graph.SerializeToString())
    for tensor in changed.graph.initializer:
        if tensor.name in found or tensor.name in found.values():
            moved = numpy_helper.to_array(tensor).astype(np.int16) + (128 if unsigned else -128)
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(wanted), tensor.name))
    return changed


def _weights(graph: ModelProto, stored: dict[str, TensorProto]) -> Iterator[tuple[str, str]]:
    """Names of the int8 weights of products, each with the name of its zero point."""
    from onnx import TensorProto

    read: dict[str, list[NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            read.setdefault(name, []).append(node)
    products = {name for node in graph.graph.node if node.op_type == "MatMul" for name in node.input}
    for node in graph.graph.node:
        if node.op_type not in _PLACES or (node.op_type == "DequantizeLinear" and node.output[0] not in products):
            continue
        weight, zero = (node.input[place] if place < len(node.input) else "" for place in _PLACES[node.op_type])
        # What nodes of another kind read, too, stays as it is.
        shared = any(other.op_type != node.op_type for name in (weight, zero) for other in read[name])
        kinds = {stored[name].data_type if name in stored else None for name in (weight, zero)}
        if not shared and kinds <= {TensorProto.INT8, TensorProto.UINT8}:
            yield weight, zero
