"""The two tasks on text, end to end on a small model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from nas.tasks.data import TextData
from nas.tasks.deployed import pool
from nas.tasks.models import Pooling, load_classifier, load_encoder, load_tokenizer, read_pooling
from nas.tasks.text import SentenceEmbedding, TextClassification
from search_spaces.cost import Workload
from tests.models import tiny
from tests.texts import texts, tiny_model_folder, tiny_tokenizer, write_lines

SMALL: dict[str, Any] = {"calibration": 8, "validation": 20, "test": 20}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model_folder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model_folder(tmp_path_factory.mktemp("classifier"), labels=3)


@pytest.fixture(scope="module")
def embedding(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> SentenceEmbedding:
    file = write_lines(tmp_path_factory.mktemp("texts") / "texts.txt", texts(90))
    return SentenceEmbedding(encoder, TextData(file, **SMALL), max_length=16)


def labelled(folder: Path, labels: list[Any], **changes: Any) -> TextData:
    pd.DataFrame({"text": texts(len(labels)), "label": labels}).to_csv(folder / "data.csv", index=False)
    return TextData(str(folder / "data.csv"), label_column="label", **{**SMALL, **changes})


def with_pooling(folder: Path, settings: dict[str, Any] | None, kinds: tuple[str, ...] | None) -> str:
    if settings is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    if kinds is not None:
        places = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
        modules = [{"path": places[kind], "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
        (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config.json").write_text("{}")
    return str(folder)


class TestPooling:
    HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, -4.0], [100.0, 100.0]]])
    MASK = torch.tensor([[1, 1, 0]])

    @pytest.mark.parametrize(("mode", "expected"), [("mean", [2.0, -1.0]), ("cls", [1.0, 2.0]), ("max", [3.0, 2.0])])
    def test_padding_does_not_count(self, mode: Any, expected: list[float]) -> None:
        assert pool(self.HIDDEN, self.MASK, Pooling(mode, normalize=False)).tolist() == [expected]
        assert torch.linalg.norm(pool(self.HIDDEN, self.MASK, Pooling(mode))).item() == pytest.approx(1.0)

    @pytest.mark.parametrize(
        ("settings", "kinds", "expected"),
        [
            (None, None, Pooling("mean", normalize=True)),
            ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, None, Pooling("cls")),
            ({"pooling_mode": "max"}, ("Transformer", "Pooling"), Pooling("max", normalize=False)),
            ({"pooling_mode_mean_tokens": True}, ("Transformer", "Pooling", "Normalize"), Pooling("mean")),
        ],
    )
    def test_what_sentence_transformers_wrote(
        self, tmp_path: Path, settings: Any, kinds: Any, expected: Pooling
    ) -> None:
        assert read_pooling(with_pooling(tmp_path, settings, kinds)) == expected

    def test_pooling_that_nobody_knows(self, tmp_path: Path) -> None:
        folder = with_pooling(tmp_path, {"pooling_mode_mean_sqrt_len_tokens": True}, None)
        with pytest.raises(ValueError, match="must be one of mean, cls, max, but got pooling_mode_mean_sqrt_len"):
            read_pooling(folder)

    def test_layers_after_pooling(self, tmp_path: Path) -> None:
        folder = with_pooling(tmp_path, {"pooling_mode": "mean"}, ("Transformer", "Pooling", "Dense"))
        with pytest.raises(ValueError, match="must be Normalize only, but got Dense"):
            read_pooling(folder)

    def test_mode(self) -> None:
        with pytest.raises(ValueError, match="`mode` must be one of mean, cls, max, but got 'sum'"):
            Pooling("sum")  # type: ignore[arg-type]


class TestSentenceEmbedding:
    def test_embedding_is_the_normalised_mean_of_real_tokens(self, embedding: SentenceEmbedding) -> None:
        model = embedding.load_model()
        batch = embedding.samples.batch("train", [0, 1, 2, 3])
        with torch.inference_mode():
            outputs = embedding.outputs(model, batch, ("hidden", "hidden_states"))
            alone = embedding.outputs(model, embedding.samples.batch("train", [2]))["embedding"]
            first = model(**embedding.samples.batch("train", [2])).last_hidden_state[0].mean(dim=0)
        assert torch.allclose(outputs["embedding"][2], alone[0], atol=1e-5)
        assert torch.allclose(alone[0], functional.normalize(first, dim=0), atol=1e-5)
        assert outputs["hidden_states"].shape == (3, *outputs["hidden"].shape)
        assert torch.equal(outputs["hidden_states"][-1], outputs["hidden"])

    def test_deployable_gives_the_same_embedding(self, embedding: SentenceEmbedding) -> None:
        model = embedding.load_model()
        batch = embedding.samples.batch("train", [0, 1])
        with torch.inference_mode():
            outputs = embedding.deployable(model)(**batch)
            expected = embedding.outputs(model, batch, ("hidden",))
        assert embedding.output_names == ("last_hidden_state", "sentence_embedding")
        assert torch.equal(outputs[0], expected["hidden"])
        assert torch.equal(outputs[1], expected["embedding"])

    def test_example_inputs_run(self, embedding: SentenceEmbedding) -> None:
        inputs = embedding.example_inputs(Workload(2, 8))
        hidden, pooled = embedding.deployable(embedding.load_model())(**inputs)
        assert hidden.shape == (2, 8, 32)
        assert pooled.shape == (2, 32)

    def test_metrics_of_the_teacher_itself(self, embedding: SentenceEmbedding) -> None:
        vectors = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
        metrics = embedding.metrics("validation", {"embedding": vectors}, {"embedding": vectors})
        assert metrics == pytest.approx({"cosine": 1.0, "recall": 1.0, "spearman": 1.0})

    def test_metrics_need_more_samples_than_neighbours(self, embedding: SentenceEmbedding) -> None:
        vectors = {"embedding": np.ones((8, 4))}
        with pytest.raises(ValueError, match=r"'calibration' must have more than 11 samples.*has 8"):
            embedding.metrics("calibration", vectors, vectors)

    def test_outputs_of_another_split(self, embedding: SentenceEmbedding) -> None:
        vectors = {"embedding": np.ones((8, 4))}
        with pytest.raises(ValueError, match="'embedding' must have 20 rows, one for each sample, but has 8"):
            embedding.metrics("validation", vectors, vectors)
        with pytest.raises(ValueError, match="outputs must hold 'embedding', but hold 'logits'"):
            embedding.metrics("validation", {"logits": np.ones(20)}, vectors)

    def test_pooling_can_be_said(self, embedding: SentenceEmbedding) -> None:
        other = SentenceEmbedding(embedding.model, embedding.data, pooling="cls")
        assert other.pooler == Pooling("cls")
        assert other.output_settings != embedding.output_settings

    def test_settings(self) -> None:
        data = TextData("x.txt")
        with pytest.raises(ValueError, match="`quality` must be one of cosine, recall, spearman, but got 'accuracy'"):
            SentenceEmbedding("m", data, quality="accuracy")
        with pytest.raises(ValueError, match="`neighbours` must be >= 1"):
            SentenceEmbedding("m", data, neighbours=0)
        with pytest.raises(ValueError, match=r"`task.max_length` must be a whole number >= 2 of tokens, but got 1"):
            SentenceEmbedding("m", data, max_length=1)


class TestTextClassification:
    def test_logits_and_states(self, classifier: str, tmp_path: Path) -> None:
        task = TextClassification(classifier, labelled(tmp_path, [0, 1, 2] * 30), 32)
        model, batch = task.load_model(), task.samples.batch("train", [0, 1])
        with torch.inference_mode():
            outputs = task.outputs(model, batch, ("hidden", "hidden_states"))
            assert torch.equal(outputs["logits"], model(**batch).logits)
            assert torch.equal(task.deployable(model)(**batch)[0], outputs["logits"])
        assert outputs["hidden"].shape == (2, batch["input_ids"].shape[1], 32)
        assert outputs["hidden_states"].shape[0] == 3
        assert task.output_names == ("logits",)

    def test_numbers_are_classes(self, classifier: str, tmp_path: Path) -> None:
        data = labelled(tmp_path, [2.0, 0.0, 1.0] * 30)
        task = TextClassification(classifier, data)
        labels = task.samples.labels("train")
        assert labels is not None
        assert labels.tolist() == [int(label) for label in data.read()["train"].labels or ()]

    def test_names_of_the_head_count(self, tmp_path: Path) -> None:
        names = {0: "zebra", 1: "ant", 2: "bee"}
        folder = tiny_model_folder(tmp_path / "m", labels=3, id2label=names, label2id={v: k for k, v in names.items()})
        task = TextClassification(folder, labelled(tmp_path, ["ant", "zebra"] * 40))
        assert task.classes == ("zebra", "ant", "bee")
        labels = task.samples.labels("train")
        assert labels is not None
        assert set(labels.tolist()) == {0, 1}

    def test_names_that_the_head_lacks_are_sorted(self, classifier: str, tmp_path: Path) -> None:
        task = TextClassification(classifier, labelled(tmp_path, ["c", "a", "b"] * 30))
        assert task.classes == ("a", "b", "c")

    def test_more_labels_than_the_head_has(self, classifier: str, tmp_path: Path) -> None:
        task = TextClassification(classifier, labelled(tmp_path, ["a", "b", "c", "d"] * 25))
        with pytest.raises(
            ValueError, match=r"must be the 3 classes of the model's head .* have 4 \('a', 'b', 'c', 'd'\)"
        ):
            _ = task.samples

    def test_label_unseen_in_training(self, classifier: str, tmp_path: Path) -> None:
        frame = pd.DataFrame({"text": texts(90), "label": [0, 1] * 45})
        frame[:60].to_csv(tmp_path / "train.csv", index=False)
        frame[60:].assign(label=[0, 1] * 14 + [2, 0]).to_csv(tmp_path / "test.csv", index=False)
        data = TextData(str(tmp_path), label_column="label", calibration=5, validation=5, test=100)
        # The head knows the class; a new one would not.
        labels = TextClassification(classifier, data).samples.labels("test")
        assert labels is not None
        assert labels.tolist().count(2) == 1
        with pytest.raises(ValueError, match=r"test.csv: line 30: labels must occur in the train split.*'2' does not"):
            _ = TextClassification(classifier, data, new_head=True).samples

    def test_labels_with_a_fraction(self, classifier: str, tmp_path: Path) -> None:
        task = TextClassification(classifier, labelled(tmp_path, [0, 1, 0.5] * 30))
        with pytest.raises(ValueError, match=r"line \d+: labels must be whole numbers or names, but this one is 0.5"):
            _ = task.samples

    def test_only_one_class(self, classifier: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="at least 2 classes, but the data have only '1'"):
            _ = TextClassification(classifier, labelled(tmp_path, [1] * 60)).samples

    def test_metrics(self, classifier: str, tmp_path: Path) -> None:
        task = TextClassification(classifier, labelled(tmp_path, [0, 1, 2] * 30))
        labels = task.samples.labels("test")
        assert labels is not None
        perfect = np.eye(3, dtype=np.float32)[labels] * 5
        metrics = task.metrics("test", {"logits": perfect}, {"logits": perfect})
        assert metrics == pytest.approx({"accuracy": 1.0, "macro_f1": 1.0, "mcc": 1.0, "agreement": 1.0, "kl": 0.0})

    def test_settings(self) -> None:
        with pytest.raises(ValueError, match="`label_column` must name the column with the labels, but got None"):
            TextClassification("m", TextData("x.csv"))
        with pytest.raises(ValueError, match="`quality` must be one of accuracy"):
            TextClassification("m", TextData("x.csv", label_column="label"), quality="cosine")

    def test_an_encoder_has_no_trained_head(self, encoder: str, tmp_path: Path) -> None:
        data = labelled(tmp_path, ["x", "y", "z"] * 30)
        with pytest.raises(ValueError, match=r"must hold every weight.*'classifier.*Fine-tune the model"):
            load_classifier(encoder)
        task = TextClassification(encoder, data, 32, new_head=True)
        first, second = task.load_model(), task.load_model()
        assert first.config.id2label == {0: "x", 1: "y", 2: "z"}
        assert torch.equal(first.classifier.weight, second.classifier.weight)


class TestPlaces:
    def test_no_such_folder(self, tmp_path: Path) -> None:
        for load in (load_encoder, load_tokenizer, load_classifier):
            with pytest.raises(FileNotFoundError, match=r"`model.path` must be an existing folder or a hub name"):
                load(str(tmp_path / "missing"))

    def test_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no model in"):
            load_encoder(str(tmp_path))
        (tmp_path / "subnet.json").write_text("{}")
        with pytest.raises(ValueError, match=r"must be the teacher.*candidate=FOLDER"):
            load_encoder(str(tmp_path))

    def test_encoder_with_missing_weights(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        tiny_model_folder(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        kept = {name: values for name, values in weights.items() if "layer.1." not in name}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"must hold every weight of BertModel, but 'encoder.layer.1"):
            load_encoder(str(tmp_path))

    def test_tokenizer_round_trip(self, tmp_path: Path) -> None:
        tiny_tokenizer().save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        assert load_tokenizer(str(tmp_path))("w1 w2")["input_ids"] == tiny_tokenizer()("w1 w2")["input_ids"]


@pytest.mark.parametrize(("model_type", "types"), [("bert", True), ("modernbert", False), ("distilbert", False)])
def test_token_types_are_given_to_models_that_read_them_whatever_the_tokenizer_says(tmp_path, model_type, types):
    tiny(model_type).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert "token_type_ids" in tiny_tokenizer().model_input_names
    tokenizer = load_tokenizer(str(tmp_path))
    assert ("token_type_ids" in tokenizer("w1 w2")) == types
