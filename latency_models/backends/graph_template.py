"""Graphs of subnets by editing: the teacher is exported once, and every subnet's graph is cut out of that one.

An export takes seconds, an edit milliseconds: profiling hundreds of subnets must not pay hundreds of exports.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from latency_models.backends.graph_edits import (
    TRANSPOSED,
    as_array,
    redirect,
    remove_unused,
    replace_linear,
    restore_outputs,
)
from latency_models.backends.graph_places import (
    GraphTemplateError,
    LinearPlace,
    find_linears,
    marked,
    projection_paths,
    through_identity,
    transformers_model,
    values_of,
)
from latency_models.backends.graph_sizes import (
    Repeat,
    SizePlace,
    find_repeats,
    find_sizes,
    full_sizes,
    may_have_sizes,
    resize,
    sizes_of_weights,
)
from latency_models.backends.graph_twin import twin
from latency_models.backends.onnx import DEFAULT_OPSET, export_ir, takes_cache
from latency_models.backends.onnx_passes import clean, forget_shapes
from search_spaces.families import blocks_of, blocks_path
from search_spaces.shapes import ModelShape

__all__ = ["GraphTemplate", "GraphTemplateError"]

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from torch import Tensor, nn

    from latency_models.backends.causal import CachePlace
    from search_spaces.elastic import LinearWeights


@dataclass(frozen=True)
class GraphTemplate:
    """The exported teacher with the places that a subnet changes. Make it with `from_model`; it is never changed.

    Args:
        model: The exported graph.
        linears: Where each projection lies, by the module's path in the teacher.
        boundaries: Names of the values that enter block 0, 1, ... and that leave the last block.
        shape: The teacher's sizes.
        root: Path of the list of blocks in the teacher.
        sizes: Constants that follow from a block's sizes.
        repeats: Where keys and values are repeated for the query heads of their group.
        caches: Where a causal model's blocks put new keys and values behind cached ones.
    """

    model: ir.Model = field(repr=False)
    linears: Mapping[str, LinearPlace] = field(repr=False)
    boundaries: tuple[str, ...]
    shape: ModelShape
    root: str
    sizes: tuple[SizePlace, ...]
    repeats: tuple[Repeat, ...]
    caches: tuple[CachePlace, ...] = ()

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        output_names: Sequence[str],
        *,
        axes: Mapping[str, Mapping[int, str]] | None = None,
        opset: int = DEFAULT_OPSET,
    ) -> GraphTemplate:
        """Export a teacher and find its projections and blocks.

        Args:
            model: The full `transformers` model, or any module that contains one (pooling, heads around it).
            inputs: Example tensors by input name.
            output_names: One name per tensor that the forward pass returns.
            axes: Dynamic axes by input name; see `latency_models.backends.onnx.export_onnx`.
            opset: Version of the ONNX operator set.

        Raises:
            GraphTemplateError: A projection or a block cannot be found in the exported graph.
            BackendError: torch cannot export the module.
        """
        prefix, inner = transformers_model(model)
        axes = getattr(model, "dynamic_axes", None) if axes is None else axes
        count = len(blocks_of(inner))
        marks = [f"block_boundary_{index}" for index in range(count + 1)]
        program = export_ir(marked(model, inner), inputs, [*output_names, *marks], axes=axes, opset=opset)
        values = values_of(program)
        boundaries = tuple(str(through_identity(output).name) for output in program.graph.outputs[len(output_names) :])
        del program.graph.outputs[len(output_names) :]
        paths = projection_paths(inner)
        linears = find_linears(program, {f"model.{prefix}{path}": path for path in paths})
        remove_unused(program)
        shape, root = ModelShape.from_model(inner), blocks_path(inner)
        sizes: tuple[SizePlace, ...] = ()
        if may_have_sizes(program, shape, f"model.{prefix}{root}"):
            other, other_sizes = twin(model, inner, shape)
            names = [*output_names, *marks[: 1 + min(2, count)]]
            reflection = export_ir(marked(other, transformers_model(other)[1]), inputs, names, axes=axes, opset=opset)
            sizes = find_sizes(program, reflection, shape, f"model.{prefix}{root}", other_sizes)
        caches: tuple[CachePlace, ...] = ()
        if takes_cache(model):
            from latency_models.backends.causal import find_caches

            caches = find_caches(program)
        clean(program)
        forget_shapes(program)
        _own_tensors(program)
        _name_transposed(program, model)
        if missing := [name for name in boundaries if name not in values]:
            raise GraphTemplateError(f"graph template: block boundary {missing[0]!r} is not in the graph.")
        return cls(program, linears, boundaries, shape, root, sizes, find_repeats(program, sizes), caches)

    def edit(
        self,
        linear_weights: Mapping[str, LinearWeights],
        skipped_blocks: Collection[int] = (),
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> onnx.ModelProto:
        """The graph of a subnet.

        Args:
            linear_weights: New tensors by the projections' paths in the teacher; others stay as they are.
            skipped_blocks: Blocks that are left out.
            metadata: Entries for the graph's own metadata.

        Returns:
            A new graph with its weights.

        Raises:
            ValueError: A path or a block is not the teacher's.
            GraphTemplateError: The graph cannot be rewired as asked.
        """
        import onnx_ir as ir

        if unknown := sorted(set(linear_weights) - set(self.linears)):
            raise ValueError(f"graph template: the teacher has no projection {unknown[0]!r}.")
        if bad := [index for index in skipped_blocks if not 0 <= index < len(self.boundaries) - 1]:
            last = len(self.boundaries) - 2
            raise ValueError(f"graph template: blocks are numbered 0 to {last}, but got {bad[0]}.")
        model = self.model.clone()
        values = values_of(model)
        ends = [(str(end.name), end.type, end.shape) for end in model.graph.outputs]
        for path, weights in linear_weights.items():
            replace_linear(model, values, path, self.linears[path], weights)
        sizes = sizes_of_weights(linear_weights, self.shape, self.root)
        resize(values, self.sizes, full_sizes(self.shape), sizes)
        for repeat in self.repeats:
            if sizes[repeat.block][1] == 1:  # One query head per key: nothing is repeated.
                redirect(model, values[repeat.result], values[repeat.source])
        # From the last: a value that leaves a skipped block may itself enter one.
        for index in sorted(skipped_blocks, reverse=True):
            redirect(model, values[self.boundaries[index + 1]], values[self.boundaries[index]])
        restore_outputs(model, ends)
        remove_unused(model)
        if self.caches:
            from latency_models.backends.causal import expose_cache

            expose_cache(model, self.caches, {block: heads for block, (heads, _, _) in sizes.items()})
            remove_unused(model)
        model.metadata_props.update(metadata or {})
        proto: onnx.ModelProto = ir.to_proto(model)
        return proto


def _own_tensors(model: ir.Model) -> None:
    """Copy the weights, which the exporter shares with the module: training it on must not change the template.

    Their names lose the path of the module that was wrapped around the model to mark its blocks.
    """
    import onnx_ir as ir

    for value in list(model.graph.initializers.values()):
        value.name = str(value.name).removeprefix("model.")
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)


def _name_transposed(program: ir.Model, model: nn.Module) -> None:
    """Name the weights that the exporter stored transposed, as a language model's head, after their parameters."""
    known = {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    for value in list(program.graph.initializers.values()):
        if value.name in known or value.const_value is None or len(value.const_value.shape) != 2:
            continue
        array = value.const_value.numpy().T
        for name, parameter in model.named_parameters():
            if tuple(parameter.shape) == array.shape and np.array_equal(as_array(parameter), array):
                value.name = name + TRANSPOSED
                break
