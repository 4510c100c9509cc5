"""Quality metrics, and intervals for their differences.

Where scikit-learn or SciPy has a metric, theirs is used. Agreement with a teacher's neighbourhoods is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]
# More pairs than these change the third decimal of a rank correlation no more.
MAX_PAIRS = 500_000


def embedding_metrics(student: Floats, teacher: Floats, neighbours: int = 10) -> dict[str, float]:
    """Agreement of two sets of embeddings of the same texts.

    Args:
        student: Embeddings, ``(texts, hidden)``; the hidden sizes of the two may differ, but then there is no cosine.
        teacher: The reference's.
        neighbours: Nearest neighbours that ``recall`` compares.

    Returns:
        ``cosine``: mean cosine of a text's two embeddings. ``recall``: share of the teacher's nearest neighbours of a
        text, among the other texts, that are the student's, too. ``spearman``: rank correlation between the two sides'
        cosine similarities of all pairs of texts (at most `MAX_PAIRS`, drawn with a fixed seed).
    """
    from scipy.stats import spearmanr

    own, other = _unit(student), _unit(teacher)
    metrics = {}
    if own.shape == other.shape:
        metrics["cosine"] = float(np.einsum("th,th->t", own, other, dtype=np.float64).mean())
    own_similarity, other_similarity = own @ own.T, other @ other.T
    left, right = _pairs(len(own))
    correlation = spearmanr(own_similarity[left, right], other_similarity[left, right]).statistic
    metrics["recall"] = neighbour_recall(own_similarity, other_similarity, neighbours)
    # Constant embeddings have no ranks: no agreement.
    metrics["spearman"] = float(np.nan_to_num(correlation))
    return metrics


def neighbour_recall(student: Floats, teacher: Floats, neighbours: int) -> float:
    """Share of the teacher's nearest neighbours that are the student's, from similarities ``(texts, texts)``.

    Raises:
        ValueError: There are not more texts than neighbours.
    """
    if not 1 <= neighbours < len(teacher):
        raise ValueError(f"`neighbours` must be between 1 and {len(teacher) - 1}, but got {neighbours}.")
    own, other = (_nearest(side, neighbours) for side in (student, teacher))
    return float((own & other).sum() / (neighbours * len(teacher)))


def classification_metrics(student: Floats, teacher: Floats, labels: NDArray[np.int64]) -> dict[str, float]:
    """Quality of logits against labels, and agreement with the teacher's.

    Args:
        student: Logits, ``(samples, classes)``.
        teacher: The reference's logits.
        labels: True classes, ``(samples,)``.

    Returns:
        ``accuracy``, ``macro_f1``, ``agreement`` (same class chosen) and ``kl`` (mean Kullback-Leibler divergence from
        the teacher's distribution to the student's, nats).
    """
    from scipy.special import log_softmax, rel_entr
    from sklearn.metrics import accuracy_score, f1_score

    chosen, reference = student.argmax(axis=1), teacher.argmax(axis=1)
    own, other = (np.exp(log_softmax(np.asarray(side, dtype=np.float64), axis=1)) for side in (student, teacher))
    return {
        "accuracy": float(accuracy_score(labels, chosen)),
        "macro_f1": float(f1_score(labels, chosen, average="macro", zero_division=0.0)),
        "agreement": float(accuracy_score(reference, chosen)),
        "kl": float(rel_entr(other, np.maximum(own, np.finfo(np.float64).tiny)).sum(axis=1).mean()),
    }


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


def paired_bootstrap(
    student: NDArray[Any],
    teacher: NDArray[Any],
    statistic: Callable[[NDArray[Any], NDArray[Any], int], NDArray[Any]] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic of two models on the same samples, which are drawn together.

    Args:
        student: One score a sample, ``(samples,)``.
        teacher: The other model's, in the same order.
        statistic: Of ``(student, teacher, axis)``; by default the ratio of the means: retention.
        confidence: Share of such intervals that hold the true value.
        resamples: Bootstrap samples.
        seed: Of the draw.

    Raises:
        ValueError: The two have not the same number of samples, or fewer than 2.
    """
    from scipy.stats import bootstrap

    if student.shape != teacher.shape or student.ndim != 1 or len(student) < 2:
        raise ValueError(
            f"scores must be two rows of >= 2 paired samples, but are {student.shape} and {teacher.shape}."
        )

    def retention(own: NDArray[Any], other: NDArray[Any], axis: int) -> NDArray[Any]:
        return np.asarray(own.mean(axis=axis) / np.maximum(other.mean(axis=axis), 1e-12))

    measure = statistic or retention
    data = (np.asarray(student, dtype=np.float64), np.asarray(teacher, dtype=np.float64))
    result = bootstrap(
        data,
        measure,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        # Resamples of many samples by many draws fill the memory when they are made at once.
        batch=max(1, 4_000_000 // len(student)),
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return Interval(float(measure(*data, 0)), float(interval.low), float(interval.high))


def _unit(embeddings: Floats) -> Floats:
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit: Floats = embeddings / np.maximum(norms, 1e-12)
    return unit


def _pairs(texts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    left, right = np.triu_indices(texts, k=1)
    if len(left) > MAX_PAIRS:
        chosen = np.random.default_rng(0).choice(len(left), MAX_PAIRS, replace=False)
        left, right = left[chosen], right[chosen]
    return left, right


def _nearest(similarity: Floats, neighbours: int) -> NDArray[np.bool_]:
    """Which texts are among each text's nearest, itself aside: ``(texts, texts)``."""
    others = np.array(similarity, dtype=np.float32)
    np.fill_diagonal(others, -np.inf)
    chosen = np.argpartition(-others, neighbours - 1, axis=1)[:, :neighbours]
    nearest = np.zeros(others.shape, dtype=bool)
    np.put_along_axis(nearest, chosen, values=True, axis=1)
    return nearest
