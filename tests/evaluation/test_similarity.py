"""Metrics of embeddings against scikit-learn, SciPy and hand-computed values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from nas.evaluation import similarity
from nas.evaluation.metrics import SAMPLES, computed
from nas.evaluation.similarity import (
    AGREEMENT,
    PAIRS,
    QUERIES,
    RETRIEVAL,
    STS,
    embedding_rows,
    neighbour_recall,
    quick_pair_spearman,
    retrieval_rows,
    sts_rows,
)

GENERATOR = np.random.default_rng(0)
TEACHER = GENERATOR.normal(size=(60, 16)).astype(np.float32)
STUDENT = TEACHER + 0.5 * GENERATOR.normal(size=TEACHER.shape).astype(np.float32)


def found_of(student: Any, teacher: Any, neighbours: int = 10) -> dict[str, float]:
    neighbours = min(neighbours, len(teacher) - 1)
    return computed(AGREEMENT, {SAMPLES: embedding_rows(student, teacher, neighbours)})


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class TestEmbeddings:
    def test_against_scikit_learn_and_scipy(self) -> None:
        found = found_of(STUDENT, TEACHER, neighbours=5)
        own, other = unit(STUDENT), unit(TEACHER)
        nearest = [
            NearestNeighbors(n_neighbors=5, metric="cosine").fit(side).kneighbors(return_distance=False)
            for side in (own, other)
        ]
        recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*nearest, strict=True)])
        pairs = np.triu_indices(60, 1)
        assert found["cosine"] == pytest.approx(float((own * other).sum(axis=1).mean()), rel=1e-5)
        assert found["recall"] == pytest.approx(recall)
        assert found["spearman"] == pytest.approx(
            spearmanr((own @ own.T)[pairs], (other @ other.T)[pairs]).statistic, abs=1e-4
        )

    def test_by_hand(self) -> None:
        teacher = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        student = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
        found = found_of(student, teacher, neighbours=1)
        # Nearest of the teacher's three: second, first, second; of the student's: third, third, first.
        assert found["recall"] == 0.0
        assert found["cosine"] == pytest.approx((1 + 2 * 0.1 / np.hypot(0.9, 0.1)) / 3)

    @given(st.floats(0.01, 100), st.integers(0, 100))
    @settings(max_examples=15, deadline=None)
    def test_scale_and_rotation_change_no_neighbourhood(self, scale: float, seed: int) -> None:
        turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(16, 16)))
        found = found_of((scale * TEACHER @ turn).astype(np.float32), TEACHER)
        assert found["recall"] == pytest.approx(1.0, abs=0.01)
        assert found["spearman"] == pytest.approx(1.0, abs=1e-4)

    def test_another_hidden_size_has_no_cosine(self) -> None:
        assert set(found_of(STUDENT[:, :8], TEACHER)) == {"recall", "spearman"}

    def test_constant_embeddings_agree_with_nothing(self) -> None:
        assert found_of(np.ones_like(TEACHER), TEACHER)["spearman"] == 0.0

    def test_many_pairs_are_drawn_alike_every_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = found_of(STUDENT, TEACHER)["spearman"]
        monkeypatch.setattr(similarity, "MAX_PAIRS", 500)
        some = found_of(STUDENT, TEACHER)["spearman"]
        assert some == found_of(STUDENT, TEACHER)["spearman"]
        assert some != whole
        assert some == pytest.approx(whole, abs=0.1)

    @pytest.mark.parametrize("neighbours", [0, 60])
    def test_neighbours(self, neighbours: int) -> None:
        with pytest.raises(ValueError, match=f"must be between 1 and 59, but got {neighbours}"):
            neighbour_recall(STUDENT @ STUDENT.T, TEACHER @ TEACHER.T, neighbours)

    def test_a_resample_leaves_out_pairs_of_a_text_with_itself(self) -> None:
        rows = embedding_rows(STUDENT, TEACHER)
        whole = quick_pair_spearman(rows)
        assert whole == pytest.approx(found_of(STUDENT, TEACHER)["spearman"], abs=1e-6)
        twice = {name: np.concatenate([column, column]) for name, column in rows.items()}
        # Every pair stands there four times, none of them with itself, so that nothing changes.
        assert quick_pair_spearman(twice) == pytest.approx(whole, abs=1e-3)


class TestPairs:
    FIRST, SECOND = np.arange(0, 30), np.arange(30, 60)

    def test_labelled_pairs_against_scipy(self) -> None:
        scores = GENERATOR.normal(size=30)
        found = computed(STS, {PAIRS: sts_rows(TEACHER, self.FIRST, self.SECOND, scores)})
        cosines = np.diag(cosine_similarity(TEACHER[:30], TEACHER[30:]))
        assert found["sts_spearman"] == pytest.approx(spearmanr(scores, cosines).statistic)
        # Cosines are of 32 bits: a correlation near 0 has that error itself.
        assert found["sts_pearson"] == pytest.approx(np.corrcoef(scores, cosines)[0, 1], rel=1e-5, abs=1e-7)

    def test_retrieval_of_one_passage_is_accuracy_at_k(self) -> None:
        passages = TEACHER[:30] + 2.0 * GENERATOR.normal(size=(30, 16))
        both = np.concatenate([TEACHER[:30], passages])
        found = computed(RETRIEVAL, {QUERIES: retrieval_rows(both, self.FIRST, self.SECOND, 5)})
        expected = top_k_accuracy_score(np.arange(30), cosine_similarity(TEACHER[:30], passages), k=5)
        assert found["retrieval_recall"] == pytest.approx(expected)
        assert 0.2 < expected < 1.0

    def test_a_query_with_two_passages_by_hand(self) -> None:
        vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.8, 0.2]])
        rows = retrieval_rows(vectors, np.array([0, 0]), np.array([1, 2]), 1)
        assert rows["found"].tolist() == [0.5]
        with pytest.raises(ValueError, match="`neighbours` must be between 1 and 1 candidates, but got 2"):
            retrieval_rows(vectors, np.array([0, 0]), np.array([1, 2]), 2)
