"""The one form under which equal architectures compare and hash equal."""

from __future__ import annotations

from search_spaces.families import ModelShape
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig, saves


def canonical(shape: ModelShape, subnet: SubnetConfig) -> SubnetConfig:
    """The one form of an architecture for a teacher of this shape; idempotent.

    Raises:
        ValueError: A size exceeds the teacher's.
    """
    blocks = tuple(canonical_block(shape, block, subnet.hidden_size) for block in subnet.blocks)
    return SubnetConfig(blocks=blocks, hidden_size=subnet.hidden_size)


def canonical_block(shape: ModelShape, block: BlockConfig, hidden_size: int) -> BlockConfig:
    """One block of `canonical`."""
    if block.skipped:
        return SKIPPED
    for name, value, full in (("heads", block.heads, shape.heads), ("ffn", block.ffn, shape.ffn)):
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
