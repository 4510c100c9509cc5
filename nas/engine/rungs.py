"""Many fidelities: which subnets are distilled longer, decided by successive halving over the front.

Each rung has its steps of distillation. Of the trials that a rung has finished, the best share is promoted to the next,
as soon as there is one to promote and without waiting for the others (Li et al. 2018, arXiv 1810.05934; for several
objectives Schmucker et al. 2021, arXiv 2106.12639). Rankings flip after distillation, so every rung ranks its own
values and never those of the rung below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.engine.limits import Objectives
from nas.engine.pareto import crowding, domination_ranks
from nas.engine.slots import abandoned

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Fidelities:
    """How long subnets are distilled inside a search.

    Args:
        steps: Distillation steps of each rung, rising.
        reduction_factor: One in so many trials of a rung is promoted to the next.
        pruner: For searches of one goal: every trial climbs all rungs, and Optuna's pruner may end it after each.

    Raises:
        ValueError: Steps do not rise, or the factor is below 2.
    """

    steps: tuple[int, ...] = (0,)
    reduction_factor: int = 2
    pruner: BasePruner | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_rungs(self.steps))
        if self.reduction_factor < 2:
            raise ValueError(f"`search.reduction_factor` must be at least 2, but got {self.reduction_factor}.")

    @property
    def first(self) -> int:
        """Steps of a new subnet's trial."""
        return self.steps[-1] if self.pruner is not None else self.steps[0]

    def promotions(self, objectives: Objectives) -> Rungs | None:
        """Who decides on promotions; None where there are none."""
        if self.pruner is not None or len(self.steps) == 1:
            return None
        return Rungs(self.steps, objectives, self.reduction_factor)


class Rungs:
    """Decides whether a trial is promoted before the sampler is asked for a new subnet; `TrialSlots.claim` asks it.

    Args:
        steps: Distillation steps of each rung, rising; the first is that of every new subnet.
        objectives: The goals.
        reduction_factor: One in so many trials of a rung is promoted to the next.
    """

    def __init__(self, steps: Sequence[int], objectives: Objectives, reduction_factor: int) -> None:
        self.steps = tuple(steps)
        self.objectives = objectives
        self.reduction_factor = reduction_factor

    def __call__(self, trials: Sequence[FrozenTrial]) -> Mapping[str, Any] | None:
        """Parameters and attributes of the promoted trial, or None: the highest rung with a promotion goes first."""
        for rung in range(len(self.steps) - 2, -1, -1):
            if (chosen := self._promoted(trials, rung)) is not None:
                attributes = {
                    "steps": self.steps[rung + 1],
                    "promoted_from": chosen.number,
                    "origin": str(chosen.user_attrs.get("origin", "sampler")),
                }
                return {"params": dict(chosen.params), "user_attrs": attributes}
        return None

    def _promoted(self, trials: Sequence[FrozenTrial], rung: int) -> FrozenTrial | None:
        finished = [trial for trial in trials if trial.state.name == "COMPLETE" and self._rung(trial) == rung]
        count = len(finished) // self.reduction_factor
        above = {
            trial.user_attrs["subnet"]
            for trial in trials
            if "subnet" in trial.user_attrs and not abandoned(trial) and self._rung(trial) > rung
        }
        if len(above) >= count:  # Newcomers push earlier promotions out of the best share; the budget keeps to it.
            return None
        for index in best_first(finished, self.objectives)[:count].tolist():
            trial: FrozenTrial = finished[index]
            if trial.user_attrs["subnet"] not in above:
                return trial
        return None

    def _rung(self, trial: FrozenTrial) -> int:
        steps = int(trial.user_attrs.get("steps", 0))
        return self.steps.index(steps) if steps in self.steps else -1


def check_rungs(steps: Sequence[int]) -> tuple[int, ...]:
    """The same steps, once they are known to rise.

    Raises:
        ValueError: They do not, or there are none.
    """
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
    found = tuple(steps) if whole else ()
    if not found or found[0] < 0 or any(b <= a for a, b in pairwise(found)):
        raise ValueError(f"`search.rungs` must be rising numbers of steps such as [0, 40, 160], but got {list(steps)}.")
    return found


def best_first(trials: Sequence[FrozenTrial], objectives: Objectives) -> NDArray[np.intp]:
    """Indices of complete trials: those that keep to all limits, front by front, and lonely ones of a front first."""
    if not trials:
        return np.zeros(0, dtype=np.intp)
    losses = np.array([objectives.losses(trial.values) for trial in trials], dtype=np.float64)
    broken = np.array([max([0.0, *trial.constraints.values()]) for trial in trials])
    ranks = domination_ranks(losses)
    lonely = np.zeros(len(trials))
    for rank in np.unique(ranks):
        at = np.flatnonzero(ranks == rank)
        lonely[at] = crowding(losses[at])
    order: NDArray[np.intp] = np.lexsort((-lonely, ranks, broken))
    return order
