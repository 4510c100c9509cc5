"""Stretches of a profile in which the machine ran at another speed: found, reported and taken out.

A throttling processor, a neighbour on the same host or a driver's mode shifts all rows of a stretch. The stretches are
found in the residuals of a robust fit that knows no order, as the best partition of the sequence into levels
(optimal partitioning, Jackson et al. 2005), computed on medians of short runs so that single outliers make no level.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from latency_models.features import Features, Floats, Integers
from latency_models.intervals import Model
from latency_models.shrinkage import ShrinkageModel

MIN_ROWS = 50
MIN_SHIFT = 0.03
MIN_SPREADS = 2.0
RUN = 10


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows, in measurement order, whose level is shifted.

    Args:
        start: First row.
        stop: The row after the last.
        shift: Relative shift against the profile's usual level: 0.2 is 20 % slower.
    """

    start: int
    stop: int
    shift: float

    def __str__(self) -> str:
        return f"rows {self.start}-{self.stop - 1}: {self.shift:+.1%}"


@dataclass(frozen=True)
class DriftReport:
    """What a profile's order tells.

    Args:
        segments: The shifted stretches, in order.
        autocorrelation: Of neighbouring rows' residuals; 0 without drift.
        spread: Robust standard deviation of the residuals within levels, relative.
        levels: ``(rows,)``: logarithm of each row's level over the usual one, 0 outside segments.
    """

    segments: tuple[Segment, ...]
    autocorrelation: float
    spread: float
    levels: Floats = field(repr=False)

    def steady(self, values: Floats) -> Floats:
        """The values ``(rows,)`` as the machine's usual state would have given them: shifted stretches scaled back."""
        steady: Floats = values * np.exp(-self.levels)
        return steady

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the rows."""
        return {
            "segments": [asdict(segment) for segment in self.segments],
            "autocorrelation": self.autocorrelation,
            "spread": self.spread,
        }

    def __str__(self) -> str:
        found = "; ".join(map(str, self.segments)) or "no shifted stretch"
        return f"drift: {found} (autocorrelation {self.autocorrelation:.2f}, spread {self.spread:.2%})"


def detect(
    features: Features,
    values: Floats,
    order: Floats | None = None,
    model: Model | None = None,
) -> DriftReport:
    """Find the shifted stretches of a profile.

    Args:
        features: Rows of the profile.
        values: ``(rows,)`` measured values, positive.
        order: ``(rows,)`` the place of each row in the measurement's order; the rows' own order when None.
        model: What explains the values but for drift; a robust fit that knows no order by default.
    """
    place = np.argsort(order, kind="stable") if order is not None else np.arange(len(values))
    fitted = (model or ShrinkageModel(terms=("products", "levels"), drift=False)).fit(features, values)
    residuals = np.log(values / fitted.predict(features)[0])
    report = in_residuals(residuals[place])
    levels = np.empty(len(values))
    levels[place] = report.levels
    return DriftReport(report.segments, report.autocorrelation, report.spread, levels)


def in_residuals(residuals: Floats) -> DriftReport:
    """The shifted stretches of logarithmic residuals ``(rows,)`` in measurement order.

    A stretch counts when it has at least 50 rows and is shifted by at least 3 % and two residual standard deviations.
    """
    centred = residuals - np.median(residuals)
    autocorrelation = _autocorrelation(centred)
    levels = np.zeros(len(residuals))
    if len(residuals) < 2 * MIN_ROWS:
        return DriftReport((), autocorrelation, _spread(centred), levels)
    cuts = _refined(centred, _partition(centred))
    row_levels = np.concatenate(
        [np.full(stop - start, np.median(centred[start:stop])) for start, stop in pairwise(cuts)]
    )
    spread = _spread(centred - row_levels)
    usual = float(np.median(row_levels))
    shifted = np.abs(np.expm1(row_levels - usual)) >= max(MIN_SHIFT, MIN_SPREADS * spread)
    segments = []
    for start, stop in _runs(shifted, row_levels):
        if stop - start >= MIN_ROWS:
            levels[start:stop] = row_levels[start:stop] - usual
            segments.append(Segment(start, stop, float(np.expm1(np.median(levels[start:stop])))))
    return DriftReport(tuple(segments), autocorrelation, spread, levels)


def _partition(residuals: Floats) -> list[int]:
    """Rows at which the best partition of the sequence into constant levels has its cuts, the ends included."""
    count = len(residuals) // RUN
    medians = np.median(residuals[: count * RUN].reshape(count, RUN), axis=1)
    noise = max(_spread(np.diff(medians)) / np.sqrt(2.0), 1e-12)
    # Three times Schwarz's penalty: an Ornstein-Uhlenbeck wander would else be cut into very many levels.
    penalty = 6.0 * noise**2 * np.log(count)
    shortest = MIN_ROWS // RUN
    sums, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (medians, medians**2))
    best = np.full(count + 1, np.inf)
    best[0] = -penalty
    back = np.zeros(count + 1, dtype=np.int64)
    for stop in range(shortest, count + 1):
        starts = np.arange(stop - shortest + 1)
        cost = squares[stop] - squares[starts] - (sums[stop] - sums[starts]) ** 2 / (stop - starts)
        total = best[starts] + cost + penalty
        back[stop] = int(total.argmin())
        best[stop] = total[back[stop]]
    cuts = [count]
    while cuts[-1] > 0:
        cuts.append(int(back[cuts[-1]]))
    rows = [cut * RUN for cut in reversed(cuts)]
    rows[-1] = len(residuals)
    return rows


def _refined(residuals: Floats, cuts: list[int]) -> list[int]:
    """The same cuts, each moved to the row that separates its two levels best."""
    refined = list(cuts)
    for index in range(1, len(cuts) - 1):
        before = np.median(residuals[refined[index - 1] : cuts[index]])
        after = np.median(residuals[cuts[index] : cuts[index + 1]])
        low, high = max(cuts[index] - 2 * RUN, refined[index - 1] + 1), min(cuts[index] + 2 * RUN, cuts[index + 1] - 1)
        window = residuals[low:high]
        left = np.concatenate([[0.0], np.cumsum(np.abs(window - before))])
        right = np.concatenate([[0.0], np.cumsum(np.abs(window - after)[::-1])])[::-1]
        refined[index] = low + int((left + right).argmin())
    return refined


def _runs(shifted: np.typing.NDArray[np.bool_], levels: Floats) -> list[tuple[int, int]]:
    """Stretches of neighbouring shifted rows on the same side of the usual level."""
    side = np.where(shifted, np.where(levels > np.median(levels), 1, -1), 0)
    cuts: Integers = np.concatenate([[0], np.flatnonzero(np.diff(side)) + 1, [len(side)]])
    return [(a, b) for a, b in pairwise(cuts.tolist()) if side[a] != 0]


def _autocorrelation(residuals: Floats) -> float:
    """Of neighbours, on residuals clipped at 5 robust standard deviations."""
    bound = 5.0 * _spread(residuals)
    clipped = np.clip(residuals, -bound, bound)
    clipped = clipped - clipped.mean()
    total = float((clipped**2).sum())
    return float((clipped[1:] * clipped[:-1]).sum()) / total if total > 0 else 0.0


def _spread(values: Floats) -> float:
    """Standard deviation of normal values, by the median absolute deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if len(values) else 0.0
