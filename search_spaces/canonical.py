"""The one form under which equal architectures compare and hash equal: of an object, and of the rows of a table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from search_spaces.cost import effective_rank
from search_spaces.shapes import ModelShape
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig, SubnetTable, saves

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def canonical(shape: ModelShape, subnet: SubnetConfig) -> SubnetConfig:
    """The one form of an architecture for a teacher of this shape; idempotent.

    Raises:
        ValueError: A size exceeds the teacher's.
    """
    if subnet.hidden_size > shape.hidden_size:
        raise ValueError(
            f"`hidden_size` must be at most the teacher's {shape.hidden_size}, but got {subnet.hidden_size}."
        )
    blocks = tuple(canonical_block(shape, block, subnet.hidden_size) for block in subnet.blocks)
    return SubnetConfig(blocks=blocks, hidden_size=subnet.hidden_size)


def canonical_block(shape: ModelShape, block: BlockConfig, hidden_size: int) -> BlockConfig:
    """One block of `canonical`."""
    if block.skipped:
        return SKIPPED
    group = shape.heads // shape.kv_heads
    for name, value, full in (
        ("heads", block.heads, shape.heads),
        ("kv_heads", block.kv_heads, shape.kv_heads),
        ("heads", block.heads, block.kv_heads * group),
        ("ffn", block.ffn, shape.ffn),
    ):
        if value > full:
            raise ValueError(f"`{name}` must be at most the teacher's {full}, but got {value}.")
    width = block.heads * shape.head_dim

    def effective(name: str, inputs: int, *outputs: int) -> int:
        rank: int = getattr(block, name)
        return rank if any(saves(rank, inputs, output) for output in outputs) else 0

    return BlockConfig(
        heads=block.heads,
        kv_heads=block.kv_heads,
        ffn=block.ffn,
        rank_qkv=effective("rank_qkv", hidden_size, *shape.qkv_rows(block.heads, block.kv_heads)),
        rank_attention_out=effective("rank_attention_out", width, hidden_size),
        rank_ffn_in=effective("rank_ffn_in", hidden_size, shape.ffn_in_rows(block.ffn)),
        rank_ffn_out=effective("rank_ffn_out", block.ffn, hidden_size),
        precision=block.precision,
    )


def canonical_table(
    shape: ModelShape, sizes: Mapping[str, Integers], switches: Mapping[str, Flags], min_blocks: int
) -> SubnetTable:
    """The canonical subnets that rows of choices describe.

    What has to be there comes back, first block first: as many blocks as are always left, and the attention of one
    block of a causal model, whose KV cache counts the tokens.

    Args:
        shape: The teacher's sizes.
        sizes: ``heads`` (in whole key/value groups), ``queries_per_group``, ``ffn``, the ranks and ``precision``, each
            ``(subnets, blocks)``, and ``hidden_size``, ``(subnets,)``.
        switches: ``skip``, ``no_attention`` and ``no_ffn``, each ``(subnets, blocks)``.
        min_blocks: Blocks that are always left.
    """
    no_attention, no_ffn = switches["no_attention"], switches["no_ffn"]
    gone = switches["skip"] | (no_attention & no_ffn)
    missing = min_blocks - (~gone).sum(axis=1)
    back = gone & (np.cumsum(gone, axis=1) <= missing[:, None])
    gone, no_ffn = gone & ~back, no_ffn & ~(back & no_attention & no_ffn)
    if shape.causal:
        none = (gone | no_attention).all(axis=1)
        no_attention = no_attention & ~(none[:, None] & ~gone & (np.cumsum(~gone, axis=1) == 1))
    group = shape.heads // shape.kv_heads
    kv_heads = np.where(gone | no_attention, 0, sizes["heads"] // group)
    heads, ffn = kv_heads * sizes["queries_per_group"], np.where(gone | no_ffn, 0, sizes["ffn"])
    hidden = np.broadcast_to(sizes["hidden_size"][:, None], heads.shape)
    saving = [saves(sizes["rank_qkv"], hidden, rows) for rows in shape.qkv_rows(heads, kv_heads)]
    return SubnetTable(
        hidden_size=sizes["hidden_size"],
        heads=heads,
        kv_heads=kv_heads,
        ffn=ffn,
        rank_qkv=np.where(np.logical_or.reduce(saving), sizes["rank_qkv"], 0),
        rank_attention_out=effective_rank(sizes["rank_attention_out"], heads * shape.head_dim, hidden),
        rank_ffn_in=effective_rank(sizes["rank_ffn_in"], hidden, shape.ffn_in_rows(ffn)),
        rank_ffn_out=effective_rank(sizes["rank_ffn_out"], ffn, hidden),
        precision=np.where(gone, 0, sizes["precision"]),
    )
