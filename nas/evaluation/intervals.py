"""How sure a metric is: bootstrap intervals over samples, paired with the teacher's, and McNemar's test.

Samples are drawn for student and teacher together, because both are judged on the same ones: what makes a sample hard
is common to both, so that the interval of their ratio is far narrower than those of the two values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.metrics import ANY, POSITIVE, Measure, Rows, Tables, count_rows, take

Values = NDArray[np.float64]
# A costly measure's few resamples still show its spread to some 5 %.
_QUICK_RESAMPLES = 200


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

    def values(self, measure: Measure, rows: Rows) -> Values:
        """A measure of all rows, first, and of every resample of them, ``(1 + resamples,)``.

        The same seed draws the same rows of any two tables of one length, so that values of two models are paired.

        Raises:
            ValueError: There are fewer than 2 rows.
        """
        size = count_rows(rows)
        if size < 2:
            raise ValueError(f"an interval needs at least 2 samples, but there are {size}.")
        exact = measure.compute(rows)
        if measure.ratio is not None:
            return np.array([exact, *self._ratios(measure, rows, size)])
        if measure.quick is None:
            return np.array([exact, *(measure.compute(take(rows, drawn)) for drawn in self._draws(size))])
        # The quick form shows the spread; where it is centred is known exactly.
        shift = exact - measure.quick(rows)
        draws = islice(self._draws(size), _QUICK_RESAMPLES)
        return np.array([exact, *(shift + measure.quick(take(rows, drawn)) for drawn in draws)])

    @property
    def levels(self) -> tuple[float, float]:
        """Which shares of the resamples lie below an interval's two ends."""
        return (1 - self.confidence) / 2, (1 + self.confidence) / 2

    def interval(self, values: Values, span: tuple[float, float] = ANY) -> Interval:
        """The first value, in the percentile interval of the others joined with the basic one, its mirror image.

        Where resampling shifts a statistic (an error of calibration, a correlation, few resamples), the percentiles
        alone can leave its value out; the basic interval reaches as far to the other side, where the truth then is.

        Args:
            values: The exact value and those of resamples.
            span: Values that are possible at all.

        Returns:
            An interval that holds its value; without bounds where some of the values are not finite.
        """
        exact = float(values[0])
        if not np.isfinite(values).all():
            return Interval(exact, math.nan, math.nan)
        low, high = map(float, np.quantile(values[1:], self.levels))
        return held(exact, min(low, 2 * exact - high), max(high, 2 * exact - low), span)

    def part(self, number: int) -> Resampling:
        """The same settings for one of several independent parts, which must not be drawn alike."""
        return replace(self, seed=int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]))

    def _draws(self, size: int) -> Iterator[NDArray[np.int64]]:
        generator = np.random.default_rng(self.seed)
        return (generator.integers(0, size, size) for _ in range(self.resamples))

    def _ratios(self, measure: Measure, rows: Rows, size: int) -> Iterator[float]:
        assert measure.ratio is not None
        above, below = (None if name is None else rows[name].astype(np.float64) for name in measure.ratio)
        assert above is not None
        with np.errstate(divide="ignore", invalid="ignore"):
            for drawn in self._draws(size):
                yield float(above[drawn].sum() / np.float64(size if below is None else below[drawn].sum()))


def held(value: float, low: float, high: float, span: tuple[float, float] = ANY) -> Interval:
    """An interval no wider than what is possible, and never without its value."""
    return Interval(value, min(value, max(low, span[0])), max(value, min(high, span[1])))


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


def estimate(
    measure: Measure,
    own: Tables,
    teacher: Tables,
    resampling: Resampling | None = None,
    teacher_values: Values | None = None,
) -> Estimate:
    """A measure with its intervals, and its retention.

    Args:
        measure: What is computed.
        own: The model's tables.
        teacher: The teacher's, of the same samples in the same order.
        resampling: How intervals are drawn.
        teacher_values: What `Resampling.values` gave for the teacher, where that is known.

    Raises:
        ValueError: The two have not the same number of samples, or fewer than 2.
    """
    resampling = resampling or Resampling()
    rows, other = own[measure.table], teacher[measure.table]
    if (size := count_rows(rows)) != count_rows(other):
        raise ValueError(f"two models must be judged on the same samples, but there are {size}, {count_rows(other)}.")
    values = resampling.values(measure, rows)
    value = resampling.interval(values, measure.span)
    if measure.agreement:
        return Estimate(measure.name, value, None, None, measure.higher_is_better, size)
    reference = resampling.values(measure, other) if teacher_values is None else teacher_values
    above, below = (values, reference) if measure.higher_is_better else (reference, values)
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = resampling.interval(
            np.where(below > 0, above / below, np.nan), POSITIVE if measure.span[0] >= 0 else ANY
        )
    return Estimate(
        name=measure.name,
        value=value,
        teacher=resampling.interval(reference, measure.span),
        retention=kept if np.isfinite(kept.to_list()).all() else None,
        higher_is_better=measure.higher_is_better,
        samples=size,
    )


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
