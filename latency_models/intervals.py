"""Intervals that hold: conformal prediction on cross-validated relative errors, scaled by what is known to vary.

Held-out errors come from refits without the row (the jackknife of Barber et al. 2021, arXiv 1905.02928, below 40 rows)
or without its fold (their CV+ variant above), so their quantiles include what the fit itself is uncertain about.
Dividing by the errors' level at the subnet's size keeps small and large subnets equally covered (Lei et al. 2018,
arXiv 1604.04173).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from latency_models.features import Features, Floats, Integers

JACKKNIFE_BELOW = 40
ROWS_PER_LEVEL = 15
MOST_LEVELS = 6
LEVEL_PRIOR = 2.0
SPREADS = (0.5, 4.0)


class Model(Protocol):
    """A point model that also knows where it is less certain: what `Calibration` makes intervals for."""

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:
        """Fit to positive values ``(rows,)``; ``order`` is the place of each row in the measurement's order."""

    def predict(self, features: Features) -> tuple[Floats, Floats]:
        """Values ``(rows,)``, and relative spreads ``(rows,)`` up to a common factor."""


@dataclass(frozen=True)
class HeldOut:
    """Predictions for every row of a profile by fits that have not seen it.

    Args:
        values: ``(rows,)`` predictions.
        spreads: ``(rows,)`` the models' own spreads, each over what is typical of its fit.
    """

    values: Floats
    spreads: Floats

    def errors(self, measured: Floats) -> Floats:
        """Relative errors ``(rows,)``: predicted over measured, less 1."""
        return self.values / measured - 1.0


def folds_of(rows: int, folds: int, seed: int) -> Integers:
    """The fold of each row: every row its own below `JACKKNIFE_BELOW` rows, else random folds of equal size."""
    if rows < JACKKNIFE_BELOW:
        return np.arange(rows)
    return np.random.default_rng(seed).permutation(np.arange(rows) % folds)


def held_out(model: Model, features: Features, values: Floats, order: Floats | None, fold: Integers) -> HeldOut:
    """Predict every row by a fit of a copy of the model without its fold."""
    predicted, spreads = np.empty(len(values)), np.empty(len(values))
    for index in np.unique(fold):
        test, train = np.flatnonzero(fold == index), np.flatnonzero(fold != index)
        refitted = copy.deepcopy(model).fit(
            features.take(train), values[train], None if order is None else order[train]
        )
        predicted[test], own = refitted.predict(features.take(test))
        spreads[test] = relative_spreads(own, typical_spread(refitted, features.take(train)))
    return HeldOut(predicted, spreads)


def typical_spread(model: Model, features: Features) -> float:
    """The median spread of a fitted model over the rows that it was fitted to; 1 where it has none."""
    return float(np.median(model.predict(features)[1])) or 1.0


def relative_spreads(spreads: Floats, typical: float) -> Floats:
    """Spreads over what is typical of a fit: only where it is less certain than elsewhere compares between fits.

    A fit to few rows may believe in no error at all, and in any number of them beside its rows; hence the bounds.
    """
    relative: Floats = np.clip(spreads / typical, *SPREADS)
    return relative


@dataclass(frozen=True)
class Calibration:
    """Quantiles of held-out errors, and how much larger errors are at some sizes than at others.

    Args:
        scores: Sorted held-out errors, each over the level of its size.
        edges: Predicted values between which errors have a level of their own.
        levels: ``(edges + 1,)``: those levels, of which the mean over the rows is about 1.
        seen: The largest spread of a held-out row: beyond it, errors are extrapolated.
    """

    scores: Floats
    edges: Floats
    levels: Floats
    seen: float = 1.0

    @classmethod
    def of(cls, out: HeldOut, measured: Floats) -> Calibration:
        """Calibrate on held-out predictions."""
        relative = np.abs(measured / out.values - 1.0)
        count = int(np.clip(len(measured) // ROWS_PER_LEVEL, 1, MOST_LEVELS))
        edges = np.quantile(out.values, np.arange(1, count) / count)
        place = np.searchsorted(edges, out.values)
        # A level is an average over few rows: it is shrunk towards the common one as by a handful of typical rows.
        total = np.bincount(place, relative, minlength=count) + LEVEL_PRIOR * relative.mean()
        levels = total / (np.bincount(place, minlength=count) + LEVEL_PRIOR)
        levels = levels / relative.mean() if relative.mean() > 0 else np.ones(count)
        return cls(np.sort(relative / levels[place]), edges, levels, float(out.spreads.max()))

    def quantile(self, confidence: float) -> float:
        """The conformal quantile of the scores, with the correction for their finite number.

        Raises:
            ValueError: The confidence is not between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"`confidence` must be between 0 and 1, but got {confidence}.")
        place = confidence * (len(self.scores) + 1)
        low = min(max(math.floor(place), 1), len(self.scores))
        high = min(low + 1, len(self.scores))
        # Between order statistics the quantile is interpolated: with 30 rows a whole step is 3 % of coverage.
        step = float(self.scores[high - 1] - self.scores[low - 1])
        return float(self.scores[low - 1]) + (place - math.floor(place)) * step

    def half_widths(self, values: Floats, spreads: Floats, confidence: float) -> Floats:
        """Half of the interval around each predicted value, in the values' unit.

        Models' own spreads rank errors badly within what was measured, and are needed beyond it.
        """
        level = self.levels[np.searchsorted(self.edges, values)]
        return self.quantile(confidence) * values * level * np.maximum(1.0, spreads / self.seen)
