"""The search stage: costs and limits, warm start, the study, its front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from nas.beforehand import check_search
from nas.config import build
from nas.engine.errors import InfeasibleError
from nas.engine.locks import FileLock
from nas.measuring import DeviceBench
from nas.studies import study_directory
from nas.workbench import Workbench

if TYPE_CHECKING:
    from nas.engine.allocate import WarmStart
    from nas.engine.cache import EvaluationCache
    from nas.engine.candidates import Candidate
    from nas.engine.costs import Predicts, SubnetCosts
    from nas.engine.limits import Limit, Objectives
    from nas.engine.progress import Tracker
    from nas.engine.rungs import Fidelities
    from nas.engine.search import Search
    from nas.engine.sensitivity import Sensitivity
    from nas.engine.study import WarmStarts
    from search_spaces.space import SearchSpace
    from search_spaces.subnet import SubnetConfig


@dataclass(frozen=True)
class Found:
    """What a search has found: all candidates and the Pareto front."""

    candidates: list[Candidate]
    front: list[Candidate]


class SearchBench:
    """Everything that a search needs of a workbench.

    Args:
        bench: The configuration's stages.
        device: Its device's.
    """

    def __init__(self, bench: Workbench, device: DeviceBench) -> None:
        self.bench = bench
        self.device = device
        self.settings = bench.config["search"]
        # Built at once, so that a mistake is told before anything is measured.
        self.storage, self.fidelities = build(bench.config["storage"], "storage"), self._fidelities()
        build(bench.config["sampler"], "sampler")
        self.directory = study_directory(bench)

    def _fidelities(self) -> Fidelities:
        from nas.engine.rungs import Fidelities

        settings = self.settings
        pruner = build(settings["pruner"], "search.pruner") if settings["pruner"] else None
        return Fidelities(tuple(settings["rungs"]), int(settings["reduction_factor"]), pruner)

    @cached_property
    def objectives(self) -> Objectives:
        """Goals and constraints, ``quality`` replaced by the task's main metric."""
        from nas.evaluation.aspects import lower_is_better

        objectives: Objectives = build(self.bench.config["objectives"], "objectives")
        quality = self.bench.task.quality
        return objectives.with_quality(quality, lower_is_better=lower_is_better(quality, self.bench.task))

    @cached_property
    def costs(self) -> SubnetCosts:
        """Costs that are known before an evaluation."""
        from nas.engine.costs import SubnetCosts
        from nas.profiling import METERS

        needed = {*self.objectives.goals, *self.objectives.constraints}
        predictors: dict[str, Predicts] = {}
        if needed & {"latency_ms", "throughput"}:
            predictors["latency_ms"] = self.device.fitted.predictor
        predictors |= {name: self.device.fit(name).predictor for name in METERS if name in needed}
        return SubnetCosts(self.bench.space, self.bench.workload, predictors, self.objectives.confidence)

    @cached_property
    def space(self) -> SearchSpace:
        """The choices, without precisions that cost the same on the device as a more exact one."""
        from nas.engine.folding import fold_precisions

        if self.costs.predictors and self.device.few:
            return self.bench.space  # All of it is measured, and nothing else can be compared.
        found, folded = fold_precisions(
            self.bench.space, self.costs, {*self.objectives.goals, *self.objectives.constraints}
        )
        for precision, exact in folded.items():
            self.bench.say(f"Blocks of {precision} cost no less than those of {exact} here: folded into one choice.")
        return found

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        """The constraints in numbers; checked that the space holds something that keeps to them."""
        from nas.engine.feasibility import check_feasible
        from nas.engine.limits import resolve_limits
        from nas.evaluation.aspects import lower_is_better

        teacher = {name: values[0] for name, values in self.costs.of(self.bench.space.teacher).items()}
        limits = resolve_limits(
            self.objectives,
            teacher,
            lambda: self.bench.evaluator.evaluate(self.bench.space.teacher),
            lambda name: lower_is_better(name, self.bench.task),
        )
        check_feasible(self.space, self.costs, limits, self.bench.seed)
        return limits

    @cached_property
    def cache(self) -> EvaluationCache:
        """Evaluations of earlier runs under the same conditions."""
        from nas.engine.cache import EvaluationCache

        return EvaluationCache(self.bench.cache / "evaluations.jsonl", self.bench.evaluation_context())

    def evaluate(self, subnet: SubnetConfig, steps: int) -> dict[str, float]:
        """Metrics of a subnet after so many steps of distillation, on the validation split."""
        return self.bench.evaluator.evaluate(subnet, steps=steps, seed=self.bench.seed)

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """One-block-replacement losses; evaluations of earlier runs are reused."""
        from nas.engine.sensitivity import count_evaluations, measure_sensitivity
        from nas.evaluation.aspects import lower_is_better

        bench, limit = self.bench, int(self.settings["sensitivity_evaluations"])
        _ = bench.evaluator
        reused = 0

        def cached(subnet: SubnetConfig, steps: int) -> dict[str, float]:
            nonlocal reused
            known = self.cache.get(subnet, steps)
            if known is not None:
                reused += 1
                return known
            metrics = self.evaluate(subnet, steps)
            self.cache.put(subnet, steps, metrics)
            return metrics

        total = count_evaluations(self.space, limit)
        with bench.stage("sensitivity"), bench.progress("Sensitivity", total) as bar:
            found = measure_sensitivity(
                self.space,
                cached,
                bench.task.quality,
                maximize=not lower_is_better(bench.task.quality, bench.task),
                max_evaluations=limit,
                advance=lambda text: bar.advance(text=text),
            )
        if reused:
            bench.say(f"Reused {reused} of {total} evaluations of the sensitivity table.")
        return found

    @cached_property
    def everything(self) -> list[WarmStart]:
        """All subnets that keep to the limits, where there is a trial for each: with them the search ends."""
        from nas.engine.allocate import all_starts
        from nas.engine.samplers import Feasible

        return all_starts(self.space, Feasible(self.space, self.costs, self.limits), int(self.settings["num_trials"]))

    @property
    def num_trials(self) -> int:
        """Trials in total: those asked for, or as many as there are subnets to evaluate."""
        rungs = 1 if self.fidelities.pruner else len(self.fidelities.steps)
        asked = int(self.settings["num_trials"])
        return min(asked, rungs * len(self.everything)) if self.everything else asked

    def warm_start(self) -> list[WarmStart]:
        """Where the search begins: extremes, uniform subnets, and the knapsack's allocations."""
        from nas.engine.allocate import warm_starts
        from nas.engine.samplers import Feasible

        if self.everything:
            return self.everything
        cost = "latency_ms" if "latency_ms" in self.costs.names else "macs"
        sensitivity = self.sensitivity if self.settings["sensitivity_evaluations"] else None
        return warm_starts(
            self.space,
            self.costs,
            sensitivity=sensitivity,
            cost=cost,
            feasible=Feasible(self.space, self.costs, self.limits),
            uniform=int(self.settings["uniform_starts"]),
            allocated=int(self.settings["allocated_starts"]),
        )

    def run(self) -> Found:
        """Search until ``search.num_trials`` trials have ended, those of earlier runs counted."""
        from nas.engine.candidates import nearest_to_feasible, pareto_front
        from nas.engine.progress import LiveLine, load_trackers
        from nas.workers import WorkerTeam, share_cores, usable_cores

        bench, workers = self.bench, int(self.settings["workers"])
        share_cores(usable_cores(), workers)
        trackers = load_trackers(self.settings["trackers"])
        _ = bench.distiller  # What does not fit the task is told before minutes are spent.
        check_search(self)
        with self.undisturbed():
            warm_start = self.warm_start()
            _ = bench.evaluator
        with bench.progress("Searching", self.num_trials) as bar, bench.stage("search"):
            search = self.search(warm_start, (LiveLine(bar), *trackers))
            candidates = search.run() if workers == 1 else WorkerTeam(bench.config, workers, self.directory).run(search)
        if search.interrupted:
            raise KeyboardInterrupt
        front = pareto_front(candidates, self.objectives)
        if not front:
            nearest = nearest_to_feasible(candidates)
            raise InfeasibleError(
                f"search: no evaluated subnet keeps to all constraints; {nearest}. Loosen one of them."
            )
        return Found(candidates, front)

    def join(self) -> None:
        """Work on a study that another process has begun, until it is finished."""
        search = self.search((), (), fresh_chance=True)
        search.run()
        if search.interrupted:
            raise KeyboardInterrupt

    def search(self, warm_start: WarmStarts, trackers: Sequence[Tracker] = (), *, fresh_chance: bool = False) -> Search:
        """The study's search.

        Args:
            warm_start: Where it begins.
            trackers: Hear of every trial.
            fresh_chance: Whether the sampler draws otherwise than its seed says, as workers beside each other must.
        """
        import optuna

        from nas.engine.objective import Objective
        from nas.engine.samplers import bind
        from nas.engine.search import Search

        bench, settings = self.bench, self.settings
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = build(bench.config["sampler"], "sampler")
        if fresh_chance:
            sampler.reseed_rng()
        return Search(
            self.directory,
            bench.config["study"],
            Objective(self.space, self.costs, self.evaluate, self.objectives, self.limits, self.cache),
            bind(sampler, self.space, self.costs, self.limits, self.objectives, seed=bench.seed),
            self.num_trials,
            storage=self.storage,
            warm_start=warm_start,
            context={
                "task": bench.config["task"],
                "model": bench.teacher_hash,
                "device": bench.device.to_dict(),
                "workload": bench.workload.to_dict(),
                "rungs": list(settings["rungs"]),
                **({} if bench.judged_precision == "fp32" else {"judged in": bench.judged_precision}),
            },
            on_change=settings["on_change"],
            fidelities=self.fidelities,
            max_failure_share=float(settings["max_failure_share"]),
            max_retries=int(settings["max_retries"]),
            trial_timeout_s=settings["trial_timeout_s"],
            trackers=trackers,
        )

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Within this context no other search of this cache calibrates, profiles or measures."""
        lock = FileLock(self.bench.cache / "measuring.lock")
        if not lock.acquire(wait=False):
            self.bench.say("Another search measures on this machine; waiting for it ...")
        with lock:
            yield

    def stored(self) -> Found:
        """What the study's storage holds, without searching.

        Raises:
            ValueError: The storage has no such study, or nothing in it is feasible.
        """
        from nas.front import read_front

        candidates, front, _ = read_front(self.storage, str(self.bench.config["study"]), self.directory)
        return Found(candidates, front)
