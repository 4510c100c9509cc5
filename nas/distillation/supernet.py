"""Training the supernet's smaller levels by the sandwich rule, in place, against the teacher's stored outputs.

Every step trains the smallest subnet, the largest that is not the teacher, and random ones, and adds up their gradients
(Yu et al. 2020, arXiv 2003.11142). The largest of all needs none: it runs the teacher's own tensors, which stay as they
are, so that what it says is stored once, and is what all others learn from. Trained is everything in the library:
permuted rows, compensated output projections, factors, norms and maps of narrower residual streams.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nas.distillation.acceleration import agreed, average, make_accelerator
from nas.distillation.checkpoints import TrainingState, load_checkpoint, save_checkpoint
from nas.distillation.guards import Guards
from nas.distillation.schedule import ElasticSchedule
from nas.distillation.supernet_settings import SupernetSettings
from nas.distillation.train import set_learning_rate, spent_share
from nas.engine.interrupts import Interruption
from nas.tasks.placement import moved
from search_spaces.library import Library
from search_spaces.subnet import SubnetConfig
from search_spaces.supernet import Supernet

if TYPE_CHECKING:
    from accelerate import Accelerator

    from nas.evaluation.evaluate import Evaluator
    from nas.progress import Progress


@dataclass(frozen=True)
class TrainedSupernet:
    """A trained library, and how it came about.

    Args:
        library: The tensors of the best evaluation, on the CPU.
        history: Metrics of the guards by step, the untrained ones first; see `TrainingState.history`.
        step: Steps done.
        best_step: The step that the tensors are of; 0 where training made nothing better.
        seconds: Spent on training and evaluating, over all runs that a checkpoint joined.
        ended: ``steps``, ``minutes`` or ``patience``.
    """

    library: Library
    history: tuple[Mapping[str, float], ...]
    step: int
    best_step: int
    seconds: float
    ended: str


def train_supernet(
    supernet: Supernet,
    library: Library,
    evaluator: Evaluator,
    settings: SupernetSettings,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    accelerator: Accelerator | None = None,
    checkpoint: Path | None = None,
    key: str = "",
) -> TrainedSupernet:
    """Train a copy of a library.

    Args:
        supernet: Runs the subnets; it uses the trained tensors afterwards.
        library: The calibrated variants; left as they are.
        evaluator: Gives the loss, batch size, clipping, the stored teacher outputs and the task.
        settings: How it is trained.
        seed: Of the order of samples and of the random subnets.
        progress: Told of every step.
        accelerator: The processes; by default what `make_accelerator` finds.
        checkpoint: Where the training's state is kept, and taken from when it is there; None keeps it nowhere.
        key: Content key of the training, which a checkpoint must have.

    Raises:
        ValueError: The schedule or the batches do not fit, or the checkpoint is of another training.
        FloatingPointError: The loss is not finite any more.
        KeyboardInterrupt: Ctrl-C, after the running step and a checkpoint.
    """
    accelerator = accelerator or make_accelerator(settings.precision)
    supernet.use(library)
    supernet.to(accelerator.device)
    try:
        training = _Training(supernet, library, evaluator, settings, seed, accelerator)
        if checkpoint is not None and checkpoint.is_file():
            training.resume(checkpoint, key)
        ended = training.run(checkpoint, key, progress)
        trained = training.best_library()
    except BaseException:
        supernet.use(library)
        raise
    finally:
        supernet.to("cpu")
    supernet.use(trained)
    state = training.state
    return TrainedSupernet(trained, tuple(state.history), state.step, state.best_step, state.seconds, ended)


class _Training:
    """A training that runs, or goes on."""

    def __init__(
        self,
        supernet: Supernet,
        library: Library,
        evaluator: Evaluator,
        settings: SupernetSettings,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.supernet, self.library, self.evaluator, self.settings = supernet, library, evaluator, settings
        self.seed, self.accelerator, self.state = seed, accelerator, TrainingState()
        self.rates = replace(evaluator.training, learning_rate=settings.learning_rate)
        self.schedule = ElasticSchedule.of(supernet.space, settings.schedule)
        self.device = accelerator.device
        self.guards = Guards(supernet, evaluator, self.schedule.space, accelerator)
        _check_batches(evaluator, accelerator.num_processes)
        whole = {name: tensor.detach().clone().to(self.device) for name, tensor in library.tensors.items()}
        self.tensors = {name: t.requires_grad_() for name, t in whole.items() if t.is_floating_point()}
        self.optimizer = torch.optim.AdamW(
            list(self.tensors.values()), lr=self.rates.learning_rate, weight_decay=self.rates.weight_decay, fused=True
        )
        supernet.use(Library(whole, library.metadata))
        self.best: dict[str, Tensor] = {}
        self._since, self._saved = time.monotonic(), time.monotonic()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self, checkpoint: Path | None, key: str, progress: Progress | None) -> str:
        """Train to the end; why it ended."""
        state = self.state
        batches = self.evaluator.task.samples.shuffled("train", self.evaluator.training.batch_size, self.seed)
        for _ in range(state.step):  # Which batches come depends on the seed and on how many came.
            next(batches)
        if progress is not None:
            progress.resume(state.step)
        self._since = time.monotonic() - state.seconds
        interruption = Interruption()
        with interruption.watched():
            if not state.history:
                self.judge()
            while (spent := self._spent(interruption)) < 1 and not self._waited_enough:
                if interruption.asked:
                    self.save(checkpoint, key)
                    raise KeyboardInterrupt
                loss = self.advance(spent, next(batches))
                self._look_after(spent, checkpoint, key)
                if progress is not None:
                    progress.advance(text=self._told(loss))
            if state.history[-1]["step"] != state.step:
                self.judge()
        if spent < 1:
            return "patience"
        return "steps" if self.settings.steps and state.step >= self.settings.steps else "minutes"

    def _spent(self, interruption: Interruption) -> float:
        """Share of the budget that is gone, and whether to stop: as the first process sees both."""
        seconds, asked = agreed(self.accelerator, [time.monotonic() - self._since, float(interruption.asked)])
        self.state.seconds, interruption.asked = seconds, bool(asked)
        return spent_share(self.state.step, seconds, self.settings.steps, self.settings.minutes)

    def _look_after(self, spent: float, checkpoint: Path | None, key: str) -> None:
        """Evaluations and checkpoints, where they are due after a step."""
        every, state = self.settings.evaluate_every, self.state
        if every and state.step % every == 0:
            self.judge()
            if spent < self._last_begins:  # Before all stages have begun, nothing says that no more will be gained.
                state.waited = 0
        if self._is_due:
            self.save(checkpoint, key)

    def advance(self, spent: float, rows: Any) -> float:
        """One step; the mean loss of its subnets."""
        state, accelerator = self.state, self.accelerator
        subnets = self.schedule.subnets(
            spent, state.step, self.settings.random_subnets, self.seed, large=self.settings.large_subnet
        )
        set_learning_rate(self.optimizer, self.rates, spent, state.step, self.settings.steps)
        loss = self._gradients(subnets, rows[accelerator.process_index :: accelerator.num_processes])
        average(accelerator, self.tensors.values())
        if accelerator.scaler is not None:
            accelerator.scaler.unscale_(self.optimizer)
        touched = [tensor for tensor in self.tensors.values() if tensor.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(touched, self.rates.max_grad_norm)
        # Scaled losses of fp16 may overflow: their steps are left out, and the scale is lowered.
        if not (torch.isfinite(norm) or accelerator.scaler is not None):
            raise FloatingPointError(
                f"the loss must stay finite, but is {loss} with gradient norm {float(norm)} at step {state.step}; "
                f"lower `train.learning_rate` ({self.settings.learning_rate})."
            )
        if accelerator.scaler is None:
            self.optimizer.step()
        else:
            accelerator.scaler.step(self.optimizer)
            accelerator.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        return loss

    def _gradients(self, subnets: Sequence[SubnetConfig], rows: Any) -> float:
        """Gradients of all the subnets on this process's share of a batch, added up; the mean loss."""
        task, distiller, split = self.evaluator.task, self.evaluator.distiller, "train"
        targets = moved(self.evaluator.teacher.batch(split, rows), self.device)
        inputs = moved(self.evaluator.teacher.inputs(split, rows), self.device)
        labelled = dict(inputs)
        if (labels := task.samples.labels(split)) is not None:
            labelled["labels"] = torch.from_numpy(labels[rows]).to(self.device)
        total = 0.0
        for subnet in subnets:
            self.supernet.activate(subnet)
            with self.accelerator.autocast():
                found = task.outputs(self.supernet.model, inputs, distiller.needs)
            outputs = {name: value.float() for name, value in found.items()}
            loss = distiller(outputs, targets, labelled, subnet.kept) / len(subnets)
            if loss.requires_grad:  # Where only whole blocks are left out, all tensors are the teacher's.
                self.accelerator.backward(loss)
            total += float(loss.detach())
        return total

    # -- judging ----------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Judge the guards, and keep the tensors where they are the best so far."""
        state = self.state
        row = {"step": float(state.step), **self.guards.judge()}
        state.history.append(row)
        scores = [self.guards.score(judged, state.history[0]) for judged in state.history]
        if len(scores) == 1 or scores[-1] > max(scores[:-1]) or self.settings.evaluate_every is None:
            state.best_step, state.waited = state.step, 0
            self.best = {name: t.detach().clone() for name, t in self.tensors.items()} if state.step else {}
        else:
            state.waited += 1

    @property
    def _waited_enough(self) -> bool:
        return self.settings.patience is not None and self.state.waited >= self.settings.patience

    @property
    def _last_begins(self) -> float:
        """Share of the training after which everything is open."""
        return self.schedule.stages[-2].end if len(self.schedule.stages) > 1 else 0.0

    def _told(self, loss: float) -> str:
        last = self.state.history[-1]
        judged = ", ".join(f"{name} {last[name]:.4f}" for name in self.guards.subnets)
        return f"loss {loss:.4f}, {self.evaluator.task.quality} at step {last['step']:.0f}: {judged}"

    # -- keeping ----------------------------------------------------------------------------------------------------

    @property
    def _is_due(self) -> bool:
        every, minutes = self.settings.checkpoint_every, self.settings.checkpoint_minutes
        return bool(every and self.state.step % every == 0) or bool(
            minutes and time.monotonic() - self._saved >= 60 * minutes
        )

    def save(self, checkpoint: Path | None, key: str) -> None:
        """Write a checkpoint, from the first process alone."""
        if checkpoint is not None and self.accelerator.is_main_process:
            state, scaler = self.state, self.accelerator.scaler
            state.scaler = {} if scaler is None else {k: float(v) for k, v in scaler.state_dict().items()}
            best = {} if state.best_step in (0, state.step) else self.best
            save_checkpoint(checkpoint, key, state, self.tensors, self.optimizer, best)
        self._saved = time.monotonic()

    def resume(self, checkpoint: Path, key: str) -> None:
        """Go on from a checkpoint."""
        self.state, best = load_checkpoint(checkpoint, key, self.tensors, self.optimizer)
        if self.state.best_step:
            kept = self.tensors if self.state.best_step == self.state.step else best
            self.best = {name: tensor.detach().clone().to(self.device) for name, tensor in kept.items()}
        if self.accelerator.scaler is not None and self.state.scaler:
            scaler = dict(self.state.scaler)
            counted = {name: int(scaler.pop(name)) for name in ("growth_interval", "_growth_tracker")}
            self.accelerator.scaler.load_state_dict({**scaler, **counted})

    def best_library(self) -> Library:
        """The library with the best tensors."""
        if not self.state.best_step:
            return self.library
        return Library({**self.library.tensors, **{n: t.cpu() for n, t in self.best.items()}}, self.library.metadata)


def _check_batches(evaluator: Evaluator, processes: int) -> None:
    size = min(evaluator.training.batch_size, evaluator.task.samples.size("train"))
    if size % processes:
        raise ValueError(
            f"`training.batch_size` must be a multiple of the {processes} processes, which share each batch, "
            f"but got batches of {size}; change it, or the number of processes."
        )
