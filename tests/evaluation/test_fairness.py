"""Groups against fairlearn and hand-computed values; identity terms that stand for each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, equalized_odds_difference, false_positive_rate
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from nas.evaluation.fairness import RATES, Fairness, disparity, group_frame, group_metrics
from nas.evaluation.intervals import Resampling
from nas.evaluation.metrics import CLASSIFICATION, SAMPLES, Rows, classification_rows
from nas.evaluation.substitution import COUNTERFACTUAL, Substitution, substitution_rows

GENERATOR = np.random.default_rng(0)
ACCURACY, MACRO_F1 = CLASSIFICATION[0], CLASSIFICATION[1]
QUICK = Resampling(resamples=60)
TERMS = {"women": ["she", "her", "Anna"], "men": ["he", "his", "Tom"]}


def world(samples: int = 600) -> tuple[Rows, Rows, tuple[str, ...]]:
    """A teacher that is as good for all of three groups, and a student that is worse for the last of them."""
    groups = GENERATOR.choice(["a", "b", "c"], samples, p=[0.5, 0.3, 0.2])
    labels = GENERATOR.integers(0, 2, samples)
    teacher = GENERATOR.normal(size=(samples, 2)) + 3 * np.eye(2)[labels]
    strength = np.where(groups == "c", 0.5, 3.0)[:, None]
    own = GENERATOR.normal(size=(samples, 2)) + strength * np.eye(2)[labels]
    return (
        classification_rows(own, teacher, labels),
        classification_rows(teacher, teacher, labels),
        tuple(map(str, groups)),
    )


class TestGroups:
    @pytest.mark.parametrize(("measure", "metric"), [
        (ACCURACY, accuracy_score),
        (MACRO_F1, lambda y, p: f1_score(y, p, average="macro")),
        (RATES[0], false_positive_rate),
    ])  # fmt: skip
    def test_against_fairlearn(self, measure: Any, metric: Any) -> None:
        own, teacher, groups = world(900)
        frame = MetricFrame(
            metrics=metric, y_true=own["labels"], y_pred=own["chosen"], sensitive_features=np.array(groups)
        )
        found = disparity(measure, own, teacher, "group", groups, resampling=QUICK)
        worst = frame.group_min() if measure.higher_is_better else frame.group_max()
        assert found.worst.value == pytest.approx(worst)
        assert found.gap.value == pytest.approx(frame.difference())
        assert found.ratio.value == pytest.approx(frame.ratio())
        for group in found.groups:
            assert group.score is not None
            assert group.score.value.value == pytest.approx(frame.by_group[group.name])
        assert group_metrics(measure, own, {"group": groups}, 50) == pytest.approx(
            {
                f"worst_group_{measure.name}": worst,
                f"group_gap_{measure.name}": frame.difference(),
                f"group_ratio_{measure.name}": frame.ratio(),
            }
        )

    def test_rates_bound_fairlearns_equalised_odds(self) -> None:
        own, _, groups = world(900)
        gaps = [group_metrics(rate, own, {"group": groups}, 50)[f"group_gap_{rate.name}"] for rate in RATES]
        expected = equalized_odds_difference(own["labels"], own["chosen"], sensitive_features=np.array(groups))
        assert max(gaps) == pytest.approx(expected)

    def test_a_rate_needs_as_many_samples_of_its_own_kind(self) -> None:
        labels = np.array([0] * 60 + [1] * 60 + [0] * 60 + [1] * 60 + [0] * 5 + [1] * 100)
        groups = ["a"] * 120 + ["b"] * 120 + ["c"] * 105
        logits = np.random.default_rng(0).normal(size=(len(labels), 2)).astype(np.float32)
        rows = classification_rows(logits, logits, labels)
        small = {
            measure.name: [
                g.name for g in disparity(measure, rows, rows, "g", groups, resampling=QUICK).groups if g.too_small
            ]
            for measure in (ACCURACY, *RATES)
        }
        assert small == {"accuracy": [], "false_positive_rate": ["c"], "false_negative_rate": []}
        two = [group for group in groups if group != "c"]
        without = {name: values[: len(two)] for name, values in rows.items()}
        assert group_metrics(RATES[0], rows, {"g": groups}, 50) == group_metrics(RATES[0], without, {"g": two}, 50)

    def test_the_worst_group_stands_beside_the_teachers(self) -> None:
        own, teacher, groups = world()
        found = disparity(ACCURACY, own, teacher, "group", groups, resampling=QUICK)
        assert found.worst_group == "c"
        assert found.worst.low < found.worst.value < found.worst.high < 0.8
        assert found.teacher["worst"].value > 0.9
        assert found.teacher["gap"].high < found.gap.low
        worst = next(group for group in found.groups if group.name == "c")
        assert worst.score is not None
        assert worst.score.retention is not None
        assert worst.score.retention.high < 0.9

    def test_groups_that_are_too_small_count_nowhere(self) -> None:
        own, teacher, groups = world()
        hurt = tuple("tiny" if index < 30 else group for index, group in enumerate(groups))
        wrong = {**own, "correct": np.where(np.arange(600) < 30, 0.0, own["correct"])}
        found = disparity(ACCURACY, wrong, teacher, "group", hurt, min_samples=50, resampling=QUICK)
        tiny = next(group for group in found.groups if group.name == "tiny")
        assert (tiny.too_small, tiny.samples) == (True, 30)
        assert tiny.score is not None
        assert tiny.score.value.value == 0.0
        assert found.worst.value > 0.5
        assert group_metrics(ACCURACY, wrong, {"group": hurt}, 50)["worst_group_accuracy"] == found.worst.value

    @pytest.mark.parametrize("least", [201, 500])
    def test_of_groups_that_are_all_too_small_nothing_is_claimed(self, least: int) -> None:
        own, teacher, groups = world()
        some = tuple("a" if index < 220 else group for index, group in enumerate(groups))
        found = disparity(ACCURACY, own, teacher, "group", some, min_samples=least, resampling=QUICK)
        assert [group.too_small for group in found.groups] == [least == 500, True, True]
        assert all(group.score is not None for group in found.groups)
        assert found.worst_group is None
        for part in (found.worst, found.gap, found.ratio, *found.teacher.values()):
            assert np.isnan(part.to_list()).all()

    def test_groups_without_samples_are_shown_and_count_nowhere(self) -> None:
        own, teacher, groups = world()
        lone = ("lone", *groups[1:])
        found = disparity(ACCURACY, own, teacher, "group", lone, resampling=QUICK, known=["absent", "a"])
        shown = {group.name: group for group in found.groups}
        assert list(shown) == ["a", "absent", "b", "c", "lone"]
        for name, samples in (("absent", 0), ("lone", 1)):
            assert (shown[name].samples, shown[name].too_small, shown[name].score) == (samples, True, None)
        assert found.worst_group == "c"

    def test_a_group_without_anything_to_measure_leaves_the_others_comparable(self) -> None:
        own, teacher, groups = world()
        never = np.array(groups) != "b"
        sides = [{**rows, "negatives": rows["negatives"] & never} for rows in (own, teacher)]
        found = disparity(RATES[0], *sides, "group", groups, resampling=QUICK)
        assert found.worst_group in ("a", "c")
        assert np.isfinite(found.worst.to_list()).all()
        score = next(group.score for group in found.groups if group.name == "b")
        assert score is None

    def test_several_columns_give_the_worst_of_all(self) -> None:
        own, _, groups = world()
        halves = tuple("left" if index % 2 else "right" for index in range(600))
        both = group_metrics(ACCURACY, own, {"half": halves, "group": groups}, 50)
        assert both == group_metrics(ACCURACY, own, {"group": groups}, 50)

    def test_a_resample_keeps_the_size_of_every_group(self) -> None:
        rows = {"correct": np.array([1.0] * 60 + [0.0] * 60)}
        found = disparity(ACCURACY, rows, rows, "g", ["right"] * 60 + ["wrong"] * 60, resampling=QUICK)
        assert found.worst.to_list() == [0.0, 0.0, 0.0]
        assert found.gap.to_list() == [1.0, 1.0, 1.0]

    @given(st.integers(0, 1000))
    @settings(max_examples=10, deadline=None)
    def test_the_gap_is_no_smaller_than_that_of_any_two_groups(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        rows = {"correct": generator.integers(0, 2, 300).astype(float)}
        groups = [str(group) for group in generator.integers(0, 4, 300)]
        found = group_metrics(ACCURACY, rows, {"g": groups}, 10)
        means = group_frame(ACCURACY, rows, groups).by_group
        assert found["group_gap_accuracy"] == pytest.approx(max(abs(a - b) for a in means for b in means))

    def test_two_classes(self) -> None:
        own, _, _ = world()
        assert RATES[0].fits({SAMPLES: own})
        assert not RATES[0].fits({SAMPLES: classification_rows(np.eye(3), np.eye(3), np.arange(3))})

    def test_mistakes(self) -> None:
        own, _, groups = world()
        with pytest.raises(ValueError, match="`group` must have at least 2 groups of 500 samples or more, but has 0"):
            group_metrics(ACCURACY, own, {"group": groups}, 500)
        with pytest.raises(ValueError, match="`group_columns` of the data, but none is named"):
            group_metrics(ACCURACY, own, {}, 50)
        with pytest.raises(ValueError, match="`min_samples` must be >= 2, but got 1"):
            Fairness(min_samples=1)


class TestSubstitution:
    @pytest.mark.parametrize(
        ("text", "group", "expected"),
        [
            ("She lost her book.", "men", "He lost his book."),
            ("HER book", "men", "HIS book"),
            ("Anna and Tom", "men", "Tom and Tom"),
            ("Anna and Tom", "women", "Anna and Anna"),
            ("the sheep is here", "men", "the sheep is here"),
            ("he/she", "women", "she/she"),
        ],
    )
    def test_golden(self, text: str, group: str, expected: str) -> None:
        assert Substitution(TERMS)(text, group) == expected

    def test_who_is_mentioned(self) -> None:
        exchange = Substitution(TERMS)
        assert exchange.mentions("That is HIS.")
        assert not exchange.mentions("This hers is a sheepish theme.")
        assert exchange.groups == ("women", "men")

    @given(st.lists(st.sampled_from(["she", "he", "her", "his", "Anna", "Tom", "book", "is", "there"]), min_size=1))
    @settings(max_examples=60, deadline=None)
    def test_there_and_back(self, words: list[str]) -> None:
        exchange, text = Substitution(TERMS), " ".join(words)
        once = exchange(text, "women")
        assert exchange(once, "women") == once
        assert exchange(exchange(text, "men"), "women") == once

    def test_flips_and_distances_by_hand(self) -> None:
        labels = np.zeros(2, dtype=np.int64)
        first = classification_rows(np.log(np.array([[0.9, 0.1], [0.6, 0.4]])), np.zeros((2, 2)), labels)
        second = classification_rows(np.log(np.array([[0.7, 0.3], [0.2, 0.8]])), np.zeros((2, 2)), labels)
        rows = substitution_rows([first, second])
        assert rows["flips"].tolist() == [0.0, 1.0]
        assert rows["distance"] == pytest.approx([0.2, 0.4])
        assert COUNTERFACTUAL[0].compute(rows) == 0.5
        assert COUNTERFACTUAL[1].compute(rows) == pytest.approx(0.3)

    def test_a_text_is_one_term(self) -> None:
        exchange = Fairness(terms={"women": "mom", "men": "dad"}).substitution
        assert exchange is not None
        assert exchange("Mom met a dame", "men") == "Dad met a dame"

    @pytest.mark.parametrize("terms", ["mom", ["mom", "dad"], {"women": 3, "men": 4}, {"a": [["x"]], "b": [["y"]]}])
    def test_terms_of_a_wrong_kind(self, terms: Any) -> None:
        with pytest.raises(ValueError, match=r"`evaluation.fairness.terms` must .* such as \{women: \[she, her\]"):
            Fairness(terms=terms)

    @pytest.mark.parametrize(
        ("terms", "message"),
        [
            ({"women": ["she"]}, "at least 2 groups, but names 1"),
            ({"women": ["she", "her"], "men": ["he"]}, "as many in every group, but there are 2 of women, 1 of men"),
            ({"women": ["she"], "men": ["SHE"]}, "'SHE' is in two"),
            ({"women": [""], "men": ["he"]}, "must not be empty, but one of 'women' is"),
        ],
    )
    def test_mistakes(self, terms: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Fairness(terms=terms)
