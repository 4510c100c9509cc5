"""A teacher's twin: the same model with other sizes, whose graph tells which integers follow from sizes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from search_spaces.families import blocks_of, family_of
from search_spaces.subnet import BlockConfig
from search_spaces.surgery import keep_blocks, reshape_block

if TYPE_CHECKING:
    from torch import nn

    from latency_models.backends.graph_sizes import Sizes
    from search_spaces.shapes import ModelShape


def twin(model: nn.Module, inner: nn.Module, shape: ModelShape) -> tuple[nn.Module, Sizes]:
    """A copy of a deployed model with at most two blocks, of other sizes; it shares the weights outside the blocks.

    Args:
        model: The deployed model.
        inner: The `transformers` model in it.
        shape: Its sizes.
    """
    import torch

    family = family_of(inner)
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    config = _other_sizes(shape)
    place = next(name for name, module in model.named_modules() if module is inner)
    made = copy.deepcopy(model, shared)
    other = made.get_submodule(place)
    blocks = list(blocks_of(other))
    with torch.random.fork_rng(devices=[]):  # The new weights count for nothing; the caller's next numbers do.
        torch.manual_seed(0)
        for block in blocks[:2]:
            reshape_block(block, family, shape, config)
    kept = range(min(2, len(blocks)))
    keep_blocks(other, blocks, kept, getattr(other.config, "layer_types", None))
    return made, (config.kv_heads, config.heads // config.kv_heads, config.ffn)


def _other_sizes(shape: ModelShape) -> BlockConfig:
    """Sizes that are all larger, each by a factor of its own, so that a changed integer tells whence it comes."""
    group = shape.heads // shape.kv_heads
    kv_heads, ffn = shape.kv_heads + 1, shape.ffn + 1
    more = 0 if group == 1 else 1 if group != shape.kv_heads else 2
    return BlockConfig(heads=kv_heads * (group + more), kv_heads=kv_heads, ffn=ffn)
