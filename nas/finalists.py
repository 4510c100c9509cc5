"""The finalists' longer distillation: a budget in steps or minutes, and never worse for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.evaluation.aspects import lower_is_better

if TYPE_CHECKING:
    from torch import nn

    from latency_models.backends.base import Run
    from latency_models.measurement import Measurement
    from latency_models.profiler import Profiler
    from latency_models.session import Compile
    from nas.progress import Progress
    from nas.workbench import Workbench
    from search_spaces.space import SearchSpace
    from search_spaces.subnet import SubnetConfig

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a finalist is distilled; whichever ends first where both are given.

    Args:
        steps: Distillation steps, or 0 or None for no limit.
        minutes: Minutes, or 0 or None for no limit.
        stages: 2 distils subnets from which more than half of the blocks' parameters is gone half-way first.
    """

    steps: int | None
    minutes: float | None
    stages: int = 1

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Budget:
        """``finalists.steps``, ``finalists.minutes`` and ``finalists.stages``."""
        return cls(settings["steps"] or None, settings["minutes"] or None, settings["stages"])

    @property
    def half(self) -> Budget:
        """That of each of two stages."""
        return Budget(self.steps and max(1, self.steps // 2), self.minutes and self.minutes / 2)

    def __bool__(self) -> bool:
        return bool(self.steps or self.minutes)


def distil_finalist(bench: Workbench, subnet: SubnetConfig, model: nn.Module, name: str, budget: Budget) -> bool:
    """Distil a model in place; where the validation split's quality falls, its weights are put back.

    A short training at the usual rate disturbs a subnet that is close to its teacher more than it teaches it.

    Args:
        bench: The search's stages.
        subnet: The model's architecture.
        model: The subnet as it was extracted and perhaps refitted.
        name: What people call it.
        budget: How long.

    Returns:
        Whether the model was changed.
    """
    evaluator, quality = bench.evaluator, bench.task.quality
    before, weights = evaluator.score(model)[quality], copy.deepcopy(model.state_dict())
    with bench.progress(f"Distilling {name}", budget.steps) as bar:
        if budget.stages == 2 and (larger := larger_stage(bench.space, subnet)) is not None:
            _in_two_stages(bench, larger, subnet, model, budget.half, bar)
        else:
            _distil(bench, subnet, model, budget, bar)
    after = evaluator.score(model)[quality]
    if (after < before) if not lower_is_better(quality, bench.task) else (after > before):
        model.load_state_dict(weights)
        bench.say(
            f"{name} is left as it was: distilled, its {quality} on the validation split is {after:.4g} instead of "
            f"{before:.4g}. More `finalists.steps` or a lower `training.learning_rate` may help."
        )
        return False
    return True


def larger_stage(space: SearchSpace, subnet: SubnetConfig) -> SubnetConfig | None:
    """What a subnet is distilled as first in two stages; None where no more than half of the blocks' is gone."""
    from search_spaces.cost import costs
    from search_spaces.narrow import halfway

    own, whole = costs(space.shape, [subnet, space.teacher]).block_parameters
    larger = halfway(space, subnet)
    return larger if own < whole / 2 and larger != subnet else None


def _in_two_stages(
    bench: Workbench, larger: SubnetConfig, subnet: SubnetConfig, model: nn.Module, each: Budget, bar: Progress
) -> None:
    """Distil a larger subnet, cut it down, refit what is left, and distil that; the model takes its weights."""
    from search_spaces.narrow import narrow

    cut = bench.finalist(larger)
    _distil(bench, larger, cut, each, bar)
    narrow(cut, bench.space.shape, larger, subnet)
    _distil(bench, subnet, bench.refitted(cut, subnet), each, bar)
    model.load_state_dict(cut.state_dict())


def _distil(bench: Workbench, subnet: SubnetConfig, model: nn.Module, budget: Budget, bar: Progress) -> None:
    steps, minutes = budget.steps, budget.minutes
    bench.evaluator.distil(subnet, steps=steps, minutes=minutes, seed=bench.seed, progress=bar, model=model)


def measure_each(
    profiler: Profiler,
    jobs: Mapping[Key, Compile],
    reference: Key,
    on_measured: Callable[[Key, Measurement], None],
    on_failed: Callable[[Key, Exception], None],
) -> None:
    """Measure models beside a reference; one that does not run is left out, and the others are measured on.

    Args:
        profiler: The measurement protocol.
        jobs: What compiles each model.
        reference: Which of them is measured throughout; where it fails, nothing can be compared.
        on_measured: Called with each measurement; twice where it was repeated.
        on_failed: Called with each model that does not run.
    """
    begun: list[Key] = []

    def tried(key: Key) -> Compile:
        def compile_run() -> Run:
            begun.append(key)
            run = jobs[key]()
            run()
            return run

        return compile_run

    todo = list(jobs)
    while todo:
        begun.clear()
        done: set[Key] = set()
        try:
            for key, measurement in profiler.measure([(key, tried(key)) for key in todo], tried(reference)):
                done.add(key)
                on_measured(key, measurement)
            break
        except Exception as error:
            if not begun or begun[-1] == reference:
                raise
            on_failed(begun[-1], error)
            todo = [key for key in todo if key not in done and key != begun[-1]]
