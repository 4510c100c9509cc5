"""The residual stream of a supernet, of which some coordinates are active: everything of it outside the projections.

A narrower stream keeps a nested set of coordinates. Embeddings keep their columns, projections that write to the
stream their rows. Whatever reads the stream reads it through a map that gives back the teacher's full stream as well as
the kept coordinates can (`search_spaces.residual_fit` says how maps and norms are fitted), so that every width and rank
of a projection serves every width of the stream. The last norm is followed by such a map, too: poolers, heads and tasks
see states of the teacher's width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from search_spaces.elastic import ElasticLinear, LinearWeights
from search_spaces.families import base_model, blocks_of, family_of, tied_stem
from search_spaces.layout import ProjectionLayout
from search_spaces.modeling_subnet import expand_output, expanded, narrowed, narrowed_norm, replace_part
from search_spaces.shapes import ModelShape
from search_spaces.subnet import SubnetConfig

ORDER = "residual.order"


def name_of(size: int, what: str, block: int | None = None) -> str:
    """The beginning of names in the library: ``residual.{size}.{block}.{what}``."""
    return ".".join(["residual", str(size), *([] if block is None else [str(block)]), what])


class ElasticNorm(nn.Module):
    """A norm that runs over the whole stream, or over a narrower one with weights of its own.

    Args:
        norm: The teacher's, which runs while the stream is full.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self._expand: LinearWeights | None = None
        # In a dictionary and a list, because copies of the model are to get what `plain` makes of them.
        self._made: dict[int, nn.Module] = {}
        self._small: list[nn.Module] = []

    def activate(self, weights: Mapping[str, Tensor] | None, expand: LinearWeights | None = None) -> None:
        """Run the teacher's norm, or one with these weights, and where given the projection that follows it."""
        self._expand, self._small = expand, []
        if weights is None:
            return
        size = len(weights["weight"])
        if size not in self._made:
            self._made[size] = narrowed_norm(self.norm, size)
            for name in weights:
                del self._made[size]._parameters[name]
        for name, tensor in weights.items():  # The library's own tensors, so that they can be trained.
            setattr(self._made[size], name, tensor)
        self._small = [self._made[size]]

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., width)`` to the same, or to the teacher's width where the projection follows."""
        normed: Tensor = self._active(inputs)
        if self._expand is None:
            return normed
        return functional.linear(normed, self._expand.weight, self._expand.bias)

    @property
    def _active(self) -> Any:
        return self._small[0] if self._small else self.norm

    @property
    def weight(self) -> Any:
        """The active weight: some models look at a norm's dtype through it."""
        return self._active.weight

    def plain(self) -> nn.Module:
        """What runs, as the module that an extracted model has in its place, with its own copy of the tensors."""
        norm = narrowed_norm(self.norm, len(self.weight))
        for name in dict(norm.named_parameters()):
            setattr(norm, name, nn.Parameter(getattr(self._active, name).detach().clone()))
        return norm if self._expand is None else expanded(norm, self._expand.module())


class ResidualStream:
    """Makes the stream of a supernet's model as wide as a subnet's.

    Args:
        model: The model, still with its teacher's modules outside the projections; its norms are replaced.
        shape: The teacher's sizes.
        tensor: Gives a tensor of the library by its name.
    """

    def __init__(self, model: nn.Module, shape: ModelShape, tensor: Callable[[str], Tensor]) -> None:
        self._shape, self._tensor = shape, tensor
        self._base, self._family, self._tied = base_model(model), family_of(model), tied_stem(model)
        self._parts: dict[str, Any] = {}
        for path in self._family.stem:
            replace_part(self._base, path, lambda part, path=path: self._parts.setdefault(path, part))
        self._stems: dict[int, dict[str, Any]] = {shape.hidden_size: self._parts}
        self._maps: dict[tuple[Any, ...], LinearWeights] = {}
        self._norms: dict[tuple[int | None, str], ElasticNorm] = {}
        self._expanding: RemovableHandle | None = None
        outside = [path for path in (self._family.stem_norm, self._family.final_norm) if path]
        within = [self._family.attention_norm, self._family.ffn_norm]
        places = [(None, self._base, outside), *((i, block, within) for i, block in enumerate(blocks_of(model)))]
        for index, module, paths in places:
            for path in paths:
                if any(True for _ in module.get_submodule(path).parameters()):
                    self._norms[index, path] = ElasticNorm(module.get_submodule(path))
                    module.set_submodule(path, self._norms[index, path])

    def forget(self) -> None:
        """Drop what was made of the library's tensors: it has others now."""
        self._maps.clear()

    def convert(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change every tensor that is no part of the model right now, as `Module.to` does with those that are."""
        self.forget()
        self._stems = {self._shape.hidden_size: self._parts}
        for part in self._parts.values():
            if isinstance(part, nn.Parameter):
                part.data = change(part.data)
            else:
                part._apply(change)
        for norm in self._norms.values():
            norm._made.clear()

    def coordinates(self, size: int) -> Tensor:
        """Which coordinates of the teacher's stream are kept, in its order."""
        return self._tensor(ORDER)[:size].sort().values

    def arrange(self, subnet: SubnetConfig) -> None:
        """Make everything outside the projections as wide as a canonical subnet's stream."""
        size = subnet.hidden_size
        for path, part in self._stem(size).items():
            replace_part(self._base, path, lambda _, part=part: part)
        self._follow_base(subnet)
        if size == self._shape.hidden_size:
            for norm in self._norms.values():
                norm.activate(None)
            return
        last = (None, self._family.final_norm) if self._family.final_norm else (subnet.kept[-1], self._family.ffn_norm)
        for place, norm in self._norms.items():
            followed = place == last and not self._family.expands_output
            norm.activate(self._norm_weights(size, *place, norm), self._output(subnet) if followed else None)

    def _follow_base(self, subnet: SubnetConfig) -> None:
        """The projection that follows the whole base model, in families that have it there."""
        if self._expanding is not None:
            self._expanding.remove()
            del self._base.expand
            self._expanding = None
        if self._family.expands_output and subnet.hidden_size != self._shape.hidden_size:
            self._expanding = expand_output(self._base, ElasticLinear(self._output(subnet)))

    def plain(self) -> dict[int, nn.Module]:
        """Modules as extracted models have them, by the identity of those that they stand for."""
        found: dict[int, nn.Module] = {id(norm): norm.plain() for norm in self._norms.values()}
        if self._expanding is not None:
            expand = self._base.get_submodule("expand")
            assert isinstance(expand, ElasticLinear)
            found[id(expand)] = expand.plain()
        return found

    def narrow(
        self, index: int, layout: ProjectionLayout, size: int, weights: Callable[[int, ProjectionLayout], LinearWeights]
    ) -> LinearWeights:
        """A projection of some width and rank as it is with a stream of this width.

        Args:
            index: Its block.
            layout: The projection in a block with the full stream.
            size: Width of the stream.
            weights: Gives its tensors there.
        """
        key = (index, layout.path, layout.level, layout.rank, size)
        if key not in self._maps:
            found = self._through(index, layout, weights(index, layout), size)
            if found.weight.requires_grad:  # In training: what is made of a tensor is out of date after one step.
                return found
            self._maps[key] = found
        return self._maps[key]

    def _through(self, index: int, layout: ProjectionLayout, weights: LinearWeights, size: int) -> LinearWeights:
        if layout.writes:
            kept = self.coordinates(size)
            bias = None if weights.bias is None else weights.bias[kept]
            return LinearWeights(weights.weight[kept], bias, weights.down)
        full = self._map(name_of(size, layout.role, index), bias=weights.bias is not None)
        reads = weights.weight if weights.down is None else weights.down
        bias = weights.bias
        if bias is not None and full.bias is not None:
            shifted = reads @ full.bias
            bias = bias + (shifted if weights.down is None else weights.weight @ shifted)
        if weights.down is None:
            return LinearWeights(reads @ full.weight, bias)
        return LinearWeights(weights.weight, bias, reads @ full.weight)

    def _map(self, name: str, *, bias: bool) -> LinearWeights:
        """What gives back the full stream."""
        return LinearWeights(self._tensor(f"{name}.map"), self._tensor(f"{name}.shift") if bias else None)

    def _output(self, subnet: SubnetConfig) -> LinearWeights:
        """What follows the last norm."""
        size, after = subnet.hidden_size, subnet.kept[-1] + 1
        if self._family.final_norm or after == self._shape.num_blocks:
            return self._map(name_of(size, "output"), bias=True)
        # Where the last blocks are gone, the stream is read in the end that a block's attention reads otherwise.
        return self._map(name_of(size, "qkv", after), bias=self._shape.bias_qkv)

    def _norm_weights(self, size: int, block: int | None, path: str, norm: ElasticNorm) -> dict[str, Tensor]:
        name = name_of(size, path, block)
        return {kind: self._tensor(f"{name}.{kind}") for kind, _ in norm.norm.named_parameters()}

    def _stem(self, size: int) -> dict[str, Any]:
        """What makes the stream before the first block; made once per width, of the teacher's tensors."""
        if size not in self._stems:
            with torch.no_grad():
                kept = self.coordinates(size).clone()
                self._stems[size] = {
                    path: narrowed(part, kept, tied=path in self._tied) for path, part in self._parts.items()
                }
        return self._stems[size]
