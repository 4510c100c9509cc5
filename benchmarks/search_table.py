"""HW-GPT-Bench's table as a search problem: 27 parameters, values of real measurements, and the table's own front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import latency_tables
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from latency_models.predictors import CalibratedPredictor, auto
from nas.engine.landscape import Described, Outcome
from nas.engine.pareto import hypervolume

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Floats = NDArray[np.float64]
Levels = NDArray[np.int64]
BLOCKS = 12
WIDTHS, HEADS, RATIOS = np.array([192, 384, 768]), np.array([4, 8, 12]), np.array([2, 3, 4])
FEWEST_BLOCKS = 10
QUALITY = "ppl_supernet"
PROFILED = 100


@dataclass(frozen=True)
class SearchTable:
    """The rows of the table, encoded.

    Args:
        levels: ``(rows, 27)`` canonical levels: width, number of blocks, bias, heads and MLP ratio of each block; -1
            where a row has fewer blocks.
        quality: ``(rows,)`` perplexity.
        latencies: Column -> ``(rows,)`` ms.
    """

    levels: Levels
    quality: Floats
    latencies: dict[str, Floats]

    @classmethod
    def read(cls, path: Path) -> SearchTable:
        """Read ``table_*.csv.gz``; latency columns are ``lat_ms_*``."""
        table = pd.read_csv(path)
        heads, ratio = latency_tables.hwgpt_blocks(table)
        columns = [
            np.searchsorted(WIDTHS, table["embed_dim"])[:, None],
            (heads > 0).sum(axis=1)[:, None] - FEWEST_BLOCKS,
            table["bias"].to_numpy()[:, None],
            np.where(heads > 0, np.searchsorted(HEADS, heads), -1),
            np.where(heads > 0, np.searchsorted(RATIOS, ratio), -1),
        ]
        names = [name for name in table.columns if name.startswith("lat_ms_")]
        latencies = {name: table[name].to_numpy(dtype=np.float64) for name in names}
        return cls(np.concatenate(columns, axis=1), table[QUALITY].to_numpy(dtype=np.float64), latencies)

    def nearest(self, levels: Levels, unseen: NDArray[np.bool_]) -> int:
        """The unseen row that differs from canonical levels in the fewest places; the first of equals."""
        distance = (self.levels != canonical(levels[None, :])[0]).sum(axis=1)
        return int(np.argmin(np.where(unseen, distance, self.levels.shape[1] + 1)))


@dataclass(frozen=True)
class Problem:
    """Two objectives on the table, with a latency predictor that was fitted to some of its rows.

    Args:
        table: The table.
        column: The latency's column.
        predictor: Fitted.
    """

    table: SearchTable
    column: str
    predictor: CalibratedPredictor

    @classmethod
    def make(cls, table: SearchTable, column: str, seed: int) -> Problem:
        """Fit the predictor to random rows."""
        rows = np.random.default_rng([seed, 1]).choice(len(table.quality), PROFILED, replace=False)
        predictor = auto(seed).fit(features_of(table.levels[rows]), table.latencies[column][rows])
        return cls(table, column, predictor)

    @cached_property
    def latency(self) -> Floats:
        """``(rows,)`` predicted ms: what an engine is told."""
        return self.predictor.predict(features_of(self.table.levels)).value

    @cached_property
    def truth(self) -> Floats:
        """``(rows, 2)`` true values, each scaled over the table to [0, 1]."""
        values = np.stack([self.table.quality, self.table.latencies[self.column]], axis=1)
        low, high = values.min(axis=0), values.max(axis=0)
        return (values - low) / (high - low)

    @cached_property
    def whole(self) -> float:
        """Hypervolume of the table's own front."""
        return hypervolume(self.truth, np.ones(2))

    def told(self, row: int) -> tuple[float, float]:
        """The values that an engine is told of a row: its perplexity, and its predicted latency."""
        return float(self.table.quality[row]), float(self.latency[row])

    def share(self, rows: Sequence[int]) -> float:
        """Hypervolume of the true values of rows, as a share of the table's own front."""
        return hypervolume(self.truth[list(rows)], np.ones(2)) / self.whole


class TableLandscape:
    """The table's space as `GuidedSampler` sees it; with a pool, the table's rows are all candidates there are.

    Args:
        problem: Gives predicted latencies.
        pool: Whether the engine may choose from the rows, instead of from the whole space.
    """

    parameters = (
        "width",
        "blocks",
        "bias",
        *(f"block{i}.heads" for i in range(BLOCKS)),
        *(f"block{i}.ratio" for i in range(BLOCKS)),
    )
    counts = np.array([3, 3, 2] + [3] * (2 * BLOCKS), dtype=np.int64)
    known = (False, True)

    def __init__(self, problem: Problem, *, pool: bool) -> None:
        self.problem = problem
        self.pool = problem.table.levels if pool else None
        edges = np.cumsum([0, *(part.shape[1] for part in _parts(problem.table.levels[:1]))]).tolist()
        self.groups = [list(range(a, b)) for a, b in pairwise(edges)]

    def describe(self, rows: Levels) -> Described:
        """Keys, features and predicted latency of any rows of levels."""
        levels = canonical(rows)
        losses = np.zeros((len(rows), 2))
        if len(rows):
            losses[:, 1] = self.problem.predictor.predict(features_of(levels)).value
        keys = [row.tobytes() for row in np.ascontiguousarray(levels)]
        features = np.concatenate(_parts(levels), axis=1)
        return Described(keys, features, losses, np.zeros(len(rows)))

    def row_of(self, trial: FrozenTrial) -> Levels | None:
        """The trial's own proposal."""
        if not trial.params:
            return None
        return np.array([trial.params[name] for name in self.parameters], dtype=np.int64)

    def outcome_of(self, trial: FrozenTrial) -> Outcome:
        """The values that were told."""
        return Outcome(tuple(trial.values), ())


def canonical(levels: Levels) -> Levels:
    """Levels of blocks that are not there are -1."""
    there = np.arange(BLOCKS) < levels[:, 1:2] + FEWEST_BLOCKS
    return np.where(np.concatenate([np.ones_like(levels[:, :3], dtype=bool), there, there], axis=1), levels, -1)


def sizes_of(levels: Levels) -> tuple[Levels, Levels, Levels, Levels]:
    """Width, bias, heads and MLP ratios of canonical levels."""
    heads, ratio = levels[:, 3 : 3 + BLOCKS], levels[:, 3 + BLOCKS :]
    there = heads >= 0
    return WIDTHS[levels[:, 0]], levels[:, 2], np.where(there, HEADS[heads], 0), np.where(there, RATIOS[ratio], 0)


def features_of(levels: Levels) -> latency_tables.Features:
    """Physical features of canonical levels."""
    return latency_tables.hwgpt_features(*sizes_of(levels))


def _parts(levels: Levels) -> list[Floats]:
    """The groups that `SubnetLandscape` has: totals, squares, blocks, shared choices, totals by shared choice."""
    _, _, heads, ratio = sizes_of(levels)
    blocks = np.concatenate([heads, ratio], axis=1).astype(np.float64)
    totals = np.stack([np.log1p(heads.sum(axis=1)), np.log1p(ratio.sum(axis=1)), (heads > 0).sum(axis=1)], axis=1)
    chosen = np.concatenate(
        [(levels[:, [place]] == np.arange(count)).astype(np.float64) for place, count in ((0, 3), (1, 3), (2, 2))],
        axis=1,
    )
    by_choice = np.concatenate([chosen[:, [c]] * totals for c in range(chosen.shape[1])], axis=1)
    return [totals, totals**2, np.concatenate([blocks, np.sqrt(blocks)], axis=1), chosen, by_choice]
