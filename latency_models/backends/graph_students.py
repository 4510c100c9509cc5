"""The graph of a model that was cut out of a template's teacher and then got weights of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from latency_models.backends.graph_edits import TRANSPOSED
from latency_models.backends.graph_places import GraphTemplateError, transformers_model
from latency_models.backends.graph_template import GraphTemplate
from search_spaces.elastic import LinearWeights
from search_spaces.families import blocks_of, blocks_path, family_of, projection_weights

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn


def student_graph(template: GraphTemplate, model: nn.Module, kept: Sequence[int]) -> onnx.ModelProto:
    """The graph of a refitted or distilled subnet, without exporting it.

    Args:
        template: Of the teacher, in the same wrapping as the model.
        model: The extracted subnet, wrapped as it is deployed.
        kept: Index in the teacher of each of the subnet's blocks.

    Raises:
        GraphTemplateError: The graph holds weights that are not one of the model's parameters; export it instead.
    """
    from onnx import TensorProto, numpy_helper

    linears, others = _weights(model, kept)
    buffers = [buffer.detach().cpu().numpy().ravel() for buffer in model.buffers()]
    widths = {weights.out_features for path, weights in linears.items() if path.endswith(_writers(model))}
    if narrower := sorted(widths - {template.shape.hidden_size}):
        raise GraphTemplateError(
            f"graph template: the model's hidden size is {narrower[0]}, not its teacher's {template.shape.hidden_size}."
        )
    skipped = sorted(set(range(len(template.boundaries) - 1)) - set(kept))
    proto = template.edit(linears, skipped)
    edited = tuple(f"{path}." for path in linears)
    names = {tensor.name for tensor in proto.graph.initializer}
    root = "".join((transformers_model(model)[0], blocks_path(transformers_model(model)[1]), "."))
    if merged := sorted(name for name in set(others) - names if name.startswith(root)):
        # The exporter keeps equal tensors once, and these are not equal any more.
        raise GraphTemplateError(f"graph template: the graph has no parameter {merged[0]!r} of its own.")
    for tensor in proto.graph.initializer:
        parameter = tensor.name.removesuffix(TRANSPOSED)
        if parameter in others:
            values = others[parameter].detach().cpu().numpy()
            values = values if parameter == tensor.name else np.ascontiguousarray(values.T)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        elif tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) <= 1 or tensor.name.startswith(edited):
            continue
        elif not any(np.array_equal(numpy_helper.to_array(tensor).ravel(), buffer) for buffer in buffers):
            # The exporter computed it of the teacher's parameters; a buffer that it only reshaped is no weight.
            raise GraphTemplateError(f"graph template: {tensor.name!r} is no parameter of the model.")
    return proto


def _writers(model: nn.Module) -> tuple[str, str]:
    """Ends of the paths of projections that write to the residual stream."""
    family = family_of(transformers_model(model)[1])
    return f".{family.attention_out}", f".{family.ffn_out}"


def _weights(model: nn.Module, kept: Sequence[int]) -> tuple[dict[str, LinearWeights], dict[str, Tensor]]:
    """The projections of a subnet and its other parameters and buffers, by their paths in the teacher."""
    prefix, inner = transformers_model(model)
    family, root = family_of(inner), blocks_path(inner)
    linears: dict[str, LinearWeights] = {}
    inside: set[int] = set()
    for block, index in zip(blocks_of(inner), kept, strict=True):
        for path in family.projections:
            linears[f"{root}.{index}.{path}"] = _projection(block, path)
            inside |= {id(parameter) for parameter in block.get_submodule(path).parameters()}
    others: dict[str, Tensor] = {}
    start = f"{prefix}{root}."
    # A parameter that is shared, as a language model's head is with its embeddings, has several names.
    for name, parameter in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        if id(parameter) in inside:
            continue
        if name.startswith(start):
            position, _, rest = name.removeprefix(start).partition(".")
            name = f"{start}{kept[int(position)]}.{rest}"  # noqa: PLW2901 - the same parameter, named as in the teacher
        others[name] = parameter
    return linears, others


def _projection(block: nn.Module, path: str) -> LinearWeights:
    """A projection's tensors, dense or in two factors."""
    from torch import nn

    module = block.get_submodule(path)
    if isinstance(module, nn.Sequential):
        (down, _), (up, bias) = (projection_weights(module, part) for part in ("0", "1"))
        return LinearWeights(up, bias, down)
    return LinearWeights(*projection_weights(block, path))
