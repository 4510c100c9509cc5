"""A training that was stopped goes on to the bit, and only as the training that it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nas.distillation import supernet
from nas.progress import Progress
from tests.distillation.supernets import Small, embedding_task, small


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(embedding_task(tmp_path_factory.mktemp("checkpoints") / "task"))


class Killed(Progress):
    """Ends the run at a step, as a power failure would."""

    def __init__(self, at: int) -> None:
        super().__init__("training", mode="quiet")
        self.at = at

    def advance(self, steps: int = 1, *, text: str | None = None) -> None:
        super().advance(steps, text=text)
        if self.done == self.at:
            raise SystemExit


def state(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["state"])


# Killed before the first evaluation, after the best one, and where the best is not the last.
@pytest.mark.parametrize(("killed", "kept", "rate"), [(3, 2, 3e-3), (11, 10, 3e-3), (11, 10, 0.2)])
def test_a_killed_training_ends_as_one_that_was_not(world: Small, tmp_path: Path, killed, kept, rate) -> None:
    asked = {"steps": 14, "checkpoint_every": 2, "learning_rate": rate, "schedule": ["width", "depth", "rank"]}
    whole = world.train(4, **asked)
    file = tmp_path / "training.safetensors"
    with pytest.raises(SystemExit):
        world.train(4, Killed(killed), kept=(file, "key"), **asked)
    assert state(file)["step"] == kept
    bar = Progress("training", 14, mode="quiet")
    resumed = world.train(4, bar, kept=(file, "key"), **asked)
    assert bar.done == 14
    assert (resumed.history, resumed.best_step) == (whole.history, whole.best_step)
    assert all(torch.equal(resumed.library.tensors[name], t) for name, t in whole.library.tensors.items())
    assert list(tmp_path.iterdir()) == [file]


def test_ctrl_c_leaves_a_checkpoint_of_the_step(world: Small, tmp_path: Path, monkeypatch) -> None:
    file, asked = tmp_path / "training.safetensors", supernet.Interruption()
    monkeypatch.setattr(supernet, "Interruption", lambda: asked)

    class Pressed(Progress):
        def advance(self, steps: int = 1, *, text: str | None = None) -> None:
            super().advance(steps, text=text)
            asked.asked = self.done == 5

    with pytest.raises(KeyboardInterrupt):
        world.train(0, Pressed("training", mode="quiet"), kept=(file, "key"), checkpoint_minutes=None)
    assert state(file)["step"] == 5


@pytest.mark.parametrize("what", ["key", "damaged", "library", "header"])
def test_a_checkpoint_that_does_not_fit_is_refused(world: Small, tmp_path: Path, what: str) -> None:
    file = tmp_path / "training.safetensors"
    with pytest.raises(SystemExit):
        world.train(0, Killed(2), kept=(file, "key"), checkpoint_every=2)
    said = {
        "key": r"must be of this training \(other\), but is of key",
        "damaged": "cannot be read .* delete it to train anew",
        "library": "must hold the tensors of this library",
        "header": "its header is damaged",
    }[what]
    if what == "damaged":
        file.write_bytes(file.read_bytes()[:1000])
    if what == "header":
        file.write_bytes(file.read_bytes().replace(rb"\"waited\"", rb"\"waitex\""))
    if what == "library":
        world = small(world.task, ffn=[32, 64])
    with pytest.raises(ValueError, match=said):
        world.train(kept=(file, "other" if what == "key" else "key"))


def test_of_what_a_checkpoint_holds_nothing_is_pickled(world: Small, tmp_path: Path) -> None:
    file = tmp_path / "training.safetensors"
    with pytest.raises(SystemExit):
        world.train(0, Killed(6), kept=(file, "key"), checkpoint_every=6)
    with safe_open(file, framework="pt") as opened:
        names = {name.partition(".")[0] for name in opened.keys()}  # noqa: SIM118
    assert {"weights", "exp_avg", "exp_avg_sq", "step"} <= names <= {"weights", "exp_avg", "exp_avg_sq", "step", "best"}
