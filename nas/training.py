"""The stage of `nas train`: prepares in one process what all read, trains or goes on, and keeps what comes of it.

A training is known by everything that its result depends on. Beside the calibration library ``KEY.safetensors`` lie
``KEY.trained-TRAINING.safetensors``, one file for each training, and ``KEY.training-TRAINING.safetensors``, the
checkpoint of one that has not ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.distillation.acceleration import make_accelerator
from nas.distillation.schedule import ElasticSchedule
from nas.distillation.supernet import TrainedSupernet, train_supernet
from nas.distillation.supernet_settings import SupernetSettings
from nas.progress import format_duration
from nas.tasks.cache import content_key
from search_spaces.library import Library

if TYPE_CHECKING:
    from accelerate import Accelerator

    from nas.workbench import Workbench

_VERSION = "supernet training 1"


class SupernetTraining:
    """One `nas train`.

    Args:
        bench: Its stages.

    Raises:
        ValueError: An option of ``train`` is wrong.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.settings = SupernetSettings(**bench.config["train"])

    def run(self) -> Path:
        """Train, unless the same training has ended before; where the trained library lies."""
        accelerator = self.accelerator
        if not accelerator.is_main_process:
            self.bench.mode = "quiet"
        self._check()
        with accelerator.main_process_first():
            self._prepare()
        path = self.path
        if path.is_file():
            self.bench.say(f"Reusing the trained supernet {path}.")
            return path
        self._tell_of_checkpoints()
        trained = self._train()
        if accelerator.is_main_process:
            self._keep(trained)
            self._tell(trained)
        accelerator.wait_for_everyone()
        return path

    @cached_property
    def accelerator(self) -> Accelerator:
        """The processes of this training."""
        return make_accelerator(self.settings.precision)

    @cached_property
    def key(self) -> str:
        """What the training is known by."""
        bench, task, config = self.bench, self.bench.task, self.bench.config
        labels = task.samples.labels("train") if bench.distiller.labels else None
        parts: list[str | bytes] = [_VERSION, bench.library_path.stem, bench.library.metadata.get("trained", "")]
        parts += [task.kind, task.output_settings, task.quality, bench.space.without("precision").fingerprint]
        parts += [task.samples.fingerprint("train"), task.samples.fingerprint("validation")]
        parts += [b"" if labels is None else labels.tobytes(), str(bench.seed)]
        nodes: list[Mapping[str, Any]] = [config["distiller"], config["training"], self.settings.identity()]
        # Which precision `auto` is, the machine says.
        return content_key([*parts, json.dumps([*nodes, str(self.accelerator.mixed_precision)], sort_keys=True)])

    @property
    def path(self) -> Path:
        """Where the trained library lies when it is there."""
        return self._beside("trained")

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished training's state lies."""
        return self._beside("training")

    def _beside(self, what: str) -> Path:
        calibrated = self.bench.library_path
        return calibrated.with_name(f"{calibrated.stem}.{what}-{self.key[:12]}.safetensors")

    def _check(self) -> None:
        """What is wrong with the options, before anything is calibrated."""
        bench = self.bench
        bench.distiller.check(bench.task, narrower=bench.space.narrower)
        schedule = ElasticSchedule.of(bench.space, self.settings.schedule)
        if len(schedule.stages) > 1:
            ends = ", ".join(f"{stage.name} until {stage.end:.0%}" for stage in schedule.stages)
            bench.say(f"Stages: {ends}.")

    def _prepare(self) -> None:
        """The library and the teacher's outputs: from the first process to the disk, from there to the others."""
        bench = self.bench
        teacher = bench.evaluator.teacher
        batches = len(bench.task.samples.order("train", teacher.batch_size))
        with bench.progress("Teacher outputs", batches) as bar:
            teacher.prepare(("train",), bar)

    def _train(self) -> TrainedSupernet:
        bench, settings = self.bench, self.settings
        with bench.progress("Training the supernet", settings.steps) as bar:
            return train_supernet(
                bench.supernet,
                bench.library,
                bench.evaluator,
                settings,
                bench.seed,
                bar,
                accelerator=self.accelerator,
                checkpoint=self.checkpoint,
                key=self.key,
            )

    def _keep(self, trained: TrainedSupernet) -> None:
        """Save the trained library; its checkpoint is of no more use."""
        tensors = trained.library.tensors
        digest = content_key(
            part for name in sorted(tensors) for part in (name, tensors[name].contiguous().numpy().tobytes())
        )
        # Evaluations know a library by its tensors, and not by how they came about: minutes are no number of steps.
        metadata = {
            **trained.library.metadata,
            "trained": digest,
            "training": self.key,
            "steps": str(trained.best_step),
        }
        replace(trained.library, metadata=metadata).save(self.path)
        self.checkpoint.unlink(missing_ok=True)

    def _tell_of_checkpoints(self) -> None:
        found = sorted(self.checkpoint.parent.glob(f"{self.bench.library_path.stem}.training-*.safetensors"))
        if self.checkpoint in found:
            self.bench.say(f"Continuing from {self.checkpoint}.")
        elif found:
            self.bench.say(
                f"Training anew: {found[0]} is of other settings, texts or seed, and is left as it is"
                f"{f', and so are {len(found) - 1} others' if len(found) > 1 else ''}."
            )

    def _tell(self, trained: TrainedSupernet) -> None:
        quality, history = self.bench.task.quality, trained.history
        best = next(row for row in history if row["step"] == trained.best_step)
        print(f"{self.path}\n{trained.step} steps in {format_duration(trained.seconds)}, ended by {trained.ended}")
        for name in [name for name in best if name != "step"]:
            print(f"{quality} of the {name} subnet: {history[0][name]:.4f} -> {best[name]:.4f}")
        if trained.best_step == 0:
            print("No step was better than the calibrated library, which is what was kept.")
        elif trained.best_step < trained.step:
            print(f"The best were the tensors of step {trained.best_step}, which were kept.")
        print("Use it with calibrate.use_trained=true.")


def newest_trained(calibrated: Path) -> Path | None:
    """The library that the last training of a calibrated one left; None where there is none."""
    found = calibrated.parent.glob(f"{calibrated.stem}.trained-*.safetensors")
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def load_trained(calibrated: Path) -> tuple[Path, Library]:
    """The newest trained library of a calibrated one, and where it lies.

    Raises:
        ValueError: None was trained.
    """
    if (path := newest_trained(calibrated)) is None:
        raise ValueError(
            "`calibrate.use_trained` must be false where no supernet was trained for this teacher, texts and space, "
            "but got true; run `nas train` with the same options first."
        )
    return path, Library.load(path)
