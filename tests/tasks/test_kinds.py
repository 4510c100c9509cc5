"""Every further kind of task, end to end on a small model folder: labels read right, outputs that fit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from latency_models.backends.onnx import export_onnx
from nas.distillation.losses import Distiller
from nas.distillation.teacher import TeacherOutputs
from nas.distillation.train import TrainSettings, distil
from nas.evaluation.evaluate import evaluate_model, evaluate_run, onnx_run
from nas.tasks.data import TextData
from nas.tasks.task import Task
from nas.tasks.text import SentenceEmbedding, TextClassification
from nas.tasks.token import TokenClassification
from search_spaces.cost import Workload
from tests.texts import texts, tiny_model_folder, tiny_tagger_folder

SMALL: dict[str, Any] = {"calibration": 8, "validation": 20, "test": 30}
TEXTS = texts(120)
NAMES = ["blue", "green", "red"]
TAGS = ["O", "B-X", "I-X"]


def write(folder: Path, **columns: Any) -> str:
    file = folder / "data.jsonl"
    pd.DataFrame({"text": TEXTS, **columns}).to_json(file, orient="records", lines=True)
    return str(file)


def multi_label(folder: Path) -> TextClassification:
    labels = [[name for bit, name in enumerate(NAMES) if index >> bit & 1] for index in range(120)]
    data = TextData(write(folder, label=labels), label_column="label", **SMALL)
    model = tiny_model_folder(folder / "model", labels=3, id2label=dict(enumerate(NAMES)))
    return TextClassification(model, data, problem="multi_label", max_length=16)


def regression(folder: Path) -> TextClassification:
    data = TextData(write(folder, label=[index / 7 for index in range(120)]), label_column="label", **SMALL)
    model = tiny_model_folder(folder / "model", labels=1)
    return TextClassification(model, data, problem="regression", max_length=16)


def tagging(folder: Path) -> TokenClassification:
    words = [text.split() for text in TEXTS]
    tags = [[TAGS[(row + place) % 3] for place in range(len(some))] for row, some in enumerate(words)]
    data = TextData(write(folder, text=words, tags=tags), label_column="tags", **SMALL)
    return TokenClassification(tiny_tagger_folder(folder / "model", TAGS), data, max_length=10)


def similarity(folder: Path) -> SentenceEmbedding:
    data = TextData(
        write(folder, other=[*TEXTS[1:], TEXTS[0]], label=[index % 5 for index in range(120)]),
        pair_column="other", label_column="label", **SMALL,
    )  # fmt: skip
    return SentenceEmbedding(tiny_model_folder(folder / "model"), data, max_length=16, quality="sts_spearman")


def retrieval(folder: Path) -> SentenceEmbedding:
    data = TextData(write(folder, other=[*TEXTS[1:], TEXTS[0]]), pair_column="other", **SMALL)
    return SentenceEmbedding(tiny_model_folder(folder / "model"), data, max_length=16, quality="retrieval_recall")


MAKERS = {
    "multi_label": multi_label,
    "regression": regression,
    "tagging": tagging,
    "similarity": similarity,
    "retrieval": retrieval,
}
AGREES = {"agreement": 1.0, "kl": 0.0, "cosine": 1.0, "recall": 1.0, "spearman": 1.0}


@pytest.fixture(scope="module", params=MAKERS)
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


class TestEveryKind:
    def test_the_teacher_agrees_with_itself(self, task: Task) -> None:
        found = evaluate_model(task.load_model(), task, TeacherOutputs(task), "test", batch_size=7)
        assert list(found) == [measure.name for measure in task.measures]
        assert task.quality in found
        same = {measure.name for measure in task.measures if measure.agreement}
        assert {name: found[name] for name in same} == pytest.approx({name: AGREES[name] for name in same}, abs=1e-4)

    def test_the_exported_graph_scores_as_its_model(self, task: Task) -> None:
        model = task.load_model()
        with torch.no_grad():
            model.get_submodule("bert" if hasattr(model, "bert") else "").encoder.layer[1].output.dense.weight.mul_(0.3)
        teacher = TeacherOutputs(task)
        graph = export_onnx(task.deployable(model), task.example_inputs(Workload(2, 8)), task.output_names)
        expected = evaluate_model(model, task, teacher, "validation")
        found = evaluate_run(onnx_run(graph.SerializeToString(), task), task, teacher, "validation", 1)
        assert found == pytest.approx(expected, abs=2e-2)
        assert found["agreement" if "agreement" in found else "cosine"] < 0.999

    def test_a_student_learns_from_the_teacher(self, task: Task) -> None:
        teacher = TeacherOutputs(task)
        student = task.load_model()
        with torch.no_grad():
            student.get_submodule("bert" if hasattr(student, "bert") else "").encoder.layer[2].output.dense.weight.mul_(
                0.2
            )
        distiller = Distiller.default(task) if "logits" in task.deployed else Distiller(embedding=1.0)
        settings = TrainSettings(learning_rate=2e-3, batch_size=16, precision="fp32")
        trained = distil(student, task, teacher, distiller, settings, steps=25)
        assert np.mean(trained.losses[-5:]) < 0.8 * np.mean(trained.losses[:3])

    def test_labels_can_be_learnt(self, task: Task) -> None:
        if task.samples.labels("train") is None:
            pytest.skip("pairs are not labels of texts")
        settings = TrainSettings(learning_rate=3e-3, batch_size=16, precision="fp32", freeze_embeddings=False)
        trained = distil(task.load_model(), task, None, Distiller(labels=1.0), settings, steps=30)
        assert np.mean(trained.losses[-5:]) < 0.9 * np.mean(trained.losses[:3])


class TestLabels:
    def test_label_sets(self, tmp_path: Path) -> None:
        task = multi_label(tmp_path)
        labels, examples = task.samples.labels("test"), task.samples.examples["test"]
        assert labels is not None
        assert labels.dtype == np.float32
        assert task.classes == tuple(NAMES)
        for row, own in zip(examples.rows, labels, strict=True):
            assert own.tolist() == [row >> bit & 1 for bit in range(3)]

    @pytest.mark.parametrize("columns", ["names", "bits"])
    def test_label_sets_of_a_plain_table(self, tmp_path: Path, columns: str) -> None:
        sets = [{name for bit, name in enumerate(NAMES) if index >> bit & 1} for index in range(120)]
        frame = pd.DataFrame({"text": TEXTS})
        if columns == "names":
            frame["labels"] = [" | ".join(sorted(some)) for some in sets]
        else:
            frame = frame.assign(**{name: [int(name in some) for some in sets] for name in NAMES})
        frame.to_csv(tmp_path / "data.csv", index=False)
        column: Any = "labels" if columns == "names" else NAMES
        data = TextData(str(tmp_path / "data.csv"), label_column=column, empty_labels=True, **SMALL)
        folder = tiny_model_folder(tmp_path / "model")
        task = TextClassification(folder, data, 32, problem="multi_label", new_head=True)
        labels = task.samples.labels("train")
        assert labels is not None
        assert task.classes == tuple(NAMES)
        assert [set(np.array(NAMES)[row > 0]) for row in labels] == [
            sets[i] for i in task.samples.examples["train"].rows
        ]
        assert task.load_model().config.problem_type == "multi_label_classification"

    def test_names_of_a_saved_folder(self, tmp_path: Path) -> None:
        features = datasets.Features(
            {"text": datasets.Value("string"), "labels": datasets.List(datasets.ClassLabel(names=NAMES))}
        )
        sets = [[bit for bit in range(3) if index >> bit & 1] for index in range(120)]
        datasets.Dataset.from_dict({"text": TEXTS, "labels": sets}, features=features).save_to_disk(str(tmp_path / "d"))
        data = TextData(str(tmp_path / "d"), label_column="labels", **SMALL)
        task = TextClassification(tiny_model_folder(tmp_path / "m"), data, problem="multi_label", new_head=True)
        assert task.classes == tuple(NAMES)

    def test_tags_stand_where_words_begin(self, tmp_path: Path) -> None:
        task = tagging(tmp_path)
        labels, examples = task.samples.labels("test"), task.samples.examples["test"]
        assert labels is not None
        assert labels.shape == (30, 10)
        for row, own, text in zip(examples.rows, labels, examples.texts, strict=True):
            expected = [(row + place) % 3 for place in range(len(text.split()))][:8]  # Two of ten tokens are special.
            assert own[own != -100].tolist() == expected
            assert own[0] == -100

    def test_padding_has_no_logits(self, tmp_path: Path) -> None:
        task = tagging(tmp_path)
        batch = task.samples.batch("test", np.array([0, 1, 2]))
        with torch.inference_mode():
            logits = task.outputs(task.load_model(), batch)["logits"]
        assert logits.shape == (3, 10, 3)
        padding = torch.ones(3, 10, dtype=torch.bool)
        padding[:, : batch["attention_mask"].shape[1]] = batch["attention_mask"] == 0
        assert bool((logits[padding] == 0).all())
        assert bool((logits[~padding] != 0).all())

    def test_pairs_are_taken_apart(self, tmp_path: Path) -> None:
        task = similarity(tmp_path)
        split = task.data.read()["test"]
        texts_of = task.samples.examples["test"].texts
        assert len(set(texts_of)) == len(texts_of)
        assert set(texts_of) == {*split.texts, *(split.pairs or ())}
        rows = task.tables("test", *[{"embedding": np.eye(len(texts_of), dtype=np.float32)}] * 2)["pairs"]
        assert rows["score"].tolist() == list(split.labels or ())


class TestMistakes:
    def test_a_number_that_is_none(self, tmp_path: Path) -> None:
        data = TextData(write(tmp_path, label=["1", "two", *["3"] * 118]), label_column="label", **SMALL)
        task = TextClassification(tiny_model_folder(tmp_path / "m", labels=1), data, problem="regression")
        with pytest.raises(ValueError, match=r"line 2: labels .* must be finite numbers, but this one is 'two'"):
            _ = task.samples

    def test_a_regression_head_with_classes(self, tmp_path: Path) -> None:
        data = TextData(write(tmp_path, label=[1.5] * 120), label_column="label", **SMALL)
        task = TextClassification(tiny_model_folder(tmp_path / "m", labels=3), data, problem="regression")
        with pytest.raises(ValueError, match="must have 1 output, but this one has 3"):
            _ = task.samples

    def test_a_word_without_a_tag(self, tmp_path: Path) -> None:
        words = [text.split() for text in TEXTS]
        tags = [[TAGS[row % 2]] * len(some) for row, some in enumerate(words[:-1])] + [["O"]]
        data = TextData(write(tmp_path, text=words, tags=tags), label_column="tags", **SMALL)
        task = TokenClassification(tiny_tagger_folder(tmp_path / "m", TAGS), data, max_length=10)
        with pytest.raises(ValueError, match=r"line 120: .* must have one tag a word, but has \d+ words and 1 tags"):
            _ = task.samples

    def test_a_word_with_a_space_inside(self, tmp_path: Path) -> None:
        words = [["New York"], *[text.split() for text in TEXTS[1:]]]
        data = TextData(write(tmp_path, text=words, tags=[["O"]] * 120), label_column="tags", **SMALL)
        with pytest.raises(ValueError, match=r"line 1: column 'text' must hold words .* one is 'New York'"):
            data.read()

    def test_label_columns_that_are_no_bits(self, tmp_path: Path) -> None:
        file = write(tmp_path, a=[0, 1] * 60, b=[0, 2] * 60)
        with pytest.raises(ValueError, match="line 2: label columns must be 1 or 0, but 'b' is 2"):
            TextData(file, label_column=["a", "b"], **SMALL).read()

    def test_a_row_without_label(self, tmp_path: Path) -> None:
        file = write(tmp_path, label=[None, *["x"] * 119])
        with pytest.raises(ValueError, match="line 1 has no label in column 'label'"):
            TextData(file, label_column="label", **SMALL).read()

    def test_settings(self) -> None:
        data = TextData("x.csv", label_column="label")
        with pytest.raises(ValueError, match="`problem` must be one of single_label, multi_label, regression, but got"):
            TextClassification("m", data, problem="ranking")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="`quality` must be one of spearman, pearson, agreement, but got 'rmse'"):
            TextClassification("m", data, problem="regression", quality="rmse")
        with pytest.raises(
            ValueError, match="`quality` must be one of cosine, recall, spearman, but got 'sts_spearman'"
        ):
            SentenceEmbedding("m", data, quality="sts_spearman")
        with pytest.raises(ValueError, match="must name the column with the tags, but got None"):
            TokenClassification("m", TextData("x.csv"))
        data = TextData("texts.csv", pair_column="other", group_columns="group")
        with pytest.raises(ValueError, match=r"`task.data.group_columns` groups single texts, but with"):
            SentenceEmbedding("model", data)
