"""Quality metrics: each is computed of a table with one row a sample, so that its interval can be drawn from rows.

A task turns a model's outputs into rows once (which class was chosen, how far is the distribution from the teacher's);
a `Measure` is what is computed of rows, of all of them or of any resample. Where scikit-learn, SciPy, torchmetrics or
seqeval has a metric, theirs is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nas.tasks.task import Task

Floats = NDArray[np.float32] | NDArray[np.float64]
Rows = Mapping[str, NDArray[Any]]
# Tables by name. Most tasks have one, of samples; a sentence encoder may have others, of labelled pairs or of queries.
Tables = Mapping[str, Rows]
SAMPLES = "samples"
# Which values a measure can have at all.
ANY, POSITIVE, SHARE, CORRELATION = (-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0), (-1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric.

    Args:
        name: Its name, everywhere: in tables, in files, as an objective or a constraint.
        compute: The value of rows.
        table: Whose rows.
        higher_is_better: Which way is better.
        agreement: Whether it says how close a model is to its teacher: the teacher's own value then says nothing.
        ratio: Columns whose sums' ratio is the value, where it is one, ``(numerator, denominator)``; a denominator of
            None counts the rows. Intervals of such are fast.
        needs: Further columns that are read, where not every table of the name has them.
        quick: A cheaper form, whose few resamples show the spread, where `compute` takes too long to be resampled.
        span: The least and the greatest value that are possible at all: no interval reaches beyond them.
    """

    name: str
    compute: Callable[[Rows], float]
    table: str = SAMPLES
    higher_is_better: bool = True
    agreement: bool = False
    ratio: tuple[str, str | None] | None = None
    needs: tuple[str, ...] = ()
    quick: Callable[[Rows], float] | None = None
    span: tuple[float, float] = ANY

    def fits(self, tables: Tables) -> bool:
        """Whether the tables have what is read."""
        rows = tables.get(self.table)
        read = (*self.needs, *(column for column in self.ratio or () if column is not None))
        return rows is not None and all(column in rows for column in read)

    def counted(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows it is of: those that a yes-or-no denominator marks, such as negatives; else all."""
        below = rows[self.ratio[1]] if self.ratio and self.ratio[1] else np.array([])
        return below if below.dtype == np.bool_ else np.ones(count_rows(rows), dtype=np.bool_)

    def __call__(self, tables: Tables) -> float:
        """The value of all rows."""
        return self.compute(tables[self.table])


def ratio_of(name: str, numerator: str, denominator: str | None = None, **options: Any) -> Measure:
    """A measure that is a mean of a column, or the ratio of two columns' sums; ``nan`` where that is of nothing."""

    def compute(rows: Rows) -> float:
        below = len(rows[numerator]) if denominator is None else float(rows[denominator].sum(dtype=np.float64))
        return float(rows[numerator].sum(dtype=np.float64) / below) if below else float("nan")

    return Measure(name, compute, ratio=(numerator, denominator), **options)


def computed(measures: Iterable[Measure], tables: Tables) -> dict[str, float]:
    """The values of all measures that the tables have rows for."""
    return {measure.name: measure(tables) for measure in measures if measure.fits(tables)}


def count_rows(rows: Rows) -> int:
    """How many rows there are.

    Raises:
        ValueError: The columns differ in length.
    """
    sizes = {len(values) for values in rows.values()}
    if len(sizes) != 1:
        raise ValueError(f"columns must be of one length, but are of {', '.join(map(str, sorted(sizes)))}.")
    return sizes.pop()


def take(rows: Rows, positions: NDArray[Any]) -> Rows:
    """Rows at these positions (indices or a mask), of every column."""
    return {name: values[positions] for name, values in rows.items()}


# -- one class a sample ------------------------------------------------------------------------------------------------


def classification_rows(student: Floats, teacher: Floats, labels: NDArray[np.int64]) -> Rows:
    """Rows of logits.

    Args:
        student: Logits, ``(samples, classes)``.
        teacher: The reference's logits.
        labels: True classes, ``(samples,)``.

    Returns:
        ``labels``, ``chosen``, ``probabilities``, ``correct``, ``agrees`` (same class chosen as by the teacher), and
        ``kl`` (Kullback-Leibler divergence from the teacher's distribution to the student's, nats). Of two classes
        also, by the second: ``positives``, ``negatives``, and which of these are ``missed`` and ``accused``.
    """
    from scipy.special import rel_entr, softmax

    chosen, reference = student.argmax(axis=1), teacher.argmax(axis=1)
    own, other = (softmax(np.asarray(side, dtype=np.float64), axis=1) for side in (student, teacher))
    rows = {
        "labels": labels,
        "chosen": chosen,
        "probabilities": own,
        "correct": (chosen == labels).astype(np.float64),
        "agrees": (chosen == reference).astype(np.float64),
        "kl": rel_entr(other, np.maximum(own, np.finfo(np.float64).tiny)).sum(axis=1),
    }
    if own.shape[1] == 2:
        rows |= {"positives": labels == 1, "negatives": labels == 0}
        rows |= {"missed": (labels == 1) & (chosen == 0), "accused": (labels == 0) & (chosen == 1)}
    return rows


def _cells(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Labels and choices of every pair of them that occurs, and how often it does: far fewer than samples."""
    labels, chosen = rows["labels"], rows["chosen"]
    classes = 1 + max(int(labels.max(initial=0)), int(chosen.max(initial=0)))
    counts = np.bincount(labels * classes + chosen, minlength=classes**2)
    cells = np.flatnonzero(counts)
    return cells // classes, cells % classes, counts[cells]


def macro_f1(rows: Rows) -> float:
    """Mean of the classes' F1, whatever their sizes."""
    from sklearn.metrics import f1_score

    labels, chosen, counts = _cells(rows)
    return float(f1_score(labels, chosen, average="macro", zero_division=0.0, sample_weight=counts))


def _mcc(rows: Rows) -> float:
    from sklearn.metrics import matthews_corrcoef

    labels, chosen, counts = _cells(rows)
    if len({*labels.tolist(), *chosen.tolist()}) < 2:
        return 0.0  # As scikit-learn, which warns of a single class: a resample may have no other.
    return float(matthews_corrcoef(labels, chosen, sample_weight=counts))


CLASSIFICATION = (
    ratio_of("accuracy", "correct", span=SHARE),
    Measure("macro_f1", macro_f1, span=SHARE),
    Measure("mcc", _mcc, span=CORRELATION),
    ratio_of("agreement", "agrees", agreement=True, span=SHARE),
    ratio_of("kl", "kl", agreement=True, higher_is_better=False, span=POSITIVE),
)


# -- several labels a sample -------------------------------------------------------------------------------------------


def multi_label_rows(student: Floats, teacher: Floats, labels: NDArray[np.float32]) -> Rows:
    """Rows of logits of independent labels, chosen where their probability is above one half.

    Args:
        student: Logits, ``(samples, labels)``.
        teacher: The reference's logits.
        labels: 1 where a sample has a label, else 0, ``(samples, labels)``.

    Returns:
        ``labels``, ``chosen``, ``probabilities``, ``correct`` (every label right), ``agrees`` (share of the labels that
        student and teacher decide alike) and ``kl`` (summed over the labels' binary distributions, nats).
    """
    from scipy.special import expit, rel_entr

    own, other = (expit(np.asarray(side, dtype=np.float64)) for side in (student, teacher))
    chosen, tiny = (own > 0.5).astype(np.int64), np.finfo(np.float64).tiny
    divergence = rel_entr(other, np.maximum(own, tiny)) + rel_entr(1 - other, np.maximum(1 - own, tiny))
    return {
        "labels": labels.astype(np.int64),
        "chosen": chosen,
        "probabilities": own,
        "correct": (chosen == labels).all(axis=1).astype(np.float64),
        "agrees": ((own > 0.5) == (other > 0.5)).mean(axis=1),
        "kl": divergence.sum(axis=1),
    }


def _multi_label_f1(average: str) -> Measure:
    def compute(rows: Rows) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(rows["labels"], rows["chosen"], average=average, zero_division=0.0))

    return Measure(f"{average}_f1", compute, span=SHARE)


MULTI_LABEL = (
    _multi_label_f1("micro"),
    _multi_label_f1("macro"),
    ratio_of("accuracy", "correct", span=SHARE),
    ratio_of("agreement", "agrees", agreement=True, span=SHARE),
    ratio_of("kl", "kl", agreement=True, higher_is_better=False, span=POSITIVE),
)


def judged_on(task: Task, tables: Tables, split: str) -> tuple[int, str]:
    """How many rows a task's main measure is computed of, and what they are.

    Args:
        task: Says which measure it is.
        tables: Of the split.
        split: Its name.
    """
    quality = next(measure for measure in task.measures if measure.name == task.quality)
    unit = {"image_classification": "images", "causal_lm": "blocks"}.get(task.kind, "texts")
    examples = getattr(task.samples, "examples", {}).get(split)
    if quality.table != SAMPLES:
        unit = quality.table
    elif getattr(examples, "pairs", None) is not None:
        unit = "pairs"
    return count_rows(tables[quality.table]), unit


# -- a number a sample -------------------------------------------------------------------------------------------------


def regression_rows(student: Floats, teacher: Floats, labels: NDArray[np.float32]) -> Rows:
    """Rows of predicted numbers: ``labels``, ``predicted`` and the teacher's ``reference``, all ``(samples,)``."""
    sides = {"labels": labels, "predicted": student, "reference": teacher}
    return {name: np.asarray(side, dtype=np.float64).reshape(len(labels)) for name, side in sides.items()}


def correlation(kind: str, left: str, right: str) -> Callable[[Rows], float]:
    """``pearsonr`` or ``spearmanr`` of two columns; ``nan`` where one of them is constant: it is undefined there."""

    def compute(rows: Rows) -> float:
        from scipy import stats

        own, other = rows[left], rows[right]
        if len(own) < 2 or np.ptp(own) == 0 or np.ptp(other) == 0:
            return float("nan")
        return float(getattr(stats, kind)(own, other).statistic)

    return compute


def _rmse(rows: Rows) -> float:
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(rows["labels"], rows["predicted"]))


REGRESSION = (
    Measure("spearman", correlation("spearmanr", "labels", "predicted"), span=CORRELATION),
    Measure("pearson", correlation("pearsonr", "labels", "predicted"), span=CORRELATION),
    Measure("rmse", _rmse, higher_is_better=False, span=POSITIVE),
    Measure("agreement", correlation("pearsonr", "reference", "predicted"), agreement=True, span=CORRELATION),
)
