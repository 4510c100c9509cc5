"""What a block's sizes mean for each of its projections: which rows stay, how many columns, which rank."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from search_spaces.families import ModelFamily, ModelShape
from search_spaces.subnet import BlockConfig, saves

Role = Literal["qkv", "attention_out", "ffn_in", "ffn_out"]


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of a projection that serve one purpose; of a fused one there are several.

    Args:
        full: Rows in the teacher.
        kept: Rows that a block keeps: a prefix, once they are sorted by importance.
    """

    full: int
    kept: int


@dataclass(frozen=True, slots=True)
class ProjectionLayout:
    """One projection of one block.

    Args:
        path: Where it lies in the block.
        role: ``qkv`` and ``ffn_in`` read the residual stream and make units; ``attention_out`` and ``ffn_out`` read
            units and write to the stream.
        level: The width (heads or FFN neurons) under which the calibration library keeps its variants.
        inputs: Columns that are kept.
        parts: Its rows.
        rank: Rank of its two factors; 0 where it is dense, also where a rank would save nothing.
    """

    path: str
    role: Role
    level: int
    inputs: int
    parts: tuple[Part, ...]
    rank: int

    @property
    def outputs(self) -> int:
        """Rows that are kept."""
        return sum(part.kept for part in self.parts)

    @property
    def writes(self) -> bool:
        """Whether it reads units and writes to the residual stream."""
        return self.role in ("attention_out", "ffn_out")

    @property
    def dimension(self) -> str:
        """The dimension of the space that sets its width."""
        return "heads" if self.role in ("qkv", "attention_out") else "ffn"

    @property
    def rank_dimension(self) -> str:
        """The dimension of the space that sets its rank."""
        return f"rank_{self.role}"


def layouts(family: ModelFamily, shape: ModelShape, block: BlockConfig) -> dict[str, ProjectionLayout]:
    """The projections of a block by path, in the order in which they run."""
    size, hidden = shape.head_dim, shape.hidden_size
    query = Part(shape.heads * size, block.heads * size)
    key = Part(shape.kv_heads * size, block.kv_heads * size)
    ffn, out = Part(shape.ffn, block.ffn), Part(hidden, hidden)
    rows: dict[str, list[Part]] = {}
    for path, part in ((family.query, query), (family.key, key), (family.value, key)):
        rows.setdefault(path, []).append(part)
    widening: dict[str, list[Part]] = {}
    for path in family.ffn_in:
        widening.setdefault(path, []).append(ffn)
    found = [
        *(_layout(path, "qkv", block, hidden, parts) for path, parts in rows.items()),
        _layout(family.attention_out, "attention_out", block, query.kept, [out]),
        *(_layout(path, "ffn_in", block, hidden, parts) for path, parts in widening.items()),
        _layout(family.ffn_out, "ffn_out", block, ffn.kept, [out]),
    ]
    return {layout.path: layout for layout in found}


def _layout(path: str, role: Role, block: BlockConfig, inputs: int, parts: list[Part]) -> ProjectionLayout:
    outputs, rank = sum(part.kept for part in parts), getattr(block, f"rank_{role}")
    level = block.heads if role in ("qkv", "attention_out") else block.ffn
    # Grouped queries: a rank may save something in the query projection and nothing in the narrower key.
    return ProjectionLayout(path, role, level, inputs, tuple(parts), rank if saves(rank, inputs, outputs) else 0)


def prefixes(matrix: Tensor, parts: tuple[Part, ...]) -> Tensor:
    """The first kept rows of every part: a view where the projection has one part, else a new tensor."""
    starts = accumulate((part.full for part in parts), initial=0)
    rows = [matrix[start : start + part.kept] for start, part in zip(starts, parts, strict=False)]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
