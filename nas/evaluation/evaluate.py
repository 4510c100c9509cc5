"""How good is this subnet, or any model: metrics on a split, after as much distillation as asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.distillation.losses import Distiller
from nas.distillation.precision import ForwardPrecision, forward_precision
from nas.distillation.teacher import TeacherOutputs
from nas.distillation.train import TrainSettings, distil
from nas.evaluation.prefix import LIMIT_BYTES, TeacherPrefix
from nas.tasks.placement import CPU, device_of, moved, placed
from nas.tasks.task import Outputs, Samples, Task, main_output
from search_spaces.cost import costs
from search_spaces.fake_quantize import fake_quantized, quantization_aware
from search_spaces.subnet import Precision, SubnetConfig

if TYPE_CHECKING:
    from nas.progress import Progress
    from search_spaces.space import SearchSpace

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class Extras(Protocol):
    """Metrics beyond those that a task always gives; `nas.evaluation.aspects.NamedMetrics`."""

    def __call__(
        self, run: Run, split: str, outputs: Outputs, teacher: Outputs, batch_size: int = 64
    ) -> dict[str, float]:
        """The metrics of a model, from its outputs and its teacher's on a split, or from running it again."""


class Elastic(Protocol):
    """What an evaluation needs of a supernet."""

    @property
    def model(self) -> nn.Module:
        """The model that runs the active subnet."""

    @property
    def space(self) -> SearchSpace:
        """Its subnets."""

    def activate(self, subnet: SubnetConfig) -> None:
        """Make a subnet the one that runs."""

    def extract(self, subnet: SubnetConfig) -> nn.Module:
        """An independent copy of a subnet."""


class Evaluator:
    """Evaluates subnets of a supernet, which it never changes, against stored teacher outputs.

    Args:
        supernet: The weight-sharing model.
        task: Samples and metrics.
        distiller: The loss of the distillation inside an evaluation; by default the task kind's.
        training: Learning rate and the like.
        teacher: Stored teacher outputs; by default kept in the task's cache folder.
        batch_size: Samples of one forward pass.
        precision: Of forward passes that judge; see `forward_precision`. A search compares candidates at what is
            fastest; final figures are to be given in fp32.
        extras: Metrics beyond the task's own, such as those of groups.
        device_precision: What the device brings whole models to: blocks without a precision of their own are judged in
            it, as blocks of int8 and int4 are in theirs. See `search_spaces.quantized`.
        place: Where models are distilled and judged. The supernet stays where it is: to a GPU goes a copy of each
            subnet, and what is returned comes back.

    Raises:
        ValueError: The distiller needs outputs that the task does not give, or the precision is unknown.
    """

    def __init__(
        self,
        supernet: Elastic,
        task: Task,
        distiller: Distiller | None = None,
        training: TrainSettings | None = None,
        teacher: TeacherOutputs | None = None,
        batch_size: int = 64,
        precision: ForwardPrecision = "auto",
        extras: Extras | None = None,
        device_precision: Precision = "fp32",
        place: torch.device = CPU,
    ) -> None:
        self.supernet = supernet
        self.task = task
        self.distiller = distiller or Distiller.default(task)
        self.training = training or TrainSettings()
        self.distiller.check(task)
        self.teacher = teacher or TeacherOutputs(task, self.distiller.needs, getattr(task, "cache_dir", None))
        self.batch_size = batch_size
        self.precision: ForwardPrecision = precision
        self.extras = extras
        self.device_precision = device_precision
        self.place = place
        # Extras run the model again, on inputs of their own.
        self._prefix = TeacherPrefix(supernet, device_precision, 0 if extras else LIMIT_BYTES)
        forward_precision(precision)

    def evaluate(
        self,
        subnet: SubnetConfig,
        steps: int = 0,
        split: str = "validation",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Metrics of a subnet on a split.

        Args:
            subnet: The architecture.
            steps: Distillation steps on a private copy before it is judged; 0 judges the supernet's own weights.
            split: Where it is judged.
            seed: Of the order of training samples.
            progress: Told of every distillation step.
        """
        if not steps and device_of(self.supernet.model) == self.place:
            with self._prefix.activated(subnet.on_device(self.device_precision), split):
                return self.score(self.supernet.model, split)
        with placed(self.supernet.extract(subnet), self.place) as model:
            if steps:
                self.distil(subnet, steps=steps, seed=seed, progress=progress, model=model)
            with fake_quantized(model, self._precisions(subnet)):
                return self.score(model, split)

    def distil(
        self,
        subnet: SubnetConfig,
        *,
        steps: int | None = None,
        minutes: float | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        model: nn.Module | None = None,
    ) -> nn.Module:
        """A private, plain copy of a subnet, distilled on the train split for so many steps or minutes.

        Args:
            subnet: The architecture.
            steps: Steps to train, or
            minutes: minutes to train; when both are given, whichever ends first.
            seed: Of the order of samples.
            progress: Told of every step.
            model: The subnet as it was extracted and perhaps refitted; trained in place. Extracted when None.
        """
        model = self.supernet.extract(subnet) if model is None else model
        aware = self.training.quantization_aware
        with (
            placed(model, self.place),
            quantization_aware(model, self._precisions(subnet)) if aware else nullcontext(),
        ):
            distil(
                model,
                self.task,
                self.teacher,
                self.distiller,
                self._training(subnet),
                steps=steps,
                minutes=minutes,
                seed=seed,
                blocks=subnet.kept,
                progress=progress,
            )
        return model

    def _training(self, subnet: SubnetConfig) -> TrainSettings:
        """The settings, with the learning rate that suits a subnet."""
        space = self.supernet.space
        sizes = costs(space.shape, [subnet, space.teacher]).block_parameters
        return self.training.for_removal(1 - float(sizes[0]) / float(sizes[1]))

    def _precisions(self, subnet: SubnetConfig) -> list[str]:
        """What the device computes each of a subnet's blocks in."""
        judged = subnet.on_device(self.device_precision)
        return [judged.blocks[index].precision for index in judged.kept]

    def score(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        """Metrics of any `transformers` model of the task's kind on a split."""
        return evaluate_model(
            model, self.task, self.teacher, split, self.batch_size, self.precision, self.extras, self.place
        )


def evaluate_model(
    model: nn.Module,
    task: Task,
    teacher: TeacherOutputs,
    split: str = "validation",
    batch_size: int = 64,
    precision: ForwardPrecision = "fp32",
    extras: Extras | None = None,
    place: torch.device | None = None,
) -> dict[str, float]:
    """Metrics of any `transformers` model of the task's kind on a split; it runs where it is, or in another place."""
    model.eval()
    place = place or device_of(model)

    def run(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return task.outputs(model, moved(batch, place))

    with placed(model, place), forward_precision(precision, place):
        return evaluate_run(run, task, teacher, split, batch_size, extras)


def evaluate_run(
    run: Run,
    task: Task,
    teacher: TeacherOutputs,
    split: str = "validation",
    batch_size: int = 64,
    extras: Extras | None = None,
) -> dict[str, float]:
    """Metrics of anything that turns the model's inputs into the task's main output, such as `onnx_run`."""
    outputs, reference = predict(run, task, split, batch_size, teacher=teacher), teacher.main(split)
    metrics = task.metrics(split, outputs, reference)
    return metrics if extras is None else {**metrics, **extras(run, split, outputs, reference, batch_size)}


def predict(
    run: Run,
    task: Task,
    split: str,
    batch_size: int = 64,
    samples: Samples | None = None,
    teacher: TeacherOutputs | None = None,
) -> dict[str, NDArray[Any]]:
    """The task's main output on a whole split, ``(samples, ...)``, in the order of the split.

    Args:
        run: The model.
        task: Says what its main output is.
        split: Name of the split.
        batch_size: Samples of one forward pass.
        samples: Other samples than the task's own, such as perturbed ones.
        teacher: Whom the outputs will be compared with, where the model must be asked for what that takes.

    Raises:
        ValueError: An output is not finite.
    """
    name, samples = main_output(task), samples or task.samples
    collected: NDArray[Any] | None = None
    with torch.inference_mode():
        for rows in samples.order(split, batch_size):
            batch = samples.batch(split, rows) if teacher is None else teacher.inputs(split, rows, samples)
            values = run(batch)[name].float().cpu().numpy()
            if collected is None:
                collected = np.empty((samples.size(split), *values.shape[1:]), dtype=np.float32)
            collected[rows] = values
    assert collected is not None
    if not np.isfinite(collected).all():
        raise ValueError(f"the model's {name} on {split!r} must be finite, but some are not.")
    return {name: collected}


def onnx_run(model: str | bytes, task: Task, threads: int = 1) -> Run:
    """Run a deployed ONNX model on the CPU, for `evaluate_run`.

    Judge models with dynamic int8 quantisation with the batch size of their deployment, mostly 1: their activations'
    scales are taken over the whole batch, padding included.

    Args:
        model: File or bytes.
        task: Says what the outputs mean.
        threads: Of ONNX Runtime.

    Raises:
        ValueError: The model lacks one of the task's outputs.
    """
    from nas.tasks.deployed import GraphModel

    graph: Any = GraphModel(model, threads)
    if not set(task.output_names) & set(graph.output_names):
        found = ", ".join(map(repr, graph.output_names))
        raise ValueError(f"the ONNX model must have the output {task.output_names[-1]!r}, but has {found}.")
    return lambda batch: task.outputs(graph, batch)
