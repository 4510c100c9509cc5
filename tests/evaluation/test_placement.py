"""Subnets may be distilled and judged on a GPU: named rightly, moved there and back, and with what the CPU finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nas.distillation.losses import Distiller
from nas.distillation.teacher import TeacherOutputs
from nas.distillation.train import TrainSettings
from nas.evaluation import evaluate
from nas.evaluation.evaluate import Evaluator
from nas.tasks import placement
from nas.tasks.data import TextData
from nas.tasks.language import CausalLM
from nas.tasks.placement import CPU, device_of, find_device, moved, placed
from nas.tasks.task import Task
from nas.tasks.text import SentenceEmbedding, TextClassification
from search_spaces.calibrate import calibrate
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig
from search_spaces.supernet import Supernet
from tests.models import tiny_space
from tests.texts import running_text, texts, tiny_language_model_folder, tiny_model_folder, write_lines

SMALL = SubnetConfig((BlockConfig(2, 2, 32), SKIPPED, BlockConfig(2, 2, 16)), 32)
GROUPED = SubnetConfig((BlockConfig(2, 1, 32), SKIPPED, BlockConfig(2, 1, 16)), 32)
SETTINGS = TrainSettings(learning_rate=2e-3, batch_size=8, precision="fp32")
EVERYTHING = Distiller(embedding=1.0, similarity=1.0, hidden=1.0, hidden_states=0.1, relations=0.1)


def embedding(folder: Path) -> SentenceEmbedding:
    data = TextData(write_lines(folder / "texts.txt", texts(120)), calibration=16, validation=32, test=32)
    return SentenceEmbedding(tiny_model_folder(folder / "model"), data, 32, neighbours=3)


def classification(folder: Path) -> TextClassification:
    rows = [f"{line},{index % 3}" for index, line in enumerate(texts(120))]
    file = write_lines(folder / "texts.csv", ["text,label", *rows])
    data = TextData(file, label_column="label", calibration=16, validation=32, test=32)
    return TextClassification(tiny_model_folder(folder / "model", labels=3), data, 32)


def language(folder: Path) -> CausalLM:
    data = TextData(running_text(folder / "text.txt"), calibration=16, validation=16, test=16)
    return CausalLM(tiny_language_model_folder(folder / "model"), data, block_size=16, top_k=8)


@pytest.fixture
def small(tmp_path: Path) -> Evaluator:
    return evaluator(embedding(tmp_path), EVERYTHING)


def evaluator(task: Task, loss: Distiller, place: torch.device = CPU, **changes: Any) -> Evaluator:
    """Of a calibrated supernet, with a teacher that runs in the same place."""
    model = task.load_model()
    space = tiny_space(model, **changes)
    supernet = Supernet(model, calibrate(model, list(task.batches("calibration", 8)), space), space)
    teacher = TeacherOutputs(task, loss.needs, place=place)
    return Evaluator(supernet, task, loss, SETTINGS, teacher, precision="fp32", place=place)


class Traveller(nn.Linear):
    """Writes down where it is sent."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.journey: list[torch.device] = []

    def to(self, device: torch.device) -> Any:  # type: ignore[override]
        self.journey.append(device)
        return self


class TestNames:
    @pytest.fixture
    def gpus(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
        """Makes torch see so many GPUs of a kind."""

        def see(kind: str, count: int) -> None:
            found = torch.device(kind) if count else None
            monkeypatch.setattr(torch.accelerator, "is_available", lambda: count > 0)
            monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)
            monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
            monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)

        return see

    def test_auto_takes_a_gpu_where_there_is_one(self, gpus: Callable[[str, int], None]) -> None:
        gpus("cuda", 0)
        assert find_device("auto") == CPU
        gpus("cuda", 2)
        assert find_device("auto") == torch.device("cuda", 0)
        gpus("mps", 1)  # Has no fp64: only where it is asked for.
        assert find_device("auto") == CPU
        assert find_device("mps") == torch.device("mps", 0)

    def test_a_named_one(self, gpus: Callable[[str, int], None]) -> None:
        gpus("cuda", 2)
        assert find_device("cuda:1") == torch.device("cuda", 1)
        assert find_device("cuda") == torch.device("cuda", 0)
        assert find_device("cpu") == find_device("cpu:0") == CPU

    @pytest.mark.parametrize("name", ["cuda:2", "mps", "meta", "gpu", ""])
    def test_what_is_not_there_is_refused(self, gpus: Callable[[str, int], None], name: str) -> None:
        gpus("cuda", 2)
        with pytest.raises(ValueError, match=r"`torch_device` must be one .* \(auto, cpu, cuda:0, cuda:1\), but got"):
            find_device(name)
        gpus("cuda", 0)
        with pytest.raises(ValueError, match=r"must be one that torch sees here \(auto, cpu\), but got"):
            find_device(name)


def test_a_model_returns_to_where_it_was() -> None:
    model, gpu = Traveller(), torch.device("cuda", 0)
    with pytest.raises(KeyError), placed(model, gpu):
        raise KeyError
    assert model.journey == [gpu, CPU]
    with placed(model, CPU):
        pass
    assert model.journey == [gpu, CPU]


def test_a_graph_takes_its_inputs_from_the_cpu() -> None:
    assert device_of(object()) == device_of(nn.Identity()) == CPU


def test_what_runs_elsewhere_is_a_copy(small: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    here, distilled = small.evaluate(SMALL), small.evaluate(SMALL, steps=3)
    supernet: Any = small.supernet
    supernet.activate(supernet.space.teacher)
    monkeypatch.setattr(evaluate, "device_of", lambda model: torch.device("cuda") if model is supernet.model else CPU)
    assert small.evaluate(SMALL) == pytest.approx(here, abs=1e-6)
    assert small.evaluate(SMALL, steps=3) == pytest.approx(distilled, abs=1e-6)
    assert supernet.active == supernet.space.teacher


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGpu:
    @pytest.mark.parametrize(
        ("make", "loss", "subnet"),
        [
            (embedding, EVERYTHING, SMALL),
            (classification, Distiller(logits=1.0, labels=1.0, hidden=0.1), SMALL),
            (language, Distiller(next_token=1.0, labels=0.1, hidden_states=0.1), GROUPED),
        ],
    )
    def test_it_finds_what_the_cpu_finds(
        self, make: Callable[[Path], Task], loss: Distiller, subnet: SubnetConfig, tmp_path: Path
    ) -> None:
        task, heads = make(tmp_path), sorted({subnet.blocks[0].heads, 4})
        here, there = (evaluator(task, loss, find_device(name), heads=heads) for name in ("cpu", "auto"))
        assert there.place.type == "cuda"
        for name, values in here.teacher.arrays("validation").items():
            assert np.allclose(values, there.teacher.arrays("validation")[name], atol=2e-3)
        for steps in (0, 5):
            expected = here.evaluate(subnet, steps=steps)
            assert there.evaluate(subnet, steps=steps) == pytest.approx(expected, abs=5e-3, rel=5e-3)
        assert device_of(there.supernet.model) == device_of(there.distil(subnet, steps=2)) == CPU

    def test_a_narrower_stream_and_int8(self, tmp_path: Path) -> None:
        task = embedding(tmp_path)
        loss = Distiller(embedding=1.0, hidden_states=1.0)
        here, there = (evaluator(task, loss, find_device(n), hidden_size=[16, 32]) for n in ("cpu", "cuda"))
        for subnet in (SubnetConfig(SMALL.blocks, 16), SMALL.on_device("int8")):
            for steps in (0, 5):
                expected = here.evaluate(subnet, steps=steps)
                assert there.evaluate(subnet, steps=steps)["cosine"] == pytest.approx(expected["cosine"], abs=5e-3)

    def test_a_batch_is_moved(self) -> None:
        found = moved({"x": torch.ones(2)}, placement.find_device("cuda"))
        assert found["x"].device == torch.device("cuda", 0)
