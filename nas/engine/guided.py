"""What to evaluate next: the part of the guided search that knows nothing of studies and spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.engine.acquisition import (
    chance_below,
    expected_hypervolume_improvement,
    expected_improvement,
    expected_scalar_improvement,
)
from nas.engine.surrogate import FeatureMap, Surrogate

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Observations:
    """Evaluated and running subnets.

    Args:
        features: ``(evaluated, columns)``.
        losses: ``(evaluated, goals)``, smaller is better; known goals hold the predictor's values.
        limited: ``(evaluated, limits)`` metrics with limits, signed and shifted such that at most 0 keeps to the limit.
        running_features: ``(running, columns)``.
        running_losses: ``(running, goals)``; only known goals are read.
    """

    features: Floats
    losses: Floats
    limited: Floats
    running_features: Floats
    running_losses: Floats


class Guide:
    """Scores candidates by how much they are expected to improve on what was observed.

    Args:
        features: The map that the quality models share.
        known: Which goals are known beforehand (predicted costs); the others are modelled.
    """

    def __init__(self, features: FeatureMap, known: Sequence[bool]) -> None:
        self.known = tuple(known)
        self._goals = [None if is_known else Surrogate(features) for is_known in known]
        self._limits: list[Surrogate] = []
        self._features = features

    def observe(self, seen: Observations) -> None:
        """Fit the models to what was evaluated; a running subnet counts as evaluated with its expected values."""
        for column, model in enumerate(self._goals):
            if model is not None:
                model.fit(seen.features, seen.losses[:, column])
        while len(self._limits) < seen.limited.shape[1]:
            self._limits.append(Surrogate(self._features))
        for column, model in enumerate(self._limits):
            model.fit(seen.features, seen.limited[:, column])
        able = np.all(seen.limited <= 0, axis=1)
        points = seen.losses[able] if able.any() else seen.losses
        low, high = points.min(axis=0), points.max(axis=0)
        self._reference = high + 0.05 * np.where(high > low, high - low, np.maximum(np.abs(high), 1e-12))
        if len(seen.running_features):
            means, _ = self._predict(seen.running_features, seen.running_losses)
            points = np.concatenate([points, means])
        self._points = points

    def score(self, features: Floats, losses: Floats, generator: np.random.Generator) -> Floats:
        """Expected gain of candidates, ``(candidates,)``; comparable within one call.

        Args:
            features: ``(candidates, columns)``.
            losses: ``(candidates, goals)``; only known goals are read.
            generator: Draws the weights where there are three or more goals.
        """
        means, deviations = self._predict(features, losses)
        goals = means.shape[1]
        if goals == 1:
            gain = expected_improvement(means[:, 0], deviations[:, 0], self._points[:, 0].min())
        elif goals == 2:
            gain = expected_hypervolume_improvement(means, deviations, self._points, self._reference)
        else:
            weights = generator.dirichlet(np.ones(goals))
            gain = expected_scalar_improvement(means, deviations, self._points, weights)
        for model in self._limits:
            mean, deviation = model.predict(features)
            gain = gain * chance_below(mean, deviation, np.zeros(1))
        return gain

    def _predict(self, features: Floats, losses: Floats) -> tuple[Floats, Floats]:
        means, deviations = losses.copy(), np.zeros_like(losses)
        for column, model in enumerate(self._goals):
            if model is not None:
                means[:, column], deviations[:, column] = model.predict(features)
        return means, deviations


def offspring(
    parents: NDArray[np.int64],
    highs: NDArray[np.int64],
    count: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Rows of levels near the parents: uniform crossover of pairs, then one to three mutations.

    Args:
        parents: ``(parents, dimensions)`` levels.
        highs: ``(dimensions,)`` number of levels.
        count: How many rows.
        generator: Where chance comes from.
    """
    dimensions = len(highs)
    first = parents[generator.integers(0, len(parents), size=count)]
    second = parents[generator.integers(0, len(parents), size=count)]
    crossed = generator.random(count) < 0.5
    rows = np.where((generator.random((count, dimensions)) < 0.5) & crossed[:, None], second, first)
    changes = generator.integers(1, 4, size=count)
    for turn in range(3):
        at = np.flatnonzero(changes > turn)
        place = generator.integers(0, dimensions, size=len(at))
        step = generator.choice([-1, 1], size=len(at))
        anywhere = generator.integers(0, highs[place])
        near = np.clip(rows[at, place] + step, 0, highs[place] - 1)
        rows[at, place] = np.where(generator.random(len(at)) < 0.7, near, anywhere)
    return rows
