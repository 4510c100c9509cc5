"""Calibration against torchmetrics, scikit-learn and hand-computed values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.classification import MulticlassCalibrationError

from nas.evaluation.calibration import (
    CALIBRATION,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    with_temperature,
)
from nas.evaluation.metrics import SAMPLES, classification_rows, computed, multi_label_rows
from tests.models import tiny_bert

GENERATOR = np.random.default_rng(0)


def logits_and_labels(samples: int = 500, classes: int = 4, scale: float = 1.0) -> tuple[Any, Any]:
    """Labels that are drawn from the softmax of the logits, so that a temperature of 1 is right."""
    logits = GENERATOR.normal(size=(samples, classes)) * 2
    draws = GENERATOR.random((samples, 1))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < draws).sum(axis=1)
    return logits * scale, np.minimum(labels, classes - 1)


def test_against_torchmetrics_and_scikit_learn() -> None:
    logits, labels = logits_and_labels(scale=3.0)
    rows = classification_rows(logits, logits, labels)
    found = computed(CALIBRATION, {SAMPLES: rows})
    probabilities = softmax(logits, axis=1)
    expected = MulticlassCalibrationError(num_classes=4, n_bins=15)(
        torch.from_numpy(probabilities), torch.from_numpy(labels)
    )
    assert found["ece"] == pytest.approx(float(expected), abs=1e-6)
    assert found["brier"] == pytest.approx(brier_score_loss(labels, probabilities, labels=range(4)))
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities, labels=range(4)))


def test_calibration_error_by_hand() -> None:
    # Four answers given with 90 %, of which two are right; four with 60 %, of which three are.
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 4)
    labels = np.array([0, 0, 1, 1, 0, 0, 0, 1])
    logits = np.log(probabilities)
    rows = classification_rows(logits, logits, labels)
    assert expected_calibration_error(rows) == pytest.approx(0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.6 - 0.75), abs=1e-6)
    squares = (2 * 0.1**2 + 2 * 0.9**2 + 3 * 0.4**2 + 0.6**2) / 8
    assert brier_score(rows) == pytest.approx(squares)
    points = reliability(rows)
    assert [(p.confidence, p.accuracy, p.samples) for p in points] == [
        (pytest.approx(0.6), 0.75, 4),
        (pytest.approx(0.9), 0.5, 4),
    ]


def test_labels_that_hold_or_not() -> None:
    logits = np.array([[2.0, -1.0], [0.5, 0.0]])
    labels = np.array([[1.0, 0.0], [1.0, 1.0]], dtype=np.float32)
    rows = multi_label_rows(logits, logits, labels)
    probabilities = 1 / (1 + np.exp(-logits))
    assert brier_score(rows) == pytest.approx(((labels - probabilities) ** 2).mean())
    expected = -np.log(np.where(labels == 1, probabilities, 1 - probabilities)).sum(axis=1).mean()
    assert negative_log_likelihood(rows) == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 100), st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_a_reliability_diagram_holds_every_sample(seed: int, samples: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(samples, 3)) * 5
    rows = classification_rows(logits, logits, np.zeros(samples, dtype=np.int64))
    points = reliability(rows)
    assert sum(point.samples for point in points) == samples
    right = sum(point.accuracy * point.samples for point in points)
    assert right == pytest.approx(rows["correct"].sum())
    sure = sum(point.confidence * point.samples for point in points)
    assert sure == pytest.approx(rows["probabilities"].max(axis=1).sum())


class TestTemperature:
    @pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
    def test_it_undoes_what_scaled_the_logits(self, scale: float) -> None:
        logits, labels = logits_and_labels(4000, scale=scale)
        assert fit_temperature(logits, labels) == pytest.approx(scale, rel=0.12)

    def test_against_scikit_learn(self) -> None:
        from sklearn.base import BaseEstimator, ClassifierMixin
        from sklearn.frozen import FrozenEstimator

        class Given(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
            classes_ = np.arange(4)

            def __sklearn_is_fitted__(self) -> bool:
                return True

            def fit(self, *_: Any) -> Any:
                return self

            def decision_function(self, rows: Any) -> Any:
                return rows

            def predict(self, rows: Any) -> Any:
                return rows.argmax(axis=1)

        logits, labels = logits_and_labels(800, scale=3.0)
        calibrated = CalibratedClassifierCV(FrozenEstimator(Given()), method="temperature").fit(logits, labels)
        expected = log_loss(labels, calibrated.predict_proba(logits), labels=range(4))
        cooled = logits / fit_temperature(logits, labels)
        found = negative_log_likelihood(classification_rows(cooled, cooled, labels))
        assert found == pytest.approx(expected, rel=1e-3)

    def test_it_lowers_calibration_error_and_keeps_the_classes(self) -> None:
        logits, labels = logits_and_labels(2000, scale=4.0)
        cooled = logits / fit_temperature(logits, labels)
        before, after = (classification_rows(side, side, labels) for side in (logits, cooled))
        assert expected_calibration_error(after) < 0.4 * expected_calibration_error(before)
        assert (before["chosen"] == after["chosen"]).all()

    def test_labels_that_hold_or_not(self) -> None:
        logits = GENERATOR.normal(size=(3000, 3)) * 2
        labels = (GENERATOR.random((3000, 3)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
        assert fit_temperature(3 * logits, labels) == pytest.approx(3.0, rel=0.12)

    def test_a_scaled_model_has_scaled_logits(self) -> None:
        model = tiny_bert(labels=3)
        inputs = {"input_ids": torch.randint(1, 97, (2, 8))}
        with torch.inference_mode():
            expected = model(**inputs).logits / 2.5
            found = with_temperature(model, 2.5)(**inputs).logits
            assert torch.allclose(found, expected, atol=1e-5)
            assert not torch.allclose(model(**inputs).logits, expected, atol=1e-3)

    def test_what_cannot_be_scaled(self) -> None:
        with pytest.raises(ValueError, match="`temperature` must be > 0, but got 0"):
            with_temperature(tiny_bert(labels=3), 0)
        with pytest.raises(ValueError, match="must give its 7 labels, but none does"):
            with_temperature(tiny_bert(num_labels=7), 2.0)
