"""Samplers by name: the project's own and all of Optuna's, each kept from proposing what is known or cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import BaseSampler

from nas.engine.costs import SubnetCosts
from nas.engine.feasibility import least_violating
from nas.engine.limits import Limit, Objectives, worst_violations
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

Levels = NDArray[np.int64]


def seen_subnets(study: Study, *, besides: int = -1) -> set[str]:
    """Subnets (as JSON) of all trials that are running, finished or failed for a reason, waiting ones excepted."""
    trials = study.get_trials(deepcopy=False)
    return {
        str(trial.user_attrs["subnet"])
        for trial in trials
        if trial.number != besides
        and "subnet" in trial.user_attrs
        and not (trial.state.name == "FAIL" and "reason" not in trial.user_attrs)
    }


@runtime_checkable
class BindsToSpace(Protocol):
    """A sampler that proposes only new and feasible subnets by itself, once it knows the space."""

    def bind(
        self, space: SearchSpace, costs: SubnetCosts, limits: Sequence[Limit], objectives: Objectives
    ) -> BaseSampler:
        """A sampler with the same settings for this space."""


class Feasible:
    """Tells which rows of parameter levels keep to the limits that are known before an evaluation."""

    def __init__(self, space: SearchSpace, costs: SubnetCosts, limits: Sequence[Limit]) -> None:
        self.space = space
        self.costs = costs
        self.limits = tuple(limit for limit in limits if limit.predicted)

    def __call__(self, levels: Levels) -> NDArray[np.bool_]:
        """``(rows,)`` of bool for ``(rows, dimensions)``."""
        able: NDArray[np.bool_] = self.violations(levels)[0] <= 0
        return able

    def violations(self, levels: Levels) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """By how much each row breaks the limit that it breaks most, and which of `limits` that is."""
        known = self.costs(self.space.table(levels)) if self.limits and len(levels) else {}
        return worst_violations(self.limits, known, len(levels))


class NewAndFeasible(BaseSampler):
    """Any sampler, asked again while it proposes a subnet that is already in the study or breaks a known limit.

    Plain TPE repeats a quarter of its proposals on a coarse space, and under a tight limit nearly all proposals of any
    sampler are infeasible. After ``attempts`` questions a random new and feasible subnet is taken, bred where chance
    does not give one; where there is none, the last proposal goes through, and the objective ends it without an
    evaluation.

    Args:
        sampler: The sampler to ask.
        space: The space.
        costs: Known costs.
        limits: The constraints.
        attempts: How often to ask.
        seed: Of the random subnets.
    """

    def __init__(
        self,
        sampler: BaseSampler,
        space: SearchSpace,
        costs: SubnetCosts,
        limits: Sequence[Limit] = (),
        *,
        attempts: int = 8,
        seed: int = 0,
    ) -> None:
        self.sampler = sampler
        self.space = space
        self.feasible = Feasible(space, costs, limits)
        self.attempts = attempts
        self.seed = seed

    def __str__(self) -> str:
        return str(self.sampler)

    def infer_relative_search_space(
        self,
        study: Study,  # noqa: ARG002 - Optuna's protocol
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """All parameters: the space is static."""
        return distributions(self.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A proposal of the inner sampler, or a random one; see the class."""
        if "fixed_params" in trial.system_attrs:
            return {}
        seen = seen_subnets(study, besides=trial.number)
        params: dict[str, Any] = {}
        for _ in range(self.attempts):
            params = self._ask(study, trial, search_space)
            levels = np.array([[params[d.parameter] for d in self.space.dimensions]], dtype=np.int64)
            if self.feasible(levels)[0] and self.space.decode(levels)[0].to_json() not in seen:
                return params

        def violations(rows: Levels) -> NDArray[np.float64]:
            broken = self.feasible.violations(rows)[0]
            able = np.flatnonzero(broken <= 0)
            known = [subnet.to_json() in seen for subnet in self.space.decode(rows[able])]
            broken[able[known]] = 1e-9  # Just not good enough, but the best of parents.
            return broken

        generator = np.random.default_rng([self.seed, trial.number])
        counts = np.array([len(d.choices) for d in self.space.dimensions], dtype=np.int64)
        row = least_violating(violations, counts, generator, number=200)[0]
        if violations(row[None, :])[0] > 0:
            return params
        return {d.parameter: int(v) for d, v in zip(self.space.dimensions, row, strict=True)}

    def _ask(self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        inner = self.sampler.infer_relative_search_space(study, trial)
        params = dict(self.sampler.sample_relative(study, trial, inner))
        for name, distribution in search_space.items():
            if name not in params:
                params[name] = self.sampler.sample_independent(study, trial, name, distribution)
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """What the inner sampler says."""
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on."""
        self.sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Passed on."""
        self.sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Passed on."""
        self.sampler.reseed_rng()


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The space as Optuna knows it: one whole number a dimension."""
    from optuna.distributions import IntDistribution

    return {d.parameter: IntDistribution(0, len(d.choices) - 1) for d in space.dimensions}


def bind(
    sampler: BaseSampler,
    space: SearchSpace,
    costs: SubnetCosts,
    limits: Sequence[Limit],
    objectives: Objectives,
    seed: int = 0,
) -> BaseSampler:
    """The sampler as a search uses it: our own told of the space, Optuna's kept to new and feasible subnets."""
    if isinstance(sampler, BindsToSpace):
        return sampler.bind(space, costs, limits, objectives)
    return NewAndFeasible(sampler, space, costs, limits, seed=seed)
