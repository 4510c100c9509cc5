"""The weight-sharing model: any subnet of the teacher, activated in microseconds, extracted as a plain model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from search_spaces.canonical import canonical
from search_spaces.elastic import ElasticLinear, LinearWeights
from search_spaces.families import ModelFamily, blocks_of, blocks_path, family_of, projection_weights
from search_spaces.layout import ProjectionLayout, layouts, prefixes
from search_spaces.library import Library
from search_spaces.quantized import SIMULATED, Padding, QuantizedProjection
from search_spaces.residual import ResidualStream
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.subnet import BlockConfig, SubnetConfig
from search_spaces.surgery import Sublayers, keep_blocks, set_remembered


class Supernet(nn.Module):
    """A teacher whose projections are elastic, and the library of their variants.

    The largest subnet runs the teacher's own tensors, so it *is* the teacher, bit for bit. Blocks of int8 and int4
    run as ONNX Runtime's quantised graphs compute (`search_spaces.quantized`), every sequence of a batch by itself;
    that is for judging, and has no gradients.

    Args:
        model: The teacher. It is taken over: its projections are replaced in place.
        library: What `calibrate` made of this teacher.
        space: The space that the library was made for.

    Raises:
        ValueError: The model's sizes are not those of the space.
    """

    def __init__(self, model: nn.Module, library: Library, space: SearchSpace) -> None:
        super().__init__()
        if (shape := ModelShape.from_model(model)) != space.shape:
            raise ValueError(f"supernet: the space was made for another model: {space.shape} is not {shape}.")
        self.model = model
        self.space = space
        self.family: ModelFamily = family_of(model)
        self._tensors: Mapping[str, Tensor] = library.tensors
        self._quantized: dict[tuple[Any, ...], QuantizedProjection | None] = {}
        self._padding = Padding()
        self._watched: RemovableHandle | None = None
        self._blocks: list[nn.Module] = list(blocks_of(model))
        self._path = blocks_path(model)
        self._layer_types: list[str] | None = getattr(model.config, "layer_types", None)
        self._teacher: list[dict[str, LinearWeights]] = []
        self._leaves: list[dict[str, ElasticLinear]] = []
        self._sublayers: list[Sublayers] = []
        self._stream = ResidualStream(model, shape, self._tensor) if space.narrower else None
        for block in self._blocks:
            paths = self.family.projections
            weights = {path: LinearWeights(*projection_weights(block, path)) for path in paths}
            leaves = {
                path: ElasticLinear(weights[path], transposed=isinstance(block.get_submodule(path), Conv1D))
                for path in paths
            }
            for path, leaf in leaves.items():
                block.set_submodule(path, leaf)
            self._teacher.append(weights)
            self._leaves.append(leaves)
            self._sublayers.append(Sublayers(block, self.family))
        # The teacher's tensors are never trained through the supernet: the largest subnet stays the teacher.
        self.model.requires_grad_(requires_grad=False)
        self.active = space.teacher
        self.eval()

    @property
    def shape(self) -> ModelShape:
        """The teacher's sizes."""
        return self.space.shape

    def use(self, library: Library) -> None:
        """Take another library of the same space, such as a trained one; the active subnet is activated anew."""
        self._tensors = library.tensors
        self._quantized.clear()
        if self._stream is not None:
            self._stream.forget()
        self.activate(self.active)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's own)
        """What `to` does to modules: here also to the teacher's projections and the library, which no module owns."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self._teacher = [{path: weights.mapped(fn) for path, weights in own.items()} for own in self._teacher]
            self._tensors = {name: fn(tensor) for name, tensor in self._tensors.items()}
            if self._stream is not None:
                self._stream.convert(fn)
        self._quantized.clear()
        self.activate(self.active)
        return self

    def forward(self, **inputs: Any) -> Any:
        """Run the active subnet as the teacher is run."""
        return self.model(**inputs)

    def activate(self, subnet: SubnetConfig) -> None:
        """Make a subnet the one that runs. Total: it sets every block, so nothing of an earlier subnet remains.

        Raises:
            ValueError: The library has no variant for one of the subnet's sizes.
        """
        subnet = self._checked(subnet)
        variants = [self.variant(index, subnet.blocks[index], subnet.hidden_size) for index in subnet.kept]
        if self._stream is not None:
            self._stream.arrange(subnet)
        for index, weights in zip(subnet.kept, variants, strict=True):
            quantized = self._quantized_variant(index, subnet, weights)
            for path, active in weights.items():
                self._leaves[index][path].activate(active, quantized.get(path))
            self._sublayers[index].arrange(subnet.blocks[index])
            set_remembered(self._blocks[index], self.family, self.shape, subnet.blocks[index])
        keep_blocks(self.model, self._blocks, subnet.kept, self._layer_types)
        self._watch_padding(on=any(block.precision in SIMULATED for block in subnet.blocks))
        self.active = subnet

    def extract(self, subnet: SubnetConfig) -> nn.Module:
        """A subnet as an independent, plain `transformers` model that shares no tensor with the supernet.

        Its projections are ``nn.Linear`` (two in an ``nn.Sequential`` where factored), in fp32 whatever the blocks'
        precisions: quantising is the export's. The active subnet stays active.
        """
        before = self.active
        self.activate(subnet.plain)
        try:
            replaced: dict[int, Any] = {
                id(leaf): leaf.plain() for index in self.active.kept for leaf in self._leaves[index].values()
            }
            if self._stream is not None:
                replaced |= self._stream.plain()
            model: nn.Module = copy.deepcopy(self.model, memo=replaced)
        finally:
            self.activate(before)
        return model.eval()

    def coordinates(self, subnet: SubnetConfig) -> Tensor | None:
        """Which coordinates of the teacher's residual stream a subnet has; None where it has all."""
        if self._stream is None or subnet.hidden_size == self.shape.hidden_size:
            return None
        return self._stream.coordinates(subnet.hidden_size)

    def linear_weights(self, subnet: SubnetConfig) -> dict[str, LinearWeights]:
        """The active tensors of a subnet by full module path in the teacher; skipped blocks are absent."""
        subnet = self._checked(subnet)
        return {
            f"{self._path}.{index}.{path}": weights
            for index in subnet.kept
            for path, weights in self.variant(index, subnet.blocks[index], subnet.hidden_size).items()
        }

    def variant(self, index: int, block: BlockConfig, hidden_size: int | None = None) -> dict[str, LinearWeights]:
        """The tensors of one block's variant, by path in the block: views of the library or the teacher.

        Projections of a sublayer that is not there are absent, but for the one that writes its mean output.

        Args:
            index: The block's number in the teacher.
            block: Its sizes.
            hidden_size: Width of the residual stream; the teacher's when None. What is made for a narrower one is kept.
        """
        found = layouts(self.family, self.shape, block)
        if hidden_size is None or hidden_size == self.shape.hidden_size:
            return {path: self._weights(index, layout) for path, layout in found.items() if layout.outputs}
        narrow = layouts(self.family, self.shape, block, hidden_size)
        # A rank may save something with the full stream and nothing with this one.
        ranked = {path: replace(layout, rank=narrow[path].rank) for path, layout in found.items() if layout.outputs}
        stream = self._narrow(hidden_size)
        return {path: stream.narrow(index, layout, hidden_size, self._weights) for path, layout in ranked.items()}

    def _narrow(self, hidden_size: int) -> ResidualStream:
        if self._stream is None:
            raise ValueError(
                f"subnet: `hidden_size` must be the teacher's {self.shape.hidden_size} in this space, "
                f"but got {hidden_size}."
            )
        return self._stream

    def _quantized_variant(
        self, index: int, subnet: SubnetConfig, weights: Mapping[str, LinearWeights]
    ) -> dict[str, QuantizedProjection | None]:
        """The quantised forms of a block's variant, made once per level; empty where the block is not quantised."""
        block, size = subnet.blocks[index], subnet.hidden_size
        if block.precision not in SIMULATED:
            return {}
        found, known = layouts(self.family, self.shape, block, size), self._quantized
        keys = {path: (index, path, found[path].level, found[path].rank, size, block.precision) for path in weights}
        for path, key in keys.items():
            if key not in known:
                known[key] = weights[path].quantized(block.precision, self._padding)
        return {path: known[key] for path, key in keys.items()}

    def _watch_padding(self, *, on: bool) -> None:
        """Without quantised blocks, nothing is hooked to the model: copies of it are plain."""
        if on and self._watched is None:
            self._watched = self._padding.watch(self.model)
        elif not on and self._watched is not None:
            self._watched.remove()
            self._watched = None

    def _checked(self, subnet: SubnetConfig) -> SubnetConfig:
        subnet = canonical(self.shape, subnet)
        if len(subnet.blocks) != self.shape.num_blocks:
            raise ValueError(f"subnet: must have {self.shape.num_blocks} blocks, but got {len(subnet.blocks)}.")
        if subnet.depth == 0:
            raise ValueError("subnet: at least one block must be left, but all are skipped.")
        return subnet

    def _weights(self, index: int, layout: ProjectionLayout) -> LinearWeights:
        """The tensors of one projection."""
        dense = self._teacher[index][layout.path]
        if layout.rank:
            return self._factored(index, layout)
        if dense.weight.shape == (layout.outputs, layout.inputs):
            return dense
        prefix = f"{index}.{layout.path}"
        if layout.writes and layout.inputs == 0:
            return LinearWeights(dense.weight[:, :0], None if dense.bias is None else self._tensor(f"{prefix}.0.bias"))
        if layout.writes:
            bias = None if dense.bias is None else self._tensor(f"{prefix}.{layout.level}.bias")
            return LinearWeights(self._tensor(f"{prefix}.{layout.level}.weight"), bias)
        bias = None if dense.bias is None else prefixes(self._tensor(f"{prefix}.permuted_bias"), layout.parts)
        return LinearWeights(prefixes(self._tensor(f"{prefix}.permuted"), layout.parts), bias)

    def _factored(self, index: int, layout: ProjectionLayout) -> LinearWeights:
        prefix, rank = f"{index}.{layout.path}.{layout.level}", layout.rank
        up, down = self._tensor(f"{prefix}.up"), self._tensor(f"{prefix}.down")
        if rank > down.shape[0]:
            raise ValueError(f"`rank` must be at most the library's {down.shape[0]} for {prefix}, but got {rank}.")
        bias = None
        if self._teacher[index][layout.path].bias is not None:
            bias = self._tensor(f"{prefix}.mean_output") - up[:, :rank] @ self._tensor(f"{prefix}.down_mean")[:rank]
        return LinearWeights(up[:, :rank], bias, down[:rank])

    def _tensor(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise ValueError(
                f"supernet: the calibration library has no {name!r}; was it made for another space? Calibrate anew."
            ) from None
