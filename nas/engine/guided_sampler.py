"""`GuidedSampler`: the guided search as an Optuna sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import BaseSampler

from nas.engine.costs import SubnetCosts
from nas.engine.guided import Floats, Guide, Levels, Observations, farthest, offspring
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
    workers are known to it. The same study and seed give the same proposal, also after an interruption.

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
            if not len(pool):
                pool = world.fresh(world.random(4000, generator))
        if not len(pool):  # Everything is known or infeasible; the objective will say so at once.
            anything: Levels = world.random(1, generator)[0]
            return anything
        if not guided:
            first: Levels = pool.levels[farthest(*world.spread(pool, seen))]
            return first
        world.guide.observe(seen)
        best = pool.take(world.guide.best(pool.rows, pool.losses, generator, count=10))
        if not pool.complete:
            refined = world.fresh(offspring(best.levels, world.counts, self.candidates // 4, generator))
            best = best.joined(refined)
            best = best.take(world.guide.best(best.rows, best.losses, generator))
        chosen: Levels = best.levels[0]
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
    """Candidates that are unseen and feasible: their levels, mapped features, and losses as far as known."""

    levels: Levels
    rows: Floats
    losses: Floats
    complete: bool = False

    def __len__(self) -> int:
        return len(self.levels)

    def take(self, at: Any) -> _Pool:
        return replace(self, levels=self.levels[at], rows=self.rows[at], losses=self.losses[at])

    def joined(self, other: _Pool) -> _Pool:
        return _Pool(
            levels=np.concatenate([self.levels, other.levels]),
            rows=np.concatenate([self.rows, other.rows]),
            losses=np.concatenate([self.losses, other.losses]),
        )


@dataclass(frozen=True)
class _Record:
    """What is remembered of a finished trial."""

    levels: Levels
    outcome: Outcome
    steps: int


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
        self._records: dict[int, _Record] = {}
        self._keys: dict[int, bytes] = {}
        self._rows: dict[int, Levels] = {}
        self._running: list[int] = []
        self._every: tuple[list[bytes], _Pool] | None = None
        self.levels: Levels = np.zeros((0, len(self.counts)), dtype=np.int64)

    def read(self, trials: Sequence[FrozenTrial], besides: int) -> None:
        """Take in what has changed since the last call."""
        self._running = []
        for trial in trials:
            number, state = trial.number, trial.state.name
            if number == besides or number in self._records:
                continue
            if abandoned(trial):
                self._rows.pop(number, None)
                self._keys.pop(number, None)
                continue
            if number not in self._rows:
                row = self.landscape.row_of(trial)
                if row is None:
                    continue
                self._rows[number] = row
                self._keys[number] = self.landscape.describe(row[None, :]).keys[0]
            if state == "RUNNING":
                self._running.append(number)
            elif state == "COMPLETE":
                steps = int(trial.user_attrs.get("steps", 0))
                self._records[number] = _Record(self._rows[number], self.landscape.outcome_of(trial), steps)

    def observations(self) -> Observations:
        """Trials of the shortest distillation: others' values cannot be compared with theirs."""
        records = [self._records[number] for number in sorted(self._records)]
        least = min((record.steps for record in records), default=0)
        records = [record for record in records if record.steps == least]
        width, count = len(self.counts), len(records)
        self.levels = np.array([r.levels for r in records], dtype=np.int64).reshape(-1, width)
        running = np.array([self._rows[number] for number in self._running], dtype=np.int64).reshape(-1, width)
        ahead = self.landscape.describe(running)
        return Observations(
            rows=self._map(self.landscape.describe(self.levels).features),
            losses=np.array([r.outcome.losses for r in records]).reshape(count, len(self.landscape.known)),
            violations=np.array([r.outcome.violations for r in records]).reshape(count, -1 if count else 0),
            running_rows=self._map(ahead.features),
            running_losses=ahead.losses,
        )

    def random(self, number: int, generator: np.random.Generator) -> Levels:
        """Rows of uniformly drawn levels."""
        drawn: Levels = generator.integers(0, self.counts, size=(number, len(self.counts)))
        return drawn

    def fresh(self, levels: Levels) -> _Pool:
        """The rows that are feasible and whose architecture is neither in the study nor in an earlier row."""
        found = self.landscape.describe(levels)
        seen = set(self._keys.values())
        kept = []
        for position, (key, able) in enumerate(zip(found.keys, found.feasible.tolist(), strict=True)):
            if able and key not in seen:
                seen.add(key)
                kept.append(position)
        return _Pool(levels[kept], self._map(found.features[kept]), found.losses[kept])

    def pool(self) -> _Pool | None:
        """All unseen and feasible candidates, where the landscape lists all there are."""
        if self.landscape.pool is None:
            return None
        if self._every is None:
            found = self.landscape.describe(self.landscape.pool)
            at = np.flatnonzero(found.feasible)
            every = _Pool(self.landscape.pool[at], self._map(found.features[at]), found.losses[at], complete=True)
            self._every = [found.keys[i] for i in at.tolist()], every
        keys, every = self._every
        seen = set(self._keys.values())
        return every.take(np.array([i for i, key in enumerate(keys) if key not in seen], dtype=np.intp))

    def spread(self, pool: _Pool, seen: Observations) -> tuple[Floats, Floats]:
        """Of candidates and of what was seen, the columns over which evaluations without a model are spread."""
        known = list(np.flatnonzero(self.landscape.known))
        if not known:
            return pool.rows, np.concatenate([seen.rows, seen.running_rows])
        return pool.losses[:, known], np.concatenate([seen.losses, seen.running_losses])[:, known]
