"""What to evaluate next: the part of the guided search that knows nothing of studies and spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from nas.engine.acquisition import (
    chance_below,
    expected_hypervolume_improvement,
    expected_improvement,
    expected_scalar_improvement,
)
from nas.engine.pareto import beaten
from nas.engine.surrogate import Surrogate

Floats = NDArray[np.float64]
Levels = NDArray[np.int64]
_SHORTLIST = 400
# The share of parameters that differ between neighbours, and what completes without a neighbour that did: of both, the
# best of a few on HW-GPT-Bench's table.
_REACH, _SURE = 1 / 9, 0.3


@dataclass(frozen=True)
class Observations:
    """Evaluated and running candidates.

    Args:
        rows: ``(evaluated, columns)`` mapped features.
        losses: ``(evaluated, goals)``, smaller is better; known goals hold the predictor's values.
        violations: ``(evaluated, limits)`` of limits on metrics; at most 0 keeps to the limit.
        running_rows: ``(running, columns)``.
        running_losses: ``(running, goals)``; only known goals are read.
    """

    rows: Floats
    losses: Floats
    violations: Floats
    running_rows: Floats
    running_losses: Floats

    @property
    def able(self) -> NDArray[np.bool_]:
        """``(evaluated,)``: which keep to all limits; all of them where none does."""
        able: NDArray[np.bool_] = np.all(self.violations <= 0, axis=1)
        return able if able.any() else np.ones(len(able), dtype=bool)


class Guide:
    """Scores candidates by how much they are expected to improve on what was observed.

    Args:
        sizes: Columns of each group of the mapped features; see `surrogate.FeatureMap.sizes`.
        known: Which goals are known beforehand (predicted costs); the others are modelled.
    """

    def __init__(self, sizes: Sequence[int], known: Sequence[bool]) -> None:
        self.sizes = tuple(sizes)
        self.known = tuple(known)
        self._goals = [None if is_known else Surrogate(sizes) for is_known in known]
        self._limits: list[Surrogate] = []

    def observe(self, seen: Observations) -> None:
        """Fit the models to what was evaluated; a running candidate counts as evaluated with its expected values."""
        for column, model in enumerate(self._goals):
            if model is not None:
                model.fit(seen.rows, seen.losses[:, column])
        while len(self._limits) < seen.violations.shape[1]:
            self._limits.append(Surrogate(self.sizes))
        for column, model in enumerate(self._limits):
            model.fit(seen.rows, seen.violations[:, column])
        points = seen.losses[seen.able]
        low, high = points.min(axis=0), points.max(axis=0)
        self._reference = high + 0.05 * np.where(high > low, high - low, np.maximum(np.abs(high), 1e-12))
        self._typical = self._predict(seen.rows, seen.losses)[1].mean(axis=0)
        if len(seen.running_rows):
            points = np.concatenate([points, self._predict(seen.running_rows, seen.running_losses)[0]])
        self._points = points

    def best(
        self,
        rows: Floats,
        losses: Floats,
        generator: np.random.Generator,
        count: int = 1,
        among: NDArray[np.intp] | None = None,
        chances: Floats | None = None,
    ) -> NDArray[np.intp]:
        """Indices of the candidates with the largest expected gain, best first.

        Args:
            rows: ``(candidates, columns)`` mapped features.
            losses: ``(candidates, goals)``; only known goals are read.
            generator: Draws the weights where there are three or more goals.
            count: How many.
            among: Indices of those to choose from; None for all.
            chances: ``(candidates,)``, how likely each is to be evaluated without failing; None for certainly.
        """
        weights = generator.dirichlet(np.ones(losses.shape[1]))
        kept = np.arange(len(rows)) if among is None else among
        if len(kept) > 2 * _SHORTLIST:
            kept = self._promising(rows, losses, weights, kept, count)
        scores = self.score(rows[kept], losses[kept], weights)
        if chances is not None:
            # Squared: a failure costs an evaluation and says nothing of quality.
            scores = scores * chances[kept] ** 2
        order: NDArray[np.intp] = kept[np.argsort(-scores, kind="stable")[:count]]
        return order

    def score(self, rows: Floats, losses: Floats, weights: Floats) -> Floats:
        """Expected gain of candidates, ``(candidates,)``; comparable within one call.

        Args:
            rows: ``(candidates, columns)`` mapped features.
            losses: ``(candidates, goals)``; only known goals are read.
            weights: ``(goals,)``, positive; used only where there are three or more goals.
        """
        gain = self._gain(*self._predict(rows, losses), weights)
        for model in self._limits:
            gain = gain * chance_below(*model.predict(rows), 0.0)
        return gain

    def _promising(
        self, rows: Floats, losses: Floats, weights: Floats, among: NDArray[np.intp], count: int
    ) -> NDArray[np.intp]:
        """Of very many candidates, those that are worth the work of finding out how uncertain they are."""
        means = self._expect(rows, losses)
        hopeful = among[~beaten(means[among] - 3 * self._typical, self._points)]
        if len(hopeful) < count:
            hopeful = among
        if len(hopeful) <= max(_SHORTLIST, count):
            return hopeful
        means = means[hopeful]
        rough = self._gain(means, np.broadcast_to(self._typical, means.shape), weights)
        return hopeful[np.argsort(-rough, kind="stable")[: max(_SHORTLIST, count)]]

    def _gain(self, means: Floats, deviations: Floats, weights: Floats) -> Floats:
        if means.shape[1] == 1:
            return expected_improvement(means[:, 0], deviations[:, 0], self._points[:, 0].min())
        if means.shape[1] == 2:
            return expected_hypervolume_improvement(means, deviations, self._points, self._reference)
        return expected_scalar_improvement(means, deviations, self._points, weights)

    def _expect(self, rows: Floats, losses: Floats) -> Floats:
        means = losses.copy()
        for column, model in enumerate(self._goals):
            if model is not None:
                means[:, column] = model.expect(rows)
        return means

    def _predict(self, rows: Floats, losses: Floats) -> tuple[Floats, Floats]:
        means, deviations = losses.copy(), np.zeros_like(losses)
        for column, model in enumerate(self._goals):
            if model is not None:
                means[:, column], deviations[:, column] = model.predict(rows)
        return means, deviations


def chance_to_complete(levels: Levels, completed: Levels, failed: Levels) -> Floats:
    """How likely evaluations are not to fail, ``(rows,)``: what failed tells of its neighbours, and what did not.

    A share of neighbours weighted by a Gaussian of the parameters that differ (Nadaraya 1964, Watson 1964), with a
    little of what certainly completes added, so that a lone failure far away tells nothing.

    Args:
        levels: ``(rows, parameters)``.
        completed: ``(completed, parameters)``.
        failed: ``(failed, parameters)``.
    """
    if not len(failed):
        return np.ones(len(levels))

    def near(others: Levels) -> Floats:
        # `hamming` is the share of parameters that differ.
        weights: Floats = np.exp(-((cdist(levels, others, "hamming") / _REACH) ** 2) / 2).sum(axis=1)
        return weights

    sure = near(completed) + _SURE
    chances: Floats = sure / (sure + near(failed))
    return chances


def offspring(parents: Levels, counts: Levels, number: int, generator: np.random.Generator) -> Levels:
    """Rows of levels near the parents: uniform crossover of pairs, then one to three mutations.

    Args:
        parents: ``(parents, parameters)`` levels.
        counts: ``(parameters,)`` how many levels each has.
        number: How many rows.
        generator: Where chance comes from.
    """
    width = len(counts)
    first = parents[generator.integers(0, len(parents), size=number)]
    second = parents[generator.integers(0, len(parents), size=number)]
    crossed = generator.random(number) < 0.5
    rows = np.where((generator.random((number, width)) < 0.5) & crossed[:, None], second, first)
    changes = generator.integers(1, 4, size=number)
    for turn in range(3):
        at = np.flatnonzero(changes > turn)
        place = generator.integers(0, width, size=len(at))
        step = generator.choice([-1, 1], size=len(at))
        anywhere = generator.integers(0, counts[place])
        near = np.clip(rows[at, place] + step, 0, counts[place] - 1)
        rows[at, place] = np.where(generator.random(len(at)) < 0.7, near, anywhere)
    return rows


def farthest(points: Floats, seen: Floats) -> int:
    """The point that is farthest from all seen ones, in columns scaled to their range; the first of equals.

    With nothing seen, one at the lower end: evaluations before there is a model are spread over what is known.
    """
    every = np.concatenate([points, seen])
    low, high = every.min(axis=0), every.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    points, seen = (points - low) / span, (seen - low) / span
    if not len(seen):
        return int(np.argmin(points.sum(axis=1)))
    gaps = np.min(np.linalg.norm(points[:, None, :] - seen[None, :, :], axis=2), axis=1)
    return int(np.argmax(gaps))
