"""How sure a metric is: bootstrap intervals over samples, paired with the teacher's, and McNemar's test.

Samples are drawn for student and teacher together, because both are judged on the same ones: what makes a sample hard
is common to both, so that the interval of their ratio is far narrower than those of the two values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.metrics import Measure, Rows, Tables, take

Statistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]
# A costly measure's few resamples still show its spread to some 5 %.
_QUICK_RESAMPLES = 200
# Resamples of many samples by many draws fill the memory when they are made at once.
_BATCH = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float

    def to_list(self) -> list[float]:
        """Value, low and high."""
        return [self.value, self.low, self.high]


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are drawn.

    Args:
        resamples: Bootstrap samples.
        confidence: Share of such intervals that hold the true value.
        seed: Of the draw.

    Raises:
        ValueError: A number is out of range.
    """

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.resamples, bool) or not isinstance(self.resamples, int) or self.resamples < 2:
            raise ValueError(f"`resamples` must be a whole number >= 2, but got {self.resamples!r}.")
        if not 0 < self.confidence < 1:
            raise ValueError(f"`confidence` must be between 0 and 1, but got {self.confidence!r}.")

    def draw(self, statistic: Statistic, samples: int, most: int | None = None) -> NDArray[np.float64]:
        """Quantiles of a statistic over resamples of rows.

        Args:
            statistic: From row numbers ``(resamples, samples)`` to values ``(values, resamples)``.
            samples: How many rows there are.
            most: At most so many resamples.

        Returns:
            ``(values, 2)``: where each value's interval begins and ends.

        Raises:
            ValueError: There are fewer than 2 rows.
        """
        from scipy.stats import DegenerateDataWarning, bootstrap

        if samples < 2:
            raise ValueError(f"an interval needs at least 2 samples, but there are {samples}.")
        with warnings.catch_warnings():
            # A value that is not finite in some resamples gets no interval; that is for the caller to see.
            warnings.simplefilter("ignore", DegenerateDataWarning)
            result = bootstrap(
                (np.arange(samples),),
                lambda rows, axis=-1: statistic(np.moveaxis(np.atleast_2d(rows), axis, -1)),
                vectorized=True,
                n_resamples=min(self.resamples, most or self.resamples),
                confidence_level=self.confidence,
                method="percentile",
                batch=max(1, _BATCH // samples),
                rng=np.random.default_rng(self.seed),
            )
        interval = result.confidence_interval
        return np.stack([np.asarray(interval.low), np.asarray(interval.high)], axis=-1)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure of one model, beside the teacher's.

    Args:
        name: The measure's.
        value: The model's own.
        teacher: The teacher's; None for measures of agreement.
        retention: Share of the teacher's value that is kept: own over teacher's, or the other way round where lower is
            better, so that 1 is as good as the teacher and more is better. None for measures of agreement, and where
            the divisor is not positive.
        higher_is_better: Which way is better.
        samples: Rows that it was computed of.
    """

    name: str
    value: Interval
    teacher: Interval | None
    retention: Interval | None
    higher_is_better: bool
    samples: int


def estimate(measure: Measure, own: Tables, teacher: Tables, resampling: Resampling | None = None) -> Estimate:
    """A measure with its intervals, and its retention.

    Args:
        measure: What is computed.
        own: The model's tables.
        teacher: The teacher's, of the same samples in the same order.
        resampling: How intervals are drawn.

    Raises:
        ValueError: The two have not the same number of samples, or fewer than 2.
    """
    resampling = resampling or Resampling()
    rows, other = own[measure.table], teacher[measure.table]
    samples = _paired(rows, other)
    sides = (rows,) if measure.agreement else (rows, other)
    exact = np.array([measure.compute(side) for side in sides])
    kept = _kept(exact, higher=measure.higher_is_better)

    def statistic(positions: NDArray[np.int64]) -> NDArray[np.float64]:
        values = np.stack([_resampled(measure, side, positions) for side in sides])
        return np.concatenate([values, _kept(values, higher=measure.higher_is_better)])

    bounds = resampling.draw(statistic, samples, _QUICK_RESAMPLES if measure.quick else None)
    if measure.quick:
        centre = statistic(np.arange(samples)[None, :])[:, 0]
        bounds = bounds + (np.concatenate([exact, kept]) - centre)[:, None]
    intervals = [
        Interval(float(value), float(low), float(high))
        for value, (low, high) in zip(np.concatenate([exact, kept]), bounds, strict=True)
    ]
    found = intervals[2] if len(intervals) > 2 and np.isfinite(intervals[2].to_list()).all() else None
    second = None if measure.agreement else intervals[1]
    return Estimate(measure.name, intervals[0], second, found, measure.higher_is_better, samples)


def mcnemar(own: NDArray[Any], teacher: NDArray[Any]) -> dict[str, float]:
    """McNemar's exact test of two classifiers on the same samples.

    Args:
        own: Whether the model was right, ``(samples,)``.
        teacher: Whether the teacher was.

    Returns:
        ``teacher_only`` and ``own_only``: samples that only one of them got right. ``p_value``: how likely a difference
        at least as large is where both err equally often.
    """
    from scipy.stats import binomtest

    lost = int((np.asarray(teacher, dtype=bool) & ~np.asarray(own, dtype=bool)).sum())
    won = int((np.asarray(own, dtype=bool) & ~np.asarray(teacher, dtype=bool)).sum())
    p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return {"teacher_only": lost, "own_only": won, "p_value": p_value}


def _paired(own: Rows, teacher: Rows) -> int:
    sizes = {len(values) for side in (own, teacher) for values in side.values()}
    if len(sizes) != 1:
        raise ValueError(f"two models must be judged on the same samples, but there are {', '.join(map(str, sizes))}.")
    return sizes.pop()


def _kept(values: NDArray[np.float64], *, higher: bool) -> NDArray[np.float64]:
    """Retention of ``(own, teacher)`` values; nothing of a model without a counterpart."""
    if len(values) < 2:
        return values[:0]
    above, below = (values[0], values[1]) if higher else (values[1], values[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)[None]


def _resampled(measure: Measure, rows: Rows, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """The measure of each row of positions, ``(resamples,)``."""
    if measure.ratio is not None:
        above, below = (None if name is None else rows[name] for name in measure.ratio)
        assert above is not None
        sums = above.astype(np.float64)[positions].sum(axis=1)
        counts = positions.shape[1] if below is None else below.astype(np.float64)[positions].sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sums / counts)
    compute = measure.quick or measure.compute
    return np.array([compute(take(rows, chosen)) for chosen in positions])
