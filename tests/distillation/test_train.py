"""The training loop: learns, repeats itself, leaves embeddings alone, and says when it diverges."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from nas.distillation.losses import Distiller
from nas.distillation.teacher import TeacherOutputs
from nas.distillation.train import TrainSettings, distil
from nas.progress import Progress
from nas.tasks.text import SentenceEmbedding, TextClassification
from tests.models import tiny_bert

LOSS = Distiller(embedding=1.0, hidden=1.0)
FAST = TrainSettings(learning_rate=3e-3, batch_size=8, precision="fp32")


@pytest.fixture(scope="module")
def teacher(embedding: SentenceEmbedding) -> TeacherOutputs:
    return TeacherOutputs(embedding, ("hidden", "hidden_states"))


def disturbed(task: SentenceEmbedding) -> nn.Module:
    """A student near its teacher: the last block's output is forgotten."""
    model = task.load_model()
    with torch.no_grad():
        model.encoder.layer[2].output.dense.weight.mul_(0.1)
    return model


def test_the_loss_falls(embedding: SentenceEmbedding, teacher: TeacherOutputs) -> None:
    trained = distil(disturbed(embedding), embedding, teacher, LOSS, FAST, steps=40)
    assert len(trained.losses) == 40
    assert sum(trained.losses[-5:]) < 0.5 * sum(trained.losses[:5])


def test_the_same_seed_gives_the_same_weights(embedding: SentenceEmbedding, teacher: TeacherOutputs) -> None:
    first, second, third = (disturbed(embedding) for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (third, 2)):
        distil(model, embedding, teacher, LOSS, FAST, steps=5, seed=seed)
    weights = [model.encoder.layer[2].output.dense.weight for model in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("frozen", [True, False])
def test_embeddings_stay_the_teachers_when_frozen(
    embedding: SentenceEmbedding, teacher: TeacherOutputs, frozen: bool
) -> None:
    model = disturbed(embedding)
    before = copy.deepcopy(model.state_dict())
    settings = TrainSettings(learning_rate=1e-3, batch_size=8, precision="fp32", freeze_embeddings=frozen)
    distil(model, embedding, teacher, LOSS, settings, steps=3)
    changed = {name for name, values in model.state_dict().items() if not torch.equal(values, before[name])}
    assert ("embeddings.word_embeddings.weight" not in changed) == frozen
    assert "encoder.layer.0.attention.self.query.weight" in changed
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_dropout_stays_off(embedding: SentenceEmbedding, teacher: TeacherOutputs) -> None:
    model = tiny_bert(hidden_dropout_prob=0.9, attention_probs_dropout_prob=0.9)
    assert distil(model, embedding, teacher, LOSS, FAST, steps=1).losses[0] == pytest.approx(0.0, abs=1e-4)


def test_hidden_states_of_a_student_with_fewer_blocks(embedding: SentenceEmbedding, teacher: TeacherOutputs) -> None:
    model = embedding.load_model()
    del model.encoder.layer[1]
    loss = Distiller(hidden_states=1.0)
    trained = distil(model, embedding, teacher, loss, FAST, steps=40, blocks=(0, 2))
    assert sum(trained.losses[-5:]) < 0.8 * sum(trained.losses[:5])


def test_fine_tuning_on_labels_needs_no_teacher(classification: TextClassification) -> None:
    model = classification.load_model()
    trained = distil(model, classification, None, Distiller(labels=1.0), FAST, steps=60)
    assert sum(trained.losses[-5:]) < 0.7 * sum(trained.losses[:5])


def test_logits(classification: TextClassification) -> None:
    model = classification.load_model()
    with torch.no_grad():
        model.bert.encoder.layer[2].output.dense.weight.zero_()
    teacher = TeacherOutputs(classification)
    trained = distil(model, classification, teacher, Distiller(logits=1.0, temperature=2.0), FAST, steps=40)
    assert sum(trained.losses[-5:]) < 0.5 * sum(trained.losses[:5])


def test_minutes_end_a_training(embedding: SentenceEmbedding, teacher: TeacherOutputs) -> None:
    progress = Progress("Distilling", mode="quiet")
    trained = distil(disturbed(embedding), embedding, teacher, LOSS, FAST, minutes=0.01, progress=progress)
    assert 0.6 <= trained.seconds < 5
    assert progress.done == len(trained.losses) > 1
    assert len(distil(disturbed(embedding), embedding, teacher, LOSS, FAST, steps=2, minutes=1).losses) == 2


def test_learning_rate_grows_then_falls(
    embedding: SentenceEmbedding, teacher: TeacherOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *arguments: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    settings = TrainSettings(learning_rate=1.0, batch_size=4, warmup=0.2)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(0.0))
    for parameter in (model := disturbed(embedding)).parameters():
        parameter.register_hook(torch.zeros_like)
    distil(model, embedding, teacher, LOSS, settings, steps=10)
    assert rates == pytest.approx([0.25, 0.75, *(1 - (i + 0.5) / 8 for i in range(8))])


def test_a_diverging_training_says_so(embedding: SentenceEmbedding, teacher: TeacherOutputs) -> None:
    model = disturbed(embedding)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"must stay finite, but is nan.*at step 1. Lower `learning_rate`"):
        distil(model, embedding, teacher, LOSS, FAST, steps=5)


def test_mistakes(embedding: SentenceEmbedding, teacher: TeacherOutputs) -> None:
    model = disturbed(embedding)
    with pytest.raises(ValueError, match="must have a budget"):
        distil(model, embedding, teacher, LOSS)
    with pytest.raises(ValueError, match="`steps` must be > 0, but got 0"):
        distil(model, embedding, teacher, LOSS, steps=0)
    with pytest.raises(ValueError, match="a teacher must be given, because the loss reads embedding, hidden"):
        distil(model, embedding, None, LOSS, steps=1)
    with pytest.raises(ValueError, match="must hold 'hidden', but hold embedding"):
        distil(model, embedding, TeacherOutputs(embedding), LOSS, steps=1)


@pytest.mark.parametrize(
    "setting", [{"learning_rate": 0}, {"batch_size": 0}, {"warmup": 1.0}, {"weight_decay": -1}, {"max_grad_norm": 0}]
)
def test_settings(setting: dict[str, float]) -> None:
    name = next(iter(setting))
    with pytest.raises(ValueError, match=rf"`{name}` must be .* but got {setting[name]}"):
        TrainSettings(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(("removed", "share"), [(0.0, 0.25), (0.1, 0.25), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)])
def test_students_close_to_their_teacher_take_smaller_steps(removed: float, share: float) -> None:
    settings = TrainSettings(learning_rate=4e-4)
    assert settings.for_removal(removed).learning_rate == pytest.approx(4e-4 * share)
    assert TrainSettings(learning_rate=4e-4, whole_rate_at=0).for_removal(removed).learning_rate == 4e-4


def test_half_precision_trains_weights_in_fp32(embedding: SentenceEmbedding, teacher: TeacherOutputs) -> None:
    model = disturbed(embedding)
    settings = TrainSettings(learning_rate=3e-3, batch_size=8, precision="bf16")
    trained = distil(model, embedding, teacher, LOSS, settings, steps=40)
    assert sum(trained.losses[-5:]) < 0.5 * sum(trained.losses[:5])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="`precision` must be one of auto, fp32, bf16, but got 'int8'"):
        TrainSettings(precision="int8")  # type: ignore[arg-type]


def test_nothing_is_left_behind(embedding: SentenceEmbedding, tmp_path: Path) -> None:
    teacher = TeacherOutputs(embedding, ("hidden",), tmp_path)
    distil(disturbed(embedding), embedding, teacher, LOSS, FAST, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
