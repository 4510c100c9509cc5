"""Edits of a graph that was cloned from a template: other projections, other wires, the same outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latency_models.backends.graph_places import LinearPlace, values_of

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

    from search_spaces.elastic import LinearWeights

# Behind the name of a parameter that a graph holds transposed.
TRANSPOSED = "/transposed"


def replace_linear(
    model: ir.Model, values: Mapping[str, ir.Value], path: str, place: LinearPlace, weights: LinearWeights
) -> None:
    """Put one or two products and the bias in the place of a projection."""
    import onnx_ir as ir

    source, result = values[place.source], values[place.result]
    last = result.producer()
    assert last is not None
    if not weights.in_features:  # A sublayer that is not there: its mean output is added to the residual stream, or 0.
        mean_output = np.zeros((), dtype=np.float32) if weights.bias is None else as_array(weights.bias)
        redirect(model, result, _initializer(model, f"{path}.bias/edited", mean_output))
        return
    nodes: list[ir.Node] = []
    factors = [weights.weight] if weights.down is None else [weights.down, weights.weight]
    stream = source
    for index, factor in enumerate(factors):
        name = path if len(factors) == 1 else f"{path}.{index}"
        constant = _initializer(model, f"{name}.weight{TRANSPOSED}", as_array(factor).T)
        nodes.append(ir.node("MatMul", [stream, constant], name=f"{name}/MatMul"))
        stream = _name_result(nodes[-1], f"{name}/product", result)
    if weights.bias is not None:
        name = path if len(factors) == 1 else f"{path}.1"
        constant = _initializer(model, f"{path}.bias/edited", as_array(weights.bias))
        nodes.append(ir.node("Add", [stream, constant], name=f"{name}/Add"))
        stream = _name_result(nodes[-1], f"{name}/result", result)
    old = [values[name].producer() for name in place.nodes]
    model.graph.insert_after(last, nodes)
    redirect(model, result, stream)
    for node in reversed(old):
        assert node is not None
        model.graph.remove(node, safe=True)


def _name_result(node: ir.Node, name: str, like: ir.Value) -> ir.Value:
    value = node.outputs[0]
    value.name, value.type = name, like.type
    return value


def _initializer(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """A new constant of the graph."""
    import onnx_ir as ir

    array = np.asarray(array, order="C")
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    model.graph.register_initializer(value)
    return value


def redirect(model: ir.Model, old: ir.Value, new: ir.Value) -> None:
    """Let everything that read a value read another one; a graph output that was the old becomes the new."""
    for node, index in list(old.uses()):
        node.replace_input_with(index, new)
    for index, output in enumerate(model.graph.outputs):
        if output is old:
            model.graph.outputs[index] = new


def restore_outputs(model: ir.Model, ends: Sequence[tuple[str, Any, Any]]) -> None:
    """Give the outputs their names, types and shapes back where rewiring put other values in their place."""
    import onnx_ir as ir

    taken = values_of(model)
    for index, (name, kind, shape) in enumerate(ends):
        output = model.graph.outputs[index]
        if output.name == name:
            output.type, output.shape = kind, shape
            continue
        if name in taken:
            taken[name].name = f"{name}/replaced"
        identity = ir.node("Identity", [output], name=f"{name}/Identity")
        value = identity.outputs[0]
        value.name, value.type, value.shape = name, kind, shape
        model.graph.append(identity)
        model.graph.outputs[index] = value


def remove_unused(model: ir.Model) -> None:
    """Drop nodes and constants that no output needs."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def as_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values, wherever it lies."""
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array
