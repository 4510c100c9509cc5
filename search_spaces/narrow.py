"""A trained subnet cut down to a smaller one, so that a distillation may remove in two stages instead of one.

Extracted subnets have their heads and neurons in order of importance wherever they have fewer than the teacher. So a
smaller one is a part of a larger: leading rows of what makes units, leading columns of what reads them, leading factors
of a rank. What the columns that go had carried is not made up for: `recalibrate` does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from search_spaces.cost import costs
from search_spaces.elastic import LinearWeights
from search_spaces.families import ModelFamily, blocks_of, family_of, projection_weights
from search_spaces.layout import Part, ProjectionLayout, layouts, prefixes
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.subnet import BlockConfig, SubnetConfig
from search_spaces.surgery import set_remembered


def halfway(space: SearchSpace, subnet: SubnetConfig) -> SubnetConfig:
    """A subnet that has about half as much removed as another and contains it; the same one where there is none.

    Depth, ranks, precisions and the residual stream are the smaller one's: only heads and neurons come back, and never
    all of them, because a block that has all keeps them in the teacher's order.

    Args:
        space: Its widths are what may come back.
        subnet: A canonical subnet of it.
    """
    removed = _removed(space, [subnet])[0]
    steps = torch.linspace(0, 1, 33).tolist()
    found = [replace(subnet, blocks=_towards(space, subnet, step)) for step in steps]
    distance = abs(_removed(space, found) - removed / 2)
    return space.canonical(found[int(distance.argmin())])


def narrow(model: nn.Module, shape: ModelShape, before: SubnetConfig, after: SubnetConfig) -> None:
    """Cut an extracted, perhaps trained subnet down to a smaller one, in place.

    Args:
        model: ``before``, as `Supernet.extract` gives it.
        shape: The teacher's sizes.
        before: A canonical subnet.
        after: Another, no wider anywhere, of the same blocks, stream and kind of projections (factored or dense).

    Raises:
        ValueError: ``after`` is no part of ``before``.
    """
    family = family_of(model)
    if before.kept != after.kept or before.hidden_size != after.hidden_size:
        raise ValueError("narrow: both subnets must have the same blocks and residual stream.")
    for position, index in enumerate(after.kept):
        own, other = before.blocks[index], after.blocks[index]
        _check(shape, own, other, index)
        _narrow_block(blocks_of(model)[position], family, shape, (own, other), before.hidden_size)


def _narrow_block(
    block: nn.Module, family: ModelFamily, shape: ModelShape, sizes: tuple[BlockConfig, BlockConfig], hidden_size: int
) -> None:
    before, after = (layouts(family, shape, config, hidden_size) for config in sizes)
    for path, new in after.items():
        old = before[path]
        if new.outputs and new.inputs and (old.sides, old.rank) != (new.sides, new.rank):
            module = block.get_submodule(path)
            weights = _cut(_weights(block, path), old, new)
            block.set_submodule(path, weights.module(transposed=isinstance(module, Conv1D)))
    set_remembered(block, family, shape, sizes[1])


def _weights(block: nn.Module, path: str) -> LinearWeights:
    if isinstance(block.get_submodule(path), nn.Sequential):
        down, _ = projection_weights(block, f"{path}.0")
        return LinearWeights(*projection_weights(block, f"{path}.1"), down)
    return LinearWeights(*projection_weights(block, path))


def _cut(weights: LinearWeights, old: ProjectionLayout, new: ProjectionLayout) -> LinearWeights:
    """The kept rows and columns of one projection, and of its factors."""
    up, bias, down = weights.weight, weights.bias, weights.down
    if down is not None and not new.rank:  # Grouped queries: a rank that saves something in wide keys alone.
        up, down = up @ down, None
    elif down is not None:
        up, down = up[:, : new.rank], down[: new.rank]
    if new.writes:
        columns = _within(old.units, new.units)
        up, down = (up, columns.of(down.T).T) if down is not None else (columns.of(up.T).T, None)
    else:
        parts = tuple(_within(own, other) for own, other in zip(old.parts, new.parts, strict=True))
        up, bias = prefixes(up, parts), None if bias is None else prefixes(bias, parts)
    return LinearWeights(up, bias, down)


def _within(old: Part, new: Part) -> Part:
    """What is kept of units of which some are gone already."""
    return Part(old.kept_groups, old.kept_size, new.kept_groups, new.kept_size)


def _check(shape: ModelShape, before: BlockConfig, after: BlockConfig, index: int) -> None:
    full = BlockConfig(shape.heads, shape.kv_heads, shape.ffn)
    for name in ("heads", "kv_heads", "ffn"):
        own, other, most = (getattr(config, name) for config in (before, after, full))
        if other > own or (other == 0) != (own == 0):
            raise ValueError(f"narrow: `{name}` of block {index} must be 1 to {own}, but got {other}.")
        if other < own == most:
            raise ValueError(f"narrow: `{name}` of block {index} is the teacher's {most}, which are in no order.")
    for name in ("rank_qkv", "rank_attention_out", "rank_ffn_in", "rank_ffn_out"):
        own, other = getattr(before, name), getattr(after, name)
        if (own == 0) != (other == 0) or other > own:
            raise ValueError(f"narrow: `{name}` of block {index} must be a part of {own}, but got {other}.")


def _removed(space: SearchSpace, subnets: Sequence[SubnetConfig]) -> Tensor:
    """Parameters of the blocks that subnets lack."""
    found = costs(space.shape, [space.teacher, *subnets]).block_parameters
    return torch.as_tensor(found[0] - found[1:], dtype=torch.float64)


def _towards(space: SearchSpace, subnet: SubnetConfig, step: float) -> tuple[BlockConfig, ...]:
    """The blocks with their widths moved towards the teacher's by a share of the way, to levels of the space."""
    shape, blocks = space.shape, []
    group = shape.heads // shape.kv_heads

    def nearest(name: str, index: int, own: int, full: int) -> int:
        able = [level for level in space.levels(name, index) if own <= level < full] or [own]
        return min(able, key=lambda level: abs(level - (own + step * (full - own))))

    for index, block in enumerate(subnet.blocks):
        kv_heads, ffn = block.kv_heads, block.ffn
        # Within groups of queries nothing comes back: a group that has all of its queries keeps them in their order.
        if kv_heads and block.heads == kv_heads * group:
            kv_heads = nearest("heads", index, block.heads, shape.heads) // group
        heads = kv_heads * (block.heads // block.kv_heads) if kv_heads else 0
        # A rank that saves something in the smaller one saves more in the larger; a dense projection stays dense.
        ffn = nearest("ffn", index, ffn, shape.ffn) if ffn else 0
        blocks.append(replace(block, heads=heads, kv_heads=kv_heads, ffn=ffn))
    return tuple(blocks)
