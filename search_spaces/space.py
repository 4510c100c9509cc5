"""The choices of a search, and the map from a trial to a `SubnetConfig`.

The space is *static*: every parameter of every block is always suggested, because NSGA-II and multivariate TPE work on
the parameters that all trials share. What turns out inert (a skipped block's widths, a rank that saves nothing) is
removed afterwards by `canonical`, under which equal architectures compare and hash equal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from search_spaces.canonical import canonical, canonical_table
from search_spaces.choices import (
    BLOCK_DIMENSIONS,
    MODEL_DIMENSIONS,
    SWITCHES,
    Choice,
    Dimension,
    check,
    check_kinds,
    resolve,
)
from search_spaces.homogeneous import restrict
from search_spaces.shapes import ModelShape
from search_spaces.subnet import RANKS, BlockConfig, SubnetConfig, SubnetTable, saves


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
        per_block: Sequence[str] = BLOCK_DIMENSIONS[:-1],
        overrides: Mapping[int, Mapping[str, Any]] | None = None,
        round_to: Mapping[str, int] | None = None,
        min_blocks: int = 1,
        homogeneous: bool = False,
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
            homogeneous: Keep to shapes that the stock configuration class can express: see `homogeneous.restrict`.

        Raises:
            ValueError: A dimension is unknown, or a choice does not fit the teacher.
        """
        check_kinds(choices, per_block, overrides or {}, round_to or {}, min_blocks)
        own = {index: dict(values) for index, values in (overrides or {}).items()}
        check(shape, [choices, dict.fromkeys(per_block), round_to or {}, *own.values()], own, per_block, min_blocks)
        dimensions: list[Dimension] = []
        for index in range(shape.num_blocks):
            for name in (*BLOCK_DIMENSIONS, *(MODEL_DIMENSIONS if index == 0 else ())):
                raw = own.get(index, {}).get(name, choices.get(name))
                if raw is None:
                    continue
                where = f"overrides.{index}" if name in own.get(index, {}) else "choices"
                values = resolve(shape, name, raw, dict(round_to or {}).get(name, 1), where)
                if name in per_block or name in own.get(index, {}):
                    dimensions.append(Dimension(name, values, index))
                elif index == 0:
                    dimensions.append(Dimension(name, values, None))
        if homogeneous:
            dimensions = restrict(shape, dimensions)
        return cls(shape=shape, dimensions=tuple(dimensions), min_blocks=min_blocks)

    # -- what a search does with it ---------------------------------------------------------------------------------

    def suggest(self, trial: Suggests) -> SubnetConfig:
        """Ask a trial for every parameter and return the canonical subnet that they describe."""
        levels = [trial.suggest_int(d.parameter, 0, len(d.choices) - 1) for d in self.dimensions]
        return self.decode(np.array([levels], dtype=np.int64))[0]

    def decode(self, levels: NDArray[np.int64]) -> list[SubnetConfig]:
        """Canonical subnets of rows of parameter levels, ``(subnets, dimensions)``."""
        return self.table(levels).subnets()

    def encode(self, subnets: Sequence[SubnetConfig]) -> NDArray[np.int64]:
        """Rows of parameter levels, ``(subnets, dimensions)``, that `decode` turns into the same canonical subnets.

        Raises:
            ValueError: A subnet is not in the space.
        """
        rows = [self._levels(subnet) for subnet in subnets]
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.dimensions))

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
        rows, blocks = len(levels), self.shape.num_blocks
        sizes = {name: np.full((rows, blocks), value, dtype=np.int64) for name, value in self._defaults.items()}
        switches = {name: np.zeros((rows, blocks), dtype=bool) for name in SWITCHES}
        hidden_size = np.full(rows, self.shape.hidden_size, dtype=np.int64)
        for position, dimension in enumerate(self.dimensions):
            values = dimension.numbers[levels[:, position]]
            at = slice(None) if dimension.block is None else slice(dimension.block, dimension.block + 1)
            if dimension.name == "hidden_size":
                hidden_size = values
            elif dimension.name in SWITCHES:
                switches[dimension.name][:, at] = values[:, None] == 1
            else:
                sizes[dimension.name][:, at] = values[:, None]
        return canonical_table(self.shape, sizes | {"hidden_size": hidden_size}, switches, self.min_blocks)

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
        """Subnets with the same heads, FFN and precision in every block and nothing skipped, for all combinations."""
        names = [n for n in ("heads", "ffn", "precision") if any(d.name == n for d in self.dimensions)]
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
        own = [p for p, d in enumerate(self.dimensions) if d.block in (block, None)]
        choices = list(product(*(range(len(self.dimensions[position].choices)) for position in own)))
        rows = np.repeat([[len(d.choices) - 1 for d in self.dimensions]], len(choices), axis=0)
        rows[:, own] = np.array(choices, dtype=np.int64).reshape(len(choices), len(own))
        return list(dict.fromkeys(subnet.blocks[block] for subnet in self.decode(rows)))

    def levels(self, name: str, block: int) -> tuple[int, ...]:
        """The values that a dimension can take in a block; the full one alone where the space does not vary it."""
        own = [d for d in self.dimensions if d.name == name and d.block in (block, None)]
        full = {"hidden_size": self.shape.hidden_size, **dict.fromkeys(SWITCHES, 0), **self._defaults}[name]
        return tuple(own[0].numbers.tolist()) if own else (full,)

    @property
    def narrower(self) -> tuple[int, ...]:
        """The widths of the residual stream below the teacher's that subnets may have."""
        return tuple(size for size in self.levels("hidden_size", 0) if size < self.shape.hidden_size)

    def widths(self, name: str, block: int) -> list[BlockConfig]:
        """The teacher's block at every width of its ``heads`` or its ``ffn``; none at all where the space says so."""
        full = self.teacher.blocks[0]
        if name == "ffn":
            sizes = [0] * max(self.levels("no_ffn", block)) + list(self.levels("ffn", block))
            return [replace(full, ffn=size) for size in sizes]
        group = self.shape.heads // self.shape.kv_heads
        pairs = list(product(self.levels("heads", block), self.levels("queries_per_group", block)))
        kept = [replace(full, heads=heads // group * queries, kv_heads=heads // group) for heads, queries in pairs]
        return [replace(full, heads=0, kv_heads=0)] * max(self.levels("no_attention", block)) + kept

    def largest_rank(self, name: str, block: int, inputs: int, outputs: int) -> int:
        """The largest rank of a dimension that makes a projection of these sizes smaller; 0 where none does."""
        own = [d for d in self.dimensions if d.name == name and d.block in (block, None)]
        ranks = (int(value) for d in own for value in d.choices)
        return max((rank for rank in ranks if saves(rank, inputs, outputs)), default=0)

    @property
    def size(self) -> int:
        """How many combinations of choices there are (equal architectures written differently counted each)."""
        return prod(len(dimension.choices) for dimension in self.dimensions)

    def without(self, name: str) -> SearchSpace:
        """The space in which a dimension does not vary."""
        return replace(self, dimensions=tuple(d for d in self.dimensions if d.name != name))

    def canonical(self, subnet: SubnetConfig) -> SubnetConfig:
        """The one form of an architecture: skipped blocks carry no choices, ranks that save nothing are dense."""
        return canonical(self.shape, subnet)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that identifies the space: what a study and a profile remember of it."""
        dimensions = [[d.name, d.block, list(d.choices)] for d in self.dimensions]
        # What is no part of what tells models apart is none of a space's fingerprint either.
        shape = {f.name: getattr(self.shape, f.name) for f in fields(self.shape) if f.compare}
        return {"shape": shape, "dimensions": dimensions, "min_blocks": self.min_blocks}

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of `to_dict`."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    # -- inside -----------------------------------------------------------------------------------------------------

    @cached_property
    def _defaults(self) -> dict[str, int]:
        shape = self.shape
        sizes = {"heads": shape.heads, "queries_per_group": shape.heads // shape.kv_heads, "ffn": shape.ffn}
        return {**sizes, **dict.fromkeys(RANKS, 0), "precision": 0}

    def _levels(self, subnet: SubnetConfig) -> list[int]:
        wanted = self.canonical(subnet)
        if len(wanted.blocks) != self.shape.num_blocks:
            raise ValueError(f"subnet: must have {self.shape.num_blocks} blocks, but got {len(wanted.blocks)}.")
        row = [self._level(dimension, wanted) for dimension in self.dimensions]
        if self.decode(np.array([row], dtype=np.int64).reshape(1, -1)) != [wanted]:
            raise ValueError(f"subnet: not in this search space: {wanted.to_json()}")
        return row

    def _level(self, dimension: Dimension, subnet: SubnetConfig) -> int:
        """The level that describes the subnet; inert choices take the most expensive level."""
        if dimension.name == "hidden_size":
            return dimension.choices.index(subnet.hidden_size) if subnet.hidden_size in dimension.choices else 0
        blocks = subnet.blocks if dimension.block is None else subnet.blocks[dimension.block : dimension.block + 1]
        found = (self._value(dimension.name, index, block) for index, block in enumerate(blocks, dimension.block or 0))
        # Dense is the top: the largest rank of the space is at or above break-even, or `_levels` refuses it. Of a rank
        # that blocks share, another block's may be below.
        told = [value for value in found if value is not None and not (dimension.name in RANKS and value == 0)]
        if not told:
            return len(dimension.choices) - 1
        # Of a switch that blocks share, some may have come back, because something has to be there.
        value = True in told if dimension.name in SWITCHES else told[0]
        return dimension.choices.index(value) if value in dimension.choices else 0

    def _value(self, name: str, index: int, block: BlockConfig) -> Choice | None:
        """A block's choice in a dimension; None where it is inert."""
        if name == "skip":
            return block.skipped
        if block.skipped:
            # Where blocks cannot be skipped at once, one without attention and FFN is.
            return True if name in SWITCHES and max(self.levels("skip", index)) == 0 else None
        of_attention = {
            "no_attention": block.heads == 0,
            "heads": block.kv_heads * (self.shape.heads // self.shape.kv_heads) or None,
            "queries_per_group": block.heads // block.kv_heads if block.kv_heads else None,
        }
        if name in of_attention:
            return of_attention[name]
        if name in ("ffn", "no_ffn"):
            return block.ffn == 0 if name == "no_ffn" else block.ffn or None
        value: Choice = getattr(block, name)
        return value
