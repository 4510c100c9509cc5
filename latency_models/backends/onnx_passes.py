"""What an exported graph is put through before anybody sees it: names, forms and notes of its nodes."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_LINEAR_OPS = ("MatMul", "Gemm")


def scope_of(node: ir.Node) -> str:
    """Path of the innermost module that a node was traced in; empty when the exporter did not say."""
    scopes = scopes_of(node)
    return scopes[-1] if scopes else ""


def scopes_of(node: ir.Node) -> tuple[str, ...]:
    """Paths of the modules that a node was traced in, from the outermost."""
    text = node.metadata_props.get(_SCOPES)
    if not text:
        return ()
    # The last entry names the operation itself.
    return tuple(str(scope) for scope in ast.literal_eval(text)[:-1])


def name_linear_nodes(model: ir.Model) -> None:
    """Name every projection's product after its module: what selects a block's nodes for its own precision."""
    seen: dict[str, int] = {}
    for node in model.graph:
        if node.op_type in _LINEAR_OPS and (scope := scope_of(node)):
            name = f"{scope}/{node.op_type}"
            seen[name] = seen.get(name, 0) + 1
            node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def linear_gemms(model: ir.Model) -> None:
    """Make the products of all tokens that stand as ``Reshape, Gemm, Reshape`` (GPT-2's) a ``MatMul`` and an ``Add``.

    That is how every other family's stand, and what runtimes quantise and fuse. A ``Gemm`` of one token per sequence,
    as in a pooler, stays.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        found = _reshaped_gemm(node)
        if found is None:
            continue
        flatten, unflatten = found
        source, result = flatten.inputs[0], unflatten.outputs[0]
        assert source is not None
        nodes = []
        if len(source.shape or ()) != 3:  # The heads' outputs side by side: batch and tokens stay as they are.
            name = f"{result.name}/shape"
            shape = ir.val(name, const_value=ir.tensor(np.array([0, 0, -1], dtype=np.int64), name=name))
            model.graph.register_initializer(shape)
            nodes.append(ir.node("Reshape", [source, shape]))
            source = nodes[-1].outputs[0]
        nodes.append(ir.node("MatMul", [source, node.inputs[1]]))
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], node.inputs[2]]))
        for number, made in enumerate(nodes):
            made.metadata_props.update(node.metadata_props)
            made.outputs[0].name, made.outputs[0].type = f"{result.name}/{number}", result.type
        model.graph.insert_after(unflatten, nodes)
        result.replace_all_uses_with(nodes[-1].outputs[0])
        nodes[-1].outputs[0].shape = result.shape
        model.graph.remove([unflatten, node], safe=True)
        if not flatten.outputs[0].uses():
            model.graph.remove(flatten, safe=True)


def _reshaped_gemm(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The reshapes around a ``Gemm`` that is a projection of three-dimensional hidden states."""
    if node.op_type != "Gemm" or len(node.inputs) < 3 or any(value is None for value in node.inputs):
        return None
    changes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    if any(name in node.attributes and node.attributes[name].value != default for name, default in changes.items()):
        return None
    flatten, uses = node.inputs[0].producer(), list(node.outputs[0].uses())  # type: ignore[union-attr]
    if flatten is None or flatten.op_type != "Reshape" or len(uses) != 1 or uses[0].node.op_type != "Reshape":
        return None
    unflatten = uses[0].node
    return (flatten, unflatten) if len(unflatten.outputs[0].shape or ()) == 3 else None


def clean(model: ir.Model) -> None:
    """Drop the exporter's notes: stack traces with the paths of this machine, and ten times the graph's own size."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def forget_shapes(model: ir.Model) -> None:
    """Drop the shapes between inputs and outputs, which runtimes find for themselves.

    In a graph that subnets are cut out of they are the teacher's. And where ONNX Runtime reads them, it fuses every
    residual sum with the norm behind it: on CPUs its fused kernel is slower than the two (measured on MiniLM, 128
    tokens: 0.23 ms each), so that a fresh export would be slower than what its predictor was fitted to.
    """
    ends = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in ends:
                value.shape = None
