"""`GuidedSampler`: the guided search as an Optuna sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import BaseSampler

from nas.engine.costs import SubnetCosts
from nas.engine.feasibility import least_violating
from nas.engine.guided import Floats, Guide, Levels, Observations, chance_to_complete, farthest, offspring
from nas.engine.landscape import Landscape, Outcome, SubnetLandscape
from nas.engine.limits import Limit, Objectives
from nas.engine.pareto import non_dominated
from nas.engine.slots import abandoned
from nas.engine.surrogate import FeatureMap
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


class GuidedSampler(BaseSampler):
    """Proposes the subnet that is expected to improve the Pareto front most.

    Quality is modelled from the study so far (`surrogate.Surrogate`, one per metric), costs are taken from their
    predictors, and candidates are bred from the front and drawn at random; a space of few thousand subnets is gone
    through whole. Only canonical, unseen and feasible subnets are proposed; subnets that are being evaluated by other
    workers are known to it, and what lies near failed ones is proposed less. The same study and seed give the same
    proposal, also after an interruption.

    Args:
        startup_trials: Evaluations, warm start included, before the model is used; until then, random subnets are
            spread over the known costs.
        candidates: How many subnets are scored for a proposal.
        seed: Of everything random.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(self, startup_trials: int = 8, candidates: int = 400, seed: int = 0) -> None:
        if startup_trials < 2 or candidates < 20:
            raise ValueError(
                f"`startup_trials` must be at least 2 and `candidates` at least 20, but got {startup_trials} "
                f"and {candidates}."
            )
        self.startup_trials = startup_trials
        self.candidates = candidates
        self.seed = seed
        self._world: _World | None = None

    def bind(
        self, space: SearchSpace, costs: SubnetCosts, limits: Sequence[Limit], objectives: Objectives
    ) -> GuidedSampler:
        """A sampler with the same settings for one space and its costs."""
        return self.over(SubnetLandscape(space, costs, limits, objectives))

    def over(self, landscape: Landscape) -> GuidedSampler:
        """A sampler with the same settings for any landscape."""
        bound = GuidedSampler(self.startup_trials, self.candidates, self.seed)
        bound._world = _World(landscape, self.seed)
        return bound

    def infer_relative_search_space(
        self,
        study: Study,  # noqa: ARG002 - Optuna's protocol
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """All parameters: the space is static."""
        from optuna.distributions import IntDistribution

        ground = self._bound.landscape
        return {
            name: IntDistribution(0, int(count) - 1)
            for name, count in zip(ground.parameters, ground.counts, strict=True)
        }

    def sample_relative(
        self,
        study: Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """The proposal, as levels of all parameters."""
        if "fixed_params" in trial.system_attrs:
            return {}
        row = self._propose(study.get_trials(deepcopy=False), trial.number)
        return dict(zip(self._bound.landscape.parameters, row.tolist(), strict=True))

    def sample_independent(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A random level: for a parameter that an enqueued trial leaves open."""
        place = list(self._bound.landscape.parameters).index(param_name)
        generator = np.random.default_rng([self.seed, trial.number, place])
        return int(generator.integers(0, param_distribution.high + 1))  # type: ignore[attr-defined]

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _bound(self) -> _World:
        if self._world is None:
            raise ValueError("GuidedSampler must be bound to a space first: `samplers.bind(sampler, space, ...)`.")
        return self._world

    def _propose(self, trials: Sequence[FrozenTrial], number: int) -> Levels:
        world = self._bound
        generator = np.random.default_rng([self.seed, number])
        world.read(trials, besides=number)
        seen = world.observations()
        guided = len(seen.losses) >= self.startup_trials
        pool = world.pool()
        if pool is None:
            parents = world.levels[seen.able] if guided else world.levels[:0]
            losses = seen.losses[seen.able] if guided else seen.losses[:0]
            pool = world.fresh(self._bred(world, parents, losses, generator))
            if not len(pool.left):
                pool = world.fresh(least_violating(world.violations, world.counts, generator, number=2000))
        if not len(pool.left):  # Everything is known or infeasible; the objective will say so at once.
            anything: Levels = world.random(1, generator)[0]
            return anything
        if not guided:
            first: Levels = pool.levels[pool.left[farthest(*world.spread(pool, seen))]]
            return first
        world.guide.observe(seen)
        best = world.best(pool, generator, 10)
        if not pool.complete:
            pool = pool.take(best)
            pool = pool.joined(world.fresh(offspring(pool.levels, world.counts, self.candidates // 4, generator)))
            best = world.best(pool, generator)
        chosen: Levels = pool.levels[best[0]]
        return chosen

    def _bred(self, world: _World, parents: Levels, losses: Floats, generator: np.random.Generator) -> Levels:
        """Candidates: two thirds from the front, the others from anywhere."""
        if not len(parents):
            return world.random(self.candidates, generator)
        front: Levels = parents[non_dominated(losses)]
        bred = offspring(front, world.counts, self.candidates * 2 // 3, generator)
        return np.concatenate([bred, world.random(self.candidates // 3, generator)])


@dataclass(frozen=True)
class _Pool:
    """Feasible candidates: levels, mapped features, losses as far as known, and which of them are unseen."""

    levels: Levels
    rows: Floats
    losses: Floats
    left: NDArray[np.intp]
    complete: bool = False

    def take(self, at: NDArray[np.intp]) -> _Pool:
        return _Pool(self.levels[at], self.rows[at], self.losses[at], np.arange(len(at)))

    def joined(self, other: _Pool) -> _Pool:
        return _Pool(
            levels=np.concatenate([self.levels, other.levels]),
            rows=np.concatenate([self.rows, other.rows]),
            losses=np.concatenate([self.losses, other.losses]),
            left=np.arange(len(self.levels) + len(other.levels)),
        )


@dataclass(frozen=True)
class _Candidate:
    """What is remembered of a trial's candidate: levels, key, mapped features, and losses as far as known before."""

    levels: Levels
    key: bytes
    row: Floats
    losses: Floats


class _World:
    """A study in arrays: levels, features and losses of what was evaluated, keys of what was seen."""

    def __init__(self, landscape: Landscape, seed: int) -> None:
        self.landscape = landscape
        self.counts = landscape.counts
        sample = landscape.pool
        if sample is None:
            sample = self.random(400, np.random.default_rng(seed))
        self._map = FeatureMap.make(landscape.describe(sample).features, landscape.groups, seed=seed)
        self.guide = Guide(self._map.sizes, landscape.known)
        self._candidates: dict[int, _Candidate] = {}
        self._outcomes: dict[int, tuple[int, Outcome]] = {}  # With the steps of distillation.
        self._running: list[int] = []
        self._failed: set[int] = set()
        self._every: tuple[dict[bytes, int], _Pool] | None = None
        self.levels: Levels = np.zeros((0, len(self.counts)), dtype=np.int64)

    def read(self, trials: Sequence[FrozenTrial], besides: int) -> None:
        """Take in what has changed since the last call."""
        self._running = []
        for trial in trials:
            number = trial.number
            if number == besides or number in self._outcomes or number in self._failed:
                continue
            if abandoned(trial):
                self._candidates.pop(number, None)
            elif number in self._candidates or self._meet(trial):
                if trial.state.name == "RUNNING":
                    self._running.append(number)
                elif trial.state.name == "COMPLETE":
                    steps = int(trial.user_attrs.get("steps", 0))
                    self._outcomes[number] = steps, self.landscape.outcome_of(trial)
                elif trial.state.name == "FAIL":
                    self._failed.add(number)

    def _meet(self, trial: FrozenTrial) -> bool:
        """Remember a trial's candidate, once it has one."""
        levels = self.landscape.row_of(trial)
        if levels is None:
            return False
        found = self.landscape.describe(levels[None, :])
        row = self._map(found.features)[0]
        self._candidates[trial.number] = _Candidate(levels, found.keys[0], row, found.losses[0])
        return True

    def observations(self) -> Observations:
        """Trials of the shortest distillation: others' values cannot be compared with theirs."""
        least = min((steps for steps, _ in self._outcomes.values()), default=0)
        numbers = sorted(number for number, (steps, _) in self._outcomes.items() if steps == least)
        outcomes = [self._outcomes[number][1] for number in numbers]
        evaluated = [self._candidates[number] for number in numbers]
        running = [self._candidates[number] for number in self._running]
        goals, limits = len(self.landscape.known), len(outcomes[0].violations) if outcomes else 0
        self.levels = np.array([c.levels for c in evaluated], dtype=np.int64).reshape(-1, len(self.counts))
        return Observations(
            rows=np.array([c.row for c in evaluated]).reshape(-1, sum(self._map.sizes)),
            losses=np.array([outcome.losses for outcome in outcomes]).reshape(-1, goals),
            violations=np.array([outcome.violations for outcome in outcomes]).reshape(len(outcomes), limits),
            running_rows=np.array([c.row for c in running]).reshape(-1, sum(self._map.sizes)),
            running_losses=np.array([c.losses for c in running]).reshape(-1, goals),
        )

    def _seen(self) -> set[bytes]:
        return {candidate.key for candidate in self._candidates.values()}

    def random(self, number: int, generator: np.random.Generator) -> Levels:
        """Rows of uniformly drawn levels."""
        drawn: Levels = generator.integers(0, self.counts, size=(number, len(self.counts)))
        return drawn

    def violations(self, levels: Levels) -> Floats:
        """By how much rows break the limits that are known beforehand; what was seen is just not good enough."""
        found, seen = self.landscape.describe(levels), self._seen()
        known = np.array([key in seen for key in found.keys], dtype=bool)
        return np.where(known, np.maximum(found.violations, 1e-9), found.violations)

    def fresh(self, levels: Levels) -> _Pool:
        """The rows that are feasible and whose architecture is neither in the study nor in an earlier row."""
        found = self.landscape.describe(levels)
        seen = self._seen()
        kept = []
        for position, (key, able) in enumerate(zip(found.keys, found.feasible.tolist(), strict=True)):
            if able and key not in seen:
                seen.add(key)
                kept.append(position)
        return _Pool(levels[kept], self._map(found.features[kept]), found.losses[kept], np.arange(len(kept)))

    def pool(self) -> _Pool | None:
        """All feasible candidates, where the landscape lists all there are."""
        if self.landscape.pool is None:
            return None
        if self._every is None:
            found = self.landscape.describe(self.landscape.pool)
            at = np.flatnonzero(found.feasible)
            every = _Pool(self.landscape.pool[at], self._map(found.features[at]), found.losses[at], at, complete=True)
            self._every = {found.keys[i]: place for place, i in enumerate(at.tolist())}, every
        places, every = self._every
        unseen = np.ones(len(every.levels), dtype=bool)
        unseen[[places[key] for key in self._seen() if key in places]] = False
        return replace(every, left=np.flatnonzero(unseen))

    def best(self, pool: _Pool, generator: np.random.Generator, count: int = 1) -> NDArray[np.intp]:
        """Where in a pool the unseen candidates are that promise most, those with failed neighbours less."""
        failed = np.array([self._candidates[number].levels for number in sorted(self._failed)], dtype=np.int64)
        completed = np.array([self._candidates[number].levels for number in sorted(self._outcomes)], dtype=np.int64)
        chances = chance_to_complete(pool.levels, completed, failed)
        return self.guide.best(pool.rows, pool.losses, generator, count, pool.left, chances)

    def spread(self, pool: _Pool, seen: Observations) -> tuple[Floats, Floats]:
        """Of candidates and of what was seen, the columns over which evaluations without a model are spread."""
        known = list(np.flatnonzero(self.landscape.known))
        if not known:
            return pool.rows[pool.left], np.concatenate([seen.rows, seen.running_rows])
        return pool.losses[pool.left][:, known], np.concatenate([seen.losses, seen.running_losses])[:, known]
