"""The one form under which equal architectures compare and hash equal."""

from __future__ import annotations

from search_spaces.families import ModelShape
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig


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
    query, key = block.heads * shape.head_dim, block.kv_heads * shape.head_dim

    def saves(rank: int, inputs: int, outputs: int) -> bool:
        return 0 < rank * (inputs + outputs) < inputs * outputs

    qkv = saves(block.rank_qkv, hidden_size, query) or saves(block.rank_qkv, hidden_size, key)
    return BlockConfig(
        heads=block.heads,
        kv_heads=block.kv_heads,
        ffn=block.ffn,
        rank_qkv=block.rank_qkv if qkv else 0,
        rank_attention_out=block.rank_attention_out if saves(block.rank_attention_out, query, hidden_size) else 0,
        rank_ffn_in=block.rank_ffn_in if saves(block.rank_ffn_in, hidden_size, block.ffn) else 0,
        rank_ffn_out=block.rank_ffn_out if saves(block.rank_ffn_out, block.ffn, hidden_size) else 0,
        precision=block.precision,
    )
