"""Precisions of ONNX graphs, by ONNX Runtime's own tools."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_models.backends.base import BackendError
from latency_models.backends.graph_file import load_graph
from search_spaces.families import FAMILIES

if TYPE_CHECKING:
    from onnx import ModelProto

_QUANTIZED_OPS = frozenset(
    {"DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear", "MatMulInteger", "MatMulNBits", "QLinearMatMul"}
)


def quantize_int8(model: Any, *, nodes: Sequence[str] | None = None, embeddings: bool = False) -> ModelProto:
    """Quantise a graph to int8: weights per output channel, activations dynamically, one scale a tensor.

    Products of two activations stay in fp32. Only ``MatMul`` is touched: quantising more makes nothing faster.

    Args:
        model: An fp32 graph (``ModelProto``, bytes or path); it is not changed.
        nodes: Names of the ``MatMul`` nodes to quantise (a block's own precision); all of them when None.
        embeddings: Also store embeddings as int8: a smaller file at the same speed, slightly less exact.

    Returns:
        A new graph.

    Raises:
        BackendError: A node is not in the graph.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = load_graph(model)
    if nodes is not None and (unknown := sorted(set(nodes) - {node.name for node in graph.graph.node})):
        raise BackendError(f"quantize_int8: the graph has no node {unknown[0]!r}.")
    if nodes is not None and not nodes:
        return graph
    wanted = None if nodes is None else list(nodes)
    if wanted is not None and embeddings:
        wanted += [node.name for node in graph.graph.node if node.op_type == "Gather"]
    with tempfile.TemporaryDirectory() as directory, _quiet():
        target = Path(directory) / "int8.onnx"
        quantize_dynamic(
            graph,
            target,
            op_types_to_quantize=["MatMul", "Gather"] if embeddings else ["MatMul"],
            nodes_to_quantize=wanted,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        return load_graph(target)


def projection_products(model: ModelProto, family: str, blocks: Collection[int]) -> list[str]:
    """Names of the products of some blocks' projections: what `quantize_int8` takes as ``nodes``.

    Args:
        model: A graph of `export_onnx` or of `GraphTemplate.edit`, which name products after their modules.
        family: Name of the family's row in `search_spaces.families`.
        blocks: Numbers of blocks: the teacher's in an edited graph, those of the model itself in an exported one.
    """
    row = next(row for row in FAMILIES if row.name == family)
    paths = "|".join(re.escape(path) for path in row.projections)
    numbers = "|".join(str(index) for index in blocks)
    pattern = re.compile(rf"(?:^|\.){re.escape(row.blocks)}\.(?:{numbers})\.(?:{paths})(?:\.[01])?/MatMul$")
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and pattern.search(node.name)]


def is_quantized(model: Any) -> bool:
    """Whether a graph already has integer or quantised operators."""
    return any(node.op_type in _QUANTIZED_OPS for node in load_graph(model).graph.node)


def at_precision(model: Any, precision: str) -> Any:
    """The graph in a device's precision; one that is already quantised is returned as it is.

    Raises:
        BackendError: The precision is unknown.
    """
    if precision == "fp32":
        return model
    if precision == "int8":
        return model if is_quantized(model) else quantize_int8(model)
    if precision == "fp16":
        return to_fp16(model)
    raise BackendError(f"`precision` must be one of fp32, fp16, int8 for ONNX graphs, but got {precision!r}.")


def to_fp16(model: Any) -> ModelProto:
    """Weights and activations in fp16, inputs and outputs as they were: for GPUs, slower on most CPUs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = load_graph(model)
    copy = type(graph)()
    copy.CopyFrom(graph)
    with _quiet():
        converted: ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    return converted


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tool's advice on the root logger: its pre-processing is of no use to graphs from our exporter."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
