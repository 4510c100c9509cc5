"""Images: read from class folders and tables, prepared as the model's processor does, classified, exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from latency_models.backends.onnx import export_onnx
from nas.distillation.losses import Distiller
from nas.distillation.teacher import TeacherOutputs
from nas.distillation.train import TrainSettings, distil
from nas.evaluation.evaluate import evaluate_model, evaluate_run, onnx_run
from nas.tasks.attention import ATTENTION
from nas.tasks.image import ImageClassification
from nas.tasks.images import ImageData
from nas.tasks.models import load_image_processor
from nas.tasks.splits import SPLITS
from search_spaces.cost import Workload
from tests.images import digit_folder, vision_model_folder

SMALL: dict[str, Any] = {"calibration": 20, "validation": 40, "test": 40}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    return digit_folder(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return vision_model_folder(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def task(digits: str, model: str, tmp_path_factory: pytest.TempPathFactory) -> ImageClassification:
    return ImageClassification(model, ImageData(digits, **SMALL), cache_dir=str(tmp_path_factory.mktemp("cache")))


def test_pixels_are_what_the_processor_makes_of_the_files(task: ImageClassification) -> None:
    pixels, labels = load_digits(return_X_y=True)
    split, own = task.samples.examples["test"], task.samples.labels("test")
    found = task.samples.batch("test", np.arange(40))["pixel_values"]
    assert found.shape == (40, 1, 8, 8)
    table = {
        np.asarray((image * 15.9).astype("uint8")).tobytes(): label for image, label in zip(pixels, labels, strict=True)
    }
    for image, label, name in zip(found, own, split.labels or (), strict=True):
        raw = ((image[0].numpy() * 0.5 + 0.5) * 255).round().astype("uint8")
        assert table[raw.reshape(64).tobytes()] == label
        assert name == f"digit{label}"


def test_splits_are_disjoint_and_whole(task: ImageClassification) -> None:
    found = [key for split in SPLITS for key in task.samples.examples[split].texts]
    assert len(found) == len(set(found)) == 200


def test_a_table_of_images_is_the_same_data(digits: str, task: ImageClassification, tmp_path: Path) -> None:
    files = sorted(Path(digits).glob("*/*.png"))
    names = [f"digit{index}" for index in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {"image": [str(file) for file in files], "label": [file.parent.name for file in files]}
    saved = datasets.Dataset.from_dict(columns, features=features)
    saved.save_to_disk(str(tmp_path / "saved"))
    cells = [{"bytes": file.read_bytes(), "path": None} for file in files]
    pd.DataFrame({"image": cells, "label": columns["label"]}).to_parquet(tmp_path / "table.parquet")
    for place in ("saved", "table.parquet"):
        read = ImageData(str(tmp_path / place), **SMALL).read()
        assert read.examples["test"].texts == task.samples.examples["test"].texts
        assert read.examples["test"].labels == task.samples.examples["test"].labels


def test_folders_of_splits(tmp_path: Path) -> None:
    digit_folder(tmp_path / "train", 160)
    digit_folder(tmp_path / "val", 40)
    data = ImageData(
        str(tmp_path), splits={"train": "train", "validation": "val"}, **{**SMALL, "validation": 1000, "test": 20}
    )
    found = data.read().examples
    # What stands in both stays in the split that judges.
    assert len(found["validation"]) == 40
    assert sum(map(len, found.values())) == 160
    (tmp_path / "train").rename(tmp_path / "a")
    (tmp_path / "val").rename(tmp_path / "b")
    with pytest.raises(ValueError, match="must be a train split, but there are 'a', 'b'"):
        ImageData(str(tmp_path)).read()


def test_pixels_are_kept_between_runs(task: ImageClassification, monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.array(task.samples.pixels("test"))
    monkeypatch.setattr("nas.tasks.images._decode", lambda *_: pytest.fail("decoded again"))
    again = ImageClassification(task.model, task.data, cache_dir=task.cache_dir)
    assert np.array_equal(again.samples.pixels("test"), first)
    assert again.samples.fingerprint("test") == task.samples.fingerprint("test")
    assert again.samples.fingerprint("train") != task.samples.fingerprint("test")


def test_processors_of_another_class_keep_pixels_of_their_own(task: ImageClassification) -> None:
    kind = type("ViTImageProcessor", (type(task.tokenizer),), {})
    other = replace(task.samples, processor=kind(**task.tokenizer.to_dict()))
    assert other.processor.to_json_string() == task.tokenizer.to_json_string()
    assert other.fingerprint("test") != task.samples.fingerprint("test")


def test_outputs_states_and_the_exported_graph(task: ImageClassification) -> None:
    names = ("hidden", "hidden_states", *ATTENTION)
    model, teacher = task.load_model(), TeacherOutputs(task, names)
    rows = np.array([3, 1])
    with torch.inference_mode():
        expected = task.outputs(model, task.samples.batch("test", rows), names)
    assert expected["hidden"].shape == (2, 5, 32)
    stored = teacher.batch("test", rows)
    for name in ("logits", *names):
        assert torch.allclose(stored[name], expected[name], atol=1e-2)
    graph = export_onnx(task.deployable(model), task.example_inputs(Workload(2, 8)), task.output_names)
    assert evaluate_model(model, task, teacher, "test")["agreement"] == 1.0
    found = evaluate_run(onnx_run(graph.SerializeToString(), task), task, teacher, "test", 1)
    assert found["agreement"] == 1.0
    assert found["kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_student_learns_states_and_logits(task: ImageClassification) -> None:
    teacher, student = TeacherOutputs(task, ("hidden",)), task.load_model()
    with torch.no_grad():
        for parameter in student.vit.layernorm.parameters():
            parameter.mul_(0.5)
    settings = TrainSettings(learning_rate=2e-3, batch_size=16, precision="fp32")
    trained = distil(student, task, teacher, Distiller(logits=1.0, hidden=1.0), settings, steps=30)
    assert np.mean(trained.losses[-5:]) < 0.7 * np.mean(trained.losses[:3])


def test_a_new_head_learns_digits(digits: str, model: str) -> None:
    task = ImageClassification(model, ImageData(digits, **SMALL), new_head=True)
    student = task.load_model()
    settings = TrainSettings(learning_rate=5e-3, batch_size=32, precision="fp32", freeze_embeddings=False)
    distil(student, task, None, Distiller(labels=1.0), settings, steps=120)
    assert evaluate_model(student, task, TeacherOutputs(task, model=student), "test")["accuracy"] > 0.6


class TestMistakes:
    def test_a_file_that_is_no_image(self, model: str, tmp_path: Path) -> None:
        digit_folder(tmp_path, 120)
        (tmp_path / "digit0" / "zz.png").write_text("no image")
        task = ImageClassification(model, ImageData(str(tmp_path), **{**SMALL, "test": 10}))
        key = next(key for key, file in task.samples.pictures.files.items() if str(file).endswith("zz.png"))
        split = next(split for split in SPLITS if key in task.samples.examples[split].texts)
        with pytest.raises(ValueError, match=r"zz.png must be an image, but cannot be read"):
            task.samples.pixels(split)

    def test_a_cell_that_is_no_image(self, tmp_path: Path) -> None:
        pd.DataFrame({"image": ["x", "y"], "label": [0, 1]}).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(ValueError, match=r"t.parquet: row 1 must hold an encoded image, but holds a str"):
            ImageData(str(tmp_path / "t.parquet")).read()

    def test_missing_column_and_label(self, tmp_path: Path) -> None:
        pd.DataFrame({"img": [b"x"], "label": [None]}).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(ValueError, match="column 'image' is not there; there are 'img', 'label'"):
            ImageData(str(tmp_path / "t.parquet")).read()
        with pytest.raises(ValueError, match=r"t.parquet: row 1 has no label in column 'label'"):
            ImageData(str(tmp_path / "t.parquet"), image_column="img").read()

    def test_a_model_without_processor(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no image processor in"):
            load_image_processor(str(tmp_path))

    def test_grey_levels_of_other_images(self, tmp_path: Path, model: str) -> None:
        for shade in range(12):
            (tmp_path / f"digit{shade % 2}").mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (20 * shade, 20 * shade, 20 * shade)).save(
                tmp_path / f"digit{shade % 2}" / f"{shade}.png"
            )
        sizes = {"calibration": 2, "validation": 2, "test": 2}
        task = ImageClassification(model, ImageData(str(tmp_path), **sizes))
        assert task.samples.pixels("train").shape == (6, 1, 8, 8)
