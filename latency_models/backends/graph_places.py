"""Where a teacher's projections and blocks lie in its exported graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latency_models.backends.base import BackendError
from latency_models.backends.onnx_passes import scope_of
from search_spaces.families import blocks_of, blocks_path, family_of

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn


class GraphTemplateError(BackendError):
    """The graph of this family cannot be edited; exporting each subnet still works."""


@dataclass(frozen=True, slots=True)
class LinearPlace:
    """Where a projection lies in the graph: the nodes that compute it, by the names of their outputs."""

    nodes: tuple[str, ...]
    source: str
    result: str


def transformers_model(model: nn.Module) -> tuple[str, nn.Module]:
    """The outermost module of a known family, and its path with a dot behind."""
    for name, module in model.named_modules():
        if hasattr(module, "config") and hasattr(module, "base_model_prefix"):
            return (f"{name}." if name else ""), module
    raise GraphTemplateError(f"graph template: {type(model).__name__} contains no transformers model.")


def projection_paths(inner: nn.Module) -> list[str]:
    """Paths of all the projections, from the model itself."""
    family, root = family_of(inner), blocks_path(inner)
    return [f"{root}.{index}.{path}" for index in range(len(blocks_of(inner))) for path in family.projections]


def marked(model: nn.Module, inner: nn.Module) -> nn.Module:
    """The module with what enters every block, and what leaves the last, as further outputs."""
    import torch
    from torch import nn

    class Marked(nn.Module):
        """Hooks live only during a forward pass, so the wrapped module is left as it was."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
            found: dict[int, Tensor] = {}
            blocks = list(blocks_of(inner))

            def enters(index: int) -> Any:
                def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                    found[index] = args[0] if args else kwargs["hidden_states"]

                return hook

            def leaves(_: nn.Module, __: tuple[Any, ...], result: Any) -> None:
                found[len(blocks)] = result if isinstance(result, torch.Tensor) else result[0]

            handles = [
                block.register_forward_pre_hook(enters(index), with_kwargs=True) for index, block in enumerate(blocks)
            ]
            handles.append(blocks[-1].register_forward_hook(leaves))
            try:
                result = self.model(**inputs)
            finally:
                for handle in handles:
                    handle.remove()
            outputs = (result,) if isinstance(result, torch.Tensor) else tuple(result)
            return (*outputs, *(found[index] for index in range(len(blocks) + 1)))

    return Marked()


def values_of(model: ir.Model) -> dict[str, ir.Value]:
    """Every value of a graph by name."""
    graph = model.graph
    produced = (value for node in graph for value in node.outputs)
    return {str(value.name): value for value in (*graph.inputs, *graph.initializers.values(), *produced)}


def through_identity(value: ir.Value) -> ir.Value:
    """The value that a chain of ``Identity`` nodes hands on."""
    while (node := value.producer()) is not None and node.op_type == "Identity":
        source = node.inputs[0]
        assert source is not None
        value = source
    return value


def find_linears(model: ir.Model, paths: Mapping[str, str]) -> dict[str, LinearPlace]:
    """Where each projection lies: scope in the graph -> path in the teacher, to path -> place."""
    products: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm") and (scope := scope_of(node)) in paths:
            products.setdefault(paths[scope], []).append(node)
            node.name = f"{paths[scope]}/{node.op_type}"
    found = {}
    for path in paths.values():
        nodes = products.get(path, [])
        if len(nodes) != 1:
            raise GraphTemplateError(f"graph template: `{path}` must be one product, but the graph has {len(nodes)}.")
        found[path] = _describe(nodes[0], path)
    return found


def _describe(product: ir.Node, path: str) -> LinearPlace:
    """A product and the sum with its bias, which is the product's only user with a constant beside it."""
    source, weight, result = product.inputs[0], product.inputs[1], product.outputs[0]
    if source is None or weight is None:
        raise GraphTemplateError(f"graph template: the product of `{path}` has no weight.")
    names = [str(result.name)]
    users = [use.node for use in result.uses()]
    if product.op_type == "MatMul" and len(users) == 1 and users[0].op_type == "Add":
        other = [value for value in users[0].inputs if value is not result]
        if other and other[0] is not None and other[0].is_initializer() and scope_of(users[0]) == scope_of(product):
            result = users[0].outputs[0]
            names.append(str(result.name))
    return LinearPlace(tuple(names), str(source.name), str(result.name))
