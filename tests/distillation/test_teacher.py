"""Stored teacher outputs are what the teacher says, and the teacher runs once."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from nas.distillation.teacher import TeacherOutputs
from nas.progress import Progress
from nas.tasks.attention import ATTENTION
from nas.tasks.data import TextData
from nas.tasks.text import SentenceEmbedding, TextClassification
from tests.models import tiny_bert

ALL = ("hidden", "hidden_states", *ATTENTION)


@pytest.mark.parametrize("rows", [[0], [5, 3, 11, 2]])
def test_a_stored_batch_is_the_teachers(embedding: SentenceEmbedding, cache: Path, rows: list[int]) -> None:
    teacher, model = TeacherOutputs(embedding, ALL, cache, batch_size=7), embedding.load_model()
    batch = embedding.samples.batch("train", rows)
    with torch.inference_mode():
        expected = embedding.outputs(model, batch, ALL)
    stored = teacher.batch("train", np.array(rows))
    real = batch["attention_mask"].bool()
    assert torch.allclose(stored["embedding"], expected["embedding"], atol=1e-5)
    # States are kept in half precision: three decimal digits.
    for name in ALL:
        assert stored[name].shape == expected[name].shape
        assert stored[name].dtype == torch.float32
        assert torch.allclose(stored[name][..., real, :], expected[name][..., real, :], atol=5e-3)
        assert bool((stored[name][..., ~real, :] == 0).all())


def test_main_output_is_in_the_order_of_the_split(classification: TextClassification, cache: Path) -> None:
    teacher, model = TeacherOutputs(classification, (), cache), classification.load_model()
    logits = teacher.main("test")["logits"]
    for row in (0, 7, 23):
        with torch.inference_mode():
            alone = model(**classification.samples.batch("test", [row])).logits[0].numpy()
        assert logits[row] == pytest.approx(alone, abs=1e-5)


def test_the_teacher_runs_once(embedding: SentenceEmbedding, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TeacherOutputs(embedding, ALL, cache)
    first.prepare(["train", "validation"])
    monkeypatch.setattr(SentenceEmbedding, "outputs", lambda *_: pytest.fail("the teacher ran again"))
    second = TeacherOutputs(embedding, ALL, cache)
    for split in ("train", "validation"):
        assert np.array_equal(first.arrays(split)["embedding"], second.arrays(split)["embedding"])
    assert isinstance(second.arrays("train")["hidden"], np.memmap)


def test_another_teacher_data_or_pooling_is_another_entry(embedding: SentenceEmbedding, cache: Path) -> None:
    fields = {"model": embedding.model, "data": embedding.data, "neighbours": 3, "max_length": 32}
    TeacherOutputs(embedding, (), cache).prepare(["test"])
    TeacherOutputs(embedding, (), cache, model=embedding.load_model()).prepare(["test"])
    assert len(list((cache / "teacher").iterdir())) == 1
    TeacherOutputs(embedding, (), cache, model=tiny_bert(seed=5)).prepare(["test"])
    TeacherOutputs(SentenceEmbedding(**fields, pooling="cls"), (), cache).prepare(["test"])
    TeacherOutputs(SentenceEmbedding(**{**fields, "max_length": 5}), (), cache).prepare(["test"])
    other = TextData(**{**embedding.data.__dict__, "seed": 1})
    TeacherOutputs(SentenceEmbedding(**{**fields, "data": other}), (), cache).prepare(["test"])
    TeacherOutputs(embedding, ("hidden",), cache).prepare(["test"])
    assert len(list((cache / "teacher").iterdir())) == 6


def test_without_a_folder_outputs_live_as_long_as_the_object(embedding: SentenceEmbedding) -> None:
    teacher = TeacherOutputs(embedding)
    assert teacher.arrays("test")["embedding"].shape == (24, 32)
    folder = teacher._directory
    assert folder.is_dir()
    del teacher
    gc.collect()
    assert not folder.exists()


def test_progress_and_wrong_numbers(embedding: SentenceEmbedding, cache: Path) -> None:
    progress = Progress("Teacher", mode="quiet")
    TeacherOutputs(embedding, (), cache, batch_size=10).prepare(["test"], progress)
    assert progress.done == 3
    broken = tiny_bert()
    with torch.no_grad():
        broken.encoder.layer[0].output.dense.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="teacher's outputs on 'test' must be finite"):
        TeacherOutputs(embedding, (), cache, model=broken).prepare(["test"])
    assert len(list((cache / "teacher").iterdir())) == 1
