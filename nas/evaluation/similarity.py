"""Metrics of embeddings: agreement with a teacher's, labelled pairs, retrieval."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.metrics import CORRELATION, SHARE, Floats, Measure, Rows, correlation, ratio_of

PAIRS, QUERIES = "pairs", "queries"
# More pairs than these change the third decimal of a rank correlation no more.
MAX_PAIRS = 500_000
_QUICK_PAIRS = 10_000


def embedding_rows(student: Floats, teacher: Floats, neighbours: int = 10) -> Rows:
    """Rows of two sets of embeddings of the same texts.

    Args:
        student: Embeddings, ``(texts, hidden)``; the hidden sizes of the two may differ, but then there is no cosine.
        teacher: The reference's.
        neighbours: Nearest neighbours that ``recall`` compares.

    Returns:
        ``cosine`` of a text's two embeddings; ``recall``: share of the teacher's nearest neighbours of a text, among
        the other texts, that are the student's, too; the unit embeddings ``own`` and ``other``; and ``text``, its
        number, by which resamples know pairs of a text with itself.
    """
    own, other = unit(student), unit(teacher)
    rows = {"own": own, "other": other, "text": np.arange(len(own))}
    if own.shape == other.shape:
        rows["cosine"] = np.einsum("th,th->t", own, other, dtype=np.float64)
    rows["recall"] = neighbour_recall(own @ own.T, other @ other.T, neighbours)
    return rows


def neighbour_recall(student: Floats, teacher: Floats, neighbours: int) -> NDArray[np.float64]:
    """Each text's share of the teacher's nearest neighbours that are the student's, from ``(texts, texts)``.

    Raises:
        ValueError: There are not more texts than neighbours.
    """
    if not 1 <= neighbours < len(teacher):
        raise ValueError(f"`neighbours` must be between 1 and {len(teacher) - 1}, but got {neighbours}.")
    own, other = (_nearest(side, neighbours) for side in (student, teacher))
    return np.asarray((own & other).sum(axis=1) / neighbours)


def pair_spearman(rows: Rows) -> float:
    """Rank correlation between the two sides' cosine similarities of all pairs of texts, at most `MAX_PAIRS`."""
    own, other = (rows[side] @ rows[side].T for side in ("own", "other"))
    left, right = _pairs(len(own), MAX_PAIRS)
    return _rank_correlation(own[left, right], other[left, right])


def quick_pair_spearman(rows: Rows) -> float:
    """The same of a few thousand pairs, none of them a text with itself: what resamples need."""
    left, right = _pairs(len(rows["text"]), _QUICK_PAIRS)
    different = rows["text"][left] != rows["text"][right]
    left, right = left[different], right[different]
    own, other = (np.einsum("ph,ph->p", rows[side][left], rows[side][right]) for side in ("own", "other"))
    return _rank_correlation(own, other)


def _rank_correlation(own: Floats, other: Floats) -> float:
    from scipy.stats import spearmanr

    # Constant embeddings have no ranks: no agreement.
    constant = len(own) < 2 or np.ptp(own) == 0 or np.ptp(other) == 0
    return 0.0 if constant else float(spearmanr(own, other).statistic)


def sts_rows(embeddings: Floats, first: NDArray[np.int64], second: NDArray[np.int64], scores: Floats) -> Rows:
    """Rows of labelled pairs: the ``similarity`` of their embeddings and the ``score`` that people gave.

    Args:
        embeddings: ``(texts, hidden)``.
        first: Row of each pair's first text.
        second: Of its second.
        scores: How alike people found them, ``(pairs,)``.
    """
    vectors = unit(embeddings)
    similarity = np.einsum("ph,ph->p", vectors[first], vectors[second], dtype=np.float64)
    return {"similarity": similarity, "score": np.asarray(scores, dtype=np.float64)}


def retrieval_rows(embeddings: Floats, first: NDArray[np.int64], second: NDArray[np.int64], nearest: int) -> Rows:
    """Rows of queries, the different first texts of pairs: ``found``, the share of their second texts that is near.

    Every second text of the split is a candidate for every query.

    Args:
        embeddings: ``(texts, hidden)``.
        first: Row of each pair's query.
        second: Row of what is relevant to it.
        nearest: Candidates that a query may name.

    Raises:
        ValueError: There are not more candidates than the nearest.
    """
    import torch
    from torchmetrics.functional.retrieval import retrieval_recall

    vectors, queries, candidates = unit(embeddings), np.unique(first), np.unique(second)
    if not 1 <= nearest < len(candidates):
        raise ValueError(f"`neighbours` must be between 1 and {len(candidates) - 1} candidates, but got {nearest}.")
    relevant = np.zeros((len(queries), len(candidates)), dtype=bool)
    relevant[np.searchsorted(queries, first), np.searchsorted(candidates, second)] = True
    scores = torch.from_numpy(vectors[queries] @ vectors[candidates].T)
    found = [
        float(retrieval_recall(row, torch.from_numpy(wanted), top_k=nearest))
        for row, wanted in zip(scores, relevant, strict=True)
    ]
    return {"found": np.array(found)}


def _sts(kind: str) -> Measure:
    return Measure(f"sts_{kind}", correlation(f"{kind}r", "score", "similarity"), table=PAIRS, span=CORRELATION)


AGREEMENT = (
    ratio_of("cosine", "cosine", agreement=True, span=CORRELATION),
    ratio_of("recall", "recall", agreement=True, span=SHARE),
    Measure("spearman", pair_spearman, agreement=True, quick=quick_pair_spearman, span=CORRELATION),
)
STS = (_sts("spearman"), _sts("pearson"))
RETRIEVAL = (ratio_of("retrieval_recall", "found", table=QUERIES, span=SHARE),)


def unit(embeddings: Floats) -> Floats:
    """Embeddings of length 1."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    vectors: Floats = embeddings / np.maximum(norms, 1e-12)
    return vectors


@lru_cache(maxsize=8)
def _pairs(texts: int, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    left, right = np.triu_indices(texts, k=1)
    if len(left) > most:
        chosen = np.random.default_rng(0).choice(len(left), most, replace=False)
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
