"""A tiny calibrated supernet to train: run as a module, one of several processes that train it together."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nas.distillation.acceleration import make_accelerator
from nas.distillation.losses import Distiller
from nas.distillation.supernet import TrainedSupernet, train_supernet
from nas.distillation.supernet_settings import SupernetSettings
from nas.distillation.teacher import TeacherOutputs
from nas.distillation.train import TrainSettings
from nas.evaluation.evaluate import Evaluator
from nas.tasks.data import TextData
from nas.tasks.task import Task
from nas.tasks.text import SentenceEmbedding
from search_spaces.calibrate import calibrate
from search_spaces.library import Library
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.supernet import Supernet
from tests.texts import texts, tiny_model_folder, write_lines

CHOICES = {"skip": [False, True], "heads": [1, 2, 4], "ffn": [16, 32, 64], "rank_qkv": [0, 8]}
# Of this loss the mean over processes is exactly that over the whole batch.
LOSS = Distiller(embedding=1.0)


@dataclass
class Small:
    """A task, its teacher, and the library of a space."""

    task: Task
    space: SearchSpace
    library: Library
    loss: Distiller

    def train(self, seed: int = 0, progress: Any = None, *, kept: Any = None, **changes: Any) -> TrainedSupernet:
        """Train a fresh supernet; by default for eight steps in fp32, judged every fourth."""
        settings = SupernetSettings(
            **{"steps": 8, "learning_rate": 3e-3, "precision": "fp32", "evaluate_every": 4, "patience": None} | changes
        )
        self.supernet = Supernet(self.task.load_model(), self.library, self.space)
        training = TrainSettings(batch_size=8, precision="fp32")
        teacher = TeacherOutputs(self.task, self.loss.needs)
        evaluator = Evaluator(self.supernet, self.task, self.loss, training, teacher, precision="fp32")
        path, key = kept or (None, "")
        return train_supernet(
            self.supernet, self.library, evaluator, settings, seed, progress, checkpoint=path, key=key
        )


def small(task: Task, loss: Distiller = LOSS, **choices: Any) -> Small:
    """A task's teacher, calibrated."""
    model = task.load_model()
    space = SearchSpace.from_choices(ModelShape.from_model(model), CHOICES | choices)
    return Small(task, space, calibrate(model, list(task.batches("calibration", 8)), space), loss)


def embedding_task(folder: Path) -> SentenceEmbedding:
    """Random sentences and a random encoder, made when they are not there."""
    if not folder.is_dir():
        folder.mkdir()
        write_lines(folder / "texts.txt", texts(120))
        tiny_model_folder(folder / "model")
    data = TextData(str(folder / "texts.txt"), calibration=8, validation=24, test=24)
    return SentenceEmbedding(str(folder / "model"), data, 32, neighbours=3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert make_accelerator("fp32").num_processes == int(os.environ["WORLD_SIZE"]) > 1
    trained = small(embedding_task(Path(sys.argv[1]))).train(steps=6, evaluate_every=None)
    trained.library.save(Path(sys.argv[2], f"{os.environ['RANK']}.safetensors"))
