"""Intervals that hold: conformal prediction on cross-validated relative errors, scaled by what is known to vary.

Held-out errors come from refits without the row (the jackknife of Barber et al. 2021, arXiv 1905.02928, below 40 rows)
or without its fold (their CV+ variant above), so their quantiles include what the fit itself is uncertain about.
Dividing by the model's own spread, and by a trend over size, keeps small and large subnets equally covered (Lei et al.
2018, arXiv 1604.04173).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from latency_models.features import Features, Floats, Integers

JACKKNIFE_BELOW = 40


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
        spreads: ``(rows,)`` the models' own relative spreads.
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
        predicted[test], spreads[test] = refitted.predict(features.take(test))
    return HeldOut(predicted, spreads)


@dataclass(frozen=True)
class Calibration:
    """Quantiles of held-out errors, and how errors trend with size.

    Args:
        scores: Sorted held-out errors, each over its expected spread.
        slope: By how much the logarithm of the spread rises with the logarithm of the predicted value.
        centre: Logarithm of the predicted value at which the trend is 1.
    """

    scores: Floats
    slope: float
    centre: float

    @classmethod
    def of(cls, out: HeldOut, measured: Floats) -> Calibration:
        """Calibrate on held-out predictions."""
        relative = np.abs(measured / out.values - 1.0) / out.spreads
        size = np.log(out.values)
        centre = float(size.mean())
        slope = _trend(size - centre, np.log(relative + 0.05 * float(np.median(relative)) + 1e-12))
        return cls(np.sort(relative / np.exp(slope * (size - centre))), slope, centre)

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
        return float(
            self.scores[low - 1] + (place - math.floor(place)) * (self.scores[high - 1] - self.scores[low - 1])
        )

    def half_widths(self, values: Floats, spreads: Floats, confidence: float) -> Floats:
        """Half of the interval around each predicted value, in the values' unit."""
        trend = np.exp(self.slope * (np.log(np.maximum(values, 1e-300)) - self.centre))
        return self.quantile(confidence) * values * spreads * trend


def _trend(size: Floats, logarithm: Floats) -> float:
    """Slope of log errors over log size, shrunk towards 0 by as much as it is uncertain."""
    total = float((size**2).sum())
    if total <= 1e-12 * len(size):
        return 0.0
    slope = float((size * (logarithm - logarithm.mean())).sum()) / total
    variance = float(np.var(logarithm)) / total
    return slope * max(0.0, 1.0 - variance / slope**2) if slope else 0.0
