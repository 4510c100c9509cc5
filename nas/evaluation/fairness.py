"""Whether a model is as good for every group of samples, and whether it decides alike whoever is spoken of.

Compression changes groups' metrics by its method and not by its size alone (Gee et al. 2024, arXiv 2403.17811), so
every figure stands beside the teacher's own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.intervals import Estimate, Interval, Resampling, Values, estimate, held
from nas.evaluation.metrics import POSITIVE, SHARE, Measure, Rows, ratio_of, take
from nas.evaluation.substitution import Substitution

Groups = Mapping[str, Sequence[str]]
# What a name in front of a metric's asks for: `worst_group_accuracy`.
WORST, GAP, RATIO = "worst_group_", "group_gap_", "group_ratio_"
PREFIXES = (WORST, GAP, RATIO)
# Natural logarithm beyond which a factor says nothing.
_LARGEST = 700.0


@dataclass(frozen=True, slots=True)
class Fairness:
    """What is asked of groups.

    Args:
        min_samples: Groups with fewer samples that a measure is of (of a false positive rate: negatives) are shown, but
            nothing is claimed of them.
        terms: Identity terms by group, exchanged for each other; see `nas.evaluation.substitution.Substitution`.

    Raises:
        ValueError: A number is out of range, or the terms do not fit each other.
    """

    min_samples: int = 50
    terms: Mapping[str, Sequence[str] | str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.min_samples, bool) or self.min_samples < 2:
            raise ValueError(f"`min_samples` must be >= 2, but got {self.min_samples!r}.")
        _ = self.substitution

    @property
    def substitution(self) -> Substitution | None:
        """The exchange of terms, where there are any."""
        return None if self.terms is None else Substitution(self.terms)


# Of classifiers with two classes, the second of which is the positive one; the rest have no such columns.
RATES = (
    ratio_of("false_positive_rate", "accused", "negatives", higher_is_better=False, span=SHARE),
    ratio_of("false_negative_rate", "missed", "positives", higher_is_better=False, span=SHARE),
)


@dataclass(frozen=True, slots=True)
class GroupScore:
    """One group of samples.

    Args:
        name: The group's value in its column.
        samples: How many there are.
        too_small: Whether those that the measure is of are too few for a claim: shown, but counted nowhere.
        score: The measure of this group alone; None where it cannot be computed: of fewer than two samples, or where
            none of them has what the measure is of.
    """

    name: str
    samples: int
    too_small: bool
    score: Estimate | None


@dataclass(frozen=True, slots=True)
class Disparity:
    """How a measure differs between the groups of a column.

    Args:
        column: What the groups are read from.
        measure: The metric's name.
        groups: All of them, by name.
        worst_group: The group with the worst value among those that are large enough; None where fewer than two are,
            or the measure cannot be computed of any: then nothing is claimed, and what follows is not a number.
        worst: That value; of every resample, the worst there.
        gap: Difference between best and worst.
        ratio: Smaller through larger of the two; 1 is parity.
        teacher: The teacher's own worst, gap and ratio.
    """

    column: str
    measure: str
    groups: tuple[GroupScore, ...]
    worst_group: str | None
    worst: Interval
    gap: Interval
    ratio: Interval
    teacher: Mapping[str, Interval]


def group_frame(measure: Measure, rows: Rows, groups: Sequence[str]) -> Any:
    """Fairlearn's frame of a measure by group.

    Fairlearn hands parts of ``y_true`` to a metric; given the row numbers instead, any measure of any rows can be one.
    """
    from fairlearn.metrics import MetricFrame

    def metric(positions: Any, _: Any) -> float:
        return measure.compute(take(rows, np.asarray(positions, dtype=np.int64)))

    places = np.arange(len(groups))
    features = {"group": np.asarray(groups)}
    return MetricFrame(metrics=metric, y_true=places, y_pred=places, sensitive_features=features)


def group_metrics(measure: Measure, rows: Rows, groups: Groups, min_samples: int) -> dict[str, float]:
    """``worst_group_``, ``group_gap_`` and ``group_ratio_`` of a measure over the groups of all columns.

    Args:
        measure: The metric.
        rows: Of samples.
        groups: Column -> the samples' values in it.
        min_samples: Groups with fewer samples do not count.

    Raises:
        ValueError: There are no two groups that are large enough.
    """
    worst, gap, ratio = [], [], []
    for column, values in groups.items():
        kept = _large(column, values, measure.counted(rows), min_samples)
        frame = group_frame(measure, take(rows, kept), [values[int(row)] for row in kept])
        worst.append(float(frame.group_min() if measure.higher_is_better else frame.group_max()))
        gap.append(float(frame.difference()))
        ratio.append(float(frame.ratio()))
    if not worst:
        raise ValueError("groups need `group_columns` of the data, but none is named.")
    name = measure.name
    return {
        WORST + name: min(worst) if measure.higher_is_better else max(worst),
        GAP + name: max(gap),
        RATIO + name: min(ratio),
    }


def disparity(
    measure: Measure,
    own: Rows,
    teacher: Rows,
    column: str,
    groups: Sequence[str],
    *,
    min_samples: int = 50,
    resampling: Resampling | None = None,
    known: Collection[str] = (),
) -> Disparity:
    """A measure by group, with intervals, beside the teacher's.

    Args:
        measure: The metric.
        own: The model's rows of samples.
        teacher: The teacher's.
        column: What the groups are called together.
        groups: Each sample's group.
        min_samples: Groups with fewer samples are shown, but nothing is claimed of them.
        resampling: How intervals are drawn: within every group, so that all keep their size.
        known: Groups that are there elsewhere: those without a sample here are shown, too.
    """
    resampling, places = resampling or Resampling(), np.asarray(groups)
    drawn = {
        name: _drawn(measure, own, teacher, np.flatnonzero(places == name), resampling.part(number))
        for number, name in enumerate(sorted({*groups, *known}))
    }
    scores = tuple(
        GroupScore(name, group.samples, group.counted < min_samples, group.score) for name, group in drawn.items()
    )
    # Those of which the measure can be computed at all, as Fairlearn's frame does it.
    large = [name for name, group in drawn.items() if group.counted >= min_samples and group.score is not None]
    sides = [
        _spread(np.array([getattr(drawn[name], side) for name in large]), measure, resampling)
        for side in ("own", "teacher")
    ]
    exact = {name: float(drawn[name].own[0]) for name in large}
    found = (min if measure.higher_is_better else max)(exact, key=exact.__getitem__) if len(large) > 1 else None
    return Disparity(column, measure.name, scores, found, **sides[0], teacher=sides[1])


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A group's values and its teacher's, the exact ones first, then those of resamples of its own samples."""

    samples: int
    counted: int
    own: Values
    teacher: Values
    score: Estimate | None


def _drawn(measure: Measure, own: Rows, teacher: Rows, places: NDArray[np.int64], resampling: Resampling) -> _Drawn:
    size, rows, other = len(places), take(own, places), take(teacher, places)
    counted = int(measure.counted(rows).sum())
    if size < 2:
        return _Drawn(size, counted, np.array([]), np.array([]), None)
    values = resampling.values(measure, other)
    score = estimate(measure, {measure.table: rows}, {measure.table: other}, resampling, values)
    return _Drawn(
        size, counted, resampling.values(measure, rows), values, score if np.isfinite(score.value.value) else None
    )


def _large(column: str, groups: Sequence[str], counted: NDArray[np.bool_], min_samples: int) -> NDArray[np.int64]:
    """Rows of the groups with enough rows that count."""
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.bincount(numbers[counted], minlength=len(names))
    large = names[counts >= min_samples]
    if len(large) < 2:
        raise ValueError(
            f"`{column}` must have at least 2 groups of {min_samples} samples or more, but has {len(large)} (the "
            f"largest has {counts.max(initial=0)}): lower `evaluation.fairness.min_samples` or give a larger split."
        )
    return np.flatnonzero(np.isin(np.asarray(groups), large))


def _spread(drawn: NDArray[np.float64], measure: Measure, resampling: Resampling) -> dict[str, Interval]:
    """Worst, gap and ratio of values ``(groups, 1 + resamples)``, the first of which is the exact one.

    The worst of several estimates is on average worse than the worst truth, and resamples are so once more: their
    percentiles hold on the side towards worse, where they reach too far. Towards better, every group's error counts at
    once: no true value differs from its estimate by more than the largest of the errors.

    Of fewer than two groups there are none.
    """
    if len(drawn) < 2:
        unknown = Interval(np.nan, np.nan, np.nan)
        return {"worst": unknown, "gap": unknown, "ratio": unknown}
    low, high, errors = drawn.min(axis=0), drawn.max(axis=0), drawn[:, 1:] - drawn[:, :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(high > 0, low / high, np.nan)
    exact = [float(values[0]) for values in (low, high, high - low, ratio)]
    if not np.isfinite(drawn).all():
        worst = exact[0] if measure.higher_is_better else exact[1]
        return {
            name: Interval(value, np.nan, np.nan)
            for name, value in (("worst", worst), ("gap", exact[2]), ("ratio", exact[3]))
        }

    def ends(values: NDArray[np.float64]) -> tuple[float, float]:
        found = np.quantile(values, resampling.levels)
        return float(found[0]), float(found[1])

    if measure.higher_is_better:
        worst_ends = ends(low[1:])[0], exact[0] + ends((-errors).max(axis=0))[1]
    else:
        worst_ends = exact[1] - ends(errors.max(axis=0))[1], ends(high[1:])[1]
    return {
        "worst": held(exact[0] if measure.higher_is_better else exact[1], *worst_ends, measure.span),
        "gap": held(exact[2], exact[2] - ends(np.ptp(errors, axis=0))[1], ends((high - low)[1:])[1], POSITIVE),
        "ratio": _ratio(drawn, ratio, resampling),
    }


def _ratio(drawn: NDArray[np.float64], ratio: NDArray[np.float64], resampling: Resampling) -> Interval:
    """The interval of a ratio of smallest to largest, which is a gap of logarithms."""
    below, above = resampling.levels
    if not np.isfinite(ratio).all():
        return Interval(float(ratio[0]), np.nan, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.log(drawn[:, 1:] / drawn[:, :1])
        # A group that has nothing, in no resample either, has no error.
        spread = np.ptp(np.where(drawn[:, 1:] == drawn[:, :1], 0.0, errors), axis=0)
    # Without interpolation, which infinities do not bear.
    factor = math.exp(min(float(np.quantile(spread, above, method="higher")), _LARGEST)) if drawn.min() >= 0 else np.inf
    highest = 1.0 if math.isinf(factor) else float(ratio[0]) * factor
    return held(float(ratio[0]), float(np.quantile(ratio[1:], below)), highest, (-np.inf, 1.0))
