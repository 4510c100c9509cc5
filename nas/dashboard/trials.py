"""Trials in columns: what pages draw, filter and count, extracted once per trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.engine.limits import Objectives
from nas.engine.pareto import Floats, non_dominated
from nas.engine.progress import outcome_of
from nas.engine.slots import abandoned

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial.

    Args:
        number: Of the trial, from 0.
        state: Optuna's name: ``COMPLETE``, ``PRUNED``, ``FAIL``, ``RUNNING`` or ``WAITING``.
        outcome: How it ended (see `nas.engine.progress.outcome_of`), ``abandoned`` where its worker died, or empty.
        feasible: Whether it is complete and keeps to every constraint.
        steps: Steps of distillation before its evaluation: its rung.
        origin: ``sampler``, or the name of a warm start.
        started, ended: Seconds since 1970; NaN where it has not.
        values: The goals' values in the study's order, empty where there are none.
        numbers: Goals, metrics and predicted costs by name.
        bounds: Predicted cost -> (lower, upper).
        subnet: The architecture as JSON, or empty.
        reason: Why it failed, or empty.
        worker: What `nas.engine.slots.Worker.signature` wrote.
    """

    number: int
    state: str
    outcome: str
    feasible: bool
    steps: int
    origin: str
    started: float
    ended: float
    values: tuple[float, ...]
    numbers: Mapping[str, float]
    bounds: Mapping[str, tuple[float, float]]
    subnet: str
    reason: str
    worker: Mapping[str, str]

    @classmethod
    def from_trial(cls, trial: FrozenTrial, goals: Sequence[str]) -> TrialRow:
        """Read one trial; attributes that another program wrote differently are left out, never an error."""
        attributes = trial.user_attrs
        result, predicted = _mapping(attributes.get("result")), _mapping(attributes.get("predicted"))
        values = tuple(float(v) for v in trial.values or ())
        numbers = {str(k): float(v) for k, v in _mapping(result.get("metrics")).items() if _is_number(v)}
        bounds = {}
        for name, bound in predicted.items():
            if isinstance(bound, Sequence) and len(bound) == 3 and all(map(_is_number, bound)):
                numbers[name] = float(bound[0])
                bounds[name] = (float(bound[1]), float(bound[2]))
        numbers |= dict(zip(goals, values, strict=False))
        complete = trial.state.name == "COMPLETE"
        ended = "abandoned" if abandoned(trial) else outcome_of(trial)
        return cls(
            number=trial.number,
            state=trial.state.name,
            outcome=ended if trial.state.is_finished() else "",
            feasible=complete and all(violation <= 0 for violation in trial.constraints.values()),
            steps=int(attributes.get("steps", 0)) if _is_number(attributes.get("steps", 0)) else 0,
            origin=str(attributes.get("origin", "sampler")),
            started=_seconds(trial.datetime_start),
            ended=_seconds(trial.datetime_complete),
            values=values,
            numbers=numbers,
            bounds=bounds,
            subnet=str(attributes.get("subnet", "")),
            reason=str(attributes.get("reason", "")),
            worker=_mapping(attributes.get("worker")),
        )


class Trials:
    """All trials of a study, as arrays of one length; immutable, each array made when first asked for.

    Args:
        rows: In the order of their numbers.
        objectives: What the study optimises.
    """

    def __init__(self, rows: Sequence[TrialRow], objectives: Objectives) -> None:
        self.rows = tuple(rows)
        self.objectives = objectives
        self._columns: dict[str, Floats] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> Floats:
        """``(trials,)`` a goal, a metric or a predicted cost; NaN where a trial has none."""
        if name not in self._columns:
            self._columns[name] = np.array([row.numbers.get(name, math.nan) for row in self.rows], dtype=np.float64)
        return self._columns[name]

    @cached_property
    def quantities(self) -> tuple[str, ...]:
        """Names of all columns: goals, metrics, predicted costs."""
        return tuple(dict.fromkeys((*self.objectives.goals, *self.metrics, *self.costs)))

    @cached_property
    def costs(self) -> tuple[str, ...]:
        """Names of the predicted costs."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.bounds))

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of what evaluations gave."""
        return tuple(dict.fromkeys(n for row in self.rows for n in row.numbers if n not in row.bounds))

    @cached_property
    def finished(self) -> Mask:
        """``(trials,)`` whether a trial has ended, otherwise than by its worker's death."""
        return np.array([bool(row.outcome) and row.outcome != "abandoned" for row in self.rows], dtype=bool)

    @cached_property
    def feasible(self) -> Mask:
        """``(trials,)`` whether a trial is complete and keeps to every constraint."""
        return np.array([row.feasible for row in self.rows], dtype=bool)

    @cached_property
    def ended(self) -> Floats:
        """``(trials,)`` when each ended, in seconds since 1970; NaN where it has not."""
        return np.array([row.ended for row in self.rows], dtype=np.float64)

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """``(trials,)`` steps of distillation."""
        return np.array([row.steps for row in self.rows], dtype=np.int64)

    @cached_property
    def losses(self) -> Floats:
        """``(trials, goals)``, smaller is better; NaN where a trial has no values."""
        width = len(self.objectives.goals)
        rows = [
            self.objectives.losses(row.values) if len(row.values) == width else (math.nan,) * width for row in self.rows
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), width)

    @cached_property
    def front(self) -> NDArray[np.int64]:
        """Indices of the Pareto front, by rising cost: the same trials as `nas.engine.candidates.pareto_front`."""
        able = np.flatnonzero(self.feasible & np.isfinite(self.losses).all(axis=1))
        if not able.size:
            return able
        able = able[self.steps[able] == self.steps[able].max()]
        front = able[non_dominated(self.losses[able])]
        order = np.argsort(self.column(self.cost)[front], kind="stable")
        by_cost: NDArray[np.int64] = front[order]
        return by_cost

    @cached_property
    def cost(self) -> str:
        """The goal that is a predicted cost, else one that is minimised, else the first cost there is."""
        goals = self.objectives.goals
        named = [n for n in goals if n in self.costs] + [n for n, d in goals.items() if d == "minimize"]
        return next(iter([*named, *(n for n in ("latency_ms", "macs", "parameters") if n in self.costs), *goals]))

    @cached_property
    def quality(self) -> str:
        """The first goal that is not the cost; the first goal where there is no other."""
        return next((name for name in self.objectives.goals if name != self.cost), next(iter(self.objectives.goals)))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds(moment: datetime | None) -> float:
    return math.nan if moment is None else moment.timestamp()
