"""The finalists' longer distillation: a budget in steps or minutes, and never worse for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.evaluation.aspects import lower_is_better

if TYPE_CHECKING:
    from torch import nn

    from nas.workbench import Workbench
    from search_spaces.subnet import SubnetConfig


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a finalist is distilled; whichever ends first where both are given.

    Args:
        steps: Distillation steps, or 0 or None for no limit.
        minutes: Minutes, or 0 or None for no limit.
    """

    steps: int | None
    minutes: float | None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Budget:
        """``finalists.steps`` and ``finalists.minutes``."""
        steps, minutes = settings["steps"], settings["minutes"]
        return cls(steps or None, minutes or None)

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
        evaluator.distil(subnet, steps=budget.steps, minutes=budget.minutes, seed=bench.seed, progress=bar, model=model)
    after = evaluator.score(model)[quality]
    if (after < before) if not lower_is_better(quality, bench.task) else (after > before):
        model.load_state_dict(weights)
        bench.say(
            f"{name} is left as it was: distilled, its {quality} on the validation split is {after:.4g} instead of "
            f"{before:.4g}. More `finalists.steps` or a lower `training.learning_rate` may help."
        )
        return False
    return True
