"""Finalists are distilled for as long as was said, and never end worse than they began."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from nas.distillation.losses import Distiller
from nas.distillation.train import TrainSettings
from nas.evaluation.evaluate import Evaluator
from nas.finalists import Budget, distil_finalist, larger_stage
from nas.progress import Progress
from nas.tasks.data import TextData
from nas.tasks.text import SentenceEmbedding
from search_spaces.calibrate import calibrate
from search_spaces.recalibrate import recalibrate
from search_spaces.space import SearchSpace
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig
from search_spaces.supernet import Supernet
from tests.models import tiny_space
from tests.texts import texts, tiny_model_folder, write_lines

SMALL = SubnetConfig((BlockConfig(2, 2, 32), SKIPPED, BlockConfig(1, 1, 16)), 32)


@dataclass
class Bench:
    """What a finalist's distillation asks of a workbench."""

    task: Any
    evaluator: Evaluator
    seed: int = 0
    notes: list[str] = field(default_factory=list)

    def progress(self, title: str, total: int | None = None) -> Progress:
        return Progress(title, total, mode="quiet")

    @property
    def space(self) -> SearchSpace:
        return self.evaluator.supernet.space

    def finalist(self, subnet: SubnetConfig) -> nn.Module:
        return self.evaluator.supernet.extract(subnet)

    def refitted(self, model: nn.Module, subnet: SubnetConfig) -> nn.Module:
        recalibrate(model, self.task.load_model(), subnet.kept, self.task.batches("calibration", 8))
        return model

    def say(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def supernet_and_task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Supernet, SentenceEmbedding]:
    folder = tmp_path_factory.mktemp("finalists")
    data = TextData(write_lines(folder / "texts.txt", texts(150)), calibration=16, validation=40, test=40)
    task = SentenceEmbedding(
        tiny_model_folder(folder / "model"), data, 32, neighbours=3, cache_dir=str(folder / "cache")
    )
    model = task.load_model()
    space = tiny_space(model)
    return Supernet(model, calibrate(model, list(task.batches("calibration", 8)), space), space), task


def bench_of(found: tuple[Supernet, SentenceEmbedding], learning_rate: float) -> Bench:
    supernet, task = found
    settings = TrainSettings(learning_rate=learning_rate, batch_size=8, precision="fp32")
    return Bench(task, Evaluator(supernet, task, Distiller(embedding=1.0, hidden=1.0), settings, precision="fp32"))


@pytest.mark.parametrize("budget", [Budget(30, None), Budget(30, 5.0), Budget(30, None, stages=2)])
def test_a_finalist_is_better_for_it(supernet_and_task: tuple[Supernet, SentenceEmbedding], budget: Budget) -> None:
    bench = bench_of(supernet_and_task, 2e-3)
    model = supernet_and_task[0].extract(SMALL)
    before = bench.evaluator.score(model)["cosine"]
    assert distil_finalist(bench, SMALL, model, "one", budget)
    assert bench.evaluator.score(model)["cosine"] > before
    assert not bench.notes


def test_a_finalist_that_becomes_worse_stays_as_it_was(supernet_and_task: tuple[Supernet, SentenceEmbedding]) -> None:
    bench = bench_of(supernet_and_task, 0.1)  # Who agrees with the teacher already is only led away by such steps.
    whole = supernet_and_task[0].space.teacher
    model = supernet_and_task[0].extract(whole)
    weights = {name: values.clone() for name, values in model.state_dict().items()}
    assert not distil_finalist(bench, whole, model, "one", Budget(2, None))
    assert all(torch.equal(values, weights[name]) for name, values in model.state_dict().items())
    assert "one is left as it was" in bench.notes[0]


def test_minutes_alone_end_a_distillation(supernet_and_task: tuple[Supernet, SentenceEmbedding]) -> None:
    bench = bench_of(supernet_and_task, 1e-5)
    model = supernet_and_task[0].extract(SMALL)
    distil_finalist(bench, SMALL, model, "one", Budget(None, 0.002))


@pytest.mark.parametrize(
    ("steps", "minutes", "expected"),
    [(60, None, True), (None, 2, True), (5, 0.5, True), (0, None, False), (None, None, False), (0, 0, False)],
)
def test_a_budget_is_steps_or_minutes_or_none(steps: Any, minutes: Any, expected: bool) -> None:
    assert bool(Budget.of({"steps": steps, "minutes": minutes, "stages": 1})) is expected


def test_two_stages_are_for_what_lacks_more_than_half(supernet_and_task: tuple[Supernet, SentenceEmbedding]) -> None:
    space = supernet_and_task[0].space
    larger = larger_stage(space, SMALL)
    assert larger is not None
    assert larger.blocks[2].ffn > SMALL.blocks[2].ffn
    assert larger_stage(space, space.teacher) is None
    assert Budget(5, 3.0, stages=2).half == Budget(2, 1.5)
    assert Budget(None, 3.0, stages=2).half == Budget(None, 1.5)
