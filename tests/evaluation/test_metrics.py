"""Metrics against libraries and hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss
from sklearn.neighbors import NearestNeighbors

from nas.evaluation import metrics
from nas.evaluation.metrics import classification_metrics, embedding_metrics, neighbour_recall, paired_bootstrap

GENERATOR = np.random.default_rng(0)
TEACHER = GENERATOR.normal(size=(60, 16)).astype(np.float32)
STUDENT = TEACHER + 0.5 * GENERATOR.normal(size=TEACHER.shape).astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class TestEmbeddings:
    def test_against_scikit_learn_and_scipy(self) -> None:
        found = embedding_metrics(STUDENT, TEACHER, neighbours=5)
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
        found = embedding_metrics(student, teacher, neighbours=1)
        # Nearest of the teacher's three: second, first, second; of the student's: third, third, first.
        assert found["recall"] == 0.0
        assert found["cosine"] == pytest.approx((1 + 2 * 0.1 / np.hypot(0.9, 0.1)) / 3)

    @given(st.floats(0.01, 100), st.integers(0, 100))
    @settings(max_examples=15, deadline=None)
    def test_scale_and_rotation_change_no_neighbourhood(self, scale: float, seed: int) -> None:
        turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(16, 16)))
        found = embedding_metrics((scale * TEACHER @ turn).astype(np.float32), TEACHER)
        assert found["recall"] == pytest.approx(1.0, abs=0.01)
        assert found["spearman"] == pytest.approx(1.0, abs=1e-4)

    def test_another_hidden_size_has_no_cosine(self) -> None:
        assert set(embedding_metrics(STUDENT[:, :8], TEACHER)) == {"recall", "spearman"}

    @pytest.mark.filterwarnings("ignore:An input array is constant")
    def test_constant_embeddings_agree_with_nothing(self) -> None:
        assert embedding_metrics(np.ones_like(TEACHER), TEACHER)["spearman"] == 0.0

    def test_many_pairs_are_drawn_alike_every_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = embedding_metrics(STUDENT, TEACHER)["spearman"]
        monkeypatch.setattr(metrics, "MAX_PAIRS", 500)
        some = embedding_metrics(STUDENT, TEACHER)["spearman"]
        assert some == embedding_metrics(STUDENT, TEACHER)["spearman"]
        assert some != whole
        assert some == pytest.approx(whole, abs=0.1)

    @pytest.mark.parametrize("neighbours", [0, 60])
    def test_neighbours(self, neighbours: int) -> None:
        with pytest.raises(ValueError, match=f"must be between 1 and 59, but got {neighbours}"):
            neighbour_recall(STUDENT @ STUDENT.T, TEACHER @ TEACHER.T, neighbours)


class TestClassification:
    LABELS = GENERATOR.integers(0, 4, 80)
    OWN = GENERATOR.normal(size=(80, 4)).astype(np.float32)
    OTHER = GENERATOR.normal(size=(80, 4)).astype(np.float32)

    def test_against_scikit_learn(self) -> None:
        found = classification_metrics(self.OWN, self.OTHER, self.LABELS)
        chosen = self.OWN.argmax(axis=1)
        assert found["accuracy"] == accuracy_score(self.LABELS, chosen)
        assert found["macro_f1"] == pytest.approx(f1_score(self.LABELS, chosen, average="macro"))
        assert found["agreement"] == accuracy_score(self.OTHER.argmax(axis=1), chosen)

    def test_kl_to_a_certain_teacher_is_the_log_loss(self) -> None:
        certain = np.where(np.eye(4)[self.LABELS] == 1, 50.0, 0.0)
        found = classification_metrics(self.OWN, certain, self.LABELS)
        own = np.exp(self.OWN) / np.exp(self.OWN).sum(axis=1, keepdims=True)
        assert found["kl"] == pytest.approx(log_loss(self.LABELS, own), rel=1e-4)

    def test_hopeless_logits_stay_finite(self) -> None:
        certain = np.where(np.eye(4)[self.LABELS] == 1, 2000.0, 0.0)
        assert np.isfinite(classification_metrics(-certain, certain, self.LABELS)["kl"])


class TestPairedBootstrap:
    def test_equal_scores_retain_everything(self) -> None:
        scores = GENERATOR.integers(0, 2, 200)
        found = paired_bootstrap(scores, scores)
        assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)

    def test_pairing_narrows_the_interval(self) -> None:
        teacher = GENERATOR.normal(10, 3, 400)
        student = 0.9 * teacher + GENERATOR.normal(0, 0.1, 400)
        paired = paired_bootstrap(student, teacher)
        shuffled = paired_bootstrap(GENERATOR.permutation(student), teacher)
        assert paired.low < 0.9 < paired.high
        assert paired.high - paired.low < 0.2 * (shuffled.high - shuffled.low)

    def test_the_same_seed_gives_the_same_interval(self) -> None:
        first, again, other = (paired_bootstrap(STUDENT[:, 0], TEACHER[:, 0] + 5, seed=seed) for seed in (1, 1, 2))
        assert first == again != other

    def test_any_statistic(self) -> None:
        def difference(own: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
            return own.mean(axis=axis) - other.mean(axis=axis)

        teacher = GENERATOR.normal(size=500)
        found = paired_bootstrap(teacher + 1, teacher, difference)
        assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))

    def test_unpaired_scores(self) -> None:
        with pytest.raises(ValueError, match=r"two rows of >= 2 paired samples, but are \(3,\) and \(4,\)"):
            paired_bootstrap(np.ones(3), np.ones(4))
