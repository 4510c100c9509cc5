"""Every section of a report card against a computation of its own, on a small classifier and a worse copy of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score, brier_score_loss

from nas.distillation.teacher import TeacherOutputs
from nas.evaluation.aspects import Aspects, NamedMetrics, lower_is_better
from nas.evaluation.evaluate import predict
from nas.evaluation.fairness import Fairness
from nas.evaluation.judge import Judge
from nas.evaluation.perturbations import perturb
from nas.evaluation.robustness import Condition, PerturbedSplit, Robustness
from nas.evaluation.substitution import Substitution
from nas.tasks.image import ImageClassification
from nas.tasks.images import ImageData
from tests.evaluation.judged import ASPECTS, TERMS, World, world
from tests.images import digit_folder, vision_model_folder
from tests.tasks.test_kinds import similarity, tagging

WANTED = (
    "ece",
    "worst_group_accuracy",
    "group_gap_false_positive_rate",
    "robustness_worst_drop",
    "flip_rate",
    "accuracy",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("world"))


def run_of(small: World, model: Any) -> Any:
    return lambda batch: small.task.outputs(model, batch)


def logits_of(small: World, model: Any, texts: list[str]) -> np.ndarray:
    """One by one, without any of the project's batching."""
    with torch.inference_mode():
        tokens = (small.task.tokenizer(text, truncation=True, max_length=24, return_tensors="pt") for text in texts)
        return np.concatenate([model(**token).logits.numpy() for token in tokens])


def sections(small: World, model: Any) -> dict[str, Any]:
    judge = small.judge()
    judged = judge.run(run_of(small, model), batch_size=13)
    return {
        "quality": judge.quality_section(judged),
        "calibration": judge.calibration_section(judged),
        "fairness": judge.fairness_section(judged),
        "robustness": judge.robustness_section(judged),
    }


@pytest.fixture(scope="module")
def found(small: World) -> dict[str, Any]:
    return sections(small, small.student)


class TestSections:
    def test_quality(self, small: World, found: dict[str, Any]) -> None:
        examples, labels = small.task.samples.examples["test"], small.task.samples.labels("test")
        own, teacher = (
            logits_of(small, m, list(examples.texts)).argmax(axis=1) for m in (small.student, small.teacher)
        )
        accuracy = found["quality"]["metrics"]["accuracy"]
        assert accuracy["value"]["value"] == pytest.approx(accuracy_score(labels, own))
        assert accuracy["teacher"]["value"] == pytest.approx(accuracy_score(labels, teacher))
        assert accuracy["retention"]["value"] == pytest.approx(
            accuracy_score(labels, own) / accuracy_score(labels, teacher)
        )
        assert found["quality"]["metrics"]["agreement"]["value"]["value"] == pytest.approx(np.mean(own == teacher))
        assert found["quality"]["mcnemar"]["teacher_only"] == int(((teacher == labels) & (own != labels)).sum())
        assert set(found["quality"]["metrics"]) == {"accuracy", "macro_f1", "mcc", "agreement", "kl"}

    def test_calibration(self, small: World, found: dict[str, Any]) -> None:
        examples, labels = small.task.samples.examples["test"], small.task.samples.labels("test")
        logits = logits_of(small, small.student, list(examples.texts))
        section = found["calibration"]
        brier = brier_score_loss(labels, softmax(logits, axis=1), labels=[0, 1])
        assert section["metrics"]["brier"]["value"]["value"] == pytest.approx(brier, abs=1e-5)
        assert sum(point["samples"] for point in section["reliability"]) == 120
        scaled = softmax(logits / section["temperature"]["value"], axis=1)
        assert section["temperature"]["metrics"]["brier"] == pytest.approx(
            brier_score_loss(labels, scaled, labels=[0, 1]), abs=1e-5
        )
        assert section["temperature"]["fitted_on"] == "validation"

    def test_fairness(self, small: World, found: dict[str, Any]) -> None:
        examples, labels = small.task.samples.examples["test"], small.task.samples.labels("test")
        assert labels is not None
        right = logits_of(small, small.student, list(examples.texts)).argmax(axis=1) == labels
        groups = np.array(examples.groups["group"])
        columns = {column["measure"]: column for column in found["fairness"]["columns"]}
        assert set(columns) == {"accuracy", "false_positive_rate", "false_negative_rate"}
        by_group = {group["name"]: group for group in columns["accuracy"]["groups"]}
        assert by_group["few"]["too_small"]
        for name in ("odd", "even"):
            assert by_group[name]["score"]["value"]["value"] == pytest.approx(right[groups == name].mean())
        worst = min(right[groups == name].mean() for name in ("odd", "even"))
        assert columns["accuracy"]["worst"]["value"] == pytest.approx(worst)

    def test_exchanged_terms(self, small: World, found: dict[str, Any]) -> None:
        exchange = Substitution(TERMS)
        texts = [text for text in small.task.samples.examples["test"].texts if exchange.mentions(text)]
        sides = [logits_of(small, small.student, [exchange(text, group) for text in texts]) for group in TERMS]
        section = found["fairness"]["substitution"]
        assert section["samples"] == len(texts) > 10
        flips = np.mean(sides[0].argmax(axis=1) != sides[1].argmax(axis=1))
        assert section["metrics"]["flip_rate"]["value"]["value"] == pytest.approx(flips)
        distance = np.abs(softmax(sides[0], axis=1) - softmax(sides[1], axis=1)).sum(axis=1).mean() / 2
        assert section["metrics"]["counterfactual_gap"]["value"]["value"] == pytest.approx(distance, abs=1e-5)

    def test_robustness(self, small: World, found: dict[str, Any]) -> None:
        split = PerturbedSplit(small.task, "test", small.judge().quality, ASPECTS.robustness)
        examples, labels = small.task.samples.examples["test"], small.task.samples.labels("test")
        assert labels is not None
        texts = [examples.texts[row] for row in split.rows]
        clean = accuracy_score(labels[split.rows], logits_of(small, small.student, texts).argmax(axis=1))
        drops = []
        for fall in found["robustness"]["conditions"]:
            changed = [perturb(text, fall["kind"], fall["strength"], 0) for text in texts]
            own = accuracy_score(labels[split.rows], logits_of(small, small.student, changed).argmax(axis=1))
            assert fall["value"]["value"] == pytest.approx(own)
            assert fall["drop"] == pytest.approx(clean - own)
            assert fall["changed"] == np.mean([a != b for a, b in zip(texts, changed, strict=True)])
            drops.append(clean - own)
        assert found["robustness"]["worst_drop"] == pytest.approx(max(drops))
        assert found["robustness"]["mean_drop"] == pytest.approx(np.mean(drops))
        assert found["robustness"]["samples"] == 40

    def test_the_same_seed_gives_the_same_numbers(self, small: World, found: dict[str, Any]) -> None:
        assert json.dumps(sections(small, small.student)) == json.dumps(found)

    def test_the_teacher_is_as_good_as_itself(self, small: World) -> None:
        own = sections(small, small.teacher)
        assert own["quality"]["metrics"]["accuracy"]["retention"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert own["quality"]["mcnemar"]["p_value"] == 1.0
        assert own["robustness"]["worst_excess"] == own["robustness"]["mean_excess"] == 0.0
        for column in own["fairness"]["columns"]:
            assert column["gap"] == column["teacher"]["gap"]


class TestOtherTasks:
    def test_more_than_two_classes_have_no_rates(self, tmp_path: Any) -> None:
        several = world(tmp_path / "w", labels=3)
        judge = several.judge()
        section = judge.fairness_section(judge.run(run_of(several, several.student)))
        assert section is not None
        assert {column["measure"] for column in section["columns"]} == {"accuracy"}

    def test_words_with_tags_keep_their_places(self, tmp_path: Any) -> None:
        task = tagging(tmp_path)
        split = PerturbedSplit(task, "test", task.measures[0], Robustness(samples=20, strengths=(0.4,)))
        assert [condition.kind for condition in split.conditions] == ["typos", "keyboard", "case"]
        model = task.load_model()
        run = lambda batch: task.outputs(model, batch)  # noqa: E731
        clean = predict(run, task, "test")
        perturbed = split.outputs(run, Condition("keyboard", 0.4), clean, 8)
        assert perturbed["logits"].shape == clean["logits"].shape
        assert (perturbed["logits"][split.rows] != clean["logits"][split.rows]).any()
        others = np.setdiff1d(np.arange(30), split.rows)
        assert (perturbed["logits"][others] == clean["logits"][others]).all()
        assert 0 <= split.measure(split.tables(perturbed, clean)) <= 1

    def test_pairs_are_perturbed_whole(self, tmp_path: Any) -> None:
        task = similarity(tmp_path)
        quality = next(measure for measure in task.measures if measure.name == task.quality)
        split = PerturbedSplit(task, "test", quality, Robustness(samples=5))
        assert len(split.rows) == task.samples.size("test")

    def test_a_card_of_pairs_counts_pairs(self, tmp_path: Any) -> None:
        task = similarity(tmp_path)
        model = task.load_model()
        run = lambda batch: task.outputs(model, batch)  # noqa: E731
        judge = Judge(task, TeacherOutputs(task, model=model), run, ASPECTS)
        section = judge.robustness_section(judge.run(run))
        pairs = len(task.data.read()["test"])
        assert section is not None
        assert judge.judged_on == (section["samples"], "pairs") == (pairs, "pairs")
        assert pairs != task.samples.size("test")

    def test_images_have_no_texts_to_perturb(self, tmp_path: Any) -> None:
        data = ImageData(digit_folder(tmp_path / "d", 80), calibration=5, validation=20, test=20)
        task = ImageClassification(vision_model_folder(tmp_path / "m"), data)
        assert PerturbedSplit(task, "test", task.measures[0], Robustness()).conditions == ()
        metrics = NamedMetrics(task, Aspects(), ["robustness_worst_drop"])
        model = task.load_model()
        run = lambda batch: task.outputs(model, batch)  # noqa: E731
        with pytest.raises(ValueError, match="measured of texts, but image_classification has none"):
            metrics(run, "test", predict(run, task, "test"), predict(run, task, "test"))


class TestByName:
    def test_they_are_those_of_the_card(self, small: World) -> None:
        judge = small.judge()
        section = judge.fairness_section(judge.run(run_of(small, small.student)))
        robustness = judge.robustness_section(judge.run(run_of(small, small.student)))
        assert section is not None
        assert robustness is not None
        run, teacher = run_of(small, small.student), judge.teacher.main("test")
        values = NamedMetrics(small.task, ASPECTS, WANTED)(run, "test", predict(run, small.task, "test"), teacher)
        columns = {column["measure"]: column for column in section["columns"]}
        assert list(values) == [name for name in WANTED if name != "accuracy"]
        assert values["worst_group_accuracy"] == columns["accuracy"]["worst"]["value"]
        assert values["group_gap_false_positive_rate"] == columns["false_positive_rate"]["gap"]["value"]
        assert values["robustness_worst_drop"] == pytest.approx(robustness["worst_drop"])
        assert values["flip_rate"] == section["substitution"]["metrics"]["flip_rate"]["value"]["value"]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("worst_group_acuracy", "Did you mean 'worst_group_accuracy'"),
            ("flip_rate", "give them in `evaluation.fairness.terms`"),
        ],
    )
    def test_mistakes(self, small: World, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            NamedMetrics(small.task, Aspects(), [name])

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("accuracy", False), ("kl", True), ("ece", True), ("worst_group_mcc", False), ("worst_group_nll", True),
            ("group_gap_accuracy", True), ("group_ratio_ece", False), ("robustness_mean_drop", True),
            ("flip_rate", True), ("whatever", False),
        ],
    )  # fmt: skip
    def test_which_way_is_better(self, small: World, name: str, expected: bool) -> None:
        assert lower_is_better(name, small.task) is expected

    def test_where_one_cannot_be_computed_the_others_stay(self, small: World) -> None:
        told: list[str] = []
        aspects = Aspects(fairness=Fairness(min_samples=100))
        metrics = NamedMetrics(small.task, aspects, ["worst_group_accuracy", "ece"]).tolerant(told.append)
        run = run_of(small, small.student)
        outputs = predict(run, small.task, "test")
        for _ in range(2):
            found = metrics(run, "test", outputs, outputs)
        assert np.isnan(found["worst_group_accuracy"])
        assert found["ece"] > 0
        assert len(told) == 1
        assert "worst_group_accuracy is not known of the test split" in told[0]

    def test_groups_need_a_column(self, tmp_path: Any) -> None:
        with pytest.raises(ValueError, match=r"name their columns in `task.data.group_columns`"):
            NamedMetrics(tagging(tmp_path), Aspects(), ["worst_group_accuracy"])

    def test_terms_that_no_text_has(self, small: World) -> None:
        metrics = NamedMetrics(
            small.task, Aspects(fairness=Fairness(terms={"a": ["nobody"], "b": ["noone"]})), ["flip_rate"]
        )
        run = run_of(small, small.student)
        outputs = predict(run, small.task, "test")
        with pytest.raises(ValueError, match="must occur in at least 2 texts of split 'test', but do in 0"):
            metrics(run, "test", outputs, outputs)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kinds": ["noise"]}, "`kinds` must be among"),
            ({"strengths": [0.0]}, "shares above 0 and at most 1, but got 0"),
            ({"samples": 1}, "`samples` must be >= 2"),
        ],
    )
    def test_settings(self, settings: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Robustness(**settings)
