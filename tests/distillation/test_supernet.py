"""Training a supernet: what is trained and what is not, when it ends, and which of its states is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nas.distillation.losses import Distiller
from nas.distillation.supernet import TrainedSupernet
from nas.distillation.supernet_settings import SupernetSettings
from nas.progress import Progress
from tests.distillation.supernets import Small, embedding_task, small


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(embedding_task(tmp_path_factory.mktemp("supernet") / "task"), Distiller(embedding=1.0, hidden=1.0))


@pytest.fixture(scope="module")
def trained(world: Small) -> TrainedSupernet:
    before = {name: tensor.clone() for name, tensor in world.library.tensors.items()}
    found = world.train(steps=40, evaluate_every=None)
    assert all(torch.equal(world.library.tensors[name], tensor) for name, tensor in before.items())
    return found


def test_the_ends_gain_and_the_teacher_stays_itself(world: Small, trained: TrainedSupernet) -> None:
    untrained, last = trained.history
    assert last["smallest"] > untrained["smallest"] + 0.01
    assert last["largest"] > untrained["largest"]
    assert (trained.step, trained.best_step, trained.ended) == (40, 40, "steps")
    batch = next(world.task.batches("test", 4))
    world.supernet.activate(world.space.teacher)
    with torch.inference_mode():
        own, teacher = (world.task.outputs(m, batch)["embedding"] for m in (world.supernet, world.task.load_model()))
    assert torch.equal(own, teacher)
    assert not any(tensor.requires_grad for tensor in trained.library.tensors.values())


def test_compensated_projections_and_factors_are_trained_with_the_rows(world: Small, trained: TrainedSupernet) -> None:
    changed = {n for n, tensor in trained.library.tensors.items() if not torch.equal(tensor, world.library.tensors[n])}
    for ending in ("attention.output.dense.2.weight", "output.dense.32.bias", "query.2.down", "dense.permuted"):
        assert [name for name in changed if name.endswith(ending)], ending


def test_the_same_seed_gives_the_same_library(world: Small) -> None:
    first, second, third = (world.train(seed).library.tensors for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_stages_train_only_what_is_open(world: Small) -> None:
    trained = world.train(schedule={"width": 0.999, "depth": 0.0005, "rank": 0.0005}, steps=30).library
    changed = {n for n, t in trained.tensors.items() if not torch.equal(t, world.library.tensors[n])}
    assert changed
    assert not [name for name in changed if name.endswith((".up", ".down"))]


def test_what_makes_nothing_better_ends_early_and_is_not_kept(world: Small) -> None:
    bar = Progress("training", 100, mode="quiet")
    trained = world.train(0, bar, steps=100, learning_rate=0.5, evaluate_every=2, patience=3)
    assert (trained.ended, trained.step, trained.best_step) == ("patience", 6, 0)
    assert bar.done == 6
    assert "smallest" in bar.text
    assert trained.library is world.library


def test_patience_waits_for_the_last_stage(world: Small) -> None:
    stages = {"width": 1, "depth": 1, "rank": 2}
    trained = world.train(steps=20, learning_rate=1e-12, evaluate_every=2, patience=3, schedule=stages)
    assert (trained.ended, trained.step) == ("patience", 16)


def test_minutes_are_a_budget_too(world: Small) -> None:
    trained = world.train(steps=None, minutes=0.01, evaluate_every=None)
    assert trained.ended == "minutes"
    assert trained.step > 1
    assert trained.seconds >= 0.6


@pytest.mark.parametrize(("choices", "precision"), [({"hidden_size": [16, 32]}, "fp32"), ({}, "bf16")])
def test_narrower_streams_and_mixed_precision_train(tmp_path: Path, choices: dict, precision: str) -> None:
    world = small(embedding_task(tmp_path / "task"), **choices)
    trained = world.train(steps=30, evaluate_every=None, precision=precision, random_subnets=2)
    assert trained.history[-1]["smallest"] > trained.history[0]["smallest"]
    assert all(t.dtype == world.library.tensors[name].dtype for name, t in trained.library.tensors.items())


def test_labels_are_learnt_from(classification) -> None:
    world = small(classification, Distiller(labels=1.0, logits=1.0))
    assert world.train(steps=3).step == 3


def test_a_loss_that_is_not_finite_is_told(world: Small) -> None:
    with pytest.raises(FloatingPointError, match=r"lower `train.learning_rate` \(1e\+30\)"):
        world.train(learning_rate=1e30, steps=30)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"steps": 0}, "`train.steps` must be a whole number >= 1, but got 0"),
        ({"steps": "many"}, "`train.steps` must be a whole number >= 1, but got 'many'"),
        ({"steps": None}, "`train.steps` or `train.minutes` must be given"),
        ({"minutes": -1}, "`train.minutes` must be a number > 0, but got -1"),
        ({"learning_rate": "fast"}, "`train.learning_rate` must be a number > 0, but got 'fast'"),
        ({"random_subnets": 0.5}, "`train.random_subnets` must be a whole number >= 0, but got 0.5"),
        ({"large_subnet": "no"}, "`train.large_subnet` must be true or false, but got 'no'"),
        ({"precision": "fp8"}, "`train.precision` must be one of auto, fp32, bf16, fp16, but got 'fp8'"),
        ({"evaluate_every": 0}, "`train.evaluate_every` must be a whole number >= 1, but got 0"),
        ({"evaluate_every": None, "patience": 2}, "`train.evaluate_every` must be a number of steps"),
        ({"checkpoint_minutes": 0}, "`train.checkpoint_minutes` must be a number > 0, but got 0"),
    ],
)
def test_wrong_settings_are_refused(option: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SupernetSettings(**option)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_fp16_needs_a_gpu(world: Small) -> None:
    with pytest.raises(ValueError, match=r"`train.precision` must be auto, fp32 or bf16 without a GPU"):
        world.train(precision="fp16")
