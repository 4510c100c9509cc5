"""From a subnet to a latency: compile it for the device, measure a design of subnets, fit the predictor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.config import check_arguments
from nas.reports.data import Interval, PredictionCheck, PredictorScore
from nas.tasks.cache import content_key
from nas.workbench import Workbench
from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from latency_models.backends.base import Backend, Run
    from latency_models.backends.graph_template import GraphTemplate
    from latency_models.predictors import SubnetPredictor
    from latency_models.profile import DeviceProfile

MIN_TRAINING_ROWS = 8


@dataclass(frozen=True)
class FittedPredictor:
    """A device's predictor with what is known of its error, on subnets that it was not fitted to."""

    predictor: SubnetPredictor
    rows: int
    scores: tuple[PredictorScore, ...] = ()
    checks: tuple[PredictionCheck, ...] = ()


class DeviceBench:
    """Everything that a workbench does with its device.

    Args:
        bench: The configuration's stages.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.settings = bench.config["profile"]

    @cached_property
    def backend(self) -> Backend:
        """The device's runtime."""
        from latency_models.backends.base import make_backend

        return make_backend(self.bench.device)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Inputs of the workload's sizes."""
        return self.bench.task.example_inputs(self.bench.workload)

    @cached_property
    def template(self) -> GraphTemplate:
        """The teacher's graph, exported once, out of which every subnet's is cut."""
        from latency_models.backends.graph_template import GraphTemplate

        task = self.bench.task
        self.bench.say("Exporting the teacher's graph, from which every subnet's is cut ...")
        with self.bench.stage("export template"):
            return GraphTemplate.from_model(task.deployable(self.bench.teacher), self.inputs, task.output_names)

    @property
    def takes_module(self) -> bool:
        """Whether the backend takes a torch module (else an ONNX graph)."""
        from latency_models.backends.base import backend_entry

        return backend_entry(self.bench.device.backend).takes == "module"

    def deployed(self, subnet: SubnetConfig) -> Any:
        """A subnet as the backend takes it: a module, or the edited graph."""
        if self.takes_module:
            return self.bench.task.deployable(self.bench.supernet.extract(subnet))
        return self.graph(subnet)

    def graph(self, subnet: SubnetConfig) -> Any:
        """A subnet's ONNX graph, cut out of the template."""
        skipped = sorted(set(range(len(subnet.blocks))) - set(subnet.kept))
        return self.template.edit(self.bench.supernet.linear_weights(subnet), skipped)

    def compiler(self, subnet: SubnetConfig) -> Callable[[], Run]:
        """What compiles a subnet when its turn comes."""
        return lambda: self.backend.compile(self.deployed(subnet), self.inputs)

    # -- profile ----------------------------------------------------------------------------------------------------

    @cached_property
    def profile(self) -> DeviceProfile:
        """The measured subnets: what an earlier run left, and whatever is missing."""
        from latency_models.profile import DeviceProfile, Header
        from latency_models.profiler import Profiler

        bench, settings = self.bench, self.settings
        key = content_key([bench.teacher_hash, bench.space.fingerprint, str(bench.workload)])[:12]
        name = f"{bench.device.name}-{bench.device.fingerprint_id}-{key}.jsonl"
        header = Header(
            device=bench.device.to_dict(),
            fingerprint=bench.device.fingerprint(),
            workload=bench.workload,
            space=bench.space.fingerprint,
            shape=bench.space.shape,
            teacher=bench.teacher_hash,
        )
        path = bench.cache / "profiles" / name
        profile = DeviceProfile.open(path, header)
        for problem in profile.problems:
            bench.say(f"Left out: {problem}")
        missing = profile.missing(design(bench.space, settings["num_subnets"] + settings["held_out"], bench.seed))
        if not missing:
            bench.say(f"Reusing the profile {path}: {len(profile.latest())} subnets.")
            with bench.stage("profile", reused=True):
                return profile
        if len(profile):
            bench.say(f"Continuing the profile {path}: {len(profile.latest())} subnets are there.")
        check_arguments(Profiler, settings["protocol"])
        profiler = Profiler(**settings["protocol"], seed=bench.seed)
        # Done before the clock of the progress line starts.
        _ = bench.supernet, None if self.takes_module else self.template
        candidates = [(subnet, self.compiler(subnet)) for subnet in missing]
        reference = self.compiler(bench.space.teacher)
        with bench.stage("profile"), bench.progress(f"Profiling {bench.device.name}", len(missing)) as bar:
            measured = profiler.measure(
                candidates,
                reference,
                reference_level=profile.reference_level,
                budget_seconds=60 * settings["budget_minutes"] if settings["budget_minutes"] else None,
            )
            done = set()
            for subnet, measurement in measured:
                profile.append(subnet, measurement)
                if subnet not in done:
                    bar.advance(text=f"{measurement.p50:.1f} ms")
                done.add(subnet)
        return profile

    @cached_property
    def fitted(self) -> FittedPredictor:
        """The predictor, judged on held-out subnets and then fitted to all of them."""
        from latency_models.features import from_table
        from latency_models.predictors import PREDICTORS, SubnetPredictor
        from latency_models.scores import noise_floor, scorecard

        bench, profile = self.bench, self.profile
        name = bench.config["predictor"]["name"]
        if name not in PREDICTORS:
            raise ValueError(f"`predictor.name` must be one of {', '.join(PREDICTORS)}, but got {name!r}.")
        subnets, values = profile.training_data()
        fresh = set(
            design(bench.space, self.settings["num_subnets"] + self.settings["held_out"], bench.seed)[
                self.settings["num_subnets"] :
            ]
        )
        test = [i for i, subnet in enumerate(subnets) if subnet in fresh]
        train = [i for i in range(len(subnets)) if i not in set(test)]
        if len(train) < MIN_TRAINING_ROWS:
            raise ValueError(
                f"`profile.num_subnets` must leave at least {MIN_TRAINING_ROWS} measured subnets to fit on, but "
                f"{profile.path} has {len(train)}; raise it or `profile.budget_minutes`."
            )
        shape, confidence = bench.space.shape, float(bench.config["objectives"]["confidence"])
        scores: tuple[PredictorScore, ...] = ()
        checks: tuple[PredictionCheck, ...] = ()
        with bench.stage("fit predictor"):
            if len(test) >= 2:
                judged = SubnetPredictor(shape, bench.workload, PREDICTORS[name](bench.seed))
                judged.fit([subnets[i] for i in train], values[train])
                known = from_table(shape, [subnets[i] for i in train], bench.workload), values[train]
                rows = from_table(shape, [subnets[i] for i in test], bench.workload), values[test]
                floor = noise_floor([np.array(row.measurement.samples) for row in profile.latest().values()])
                card = scorecard(judged.predictor, known, rows, noise_floor=floor, confidence=confidence)
                scores = tuple(_score(title, row, floor) for title, row in card.rows().items())
                checks = _checks(judged, [subnets[i] for i in test], values[test], confidence)
            predictor = SubnetPredictor(shape, bench.workload, PREDICTORS[name](bench.seed)).fit(subnets, values)
        return FittedPredictor(predictor, len(subnets), scores, checks)


def design(space: SearchSpace, count: int, seed: int) -> list[SubnetConfig]:
    """Subnets to measure: the extremes, a few uniform ones, then random ones; without repeats, in a fixed order.

    A larger count begins with the same subnets, so that a profile can be continued.
    """
    uniform = space.uniform()
    spread = [uniform[int(i)] for i in np.linspace(0, len(uniform) - 1, min(6, len(uniform))).round()]
    chosen = dict.fromkeys([space.teacher, space.largest, space.smallest, *spread])
    generator = np.random.default_rng(seed)
    for _ in range(50):
        if len(chosen) >= count:
            break
        chosen |= dict.fromkeys(space.sample(generator, 64))
    return list(chosen)[:count]


def _score(title: str, scores: Any, floor: float) -> PredictorScore:
    values = {key: value for key, value in scores.to_dict().items() if key != "n" and value is not None}
    return PredictorScore(title, scores.n, {**values, "noise_floor": floor})


def _checks(
    predictor: SubnetPredictor, subnets: list[SubnetConfig], values: Any, confidence: float
) -> tuple[PredictionCheck, ...]:
    found = predictor.predict(subnets, confidence)
    return tuple(
        PredictionCheck(
            f"subnet {i + 1}",
            Interval(float(found.value[i]), float(found.lower[i]), float(found.upper[i])),
            float(values[i]),
        )
        for i in range(len(subnets))
    )
