"""The choices of a search, and the map from a trial to a `SubnetConfig`.

The space is *static*: every parameter of every block is always suggested, because NSGA-II and multivariate TPE work on
the parameters that all trials share. What turns out inert (a skipped block's widths, a rank that saves nothing) is
removed afterwards by `canonical`, under which equal architectures compare and hash equal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from search_spaces.canonical import canonical, canonical_block
from search_spaces.choices import BLOCK_DIMENSIONS, Choice, Dimension, resolve
from search_spaces.cost import effective_rank
from search_spaces.families import ModelShape
from search_spaces.subnet import RANKS, SKIPPED, BlockConfig, SubnetConfig, SubnetTable, saves


class Suggests(Protocol):
    """What `suggest` needs of a trial: Optuna's trials have it, and so has a dictionary with one method."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number between low and high, both included."""


@dataclass(frozen=True)
class SearchSpace:
    """All the subnets that a search may propose for one teacher.

    Build it with `SearchSpace.from_choices`, which resolves fractions and checks every choice against the teacher.

    Args:
        shape: The teacher's sizes.
        dimensions: What varies, block by block.
        min_blocks: Blocks that are always left; skipped ones come back, first block first, until there are as many.
    """

    shape: ModelShape
    dimensions: tuple[Dimension, ...]
    min_blocks: int = 1

    @classmethod
    def from_choices(
        cls,
        shape: ModelShape,
        choices: Mapping[str, Any],
        *,
        per_block: Sequence[str] = ("skip", "heads", "ffn", *RANKS),
        overrides: Mapping[int, Mapping[str, Any]] | None = None,
        round_to: Mapping[str, int] | None = None,
        min_blocks: int = 1,
    ) -> SearchSpace:
        """Resolve choices as they stand in YAML against a teacher.

        Args:
            shape: The teacher's sizes.
            choices: Dimension name -> list of choices (or one: fixed). Whole numbers are absolute, fractions in (0, 1]
                are shares of the full size; for ranks, 0 means dense and fractions are shares of the hidden size.
            per_block: Dimensions chosen per block; the others are chosen once for all blocks.
            overrides: Block index -> dimension -> choices of that block alone.
            round_to: Dimension -> multiple that resolved fractions are rounded to (e.g. ``{"ffn": 64}``).
            min_blocks: Blocks that are always left.

        Raises:
            ValueError: A dimension is unknown, or a choice does not fit the teacher.
        """
        for name in (*choices, *per_block, *(n for o in (overrides or {}).values() for n in o)):
            if name not in BLOCK_DIMENSIONS:
                raise ValueError(f"space: unknown dimension {name!r}; known are {', '.join(BLOCK_DIMENSIONS)}.")
        if not 1 <= min_blocks <= shape.num_blocks:
            raise ValueError(f"space: `min_blocks` must be between 1 and {shape.num_blocks}, but got {min_blocks}.")
        rounding = dict(round_to or {})
        dimensions: list[Dimension] = []
        for index in range(shape.num_blocks):
            own = dict((overrides or {}).get(index, {}))
            for name in BLOCK_DIMENSIONS:
                raw = own.get(name, choices.get(name))
                if raw is None:
                    continue
                values = resolve(shape, name, raw, rounding.get(name, 1))
                if name in per_block or name in own:
                    dimensions.append(Dimension(name, values, index))
                elif index == 0:
                    dimensions.append(Dimension(name, values, None))
        if unknown := sorted(set(overrides or {}) - set(range(shape.num_blocks))):
            raise ValueError(f"space: `overrides` names block {unknown[0]}, but the model has {shape.num_blocks}.")
        return cls(shape=shape, dimensions=tuple(dimensions), min_blocks=min_blocks)

    # -- what a search does with it ---------------------------------------------------------------------------------

    def suggest(self, trial: Suggests) -> SubnetConfig:
        """Ask a trial for every parameter and return the canonical subnet that they describe."""
        levels = [trial.suggest_int(d.parameter, 0, len(d.choices) - 1) for d in self.dimensions]
        return self.decode(np.array([levels], dtype=np.int64))[0]

    def decode(self, levels: NDArray[np.int64]) -> list[SubnetConfig]:
        """Canonical subnets of rows of parameter levels, ``(subnets, dimensions)``."""
        return [self._from_row(row) for row in levels.tolist()]

    def encode(self, subnets: Sequence[SubnetConfig]) -> NDArray[np.int64]:
        """Rows of parameter levels, ``(subnets, dimensions)``, that `decode` turns into the same canonical subnets.

        Raises:
            ValueError: A subnet is not in the space.
        """
        rows = np.zeros((len(subnets), len(self.dimensions)), dtype=np.int64)
        for row, subnet in zip(rows, subnets, strict=True):
            row[:] = self._levels(subnet)
        return rows

    def parameters(self, subnet: SubnetConfig) -> dict[str, int]:
        """The subnet as the parameters of an Optuna trial, for `study.enqueue_trial`."""
        return dict(zip((d.parameter for d in self.dimensions), self._levels(subnet), strict=True))

    def contains(self, subnet: SubnetConfig) -> bool:
        """Whether the space can propose the subnet."""
        try:
            self._levels(subnet)
        except ValueError:
            return False
        return True

    def table(self, levels: NDArray[np.int64]) -> SubnetTable:
        """Columns of the canonical subnets of rows of levels, computed without building one object a row."""
        blocks = self.shape.num_blocks
        columns: dict[str, NDArray[np.int64]] = {}
        for name, default in self._defaults.items():
            columns[name] = np.full((len(levels), blocks), default, dtype=np.int64)
        skip = np.zeros((len(levels), blocks), dtype=bool)
        for position, dimension in enumerate(self.dimensions):
            values = dimension.numbers[levels[:, position]]
            at = slice(None) if dimension.block is None else slice(dimension.block, dimension.block + 1)
            if dimension.name == "skip":
                skip[:, at] = values[:, None] == 1
            else:
                columns[dimension.name][:, at] = values[:, None]
        return self._canonical_table(columns, skip)

    def sample(self, generator: np.random.Generator, count: int) -> list[SubnetConfig]:
        """Canonical subnets drawn uniformly over the parameters' levels; repeats are possible."""
        highs = [len(d.choices) for d in self.dimensions]
        return self.decode(
            generator.integers(0, highs, size=(count, len(highs))) if highs else np.zeros((count, 0), int)
        )

    @property
    def largest(self) -> SubnetConfig:
        """Every dimension at its most expensive choice: the teacher, where the space contains it."""
        return self.decode(np.array([[len(d.choices) - 1 for d in self.dimensions]], dtype=np.int64))[0]

    @property
    def smallest(self) -> SubnetConfig:
        """Every dimension at its cheapest choice."""
        return self.decode(np.zeros((1, len(self.dimensions)), dtype=np.int64))[0]

    def uniform(self) -> list[SubnetConfig]:
        """Subnets with the same choices in every block and nothing skipped, for all combinations of heads and FFN."""
        names = [n for n in ("heads", "ffn") if any(d.name == n for d in self.dimensions)]
        depth = {n: max(len(d.choices) for d in self.dimensions if d.name == n) for n in names}
        subnets: dict[SubnetConfig, None] = {}
        for levels in product(*(range(depth[n]) for n in names)):
            wanted = dict(zip(names, levels, strict=True))
            row = [min(wanted.get(d.name, len(d.choices)), len(d.choices) - 1) for d in self.dimensions]
            subnets[self.decode(np.array([row], dtype=np.int64))[0]] = None
        return list(subnets)

    @property
    def teacher(self) -> SubnetConfig:
        """The full model, whether or not the space contains it."""
        block = BlockConfig(heads=self.shape.heads, kv_heads=self.shape.kv_heads, ffn=self.shape.ffn)
        return SubnetConfig(blocks=(block,) * self.shape.num_blocks, hidden_size=self.shape.hidden_size)

    def variants(self, block: int) -> list[BlockConfig]:
        """Every distinct canonical choice of one block, the skipped one included where the space allows it."""
        own = [d for d in self.dimensions if d.block in (block, None)]
        found: dict[BlockConfig, None] = {}
        for values in product(*(d.choices for d in own)):
            candidate = self._block(dict(zip((d.name for d in own), values, strict=True)))
            found[candidate] = None
        return list(found)

    def levels(self, name: str, block: int) -> tuple[int, ...]:
        """The sizes that a block's heads or FFN can take; the full one alone where the space does not vary it."""
        full = int(self._defaults[name])
        own = [d for d in self.dimensions if d.name == name and d.block in (block, None)]
        return tuple(int(value) for value in own[0].choices) if own else (full,)

    def at_level(self, name: str, level: int) -> BlockConfig:
        """The teacher's block with another size of its heads (whole key/value groups) or its FFN."""
        full = self.teacher.blocks[0]
        if name == "ffn":
            return replace(full, ffn=level)
        return replace(full, heads=level, kv_heads=level * self.shape.kv_heads // self.shape.heads)

    def largest_rank(self, name: str, block: int, inputs: int, outputs: int) -> int:
        """The largest rank of a dimension that makes a projection of these sizes smaller; 0 where none does."""
        own = [d for d in self.dimensions if d.name == name and d.block in (block, None)]
        ranks = (int(value) for d in own for value in d.choices)
        return max((rank for rank in ranks if saves(rank, inputs, outputs)), default=0)

    @property
    def size(self) -> int:
        """How many combinations of choices there are (equal architectures written differently counted each)."""
        total = 1
        for dimension in self.dimensions:
            total *= len(dimension.choices)
        return total

    def canonical(self, subnet: SubnetConfig) -> SubnetConfig:
        """The one form of an architecture: skipped blocks carry no choices, ranks that save nothing are dense."""
        return canonical(self.shape, subnet)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that identifies the space: what a study and a profile remember of it."""
        dimensions = [[d.name, d.block, list(d.choices)] for d in self.dimensions]
        return {"shape": asdict(self.shape), "dimensions": dimensions, "min_blocks": self.min_blocks}

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of `to_dict`."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    # -- inside -----------------------------------------------------------------------------------------------------

    @cached_property
    def _defaults(self) -> dict[str, int]:
        return {"heads": self.shape.heads, "ffn": self.shape.ffn, **dict.fromkeys(RANKS, 0), "precision": 0}

    def _block(self, values: Mapping[str, Choice]) -> BlockConfig:
        if values.get("skip"):
            return SKIPPED
        heads = int(values.get("heads", self.shape.heads))
        group = self.shape.heads // self.shape.kv_heads
        return canonical_block(
            self.shape,
            BlockConfig(
                heads=heads,
                kv_heads=heads // group,
                ffn=int(values.get("ffn", self.shape.ffn)),
                precision=values.get("precision", "fp32"),  # type: ignore[arg-type]
                **{name: int(values.get(name, 0)) for name in RANKS},
            ),
            self.shape.hidden_size,
        )

    def _from_row(self, row: Sequence[int]) -> SubnetConfig:
        shared: dict[str, Choice] = {}
        own: list[dict[str, Choice]] = [{} for _ in range(self.shape.num_blocks)]
        for level, dimension in zip(row, self.dimensions, strict=True):
            (shared if dimension.block is None else own[dimension.block])[dimension.name] = dimension.choices[level]
        missing = self.min_blocks - sum(not {**shared, **values}.get("skip", False) for values in own)
        for values in own:
            if missing > 0 and {**shared, **values}.get("skip"):
                values["skip"] = False
                missing -= 1
        blocks = tuple(self._block({**shared, **values}) for values in own)
        return SubnetConfig(blocks=blocks, hidden_size=self.shape.hidden_size)

    def _levels(self, subnet: SubnetConfig) -> list[int]:
        wanted = self.canonical(subnet)
        if len(wanted.blocks) != self.shape.num_blocks:
            raise ValueError(f"subnet: must have {self.shape.num_blocks} blocks, but got {len(wanted.blocks)}.")
        row = [self._level(dimension, wanted) for dimension in self.dimensions]
        if self._from_row(row) != wanted:
            raise ValueError(f"subnet: not in this search space: {wanted.to_json()}")
        return row

    @staticmethod
    def _level(dimension: Dimension, subnet: SubnetConfig) -> int:
        """The level that describes the subnet; inert choices take the most expensive level."""
        blocks = subnet.blocks if dimension.block is None else subnet.blocks[dimension.block : dimension.block + 1]
        top = len(dimension.choices) - 1
        for block in blocks:
            value: Choice = block.skipped if dimension.name == "skip" else getattr(block, dimension.name)
            if block.skipped and dimension.name != "skip":
                continue
            if value in dimension.choices:
                return dimension.choices.index(value)
            if dimension.name in RANKS and value == 0:
                return top  # Dense: the largest rank of the space is at or above break-even, or `_levels` refuses it.
            return 0
        return top

    def _canonical_table(self, columns: dict[str, NDArray[np.int64]], skip: NDArray[np.bool_]) -> SubnetTable:
        missing = self.min_blocks - (~skip).sum(axis=1)
        # The first `missing` skipped blocks of a row come back.
        back = skip & (np.cumsum(skip, axis=1) <= missing[:, None])
        gone = skip & ~back
        for values in columns.values():
            values[gone] = 0
        heads, ffn = columns["heads"], columns["ffn"]
        kv_heads = heads * self.shape.kv_heads // self.shape.heads
        hidden = np.full(heads.shape, self.shape.hidden_size, dtype=np.int64)
        ranks = columns["rank_qkv"]
        saving = [saves(ranks, hidden, rows) for rows in self.shape.qkv_rows(heads, kv_heads)]
        return SubnetTable(
            hidden_size=np.full(len(heads), self.shape.hidden_size, dtype=np.int64),
            heads=heads,
            kv_heads=kv_heads,
            ffn=ffn,
            rank_qkv=np.where(np.logical_or.reduce(saving), ranks, 0),
            rank_attention_out=effective_rank(columns["rank_attention_out"], heads * self.shape.head_dim, hidden),
            rank_ffn_in=effective_rank(columns["rank_ffn_in"], hidden, self.shape.ffn_in_rows(ffn)),
            rank_ffn_out=effective_rank(columns["rank_ffn_out"], ffn, hidden),
            precision=columns["precision"],
        )
