"""How good an artefact is on its task: run by its own runtime on a whole split, one sample at a time, as deployed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from nas.evaluation.evaluate import evaluate_run, onnx_run
from nas.export.artefacts import Artefact
from nas.export.reference import as_numpy

if TYPE_CHECKING:
    from latency_models.backends.base import Run
    from latency_models.device import Device
    from nas.distillation.teacher import TeacherOutputs
    from nas.tasks.task import Task

_STEP = 32


def judge(
    artefact: Artefact, directory: Path, task: Task, teacher: TeacherOutputs, device: Device, split: str = "test"
) -> dict[str, float]:
    """Metrics of an artefact on a split.

    Args:
        artefact: Which model of the folder.
        directory: The folder.
        task: Samples and metrics.
        teacher: Its stored outputs.
        device: Where the artefact runs.
        split: Where it is judged.
    """
    file = directory / artefact.file
    if artefact.format == "onnx" and device.provider == "cpu":
        run = onnx_run(str(file), task, device.threads)
    else:
        model: Any = RuntimeModel(device, file, task.output_names)
        run = lambda batch: task.outputs(model, batch)  # noqa: E731
    # Dynamic quantisation scales activations over the whole batch, so it is judged as it is deployed.
    return evaluate_run(run, task, teacher, split, batch_size=1)


class RuntimeModel:
    """A file in its runtime that answers as its `transformers` model would, inputs of any length.

    Runtimes compile for fixed shapes: texts are padded to a few lengths, and what comes out is cut again.

    Args:
        device: Where it runs.
        file: The model.
        names: Names of its outputs.
    """

    def __init__(self, device: Device, file: Path, names: tuple[str, ...]) -> None:
        self._device = device
        self._file = file
        self._names = names
        self._runs: dict[tuple[tuple[int, ...], ...], Run] = {}

    def __call__(self, **batch: Any) -> SimpleNamespace:
        """Outputs as attributes; options of `transformers` among the arguments are left aside."""
        from latency_models.backends.base import make_backend

        inputs = as_numpy({name: value for name, value in batch.items() if isinstance(value, torch.Tensor)})
        padded = {name: _padded(value) for name, value in inputs.items()}
        shapes = tuple(value.shape for value in padded.values())
        if shapes not in self._runs:
            self._runs[shapes] = make_backend(self._device).compile(str(self._file), padded)
        run = self._runs[shapes]
        run.feed(padded)
        found = _cut(run.outputs(), inputs, padded)
        return SimpleNamespace(
            hidden_states=None, **{name: torch.from_numpy(found[name]) for name in self._names if name in found}
        )


def _padded(value: NDArray[Any]) -> NDArray[Any]:
    """Tokens filled up to a multiple of 32 with zeros, which the attention mask hides; images as they are."""
    if value.ndim != 2:
        return value
    return np.pad(value, ((0, 0), (0, -value.shape[1] % _STEP)))


def _cut(
    outputs: Mapping[str, NDArray[Any]], inputs: Mapping[str, NDArray[Any]], padded: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Outputs of every token without those of the padding."""
    name = next(iter(inputs))
    before, after = inputs[name].shape[1], padded[name].shape[1]
    if before == after:
        return dict(outputs)
    return {
        key: value[:, :before] if value.ndim > 2 and value.shape[1] == after else value
        for key, value in outputs.items()
    }
