"""What a block's sizes mean for each of its projections: which rows stay, how many columns, which rank."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from search_spaces.families import ModelFamily
from search_spaces.shapes import ModelShape
from search_spaces.subnet import BlockConfig, saves

Role = Literal["qkv", "attention_out", "ffn_in", "ffn_out"]


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of a projection that serve one purpose; of a fused one there are several.

    Rows come in groups (key/value groups, or single neurons), of which a prefix is kept, and of each group a prefix.

    Args:
        groups: Groups in the teacher.
        size: Rows of each.
        kept_groups: Groups that a block keeps.
        kept_size: Rows of each that it keeps.
    """

    groups: int
    size: int
    kept_groups: int
    kept_size: int

    @property
    def full(self) -> int:
        """Rows in the teacher."""
        return self.groups * self.size

    @property
    def kept(self) -> int:
        """Rows that a block keeps."""
        return self.kept_groups * self.kept_size

    def of(self, rows: Tensor) -> Tensor:
        """The kept ones of so many rows, which are sorted by importance: a view where whole groups are kept."""
        if self.kept_size == self.size:
            return rows[: self.kept]
        grouped = rows.reshape(self.groups, self.size, *rows.shape[1:])
        return grouped[: self.kept_groups, : self.kept_size].reshape(self.kept, *rows.shape[1:])


@dataclass(frozen=True, slots=True)
class ProjectionLayout:
    """One projection of one block.

    Args:
        path: Where it lies in the block.
        role: ``qkv`` and ``ffn_in`` read the residual stream and make units; ``attention_out`` and ``ffn_out`` read
            units and write to the stream.
        level: The name of the width (heads or FFN neurons) under which the calibration library keeps its variants.
        units: The units that are its inputs, where it writes, or its outputs.
        inputs: Columns that are kept.
        parts: Its rows.
        rank: Rank of its two factors; 0 where it is dense, also where a rank would save nothing.
    """

    path: str
    role: Role
    level: str
    units: Part
    inputs: int
    parts: tuple[Part, ...]
    rank: int

    @property
    def outputs(self) -> int:
        """Rows that are kept."""
        return sum(part.kept for part in self.parts)

    @property
    def sides(self) -> tuple[int, int]:
        """Inputs and outputs."""
        return self.inputs, self.outputs

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


def layouts(
    family: ModelFamily, shape: ModelShape, block: BlockConfig, hidden_size: int | None = None
) -> dict[str, ProjectionLayout]:
    """The projections of a block by path, in the order in which they run; by default with the teacher's stream."""
    size, group = shape.head_dim, shape.heads // shape.kv_heads
    hidden = shape.hidden_size if hidden_size is None else hidden_size
    queries = block.heads // block.kv_heads if block.kv_heads else 0
    query = Part(shape.kv_heads, group * size, block.kv_heads, queries * size)
    key = Part(shape.kv_heads, size, block.kv_heads, size)
    ffn, out = Part(shape.ffn, 1, block.ffn, 1), Part(shape.hidden_size, 1, hidden, 1)
    rows: dict[str, list[Part]] = {}
    for path, part in ((family.query, query), (family.key, key), (family.value, key)):
        rows.setdefault(path, []).append(part)
    widening: dict[str, list[Part]] = {}
    for path in family.ffn_in:
        widening.setdefault(path, []).append(ffn)
    heads = str(block.heads) if queries in (0, group) else f"{block.kv_heads}x{queries}"
    found = [
        *(_layout(path, "qkv", block, heads, query, hidden, parts) for path, parts in rows.items()),
        _layout(family.attention_out, "attention_out", block, heads, query, query.kept, [out]),
        *(_layout(path, "ffn_in", block, str(block.ffn), ffn, hidden, parts) for path, parts in widening.items()),
        _layout(family.ffn_out, "ffn_out", block, str(block.ffn), ffn, ffn.kept, [out]),
    ]
    return {layout.path: layout for layout in found}


def _layout(
    path: str, role: Role, block: BlockConfig, level: str, units: Part, inputs: int, parts: list[Part]
) -> ProjectionLayout:
    outputs, rank = sum(part.kept for part in parts), getattr(block, f"rank_{role}")
    # Grouped queries: a rank may save something in the query projection and nothing in the narrower key.
    rank = rank if saves(rank, inputs, outputs) else 0
    return ProjectionLayout(path, role, level, units, inputs, tuple(parts), rank)


def prefixes(matrix: Tensor, parts: tuple[Part, ...]) -> Tensor:
    """The kept rows of every part: a view where the projection has one part of whole groups, else a new tensor."""
    starts = accumulate((part.full for part in parts), initial=0)
    rows = [part.of(matrix[start : start + part.full]) for start, part in zip(starts, parts, strict=False)]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
