"""What is known of a search space before anything is evaluated: the ground on which `GuidedSampler` moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from nas.engine.costs import SubnetCosts
from nas.engine.limits import Limit, Objectives, worst_violations
from search_spaces.members import MOST_LISTED, combinations
from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig, SubnetTable

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Floats = NDArray[np.float64]
Levels = NDArray[np.int64]
_BLOCK_COLUMNS = tuple(f.name for f in fields(SubnetTable) if f.name not in ("hidden_size", "precision"))


@dataclass(frozen=True)
class Described:
    """What is known of candidates, row by row.

    Args:
        keys: Equal where two rows are the same architecture.
        features: ``(rows, columns)``, what quality may depend on.
        losses: ``(rows, goals)``, smaller is better; columns of goals that are not known beforehand are 0.
        violations: ``(rows,)``, by how much the limits that are known beforehand are broken; 0 or less where they hold.
    """

    keys: Sequence[bytes]
    features: Floats
    losses: Floats
    violations: Floats

    @property
    def feasible(self) -> NDArray[np.bool_]:
        """``(rows,)``, whether the limits that are known beforehand hold."""
        able: NDArray[np.bool_] = self.violations <= 0
        return able


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the evaluation of a trial gave.

    Args:
        losses: One per goal, smaller is better.
        violations: One per limit on a metric; at most 0 keeps to it.
    """

    losses: tuple[float, ...]
    violations: tuple[float, ...]


class Landscape(Protocol):
    """A space of candidates, written as rows of levels, one level per parameter."""

    @property
    def parameters(self) -> Sequence[str]:
        """The names of the parameters."""

    @property
    def counts(self) -> Levels:
        """``(parameters,)``: how many levels each has."""

    @property
    def known(self) -> Sequence[bool]:
        """Goal by goal, whether its value is known before an evaluation."""

    @property
    def groups(self) -> Sequence[Sequence[int]]:
        """Columns of the features that belong together, and share how much quality depends on them."""

    @property
    def pool(self) -> Levels | None:
        """All candidates there are, ``(candidates, parameters)``, where these are few enough to be listed."""

    def describe(self, rows: Levels) -> Described:
        """What is known of rows of levels."""

    def row_of(self, trial: FrozenTrial) -> Levels | None:
        """The levels of a trial's candidate, or None where it has none yet."""

    def outcome_of(self, trial: FrozenTrial) -> Outcome:
        """What a complete trial's evaluation gave."""


class SubnetLandscape:
    """The subnets of a search space.

    Args:
        space: The space.
        costs: Known costs of subnets.
        limits: The constraints.
        objectives: The goals.
    """

    def __init__(self, space: SearchSpace, costs: SubnetCosts, limits: Sequence[Limit], objectives: Objectives) -> None:
        self.space = space
        self.costs = costs
        self.limits = tuple(limits)
        self.objectives = objectives
        self.parameters = tuple(dimension.parameter for dimension in space.dimensions)
        self.counts: Levels = np.array([len(d.choices) for d in space.dimensions], dtype=np.int64)
        self.known = tuple(name in costs.names for name in objectives.goals)
        self.groups = _groups(self._features(np.zeros((1, len(self.counts)), dtype=np.int64)))

    @cached_property
    def pool(self) -> Levels | None:
        """Every row of a small space; of rows that are the same architecture, the first."""
        if self.space.size > MOST_LISTED:
            return None
        rows = combinations(self.space)
        keys = _keys(self.space.table(rows))
        first = {key: position for position, key in reversed(list(enumerate(keys)))}
        distinct: Levels = rows[sorted(first.values())]
        return distinct

    def describe(self, rows: Levels) -> Described:
        """Canonical keys, features, and the goals and limits that costs decide."""
        table = self.space.table(rows)
        found = self.costs(table) if len(rows) else {}
        losses = np.zeros((len(rows), len(self.known)))
        for column, (name, direction) in enumerate(self.objectives.goals.items()):
            if name in found:
                losses[:, column] = found[name].value if direction == "minimize" else -found[name].value
        features = np.concatenate(self._features(rows, table), axis=1)
        return Described(_keys(table), features, losses, worst_violations(self.limits, found, len(rows))[0])

    def row_of(self, trial: FrozenTrial) -> Levels | None:
        """The trial's subnet as levels, rebuilt from its JSON."""
        text = trial.user_attrs.get("subnet")
        row: Levels | None = None if text is None else self.space.encode([SubnetConfig.from_json(text)])[0]
        return row

    def outcome_of(self, trial: FrozenTrial) -> Outcome:
        """Losses and violations of limited metrics, from what the objective recorded."""
        metrics = trial.user_attrs["result"]["metrics"]
        violations = tuple(limit.violation(metrics[limit.name]) for limit in self.limits if not limit.predicted)
        return Outcome(self.objectives.losses(trial.values), violations)

    def _features(self, rows: Levels, table: SubnetTable | None = None) -> list[Floats]:
        """Totals, their squares, every block's own sizes; and where blocks share choices, all of these by choice."""
        table = self.space.table(rows) if table is None else table
        sizes = np.concatenate([getattr(table, name) for name in _BLOCK_COLUMNS] + [table.precision], axis=1)
        blocks = np.concatenate([sizes, np.sqrt(sizes)], axis=1).astype(np.float64)
        kept = ~table.skipped
        sums = [np.log1p(getattr(table, name).sum(axis=1)) for name in _BLOCK_COLUMNS]
        sums += [kept.sum(axis=1).astype(np.float64), (table.precision * kept).sum(axis=1).astype(np.float64)]
        totals = np.stack(sums, axis=1)
        shared = [
            (rows[:, position] == level).astype(np.float64)
            for position, dimension in enumerate(self.space.dimensions)
            if dimension.block is None and len(dimension.choices) > 1
            for level in range(len(dimension.choices))
        ]
        parts = [totals, totals**2, blocks]
        if shared:
            chosen = np.stack(shared, axis=1)
            parts += [chosen, np.concatenate([column[:, None] * totals for column in chosen.T], axis=1)]
        return parts


def _groups(parts: Sequence[Floats]) -> list[list[int]]:
    edges = np.cumsum([0, *(part.shape[1] for part in parts)]).tolist()
    return [list(range(start, end)) for start, end in pairwise(edges)]


def _keys(table: SubnetTable) -> list[bytes]:
    """One key per row, equal where the canonical architectures are."""
    columns = [getattr(table, name) for name in _BLOCK_COLUMNS] + [table.precision, table.hidden_size[:, None]]
    stacked = np.ascontiguousarray(np.concatenate(columns, axis=1), dtype=np.int64)
    return [row.tobytes() for row in stacked]
