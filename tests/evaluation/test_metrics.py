"""Metrics against scikit-learn, SciPy, seqeval and hand-computed values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as entity_f1_score
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef, root_mean_squared_error

from nas.evaluation.metrics import (
    CLASSIFICATION,
    MULTI_LABEL,
    REGRESSION,
    SAMPLES,
    Rows,
    classification_rows,
    computed,
    multi_label_rows,
    regression_rows,
    take,
)
from nas.evaluation.tokens import TOKENS, token_rows

GENERATOR = np.random.default_rng(0)


def values(measures: Any, rows: Rows) -> dict[str, float]:
    return computed(measures, {SAMPLES: rows})


class TestClassification:
    LABELS = GENERATOR.integers(0, 4, 80)
    OWN = GENERATOR.normal(size=(80, 4)).astype(np.float32)
    OTHER = GENERATOR.normal(size=(80, 4)).astype(np.float32)

    def found(self, own: Any, other: Any) -> dict[str, float]:
        return values(CLASSIFICATION, classification_rows(own, other, self.LABELS))

    def test_against_scikit_learn(self) -> None:
        found, chosen = self.found(self.OWN, self.OTHER), self.OWN.argmax(axis=1)
        assert found["accuracy"] == accuracy_score(self.LABELS, chosen)
        assert found["macro_f1"] == pytest.approx(f1_score(self.LABELS, chosen, average="macro"))
        assert found["mcc"] == pytest.approx(matthews_corrcoef(self.LABELS, chosen))
        assert found["agreement"] == accuracy_score(self.OTHER.argmax(axis=1), chosen)

    def test_kl_to_a_certain_teacher_is_the_log_loss(self) -> None:
        certain = np.where(np.eye(4)[self.LABELS] == 1, 50.0, 0.0)
        own = np.exp(self.OWN) / np.exp(self.OWN).sum(axis=1, keepdims=True)
        assert self.found(self.OWN, certain)["kl"] == pytest.approx(log_loss(self.LABELS, own), rel=1e-4)

    def test_hopeless_logits_stay_finite(self) -> None:
        certain = np.where(np.eye(4)[self.LABELS] == 1, 2000.0, 0.0)
        assert np.isfinite(self.found(-certain, certain)["kl"])

    def test_some_rows_are_judged_as_if_they_were_all(self) -> None:
        rows = classification_rows(self.OWN, self.OTHER, self.LABELS)
        some = GENERATOR.integers(0, 80, 30)
        alone = classification_rows(self.OWN[some], self.OTHER[some], self.LABELS[some])
        assert values(CLASSIFICATION, take(rows, some)) == pytest.approx(values(CLASSIFICATION, alone))


class TestMultiLabel:
    LABELS = GENERATOR.integers(0, 2, (60, 5)).astype(np.float32)
    OWN = GENERATOR.normal(size=(60, 5)).astype(np.float32)
    OTHER = GENERATOR.normal(size=(60, 5)).astype(np.float32)

    def test_against_scikit_learn(self) -> None:
        found = values(MULTI_LABEL, multi_label_rows(self.OWN, self.OTHER, self.LABELS))
        chosen = self.OWN > 0
        assert found["accuracy"] == accuracy_score(self.LABELS, chosen)
        assert found["micro_f1"] == pytest.approx(f1_score(self.LABELS, chosen, average="micro"))
        assert found["macro_f1"] == pytest.approx(f1_score(self.LABELS, chosen, average="macro"))
        assert found["agreement"] == pytest.approx(np.mean(chosen == (self.OTHER > 0)))

    def test_divergence_by_hand(self) -> None:
        rows = multi_label_rows(np.zeros((2, 1)), np.log(np.array([[3.0], [1.0]])), np.zeros((2, 1), np.float32))
        expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
        assert rows["kl"] == pytest.approx([expected, 0.0])


class TestRegression:
    LABELS, OWN, OTHER = (GENERATOR.normal(size=(50, 1)).astype(np.float32) for _ in range(3))

    def test_against_scipy_and_scikit_learn(self) -> None:
        found = values(REGRESSION, regression_rows(self.OWN, self.OTHER, self.LABELS))
        labels, own, other = (side[:, 0].astype(np.float64) for side in (self.LABELS, self.OWN, self.OTHER))
        assert found == pytest.approx(
            {
                "spearman": spearmanr(labels, own).statistic,
                "pearson": pearsonr(labels, own).statistic,
                "rmse": root_mean_squared_error(labels, own),
                "agreement": pearsonr(own, other).statistic,
            }
        )

    @pytest.mark.parametrize("constant", ["labels", "predicted"])
    def test_a_correlation_with_a_constant_is_undefined(self, constant: str) -> None:
        rows = {**regression_rows(self.OTHER, self.OTHER, self.LABELS), constant: np.ones(50)}
        found = values(REGRESSION, rows)
        assert {name for name, value in found.items() if np.isnan(value)} >= {"spearman", "pearson"}
        assert np.isfinite(found["rmse"])


def test_one_class_alone_warns_of_nothing() -> None:
    logits = np.array([[2.0, 0.0]] * 20)
    rows = classification_rows(logits, logits, np.zeros(20, dtype=np.int64))
    assert values(CLASSIFICATION, rows) == {"accuracy": 1, "macro_f1": 1, "mcc": 0, "agreement": 1, "kl": 0}


class TestTokens:
    TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")

    def test_against_seqeval_and_scikit_learn(self) -> None:
        labels = GENERATOR.integers(0, 5, (20, 12))
        labels[GENERATOR.random((20, 12)) < 0.3] = -100
        own, other = (GENERATOR.normal(size=(20, 12, 5)) + 2 * np.eye(5)[np.maximum(labels, 0)] for _ in range(2))
        found = values(TOKENS, token_rows(own, other, labels, self.TAGS))
        real, chosen, reference = labels != -100, own.argmax(axis=2), other.argmax(axis=2)
        names = [
            [[self.TAGS[tag] for tag in row[words]] for row, words in zip(side, real, strict=True)]
            for side in (labels, chosen)
        ]
        assert found["entity_f1"] == pytest.approx(entity_f1_score(*names))
        assert found["accuracy"] == pytest.approx(accuracy_score(labels[real], chosen[real]))
        assert found["macro_f1"] == pytest.approx(f1_score(labels[real], chosen[real], average="macro"))
        assert found["agreement"] == pytest.approx(np.mean(chosen[real] == reference[real]))

    def test_a_single_wrong_word_breaks_its_entity(self) -> None:
        labels = np.array([[1, 2, 0, 3]])
        chosen = np.array([[1, 0, 0, 3]])
        rows = token_rows(5.0 * np.eye(5)[chosen], 5.0 * np.eye(5)[labels], labels, self.TAGS)
        assert values(TOKENS, rows)["entity_f1"] == 0.5
        assert values(TOKENS, rows)["accuracy"] == 0.75

    def test_tags_without_entities_have_no_entity_f1(self) -> None:
        logits = np.eye(2)[np.array([[0, 1]])]
        found = values(TOKENS, token_rows(logits, logits, np.array([[0, 1]]), ("NOUN", "VERB")))
        assert np.isnan(found["entity_f1"])
        assert found["accuracy"] == 1.0
