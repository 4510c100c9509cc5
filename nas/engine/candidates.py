"""What a study has found: candidates, their Pareto front, and the ones to pick from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nas.engine.limits import Objectives
from nas.engine.objective import Predicted
from nas.engine.pareto import Floats, check_pick, knee, non_dominated, spread
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Candidate:
    """One evaluated subnet of a study.

    Args:
        number: Of its trial.
        subnet: The architecture, rebuilt from the trial's JSON.
        values: Goal -> value.
        metrics: Metric -> value, all that the evaluation gave.
        predicted: Cost -> (value, lower, upper).
        steps: Steps of distillation before the evaluation.
        violations: Constraint -> the share of its bound by which it is broken; those that hold are left out.
        origin: Where it came from: ``sampler``, or the name of a warm start.
    """

    number: int
    subnet: SubnetConfig
    values: Mapping[str, float]
    metrics: Mapping[str, float] = field(default_factory=dict)
    predicted: Predicted = field(default_factory=dict)
    steps: int = 0
    violations: Mapping[str, float] = field(default_factory=dict)
    origin: str = "sampler"

    @property
    def feasible(self) -> bool:
        """Whether every constraint holds."""
        return not self.violations

    @classmethod
    def from_trial(cls, trial: FrozenTrial, objectives: Objectives) -> Candidate:
        """Rebuild from a complete trial."""
        attributes = trial.user_attrs
        return cls(
            number=trial.number,
            subnet=SubnetConfig.from_json(attributes["subnet"]),
            values=dict(zip(objectives.goals, trial.values, strict=True)),
            metrics=dict(attributes["result"]["metrics"]),
            predicted={n: (float(v[0]), float(v[1]), float(v[2])) for n, v in attributes["predicted"].items()},
            steps=int(attributes.get("steps", 0)),
            violations={name: float(value) for name, value in trial.constraints.items() if not value <= 0},
            origin=str(attributes.get("origin", "sampler")),
        )

    @property
    def numbers(self) -> dict[str, float]:
        """Predicted values, metrics and goals by name."""
        return {**{name: values[0] for name, values in self.predicted.items()}, **self.metrics, **self.values}

    def number_of(self, name: str) -> float:
        """A goal's value, a metric or a predicted value, by name.

        Raises:
            ValueError: There is none of that name.
        """
        if name not in self.numbers:
            raise ValueError(f"A candidate has no {name!r}; it has {', '.join(sorted(self.numbers))}.")
        return self.numbers[name]


def candidates_of(trials: Sequence[FrozenTrial], objectives: Objectives) -> list[Candidate]:
    """The complete trials as candidates, each subnet once: with its longest distillation, then its first trial."""
    best: dict[SubnetConfig, Candidate] = {}
    for trial in trials:
        if trial.state.name != "COMPLETE" or "subnet" not in trial.user_attrs:
            continue
        candidate = Candidate.from_trial(trial, objectives)
        before = best.get(candidate.subnet)
        if before is None or candidate.steps > before.steps:
            best[candidate.subnet] = candidate
    return list(best.values())


def nearest_to_feasible(candidates: Sequence[Candidate]) -> str:
    """Of candidates that all break a constraint, the one that breaks its worst one least, for a person to read."""
    if not candidates:
        return "no trial was evaluated"
    nearest = min(candidates, key=lambda candidate: max(candidate.violations.values(), default=0.0))
    known = nearest.numbers
    broken = ", ".join(
        f"{name}{f' {known[name]:.4g}' if name in known else ''} ({share:.0%} off its limit)"
        for name, share in nearest.violations.items()
    )
    return f"trial {nearest.number} comes nearest, with {broken}"


def losses_of(candidates: Sequence[Candidate], objectives: Objectives) -> Floats:
    """``(candidates, goals)``, smaller is better."""
    rows = [objectives.losses([c.values[name] for name in objectives.goals]) for c in candidates]
    return np.array(rows, dtype=np.float64).reshape(len(candidates), len(objectives.goals))


def pareto_front(candidates: Sequence[Candidate], objectives: Objectives) -> list[Candidate]:
    """The feasible candidates that no other dominates, sorted by the first goal that is not a quality, else the first.

    Where some were distilled longer than others, only the longest distilled compete: their values cannot be compared
    with those of shorter rungs.
    """
    able = [candidate for candidate in candidates if candidate.feasible]
    if not able:
        return []
    top = max(candidate.steps for candidate in able)
    able = [candidate for candidate in able if candidate.steps == top]
    losses = losses_of(able, objectives)
    front = [able[int(i)] for i in np.flatnonzero(non_dominated(losses))]
    cost = next((n for n in objectives.goals if n in front[0].predicted), next(iter(objectives.goals)))
    return sorted(front, key=lambda candidate: (candidate.values[cost], candidate.number))


def shown(front: Sequence[Candidate], objectives: Objectives, count: int = 10) -> list[Candidate]:
    """At most ``count`` candidates of a front, spread along it, in its order."""
    if len(front) <= count:
        return list(front)
    chosen = set(spread(losses_of(front, objectives), count))
    return [candidate for index, candidate in enumerate(front) if index in chosen]


def pick(
    front: Sequence[Candidate], objectives: Objectives, which: str | int, under: Mapping[str, float] | None = None
) -> Candidate:
    """One candidate of a front by name.

    Args:
        front: Where to pick from.
        objectives: What the front optimises.
        which: ``knee`` (best compromise), ``fastest`` (least ``latency_ms``, else ``macs``), ``smallest`` (fewest
            ``parameters``), ``best_under`` (best first goal among those that keep to ``under``), or a trial's number.
        under: For ``best_under``: name -> upper bound, e.g. ``{"latency_ms": 12.0}``.

    Raises:
        ValueError: The front is empty, the name is unknown, or no candidate keeps to the bounds.
    """
    if not front:
        raise ValueError("pick: the Pareto front is empty: no feasible candidate was evaluated.")
    if str(which).isdecimal():
        return _of_number(front, int(which))
    name = check_pick(which)
    if name == "knee":
        return front[knee(losses_of(front, objectives))]
    if name == "smallest":
        return min(front, key=lambda candidate: candidate.number_of("parameters"))
    if name == "fastest":
        has_latency = "latency_ms" in front[0].predicted or "latency_ms" in front[0].values
        column = "latency_ms" if has_latency else "macs"
        return min(front, key=lambda candidate: candidate.number_of(column))
    if not under:
        raise ValueError("pick: best_under needs a bound, such as under.latency_ms=12.")
    for key, bound in under.items():
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise ValueError(f"`under.{key}` must be a number, but got {bound!r}.")
    able = [c for c in front if all(c.number_of(key) <= bound for key, bound in under.items())]
    if not able:
        nearest = {key: min(c.number_of(key) for c in front) for key in under}
        least = ", ".join(f"{key}={value:.4g}" for key, value in nearest.items())
        raise ValueError(f"pick: no candidate keeps to {dict(under)}; the least on the front are {least}.")
    return min(able, key=lambda candidate: losses_of([candidate], objectives)[0, 0])


def _of_number(front: Sequence[Candidate], number: int) -> Candidate:
    for candidate in front:
        if candidate.number == number:
            return candidate
    known = ", ".join(str(candidate.number) for candidate in front)
    raise ValueError(f"pick: trial {number} is not on the front; those on it are {known}.")
