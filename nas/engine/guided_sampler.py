"""`GuidedSampler`: the guided search as an Optuna sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import BaseSampler

from nas.engine.costs import SubnetCosts
from nas.engine.guided import Guide, Observations, offspring
from nas.engine.limits import Limit, Objectives
from nas.engine.pareto import non_dominated
from nas.engine.samplers import Feasible, distributions
from nas.engine.slots import abandoned
from nas.engine.surrogate import FeatureMap
from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig, SubnetTable

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Floats = NDArray[np.float64]
Levels = NDArray[np.int64]
_BLOCK_COLUMNS = tuple(f.name for f in fields(SubnetTable) if f.name not in ("hidden_size", "precision"))


class GuidedSampler(BaseSampler):
    """Proposes the subnet that is expected to improve the Pareto front most.

    Quality is modelled from the study so far (`surrogate.Surrogate`, one per metric), costs are taken from their
    predictors, and candidates are bred from the front and drawn at random. Only canonical, unseen and feasible subnets
    are proposed; subnets that are being evaluated by other workers are known to it. The same study and seed give the
    same proposal, also after an interruption.

    Args:
        startup_trials: Evaluations, warm start included, before the model is used; random subnets until then.
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
        bound = GuidedSampler(self.startup_trials, self.candidates, self.seed)
        bound._world = _World(space, costs, tuple(limits), objectives, self.seed)
        return bound

    def infer_relative_search_space(
        self,
        study: Study,  # noqa: ARG002 - Optuna's protocol
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """All parameters: the space is static."""
        return distributions(self._bound.space)

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
        return {d.parameter: int(level) for d, level in zip(self._bound.space.dimensions, row, strict=True)}

    def sample_independent(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A random level: for a parameter that an enqueued trial leaves open."""
        place = [d.parameter for d in self._bound.space.dimensions].index(param_name)
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
        guided = len(seen.losses) >= self.startup_trials and world.space.size > 1
        pool = world.fresh(self._candidates(world, seen, generator) if guided else world.random(generator))
        if not len(pool):
            pool = world.fresh(world.random(generator, 4000))
        if not len(pool):  # Everything is known or infeasible; the objective will say so at once.
            return world.random(generator, 1)[0]
        if not guided:
            first: Levels = pool[0]
            return first
        world.guide.observe(seen)
        scores = world.guide.score(*world.describe(pool), generator)
        best = pool[np.argsort(-scores, kind="stable")[:10]]
        refined = world.fresh(offspring(best, world.highs, self.candidates // 4, generator))
        pool = np.concatenate([best, refined])
        chosen: Levels = pool[int(np.argmax(world.guide.score(*world.describe(pool), generator)))]
        return chosen

    def _candidates(self, world: _World, seen: Observations, generator: np.random.Generator) -> Levels:
        able = np.all(seen.limited <= 0, axis=1)
        parents = world.levels[np.flatnonzero(able if able.any() else ~able)]
        losses = seen.losses[able] if able.any() else seen.losses
        front: Levels = parents[non_dominated(losses)]
        bred = offspring(front, world.highs, self.candidates * 2 // 3, generator)
        return np.concatenate([bred, world.random(generator, self.candidates // 3)])


@dataclass
class _Record:
    """What is remembered of a finished trial."""

    levels: Levels
    losses: tuple[float, ...]
    limited: tuple[float, ...]
    steps: int


class _World:
    """A study in arrays: levels, features and losses of what was evaluated, keys of what was seen."""

    def __init__(
        self, space: SearchSpace, costs: SubnetCosts, limits: tuple[Limit, ...], objectives: Objectives, seed: int
    ) -> None:
        self.space = space
        self.costs = costs
        self.objectives = objectives
        self.limited = tuple(limit for limit in limits if not limit.predicted)
        self.feasible = Feasible(space, costs, limits)
        self.highs = np.array([len(d.choices) for d in space.dimensions], dtype=np.int64)
        sample = np.random.default_rng(seed).integers(0, self.highs, size=(400, len(self.highs)))
        features, groups = self._features(sample)
        self.known = [name in costs.names for name in objectives.goals]
        self.guide = Guide(FeatureMap.make(features, groups, seed=seed), self.known)
        self._records: dict[int, _Record] = {}
        self._running: list[Levels] = []
        self._keys: dict[int, bytes] = {}
        self.levels: Levels = np.zeros((0, len(self.highs)), dtype=np.int64)

    def read(self, trials: Sequence[FrozenTrial], besides: int) -> None:
        """Take in what has changed since the last call."""
        self._running = []
        for trial in trials:
            if trial.number == besides or trial.number in self._records or "subnet" not in trial.user_attrs:
                continue
            if abandoned(trial):
                self._keys.pop(trial.number, None)
                continue
            running = trial.state.name == "RUNNING"
            if running or trial.number not in self._keys:
                subnet = SubnetConfig.from_json(trial.user_attrs["subnet"])
                levels = self.space.encode([subnet])
                self._keys[trial.number] = _keys(self.space.table(levels))[0]
                if running:
                    self._running.append(levels[0])
                elif trial.state.name == "COMPLETE":
                    self._remember(trial, levels[0])
            elif trial.state.name == "COMPLETE":
                self._remember(trial, self.space.encode([SubnetConfig.from_json(trial.user_attrs["subnet"])])[0])

    def _remember(self, trial: FrozenTrial, levels: Levels) -> None:
        metrics = trial.user_attrs["result"]["metrics"]
        limited = tuple(limit.violation(metrics[limit.name]) for limit in self.limited)
        steps = int(trial.user_attrs.get("steps", 0))
        self._records[trial.number] = _Record(levels, self.objectives.losses(trial.values), limited, steps)

    def observations(self) -> Observations:
        """Trials of the shortest distillation: others' values cannot be compared with theirs."""
        records = [self._records[number] for number in sorted(self._records)]
        least = min((record.steps for record in records), default=0)
        records = [record for record in records if record.steps == least]
        width, goals = len(self.highs), len(self.known)
        self.levels = np.array([r.levels for r in records], dtype=np.int64).reshape(-1, width)
        running = np.array(self._running, dtype=np.int64).reshape(-1, width)
        running_features, running_losses = self.describe(running)
        return Observations(
            features=self._features(self.levels)[0],
            losses=np.array([r.losses for r in records]).reshape(len(records), goals),
            limited=np.array([r.limited for r in records]).reshape(len(records), len(self.limited)),
            running_features=running_features,
            running_losses=running_losses,
        )

    def random(self, generator: np.random.Generator, count: int = 256) -> Levels:
        """Rows of uniformly drawn levels."""
        drawn: Levels = generator.integers(0, self.highs, size=(count, len(self.highs)))
        return drawn

    def fresh(self, levels: Levels) -> Levels:
        """The rows that are feasible and whose architecture is neither in the study nor in an earlier row."""
        seen = set(self._keys.values())
        kept = []
        for position, key in enumerate(_keys(self.space.table(levels))):
            if key not in seen:
                seen.add(key)
                kept.append(position)
        rows: Levels = levels[kept]
        able: Levels = rows[self.feasible(rows)]
        return able

    def describe(self, levels: Levels) -> tuple[Floats, Floats]:
        """Features, and losses of which the known columns are filled in."""
        losses = np.zeros((len(levels), len(self.known)))
        if not len(levels):
            return np.zeros((0, self._columns)), losses
        found = self.costs(self.space.table(levels))
        for column, (name, direction) in enumerate(self.objectives.goals.items()):
            if name in found:
                losses[:, column] = found[name].value if direction == "minimize" else -found[name].value
        return self._features(levels)[0], losses

    def _features(self, levels: Levels) -> tuple[Floats, list[list[int]]]:
        """Totals, their squares, every block's own sizes, and totals by each choice that all blocks share."""
        table = self.space.table(levels)
        blocks = np.concatenate([getattr(table, name) for name in _BLOCK_COLUMNS] + [table.precision], axis=1)
        blocks = np.concatenate([blocks, np.sqrt(blocks)], axis=1).astype(np.float64)
        kept = ~table.skipped
        sums = [np.log1p(getattr(table, name).sum(axis=1)) for name in _BLOCK_COLUMNS]
        sums += [kept.sum(axis=1).astype(np.float64), (table.precision * kept).sum(axis=1).astype(np.float64)]
        totals = np.stack(sums, axis=1)
        shared = [
            (levels[:, position] == level).astype(np.float64)
            for position, dimension in enumerate(self.space.dimensions)
            if dimension.block is None and len(dimension.choices) > 1
            for level in range(len(dimension.choices))
        ]
        parts = [totals, totals**2, blocks]
        if shared:
            chosen = np.stack(shared, axis=1)
            parts += [chosen, (chosen[:, :, None] * totals[:, None, :]).reshape(len(levels), -1)]
        edges = np.cumsum([0, *(part.shape[1] for part in parts)])
        self._columns = int(edges[-1])
        groups = [list(range(a, b)) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
        return np.concatenate(parts, axis=1), groups


def _keys(table: SubnetTable) -> list[bytes]:
    """One key per row, equal where the canonical architectures are."""
    columns = [getattr(table, name) for name in _BLOCK_COLUMNS] + [table.precision, table.hidden_size[:, None]]
    stacked = np.ascontiguousarray(np.concatenate(columns, axis=1), dtype=np.int64)
    return [row.tobytes() for row in stacked]
