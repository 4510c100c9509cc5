"""The one training loop of the project."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from nas.distillation.losses import Distiller
from nas.distillation.precision import ForwardPrecision, forward_precision
from nas.distillation.projections import Projections, fit_projections, narrower, parts
from nas.tasks.placement import device_of, moved

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from nas.distillation.teacher import TeacherOutputs
    from nas.progress import Progress
    from nas.tasks.task import Task


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a student is trained; how long is said where it is trained.

    Args:
        learning_rate: AdamW's, at its peak.
        batch_size: Samples of one step.
        warmup: Share of the budget in which the learning rate grows from 0; then it decays linearly to 0.
        weight_decay: AdamW's.
        max_grad_norm: Gradients are scaled down to this norm.
        precision: Of the forward pass; weights stay in fp32. See `forward_precision`.
        freeze_embeddings: Whether token, position and type embeddings stay the teacher's. They are most of a small
            encoder's parameters, and a short training only disturbs the rows it happens to see.
        whole_rate_at: Share of the blocks' parameters that must be gone for the whole learning rate. Below, the rate
            falls in proportion, to a quarter at least: what is close to its teacher is led away by steps of the usual
            length, which AdamW takes however small the gradients are. 0 gives all students the whole rate.
        quantization_aware: Whether a student of a device that computes in int8 or int4 is trained as it will compute
            there; see `search_spaces.fake_quantize.quantization_aware`.

    Raises:
        ValueError: A number is out of range.
    """

    learning_rate: float = 4e-4
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: ForwardPrecision = "auto"
    freeze_embeddings: bool = True
    whole_rate_at: float = 0.5
    quantization_aware: bool = True

    def __post_init__(self) -> None:
        for name in ("learning_rate", "batch_size", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be > 0, but got {getattr(self, name)!r}.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"`warmup` must be in [0, 1), but got {self.warmup!r}.")
        if not 0 <= self.whole_rate_at <= 1:
            raise ValueError(f"`whole_rate_at` must be in [0, 1], but got {self.whole_rate_at!r}.")
        if self.weight_decay < 0:
            raise ValueError(f"`weight_decay` must be >= 0, but got {self.weight_decay!r}.")
        forward_precision(self.precision)

    def for_removal(self, removed: float) -> TrainSettings:
        """The settings for a student from whose blocks this share of the parameters is gone."""
        share = min(1.0, max(0.25, removed / self.whole_rate_at)) if self.whole_rate_at else 1.0
        return replace(self, learning_rate=self.learning_rate * share)


@dataclass(frozen=True)
class Trained:
    """What a training did: one loss a step, and the seconds it took."""

    losses: tuple[float, ...]
    seconds: float


def distil(
    model: nn.Module,
    task: Task,
    teacher: TeacherOutputs | None,
    distiller: Distiller,
    training: TrainSettings | None = None,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    split: str = "train",
    blocks: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a model in place on the teacher's stored outputs; dropout stays off.

    Where its residual stream is narrower than the teacher's, projections that compare the two are trained with it and
    forgotten: the model stays as plain as it was.

    Args:
        model: The student, a `transformers` model of the task's kind.
        task: Gives samples and outputs.
        teacher: The stored outputs; None where the distiller reads labels alone (fine-tuning).
        distiller: The loss.
        training: Learning rate and the like.
        steps: Steps to train, or
        minutes: minutes to train; when both are given, whichever ends first.
        seed: Of the order of samples. The same steps and seed give the same weights.
        split: The samples to train on.
        blocks: Index in the teacher of each of the student's blocks, for losses on hidden states.
        progress: Told of every step.

    Raises:
        ValueError: There is no budget, or the distiller needs a teacher or outputs that are not there.
        FloatingPointError: The loss is not finite any more.
    """
    training = training or TrainSettings()
    _check(task, teacher, distiller, steps, minutes)
    compared = _Comparison(model, task, teacher, training.precision, split)
    parameters = _trainable(model, freeze_embeddings=training.freeze_embeddings)
    losses: list[float] = []
    started = time.monotonic()
    model.eval()  # All along: a student that must imitate exact outputs is only disturbed by dropout.
    try:
        compared = compared.projected(distiller.needs, task.samples.shuffled(split, training.batch_size, seed), blocks)
        parameters += [] if compared.projections is None else [*compared.projections.parameters()]
        optimizer = _optimizer(parameters, training)
        for rows in task.samples.shuffled(split, training.batch_size, seed):
            spent = spent_share(len(losses), time.monotonic() - started, steps, minutes)
            if spent >= 1:
                break
            set_learning_rate(optimizer, training, spent, len(losses), steps)
            loss = distiller(*compared.outputs(distiller.needs, rows), blocks)
            losses.append(loss.item())
            _descend(optimizer, loss, parameters, training, len(losses))
            if progress is not None:
                progress.advance(text=f"loss {losses[-1]:.4f}")
    finally:
        model.requires_grad_(True).zero_grad(set_to_none=True)  # noqa: FBT003  (torch's own signature.)
    return Trained(tuple(losses), time.monotonic() - started)


def _optimizer(parameters: list[nn.Parameter], training: TrainSettings) -> torch.optim.Optimizer:
    rate, decay = training.learning_rate, training.weight_decay
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)


def _descend(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    parameters: list[nn.Parameter],
    training: TrainSettings,
    step: int,
) -> None:
    """One step against the gradient of a loss, refused where it is not finite."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
    if not torch.isfinite(loss) or not torch.isfinite(norm):
        raise FloatingPointError(
            f"the loss must stay finite, but is {loss.item()} with gradient norm {norm.item()} at step {step}. "
            f"Lower `learning_rate` (now {training.learning_rate}) or give a longer `warmup`."
        )
    optimizer.step()


@dataclass(frozen=True)
class _Comparison:
    """A student, and what its teacher said of the same samples.

    Args:
        model: The student.
        task, teacher, split: As of `distil`.
        precision: Of the student's forward pass.
        projections: What brings its states to the teacher's width, where its residual stream is narrower.
    """

    model: nn.Module
    task: Task
    teacher: TeacherOutputs | None
    precision: ForwardPrecision
    split: str
    projections: Projections | None = None

    def outputs(
        self, wanted: Collection[str], rows: NDArray[np.int64]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """What the student says of some samples, what the teacher said, and the samples with their labels."""
        if self.projections is None:
            return self._asked(wanted, rows)
        outputs, targets, batch = self._asked(parts(wanted), rows)
        return self.projections(outputs), targets, batch

    def projected(
        self, wanted: Collection[str], batches: Iterator[NDArray[np.int64]], blocks: Sequence[int] | None
    ) -> _Comparison:
        """The same, with projections where the student needs some."""
        asked = parts(wanted)
        if self.teacher is None or not {"hidden", "hidden_states"} & set(wanted):
            return self
        first = next(batches)
        with torch.no_grad():
            outputs, targets, _ = self._asked(asked, first[:1])
            if not narrower(outputs, {name: targets[name] for name in wanted if name in targets}):
                return self
            found = (self._asked(asked, rows) for rows in itertools.chain([first], batches))
            batches_of = ((own, other, batch.get("attention_mask")) for own, other, batch in found)
            return replace(self, projections=fit_projections(batches_of, wanted, blocks).to(device_of(self.model)))

    def _asked(
        self, names: Collection[str], rows: NDArray[np.int64]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        if self.teacher is not None and names:
            batch, targets = self.teacher.inputs(self.split, rows), self.teacher.batch(self.split, rows)
        else:
            batch, targets = dict(self.task.samples.batch(self.split, rows)), {}
        device = device_of(self.model)
        batch, targets = moved(batch, device), moved(targets, device)
        with forward_precision(self.precision, device):
            found = self.task.outputs(self.model, batch, names)
        outputs = {name: value.float() for name, value in found.items()}
        # Only now: among its inputs, labels would make the model compute a loss of its own.
        if (labels := self.task.samples.labels(self.split)) is not None:
            batch["labels"] = torch.from_numpy(labels[rows]).to(device)
        return outputs, targets, batch


def _check(
    task: Task, teacher: TeacherOutputs | None, distiller: Distiller, steps: int | None, minutes: float | None
) -> None:
    if steps is None and minutes is None:
        raise ValueError("a training must have a budget: give `steps` or `minutes`.")
    for name, budget in (("steps", steps), ("minutes", minutes)):
        if budget is not None and budget <= 0:
            raise ValueError(f"`{name}` must be > 0, but got {budget}.")
    distiller.check(task)
    if distiller.needs:
        if teacher is None:
            raise ValueError(f"a teacher must be given, because the loss reads {', '.join(sorted(distiller.needs))}.")
        if missing := sorted(distiller.needs - set(teacher.names)):
            raise ValueError(f"the teacher's outputs must hold {missing[0]!r}, but hold {', '.join(teacher.names)}.")


def _trainable(model: nn.Module, *, freeze_embeddings: bool) -> list[nn.Parameter]:
    model.requires_grad_(True)  # noqa: FBT003  (torch's own signature.)
    if freeze_embeddings:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(False)  # noqa: FBT003  (torch's own signature.)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def spent_share(done: int, seconds: float, steps: int | None, minutes: float | None) -> float:
    """Share of the budget that is gone, by whichever of steps and minutes is further."""
    by_steps = done / steps if steps else 0.0
    by_time = seconds / (60 * minutes) if minutes else 0.0
    return max(by_steps, by_time)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, training: TrainSettings, spent: float, done: int, steps: int | None
) -> None:
    """Let the rate grow from 0 while the training warms up, then fall to 0, by the share of it that is over."""
    # The middle of the coming step, so that neither the first nor the last step is one of zero length.
    middle = spent + (0.5 / steps if steps else 0.0)
    rising = middle / training.warmup if training.warmup else 1.0
    falling = (1 - middle) / (1 - training.warmup)
    # A training by minutes does not know how long its first step takes: it begins small.
    scale = max(min(rising, falling, 1.0), 0.0 if steps or done else 1e-2)
    for group in optimizer.param_groups:
        group["lr"] = training.learning_rate * scale
