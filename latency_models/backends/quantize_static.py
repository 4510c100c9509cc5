"""Int8 with activations' scales found in advance, by ONNX Runtime's own calibration."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from latency_models.backends.base import BackendError, with_cache
from latency_models.backends.byte_products import suited
from latency_models.backends.graph_file import check_opset, input_names, input_shapes, load_graph
from latency_models.backends.quantize import Calibration, check_nodes, copied, quiet, weight_products, without_shapes

if TYPE_CHECKING:
    from onnx import ModelProto


def quantize_static(
    model: Any, calibration: Calibration, *, nodes: Sequence[str] | None = None, symmetric: bool = False
) -> ModelProto:
    """Quantise a graph to int8 as quantise/dequantise pairs: weights per output channel, one fixed scale a tensor.

    Args:
        model: An fp32 graph (``ModelProto``, bytes or path); it is not changed.
        calibration: Real inputs, one mapping a run; the smallest and largest activations among them set the scales.
        nodes: Names of the ``MatMul`` nodes to quantise; all products with constant weights when None.
        symmetric: Signed activations around zero, which TensorRT asks for; ONNX Runtime is several times faster on
            CPUs with unsigned ones, the default. Weights are signed then; by default they are what this machine's CPU
            multiplies exactly: see `byte_products.suited`.

    Returns:
        A new graph.

    Raises:
        BackendError: A node is not in the graph, or there is no calibration input.
    """
    from onnxruntime.quantization import QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as run_tool

    graph = load_graph(model)
    check_opset(graph)  # The tool runs the graph, and would say so in its own way.
    check_nodes(graph, nodes)
    wanted = weight_products(graph) if nodes is None else list(nodes)
    if not wanted:
        return graph
    taken = input_names(graph)
    shapes = input_shapes(graph)
    inputs = [{name: with_cache(shapes, one)[name] for name in taken} for one in calibration]
    if not inputs:
        raise BackendError("static quantisation: there must be at least one calibration input, but there is none.")
    with tempfile.TemporaryDirectory() as directory, quiet():
        target = Path(directory) / "static.onnx"
        run_tool(
            copied(graph),
            target,
            _Reader(inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=wanted,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
        )
        return without_shapes(suited(load_graph(target), unsigned=False if symmetric else None))


class _Reader:
    """Hands the tool one input after the other; it knows this form by its method, not by a base class."""

    def __init__(self, inputs: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        self._left: Iterator[Mapping[str, NDArray[Any]]] = iter(inputs)

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        """The next input; None after the last."""
        return next(self._left, None)
