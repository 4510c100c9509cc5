"""Intervals against SciPy's own bootstrap, known distributions, and what pairing promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from nas.evaluation.calibration import CALIBRATION
from nas.evaluation.fairness import disparity
from nas.evaluation.intervals import Interval, Resampling, estimate, mcnemar
from nas.evaluation.metrics import CLASSIFICATION, SAMPLES, Measure, Tables, classification_rows, ratio_of
from nas.evaluation.similarity import AGREEMENT, embedding_rows

GENERATOR = np.random.default_rng(0)
MEAN = ratio_of("mean", "values")
MEASURES = {measure.name: measure for measure in CLASSIFICATION}


def table(values: Any) -> Tables:
    return {SAMPLES: {"values": np.asarray(values, dtype=np.float64)}}


def classifiers(samples: int = 400) -> tuple[Tables, Tables]:
    labels = GENERATOR.integers(0, 3, samples)
    teacher, own = (GENERATOR.normal(size=(samples, 3)) + scale * np.eye(3)[labels] for scale in (3.0, 1.5))
    rows = [classification_rows(side, teacher, labels) for side in (own, teacher)]
    return {SAMPLES: rows[0]}, {SAMPLES: rows[1]}


def test_a_mean_has_the_interval_that_scipy_gives() -> None:
    values = GENERATOR.normal(2.0, 1.0, 300)
    found = estimate(MEAN, table(values), table(values + 1), Resampling(resamples=2000))
    expected = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=1).confidence_interval
    assert found.value.value == pytest.approx(values.mean())
    assert (found.value.low, found.value.high) == pytest.approx((expected.low, expected.high), abs=0.015)
    assert found.samples == 300


def test_a_model_equal_to_its_teacher_retains_everything() -> None:
    values = table(GENERATOR.integers(0, 2, 200))
    retention = estimate(MEAN, values, values).retention
    assert retention is not None
    assert retention.to_list() == [1.0, 1.0, 1.0]


def test_pairing_narrows_the_interval_of_retention() -> None:
    teacher = GENERATOR.normal(10, 3, 400)
    student = 0.9 * teacher + GENERATOR.normal(0, 0.1, 400)
    paired = estimate(MEAN, table(student), table(teacher)).retention
    shuffled = estimate(MEAN, table(GENERATOR.permutation(student)), table(teacher)).retention
    assert paired is not None
    assert shuffled is not None
    assert paired.low < 0.9 < paired.high
    assert paired.high - paired.low < 0.2 * (shuffled.high - shuffled.low)


def test_where_lower_is_better_retention_is_turned_round() -> None:
    error = ratio_of("error", "values", higher_is_better=False)
    worse = estimate(error, table(np.full(20, 2.0)), table(np.full(20, 1.0)))
    assert worse.retention is not None
    assert worse.retention.value == 0.5
    assert not worse.higher_is_better


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    covered = []
    for seed in range(200):
        values = np.random.default_rng(seed).normal(5.0, 2.0, 80)
        interval = estimate(MEAN, table(values), table(values), Resampling(resamples=400, seed=seed)).value
        covered.append(interval.low <= 5.0 <= interval.high)
    assert 0.88 <= np.mean(covered) <= 0.99


def test_a_metric_that_is_no_mean() -> None:
    own, teacher = classifiers()
    found = estimate(MEASURES["macro_f1"], own, teacher, Resampling(resamples=200))
    rows = own[SAMPLES]
    draw = np.random.default_rng(5).integers(0, 400, (200, 400))
    expected = np.quantile(
        [f1_score(rows["labels"][d], rows["chosen"][d], average="macro") for d in draw], [0.025, 0.975]
    )
    assert found.value.value == pytest.approx(f1_score(rows["labels"], rows["chosen"], average="macro"))
    assert (found.value.low, found.value.high) == pytest.approx(tuple(expected), abs=0.015)
    assert found.teacher is not None
    assert found.retention is not None
    assert found.retention.value == pytest.approx(found.value.value / found.teacher.value)
    assert found.retention.high < 1


def test_agreement_has_no_teacher_value() -> None:
    found = estimate(MEASURES["agreement"], *classifiers())
    assert (found.teacher, found.retention) == (None, None)
    assert 0 < found.value.low < found.value.value < found.value.high < 1


def test_a_costly_measure_is_shown_by_its_quick_form() -> None:
    teacher = GENERATOR.normal(size=(300, 8))
    tables = {SAMPLES: embedding_rows(teacher + 0.4 * GENERATOR.normal(size=teacher.shape), teacher)}
    found = estimate(AGREEMENT[2], tables, tables, Resampling(resamples=1000))
    assert found.name == "spearman"
    assert found.value.value == AGREEMENT[2](tables)
    assert found.value.low < found.value.value < found.value.high
    assert found.value.high - found.value.low < 0.1


def test_the_same_seed_gives_the_same_interval() -> None:
    own, teacher = classifiers()
    first, again, other = (estimate(MEASURES["accuracy"], own, teacher, Resampling(seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_nothing_can_be_retained_of_nothing() -> None:
    assert estimate(MEAN, table(np.ones(5)), table(np.zeros(5))).retention is None


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (8, 1), (3, 3), (10, 0)])
def test_mcnemar_by_hand(lost: int, won: int) -> None:
    own = np.array([False] * lost + [True] * won + [True, False])
    teacher = np.array([True] * lost + [False] * won + [True, False])
    found = mcnemar(own, teacher)
    pairs = lost + won
    tail = sum(float(np.prod([(pairs - i) / (i + 1) for i in range(k)])) for k in range(min(lost, won) + 1)) / 2**pairs
    assert found["p_value"] == pytest.approx(min(1.0, 2 * tail) if pairs else 1.0)
    assert (found["teacher_only"], found["own_only"]) == (lost, won)


def holds(interval: Interval | None, least: float = -np.inf, most: float = np.inf) -> bool:
    return interval is None or least <= interval.low <= interval.value <= interval.high <= most


class TestEveryIntervalHoldsItsValue:
    """Also where resampling shifts a statistic, as it does an error of calibration or a gap, or hardly anything is."""

    @given(seed=st.integers(0, 10_000), samples=st.integers(2, 40), classes=st.integers(2, 4), draws=st.integers(2, 6))
    @settings(max_examples=20, deadline=None)
    def test_of_classifiers(self, seed: int, samples: int, classes: int, draws: int) -> None:
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, classes, samples)
        teacher, own = (generator.normal(size=(samples, classes)) + 2 * np.eye(classes)[labels] for _ in range(2))
        tables = [{SAMPLES: classification_rows(side, teacher, labels)} for side in (own, teacher)]
        for measure in (*CLASSIFICATION, CALIBRATION[0], CALIBRATION[2]):
            found = estimate(measure, tables[0], tables[1], Resampling(resamples=draws, seed=seed))
            assert holds(found.value, *measure.span)
            assert holds(found.teacher, *measure.span)
            assert holds(found.retention)

    @given(
        seed=st.integers(0, 10_000),
        groups=st.integers(2, 6),
        draws=st.integers(2, 12),
        name=st.sampled_from(["accuracy", "macro_f1", "kl"]),
    )
    @settings(max_examples=20, deadline=None)
    def test_of_groups(self, seed: int, groups: int, draws: int, name: str) -> None:
        generator = np.random.default_rng(seed)
        names = [str(group) for group in generator.integers(0, groups, 80)] + ["0", "0", "1", "1"]
        labels = generator.integers(0, 2, len(names))
        teacher, own = (generator.normal(size=(len(names), 2)) + 2 * np.eye(2)[labels] for _ in range(2))
        rows = [classification_rows(side, teacher, labels) for side in (own, teacher)]
        settings = Resampling(resamples=draws, seed=seed)
        found = disparity(MEASURES[name], *rows, "g", names, min_samples=2, resampling=settings)
        for side in ({"worst": found.worst, "gap": found.gap, "ratio": found.ratio}, found.teacher):
            assert holds(side["worst"], *MEASURES[name].span)
            assert holds(side["gap"], 0.0)
            assert np.isnan(side["ratio"].value) or holds(side["ratio"], -np.inf, 1.0)

    def test_a_percentile_interval_alone_would_leave_out_a_calibration_error(self) -> None:
        generator = np.random.default_rng(12)
        chances = generator.uniform(0.5, 1.0, 300)
        labels = (generator.random(300) > chances).astype(np.int64)
        logits = np.log(np.stack([chances, 1 - chances], axis=1))
        rows = {SAMPLES: classification_rows(logits, logits, labels)}
        values = Resampling(resamples=40).values(CALIBRATION[0], rows[SAMPLES])
        assert np.quantile(values[1:], 0.025) > values[0]
        found = estimate(CALIBRATION[0], rows, rows, Resampling(resamples=40)).value
        # Such a model is calibrated: resamples reach away from the truth, the interval must reach towards it.
        assert found.low == 0.0
        assert holds(found, 0.0, 1.0)


def test_groups_that_are_alike_are_not_said_to_differ() -> None:
    claimed, names = [], [str(group) for group in range(20) for _ in range(30)]
    for seed in range(12):
        right = (np.random.default_rng(seed).random(600) < 0.8).astype(np.float64)
        rows = {"correct": right}
        found = disparity(MEASURES["accuracy"], rows, rows, "g", names, min_samples=2, resampling=Resampling(60))
        claimed.append((found.gap.low > 0, found.worst.high < 0.8, found.ratio.high < 1.0))
    assert np.mean(claimed, axis=0).tolist() == pytest.approx([0.0, 0.0, 0.0], abs=0.1)


class TestMistakes:
    def test_unpaired_samples(self) -> None:
        with pytest.raises(ValueError, match="must be of one length, but are of 2, 3"):
            estimate(MEAN, {SAMPLES: {"values": np.ones(3), "x": np.ones(2)}}, table(np.ones(3)))
        with pytest.raises(ValueError, match="judged on the same samples, but there are 3, 4"):
            estimate(MEAN, table(np.ones(3)), table(np.ones(4)))

    def test_too_few_samples(self) -> None:
        with pytest.raises(ValueError, match="at least 2 samples, but there are 1"):
            estimate(MEAN, table(np.ones(1)), table(np.ones(1)))

    def test_settings(self) -> None:
        with pytest.raises(ValueError, match="`resamples` must be a whole number >= 2, but got 1"):
            Resampling(resamples=1)
        with pytest.raises(ValueError, match="`confidence` must be between 0 and 1, but got 95"):
            Resampling(confidence=95)


def test_measures_know_what_they_read() -> None:
    assert not ratio_of("cosine", "cosine").fits(table(np.ones(3)))
    assert not Measure("other", lambda _: 0.0, table="pairs").fits(table(np.ones(3)))
