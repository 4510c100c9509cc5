"""From a subnet to a latency: compile it for the device, measure some subnets, fit the predictor, judge it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.config import check_arguments
from nas.reports.data import Interval, PredictionCheck, PredictorScore
from nas.tasks.cache import content_key
from nas.workbench import Workbench
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from latency_models.active import LearningPoint
    from latency_models.backends.base import Run
    from latency_models.drift import DriftReport
    from latency_models.predictors import CalibratedPredictor, SubnetPredictor
    from latency_models.profile import DeviceProfile
    from latency_models.subnet_compiler import SubnetCompiler
    from latency_models.transfer import Source

MIN_TRAINING_ROWS = 8
UNITS = {"latency_ms": "ms", "energy_mj": "mJ", "peak_memory_mb": "MB", "throughput": "sequences/s"}


@dataclass(frozen=True)
class FittedPredictor:
    """A device's predictor of one quantity with what is known of its error, on subnets that it was not fitted to.

    Args:
        predictor: Fitted to all rows.
        rows: How many those are.
        scores: Of a fit without the held-out rows, on those; beside FLOPs alone and parameters alone.
        checks: The held-out rows one by one.
        unit: Of the predicted values.
    """

    predictor: SubnetPredictor
    rows: int
    scores: tuple[PredictorScore, ...] = ()
    checks: tuple[PredictionCheck, ...] = ()
    unit: str = "ms"


class DeviceBench:
    """Everything that a workbench does with its device.

    Args:
        bench: The configuration's stages.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.settings = bench.config["profile"]
        self.curve: list[LearningPoint] = []

    # -- running subnets --------------------------------------------------------------------------------------------

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Inputs of the workload's sizes."""
        return self.bench.task.example_inputs(self.bench.workload)

    @cached_property
    def compiler(self) -> SubnetCompiler:
        """What makes subnets run on the device; for graphs, the teacher's has been exported once."""
        from latency_models.subnet_compiler import SubnetCompiler

        bench, task = self.bench, self.bench.task
        made = SubnetCompiler(bench.device, bench.supernet, self.inputs, task.output_names, deployable=task.deployable)
        if not self.takes_module:
            bench.say("Exporting the teacher's graph, from which every subnet's is cut ...")
            with bench.stage("export template"):
                _ = made.template
        return made

    @property
    def takes_module(self) -> bool:
        """Whether the backend takes a torch module (else an ONNX graph)."""
        from latency_models.backends.base import backend_entry

        return backend_entry(self.bench.device.backend).takes == "module"

    def graph(self, subnet: SubnetConfig) -> Any:
        """A subnet's ONNX graph, cut out of the teacher's."""
        return self.compiler.graph(subnet)

    def job(self, subnet: SubnetConfig) -> Callable[[], Run]:
        """What compiles a subnet when its turn comes."""
        return self.compiler.job(subnet)

    # -- profile ----------------------------------------------------------------------------------------------------

    @cached_property
    def judges(self) -> frozenset[SubnetConfig]:
        """Subnets that are measured to judge the predictor, which never learns from them in the judging."""
        from nas.profiling import held_out_subnets

        return held_out_subnets(self.bench.space, int(self.settings["held_out"]), self.bench.seed)

    @cached_property
    def profile(self) -> DeviceProfile:
        """The measured subnets: what an earlier run left, and whatever is missing."""
        from latency_models.active import ActiveProfiling
        from latency_models.profile import DeviceProfile
        from latency_models.profiler import Profiler
        from nas.profiling import METERS, Profiling, remember, remembered

        bench, settings = self.bench, self.settings
        if unknown := [name for name in settings["meters"] if name not in METERS]:
            raise ValueError(f"`profile.meters` must be of {', '.join(METERS)}, but got {unknown[0]!r}.")
        profile = DeviceProfile.open(self.profile_path, self._header())
        for problem in profile.problems:
            bench.say(f"Left out: {problem}")
        stopping = {**settings, "seed": bench.seed, "predictor": self.predictor_name}
        if (curve := remembered(profile, stopping)) is not None and not profile.missing(self.judges):
            self.curve = curve
            bench.say(f"Reusing the profile {profile.path}: {len(profile.latest())} subnets.")
            with bench.stage("profile", reused=True):
                return profile
        check_arguments(Profiler, settings["protocol"])
        options = {"space": bench.space, "workload": bench.workload, "seed": bench.seed, **settings["active"]}
        check_arguments(ActiveProfiling, options)
        options["start"] = min(options.get("start", ActiveProfiling.start), int(settings["num_subnets"]))
        active = ActiveProfiling(**options, make=self._make, exclude=self.judges)
        compiler, minutes = self.compiler, settings["budget_minutes"]
        with bench.stage("profile"):
            deadline = time.monotonic() + 60 * float(minutes) if minutes else None
            work = Profiling(
                bench, profile, compiler, active, Profiler(**settings["protocol"], seed=bench.seed), deadline
            )
            work.run()
        self.curve = active.curve
        if not work.late:
            remember(profile, stopping, active.curve)
        return profile

    @property
    def profile_path(self) -> Path:
        """Where the profile lies, by device, teacher, space and workload."""
        bench = self.bench
        key = content_key([bench.teacher_hash, bench.space.fingerprint, str(bench.workload)])[:12]
        return bench.cache / "profiles" / f"{bench.device.name}-{bench.device.fingerprint_id}-{key}.jsonl"

    def _header(self) -> Any:
        from latency_models.profile import Header

        bench = self.bench
        return Header(
            device=bench.device.to_dict(),
            fingerprint=bench.device.fingerprint(),
            workload=bench.workload,
            space=bench.space.fingerprint,
            shape=bench.space.shape,
            teacher=bench.teacher_hash,
        )

    # -- predictor --------------------------------------------------------------------------------------------------

    @property
    def predictor_name(self) -> str:
        """Which predictor the configuration names.

        Raises:
            ValueError: There is none of that name.
        """
        from latency_models.predictors import PREDICTORS

        name = str(self.bench.config["predictor"]["name"])
        if name not in PREDICTORS:
            raise ValueError(f"`predictor.name` must be one of {', '.join(PREDICTORS)}, but got {name!r}.")
        return name

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Models of the profiles that other devices have of the same teacher, space and workload, by device."""
        from latency_models.features import from_table
        from latency_models.transfer import fit_source
        from nas.profiling import sibling_profiles

        if not self.settings["transfer"] or self.predictor_name != "auto":
            return {}
        found = {}
        for profile in sibling_profiles(self.profile_path, self._header()):
            subnets, values = profile.training_data()
            features = from_table(self.bench.space.shape, subnets, self.bench.workload)
            name = profile.path.stem.rpartition("-")[0]
            found[name] = fit_source(features, values, np.arange(len(values), dtype=np.float64))
            self.bench.say(f"Other devices' profiles: {profile.header.device['name']}, {len(values)} subnets.")
        return found

    def _make(self) -> CalibratedPredictor:
        """A predictor to be fitted: the configured one, which borrows from other devices where it can."""
        from latency_models.predictors import PREDICTORS
        from latency_models.transfer import transfer

        if self.sources:
            return transfer(self.sources, self.bench.seed)
        return PREDICTORS[self.predictor_name](self.bench.seed)

    @cached_property
    def fitted(self) -> FittedPredictor:
        """The predictor of latency, judged on held-out subnets and then fitted to all of them."""
        return self.fit("latency_ms")

    def fit(self, quantity: str) -> FittedPredictor:
        """The predictor of a quantity of the profile, judged on held-out subnets and then fitted to all.

        Raises:
            ValueError: Too few subnets are measured.
        """
        from latency_models.predictors import SubnetPredictor

        bench, profile, unit = self.bench, self.profile, UNITS.get(quantity, "")
        subnets, values = profile.training_data(quantity)
        test = [index for index, subnet in enumerate(subnets) if subnet in self.judges]
        train = [index for index, subnet in enumerate(subnets) if subnet not in self.judges]
        if len(train) < MIN_TRAINING_ROWS:
            raise ValueError(
                f"`profile.num_subnets` must leave at least {MIN_TRAINING_ROWS} measured subnets to fit on, but "
                f"{profile.path} has {len(train)}; raise it or `profile.budget_minutes`."
            )
        make = self._make if quantity == "latency_ms" else self._own
        shape, workload = bench.space.shape, bench.workload
        with bench.stage(f"fit {quantity}"):
            scores: tuple[PredictorScore, ...] = ()
            checks: tuple[PredictionCheck, ...] = ()
            if len(test) >= 2:
                judged = SubnetPredictor(shape, workload, make(), unit)
                judged.fit([subnets[i] for i in train], values[train])
                scores, checks = self._judge(judged, subnets, values, train, test)
            predictor = SubnetPredictor(shape, workload, make(), unit).fit(subnets, values)
        return FittedPredictor(predictor, len(subnets), scores, checks, unit)

    @property
    def drift(self) -> DriftReport | None:
        """Shifted stretches of the profile; None where there are too few rows to tell."""
        predictor = self.fitted.predictor.predictor
        report: DriftReport | None = getattr(predictor, "drift_", None)
        return report

    def chosen_text(self) -> str:
        """The models that cross-validation kept, with their weights."""
        weights: dict[str, float] = getattr(self.fitted.predictor.predictor, "weights_", {})
        ordered = sorted(weights.items(), key=lambda pair: -pair[1])
        return f"{self.predictor_name} ({', '.join(f'{name} {weight:.0%}' for name, weight in ordered)})"

    def _own(self) -> CalibratedPredictor:
        from latency_models.predictors import PREDICTORS

        return PREDICTORS[self.predictor_name](self.bench.seed)

    def _judge(
        self, judged: SubnetPredictor, subnets: list[SubnetConfig], values: Any, train: list[int], test: list[int]
    ) -> tuple[tuple[PredictorScore, ...], tuple[PredictionCheck, ...]]:
        from latency_models.features import from_table
        from latency_models.scores import noise_floor, scorecard

        shape, workload = self.bench.space.shape, self.bench.workload
        confidence = float(self.bench.config["objectives"]["confidence"])
        known = from_table(shape, [subnets[i] for i in train], workload), values[train]
        rows = from_table(shape, [subnets[i] for i in test], workload), values[test]
        floor = None
        if judged.unit == "ms":
            floor = noise_floor([np.array(row.measurement.samples) for row in self.profile.latest().values()])
        card = scorecard(judged.predictor, known, rows, noise_floor=floor, confidence=confidence, unit=judged.unit)
        scores = tuple(_score(title, row, floor) for title, row in card.rows().items())
        found = judged.predict([subnets[i] for i in test], confidence)
        checks = tuple(
            PredictionCheck(f"subnet {i + 1}", Interval(float(value), float(low), float(high)), float(measured))
            for i, (value, low, high, measured) in enumerate(
                zip(found.value, found.lower, found.upper, values[test], strict=True)
            )
        )
        return scores, checks


def _score(title: str, scores: Any, floor: float | None) -> PredictorScore:
    values = {key: value for key, value in scores.to_dict().items() if key != "n" and value is not None}
    return PredictorScore(title, scores.n, values if floor is None else {**values, "noise_floor": floor})
