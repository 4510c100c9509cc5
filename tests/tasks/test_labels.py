"""Labels of data and classes of a head: paired by name, by number or by a given order, never by a guess."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from nas.tasks.data import TextData
from nas.tasks.image import ImageClassification
from nas.tasks.images import ImageData
from nas.tasks.text import TextClassification
from nas.tasks.token import TokenClassification
from tests.images import digit_folder, vision_model_folder
from tests.texts import texts, tiny_model_folder, tiny_tagger_folder

SMALL: dict[str, Any] = {"calibration": 8, "validation": 20, "test": 20}
TEXTS = texts(90)


def model(folder: Path, names: list[str]) -> str:
    named = {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}
    return tiny_model_folder(folder / "model", labels=len(names), **named)


def data(folder: Path, labels: list[Any]) -> TextData:
    file = folder / "data.jsonl"
    pd.DataFrame({"text": TEXTS, "label": labels}).to_json(file, orient="records", lines=True)
    return TextData(str(file), label_column="label", **SMALL)


def single(folder: Path, names: list[str], given: list[str], **options: Any) -> Any:
    return TextClassification(model(folder, names), data(folder, given * 30), max_length=16, **options)


def multi(folder: Path, names: list[str], given: list[str], **options: Any) -> Any:
    cells = [[label] for label in given * 30]
    options["problem"] = "multi_label"
    return TextClassification(model(folder, names), data(folder, cells), max_length=16, **options)


def tags(folder: Path, names: list[str], given: list[str], **options: Any) -> Any:
    cells = [[label] * len(text.split()) for label, text in zip(given * 30, TEXTS, strict=True)]
    return TokenClassification(tiny_tagger_folder(folder / "model", names), data(folder, cells), 16, **options)


def images(folder: Path, names: list[str], given: list[str], **options: Any) -> Any:
    from transformers import AutoConfig

    digit_folder(folder / "digits", 90)
    files = sorted((folder / "digits").glob("*/*.png"))
    frame = pd.DataFrame({"image": [file.read_bytes() for file in files], "label": given * 30})
    frame.to_parquet(folder / "images.parquet")
    place = vision_model_folder(folder / "model")
    config = AutoConfig.from_pretrained(place)
    config.id2label = dict(enumerate(names))
    config.save_pretrained(place)
    return ImageClassification(place, ImageData(str(folder / "images.parquet"), **SMALL), **options)


KINDS: list[Callable[..., Any]] = [single, multi, tags, images]


def places(task: Any) -> dict[str, int]:
    """Label in the data -> output of the head."""
    found: dict[str, int] = {}
    for split in ("train", "test"):
        for cell, own in zip(task.samples.examples[split].labels, task.samples.labels(split), strict=True):
            label = cell if isinstance(cell, str) else cell[0]
            values = np.asarray(own)
            if task.kind == "token_classification":
                place = int(values[values != -100][0])
            else:
                place = int(values.argmax()) if values.ndim else int(values)
            assert found.setdefault(label, place) == place
    return found


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_names_pair_whatever_their_case(self, tmp_path: Path, kind: Callable[..., Any]) -> None:
        task = kind(tmp_path, ["Zebra", "ant ", "BEE"], ["ant", "zebra", "bee"])
        assert places(task) == {"zebra": 0, "ant": 1, "bee": 2}

    def test_names_of_something_else_are_refused(self, tmp_path: Path, kind: Callable[..., Any]) -> None:
        task = kind(tmp_path, ["neg", "neutral", "pos"], ["bad", "good", "soso"])
        with pytest.raises(ValueError, match=r"\('neg', 'neutral', 'pos'\).*\('bad', 'good', 'soso'\).*task.labels=\["):
            _ = task.samples

    def test_an_order_can_be_given(self, tmp_path: Path, kind: Callable[..., Any]) -> None:
        order = ["good", "soso", "bad"]
        assert places(kind(tmp_path, ["pos", "neutral", "neg"], sorted(order), labels=order)) == {
            name: place for place, name in enumerate(order)
        }

    def test_a_head_without_names_takes_labels_in_sorted_order(self, tmp_path: Path, kind: Callable[..., Any]) -> None:
        task = kind(tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"], ["c", "a", "b"])
        assert places(task) == {"a": 0, "b": 1, "c": 2}

    def test_numbers_are_the_outputs_themselves(self, tmp_path: Path, kind: Callable[..., Any]) -> None:
        assert places(kind(tmp_path, ["zebra", "ant", "bee"], ["2", "0", "1"])) == {"0": 0, "1": 1, "2": 2}


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1"], ["0", "1"]])
def test_a_head_without_names_takes_the_order_of_a_data_set(tmp_path: Path, names: list[str]) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])})
    columns = {"text": TEXTS, "label": [index % 2 for index in range(90)]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    saved = TextData(str(tmp_path / "saved"), label_column="label", **SMALL)
    assert places(TextClassification(model(tmp_path, names), saved, max_length=16)) == {"yes": 0, "no": 1}


def test_label_columns_are_the_outputs_of_a_head_without_names(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"text": TEXTS, **{name: [int(at % 2 == one) for at in range(90)] for one, name in enumerate("ba")}}
    )
    frame.to_csv(tmp_path / "data.csv", index=False)
    bits = TextData(str(tmp_path / "data.csv"), label_column=["b", "a"], **SMALL)
    task = TextClassification(model(tmp_path, ["LABEL_0", "LABEL_1"]), bits, max_length=16, problem="multi_label")
    assert places(task) == {"b": 0, "a": 1}


@pytest.mark.parametrize("order", [["bad", "good"], ["bad", "good", "good"], ["bad", "good", "other"], "bad"])
def test_an_order_that_does_not_fit(tmp_path: Path, order: Any) -> None:
    task = single(tmp_path, ["x", "y", "z"], ["bad", "good", "soso"], labels=order)
    with pytest.raises(ValueError, match=r"`task.labels` must list every label of the data \('bad', 'good', 'soso'\)"):
        _ = task.samples


def test_a_regression_has_no_order_of_labels(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model", labels=1)
    task = TextClassification(folder, data(tmp_path, [1.5] * 90), 16, "regression", labels=["a"])
    with pytest.raises(ValueError, match=r"`task.labels` must be null for a regression"):
        _ = task.samples


def test_entities_keep_the_names_of_the_head_where_tags_are_numbers(tmp_path: Path) -> None:
    assert tags(tmp_path, ["O", "B-X", "I-X"], ["1", "0", "2"]).classes == ("O", "B-X", "I-X")


def test_the_first_label_that_is_foreign_is_told(tmp_path: Path) -> None:
    task = TextClassification(model(tmp_path, ["neg", "pos"]), data(tmp_path, ["neg", "pos", *["neg", "po"] * 44]), 16)
    with pytest.raises(ValueError, match=r"the first that does not fit is 'po' in .*data.jsonl: line 4"):
        _ = task.samples


@pytest.mark.parametrize(("cell", "said"), [(["a"], "is a list.*multi_label"), ({"a": 1}, "is a dict")])
def test_a_label_that_is_no_name(tmp_path: Path, cell: Any, said: str) -> None:
    task = TextClassification(model(tmp_path, ["a", "b"]), data(tmp_path, ["a", "b", cell, *["a"] * 87]), 16)
    with pytest.raises(ValueError, match=rf"data.jsonl: line 3: a label must be .* {said}"):
        _ = task.samples
