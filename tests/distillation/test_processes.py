"""Several processes train what one would, and only the first of them writes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nas.distillation import supernet
from nas.evaluation.evaluate import Evaluator
from search_spaces.library import Library
from search_spaces.supernet import Supernet
from tests.distillation.supernets import embedding_task, small


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def processes(count: int, arguments: list[str], **variables: str) -> list[subprocess.Popen[str]]:
    """Start a module as `accelerate launch` and `torchrun` do."""
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} | variables
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_the_same_batches(tmp_path: Path) -> None:
    task = embedding_task(tmp_path / "task")
    started = processes(2, ["tests.distillation.supernets", str(tmp_path / "task"), str(tmp_path)])
    world = small(task)
    alone = world.train(steps=6, evaluate_every=None).library
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    first, second = (Library.load(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, tensor in alone.tensors.items():
        assert torch.equal(first.tensors[name], second.tensors[name])
        if ".key." in name and tensor.dim() == 1:
            continue  # Softmax does not see a key's bias: its gradient is rounding, of which AdamW makes whole steps.
        moved = (tensor - world.library.tensors[name]).abs().max()
        assert (first.tensors[name] - tensor).abs().max() <= 0.02 * moved + 1e-6, name


def test_batches_that_processes_cannot_share_are_refused(tmp_path: Path) -> None:
    world = small(embedding_task(tmp_path / "task"))
    evaluator = Evaluator(Supernet(world.task.load_model(), world.library, world.space), world.task)
    with pytest.raises(ValueError, match=r"`training.batch_size` must be a multiple of the 3 processes"):
        supernet._check_batches(evaluator, 3)
