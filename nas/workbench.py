"""The stages that commands are made of: each is done when first asked for, kept by content, and reused later.

Every stage's key is made of everything that its result depends on, so a changed option redoes what it touches and
nothing else. `nas search` alone does whatever is missing and says what it reuses.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.config import build, construct
from nas.progress import Mode, Progress
from nas.reports.data import StageTiming
from nas.tasks.cache import content_key
from search_spaces.cost import Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from latency_models.device import Device
    from nas.distillation.losses import Distiller
    from nas.evaluation.aspects import NamedMetrics
    from nas.evaluation.evaluate import Evaluator
    from nas.tasks.task import Task
    from search_spaces.library import Library
    from search_spaces.space import SearchSpace
    from search_spaces.subnet import Precision, SubnetConfig
    from search_spaces.supernet import Supernet


class Workbench:
    """All stages of one configuration.

    Args:
        config: The resolved configuration, as plain data.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.root = Path(config["root"])
        self.cache = self.root / "cache"
        self.seed = int(config["seed"])
        self.mode: Mode = config["progress"]
        self.timings: list[StageTiming] = []
        self.notes: list[str] = []
        if (threads := config["torch_threads"]) is not None:
            import torch

            torch.set_num_threads(threads)

    # -- telling ----------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """One line for the user, unless progress is to be quiet."""
        if self.mode != "quiet":
            print(text, file=sys.stderr, flush=True)

    def progress(self, title: str, total: int | None = None) -> Progress:
        """A progress line with time left."""
        return Progress(title, total, mode=self.mode)

    @contextmanager
    def stage(self, name: str, *, reused: bool = False, note: str = "") -> Iterator[None]:
        """Time a stage for the report."""
        started = time.perf_counter()
        yield
        self.timings.append(StageTiming(name, time.perf_counter() - started, reused, note))

    # -- the teacher and its data -----------------------------------------------------------------------------------

    @cached_property
    def task(self) -> Task:
        """The task, with the model's path filled in."""
        task: Task = build(self.config["task"], "task", model=self.config["model"]["path"], cache_dir=str(self.cache))
        return task

    @cached_property
    def teacher(self) -> nn.Module:
        """The pretrained model, whole and unchanged."""
        from transformers.utils import logging

        # Loading takes no time worth a second progress bar beside ours.
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        with self.stage("load teacher"):
            return self.task.load_model()

    @cached_property
    def teacher_hash(self) -> str:
        """What caches know the teacher by."""
        from search_spaces.library import model_hash

        return model_hash(self.teacher)

    @cached_property
    def workload(self) -> Workload:
        """What one run on the device processes."""
        from search_spaces.shapes import most_positions

        workload: Workload = construct(Workload, self.config["workload"], "workload")
        if workload.phase != "encode" and self.task.kind != "causal_lm":
            raise ValueError(
                f"`workload.phase` must be encode for a {self.task.kind} task, but got {workload.phase!r}; "
                "only causal language models have prompts and a KV cache."
            )
        workload.check_positions(most_positions(self.teacher))
        return workload

    @cached_property
    def device(self) -> Device:
        """The target device."""
        from latency_models.device import Device, check_cores

        return check_cores(construct(Device, self.config["device"], "device"))

    @cached_property
    def place(self) -> torch.device:
        """Where subnets are distilled and judged."""
        from nas.tasks.placement import find_device

        return find_device(self.config.get("torch_device", "auto"))  # Older studies have none.

    # -- search space and supernet ----------------------------------------------------------------------------------

    @cached_property
    def space(self) -> SearchSpace:
        """The choices, resolved against the teacher; of precisions, those that are different ones on the device.

        Raises:
            ValueError: A choice does not fit the teacher, or the device.
        """
        from latency_models.precisions import for_device
        from search_spaces.shapes import ModelShape
        from search_spaces.space import SearchSpace

        options = dict(self.config["space"])
        own = dict(options.get("overrides") or {})
        options["overrides"] = {int(key) if str(key).isdecimal() else key: value for key, value in own.items()}
        options["shape"] = ModelShape.from_model(self.teacher)
        space: SearchSpace = construct(SearchSpace.from_choices, options, "space")
        found = for_device(space, self.device) if self.config.get("device") else space
        if found != space:
            name, precision = self.device.name, self.device.precision
            self.say(f"{name} runs whole models in {precision}: blocks' fp32 and {precision} are one choice.")
        return found

    @cached_property
    def library_path(self) -> Path:
        """Where the calibration library lies, by teacher, data, sizes and settings: precisions take none of it."""
        from search_spaces.library import LIBRARY_VERSION, model_fingerprint

        settings = self.config["calibrate"]
        # The model first: what is wrong with it tells more than what then fits the texts badly.
        parts = [f"library {LIBRARY_VERSION}", model_fingerprint(self.teacher)]
        parts += [self.task.samples.fingerprint("calibration"), self.space.without("precision").fingerprint]
        parts.append(settings["importance"])
        return self.cache / "libraries" / f"{content_key(parts)}.safetensors"

    @cached_property
    def library(self) -> Library:
        """The compensated variants: loaded where an earlier run left them, else calibrated."""
        from search_spaces.calibrate import calibrate, count_steps
        from search_spaces.library import Library

        path, settings = self.library_path, self.config["calibrate"]
        if settings["use_trained"]:
            from nas.training import load_trained

            with self.stage("calibrate", reused=True, note="trained supernet"):
                trained, library = load_trained(path)
            self.say(f"Reusing the trained supernet {trained}.")
            return library
        if path.is_file():
            self.say(f"Reusing the calibration {path}.")
            with self.stage("calibrate", reused=True):
                return Library.load(path)
        batches = list(self.task.batches("calibration", settings["batch_size"]))
        with self.stage("calibrate"), self.progress("Calibrating", count_steps(self.space, len(batches))) as bar:
            library = calibrate(
                self.teacher,
                batches,
                self.space,
                importance=settings["importance"],
                max_gb=settings["max_gb"],
                on_batch=lambda _: bar.advance(text="activations"),
                on_block=lambda done: bar.advance(text=f"block {done} of {self.space.shape.num_blocks}"),
            )
            library.save(path)
        self.say(f"Calibration: {library.size} in {path}.")
        return library

    @cached_property
    def supernet(self) -> Supernet:
        """The weight-sharing model; the teacher itself stays as it is."""
        from search_spaces.supernet import Supernet

        library = self.library
        return Supernet(copy.deepcopy(self.teacher), library, self.space)

    def finalist(self, subnet: SubnetConfig) -> nn.Module:
        """A subnet as a plain model, refitted as a whole where ``finalists.recalibrate`` says so."""
        return self.refitted(self.supernet.extract(subnet), subnet)

    def refitted(self, model: nn.Module, subnet: SubnetConfig) -> nn.Module:
        """An extracted model of a subnet, refitted in place as a whole where ``finalists.recalibrate`` says so."""
        from search_spaces.recalibrate import recalibrate

        if self.config["finalists"]["recalibrate"] and subnet.plain != self.space.teacher:
            batches = self.task.batches("calibration", self.config["calibrate"]["batch_size"])
            with self.progress("Recalibrating", subnet.depth) as bar:
                kept, coordinates = subnet.kept, self.supernet.coordinates(subnet)
                recalibrate(
                    model, self.teacher, kept, batches, coordinates=coordinates, on_block=lambda _: bar.advance()
                )
        return model

    # -- quality ----------------------------------------------------------------------------------------------------

    @cached_property
    def distiller(self) -> Distiller:
        """The loss between students and the teacher.

        Raises:
            ValueError: The task does not give what it reads.
        """
        distiller: Distiller = build(self.config["distiller"], "distiller")
        distiller.check(self.task)
        return distiller

    @cached_property
    def evaluator(self) -> Evaluator:
        """Judges subnets against the teacher's stored outputs."""
        from nas.distillation.teacher import TeacherOutputs
        from nas.evaluation.evaluate import Evaluator

        teacher = TeacherOutputs(self.task, self.distiller.needs, str(self.cache), model=self.teacher, place=self.place)
        evaluator = Evaluator(
            self.supernet,
            self.task,
            self.distiller,
            build(self.config["training"], "training"),
            teacher,
            extras=self.extras,
            device_precision=self.judged_precision,
            place=self.place,
        )
        if self.place.type != "cpu":
            self.say(f"Subnets are distilled and judged on {self.place}.")
        splits = ("validation", "test")
        batches = sum(len(self.task.samples.order(split, teacher.batch_size)) for split in splits)
        with self.stage("teacher outputs"), self.progress("Teacher outputs", batches) as bar:
            teacher.prepare(splits, bar)
        return evaluator

    @property
    def judged_precision(self) -> Precision:
        """The precision in which subnets are judged, beside that of single blocks: ``search.judge_in``."""
        from latency_models.precisions import judged_precision

        wanted = self.config.get("search", {}).get("judge_in", "device")
        return judged_precision(self.device) if wanted == "device" and self.config.get("device") else "fp32"

    @cached_property
    def extras(self) -> NamedMetrics | None:
        """Metrics that objectives and constraints name beyond those that the task always gives."""
        from nas.engine.costs import KNOWN_COSTS
        from nas.engine.limits import QUALITY
        from nas.evaluation.aspects import NamedMetrics

        objectives = self.config.get("objectives") or {}
        names = {*objectives.get("goals", ()), *objectives.get("constraints", ())} - {QUALITY, *KNOWN_COSTS}
        if not names:
            return None
        found = NamedMetrics(self.task, build(self.config["evaluation"], "evaluation"), sorted(names))
        return found if found.names else None

    def evaluation_context(self) -> dict[str, Any]:
        """Everything that an evaluation's result depends on beside the subnet and the steps."""
        extras = self.extras.context(self.config["evaluation"]) if self.extras else {}
        quantized = any(dimension.name == "precision" for dimension in self.space.dimensions)
        if quantized or self.judged_precision != "fp32":
            # Evaluations of blocks that were not quantised yet must not be taken for those of blocks that are.
            extras["simulated"] = self.judged_precision
        return {
            **extras,
            "teacher": self.teacher_hash,
            "task": self.config["task"],
            "validation": self.task.samples.fingerprint("validation"),
            "library": self.library_path.stem,
            "trained": self.library.metadata.get("trained", ""),
            # How it is trained, the order of samples included: where nothing is, searches share their evaluations.
            **{n: self.config[n] for n in ("distiller", "training", "seed") if any(self.config["search"]["rungs"])},
        }
