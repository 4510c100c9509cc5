"""Precisions of ONNX graphs, by ONNX Runtime's own tools."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from latency_models.backends.base import BackendError
from latency_models.backends.byte_products import suited
from latency_models.backends.graph_file import load_graph

if TYPE_CHECKING:
    from onnx import ModelProto

# What quantised graphs are written in: operators of their own (for ONNX Runtime), or quantise/dequantise pairs around
# ONNX's plain ones, which other runtimes fuse.
Form = Literal["operators", "qdq"]
Calibration = Iterable[Mapping[str, NDArray[Any]]]

_QUANTIZED_OPS = frozenset(
    {"DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear", "MatMulInteger", "MatMulNBits", "QLinearMatMul"}
)


def quantize_int8(model: Any, *, nodes: Sequence[str] | None = None, embeddings: bool = False) -> ModelProto:
    """Quantise a graph to int8: weights per output channel, activations dynamically, one scale a tensor.

    Products of two activations stay in fp32. Only ``MatMul`` is touched: quantising more makes nothing faster. Weights
    are signed or unsigned integers, whichever this machine's CPU multiplies exactly: see `byte_products.suited`.

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
    check_nodes(graph, nodes)
    if nodes is not None and not nodes:
        return graph
    wanted = None if nodes is None else list(nodes)
    if wanted is not None and embeddings:
        wanted += [node.name for node in graph.graph.node if node.op_type == "Gather"]
    with tempfile.TemporaryDirectory() as directory, quiet():
        target = Path(directory) / "int8.onnx"
        quantize_dynamic(
            graph,
            target,
            op_types_to_quantize=["MatMul", "Gather"] if embeddings else ["MatMul"],
            nodes_to_quantize=wanted,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        return without_shapes(suited(load_graph(target)))


def projection_products(model: ModelProto, family: str, blocks: Collection[int]) -> list[str]:
    """Names of the products of some blocks' projections: what `quantize_int8` takes as ``nodes``.

    Args:
        model: A graph of `export_onnx` or of `GraphTemplate.edit`, which name products after their modules.
        family: Name of the family's row in `search_spaces.families`.
        blocks: Numbers of blocks: the teacher's in an edited graph, those of the model itself in an exported one.
    """
    return [name for name, block in _projections_of(model, family) if block in blocks]


def _blocks_of(model: ModelProto, family: str) -> set[int]:
    """Numbers of the blocks of which the graph has projections."""
    return {block for _, block in _projections_of(model, family)}


def _projections_of(model: ModelProto, family: str) -> list[tuple[str, int]]:
    """Names of the projections' products with the number of their block."""
    # Bundles carry this file to machines that have no torch, on which families are built.
    from search_spaces.families import FAMILIES

    row = next(row for row in FAMILIES if row.name == family)
    paths = "|".join(re.escape(path) for path in row.projections)
    pattern = re.compile(rf"(?:^|\.){re.escape(row.blocks)}\.(\d+)\.(?:{paths})(?:\.[01])?/MatMul$")
    found = ((node.name, pattern.search(node.name)) for node in model.graph.node if node.op_type == "MatMul")
    return [(name, int(match[1])) for name, match in found if match]


def at_block_precisions(
    model: Any,
    family: str,
    precisions: Sequence[str],
    *,
    form: Form = "operators",
    calibration: Calibration = (),
) -> ModelProto:
    """The graph with the projections of some blocks quantised, each block as its own precision says.

    Args:
        model: An fp32 graph whose products are named after their modules: see `projection_products`.
        family: Name of the family's row in `search_spaces.families`.
        precisions: ``fp32``, ``int8`` or ``int4`` of every block that is left, in order: an edited graph numbers blocks
            as the teacher does, an exported one as the model itself.
        form: See `at_precision`.
        calibration: See `at_precision`.

    Returns:
        A new graph, or the given one where nothing is to be quantised.

    Raises:
        BackendError: A block's precision has no form in ONNX Runtime.
    """
    from latency_models.backends.quantize_static import quantize_static
    from latency_models.backends.quantize_weights import quantize_int4

    graph = load_graph(model)
    if other := sorted({*precisions} - {"fp32", "int8", "int4"}):
        raise BackendError(f"`precision` of a block must be fp32, int8 or int4 in an ONNX graph, but got {other[0]!r}.")
    if {*precisions} <= {"fp32"}:
        return graph
    numbers = sorted(_blocks_of(graph, family))
    if len(numbers) != len(precisions):
        raise BackendError(
            f"quantisation: the graph has {len(numbers)} blocks, but there are {len(precisions)} precisions."
        )

    def products(precision: str) -> list[str]:
        blocks = [number for number, own in zip(numbers, precisions, strict=True) if own == precision]
        return projection_products(graph, family, blocks) if blocks else []

    int8, int4 = products("int8"), products("int4")
    if form == "operators":
        return quantize_int4(quantize_int8(graph, nodes=int8), nodes=int4)
    return quantize_int4(quantize_static(graph, calibration, nodes=int8, symmetric=True), nodes=int4, form=form)


def is_quantized(model: Any) -> bool:
    """Whether a graph already has integer or quantised operators."""
    return any(node.op_type in _QUANTIZED_OPS for node in load_graph(model).graph.node)


def at_precision(model: Any, precision: str, *, form: Form = "operators", calibration: Calibration = ()) -> Any:
    """The graph in a device's precision; one that is already quantised is returned as it is.

    Args:
        model: An fp32 graph, or one that is quantised already.
        precision: ``fp32``, ``fp16``, ``int8`` or ``int4``.
        form: ``operators`` (int8 activations scaled as they come) or ``qdq`` (scaled in advance, symmetrically).
        calibration: Inputs to find activations' scales by, for int8 in the form ``qdq``.

    Raises:
        BackendError: The precision is unknown.
    """
    from latency_models.backends.quantize_static import quantize_static
    from latency_models.backends.quantize_weights import quantize_int4

    if precision == "fp32":
        return model
    if precision == "fp16":
        return to_fp16(model)
    if precision not in ("int8", "int4"):
        raise BackendError(f"`precision` must be one of fp32, fp16, int8, int4 for ONNX graphs, but got {precision!r}.")
    if is_quantized(model):
        return model
    if precision == "int4":
        return quantize_int4(model, form=form)
    return quantize_int8(model) if form == "operators" else quantize_static(model, calibration, symmetric=True)


def weight_products(model: ModelProto) -> list[str]:
    """Names of the products with constants: those that can be quantised without touching attention's own."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in constants]


def without_shapes(model: ModelProto) -> ModelProto:
    """The same graph, robbed in place of the shapes between inputs and outputs that the tools find and leave in it.

    See `onnx_passes.forget_shapes`: with them ONNX Runtime fuses sums with norms, and is slower on CPUs.
    """
    del model.graph.value_info[:]
    return model


def check_nodes(model: ModelProto, nodes: Sequence[str] | None) -> None:
    """Refuse names that are not in the graph.

    Raises:
        BackendError: A node is not in the graph.
    """
    if nodes is not None and (unknown := sorted(set(nodes) - {node.name for node in model.graph.node})):
        raise BackendError(f"quantisation: the graph has no node {unknown[0]!r}.")


def to_fp16(model: Any) -> ModelProto:
    """Weights and activations in fp16, inputs and outputs as they were: for GPUs, slower on most CPUs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = load_graph(model)
    with quiet():
        converted: ModelProto = convert_float_to_float16(copied(graph), keep_io_types=True)
    return converted


def copied(model: ModelProto) -> ModelProto:
    """A copy, for tools that change what they are given."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the tools: their advice on the root logger (one sets that up on import), and what they print."""
    logger = logging.getLogger()
    handlers, disabled = list(logger.handlers), logger.manager.disable
    # A handler that is there already keeps `basicConfig` from adding one of its own.
    logger.handlers = [logging.NullHandler()]
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(disabled)
        logger.handlers = handlers
