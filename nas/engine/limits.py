"""What a search optimises and what it must keep to: objectives and constraints, by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nas.engine.costs import THROUGHPUT, Bounds

Direction = Literal["minimize", "maximize"]
QUALITY = "quality"
_BOUND = re.compile(r"^\s*(<=|>=)?\s*([-+0-9.eE]+)\s*(x)?\s*$")


@dataclass(frozen=True)
class Objectives:
    """What to optimise, and within which limits. The constructor is the schema of ``conf/objectives/*.yaml``.

    Args:
        goals: Name -> ``minimize`` or ``maximize``. Names are metrics of the evaluation, costs of `SubnetCosts`, or
            ``quality``: the task's main metric; to maximise it is to improve it, also where less of it is better.
        constraints: Name -> limit: a number, or text such as ``"0.5x"`` (relative to the teacher), ``">= 0.9"`` or
            ``"<= 1.1x"``. Without a sign, costs are limited from above, throughput and metrics from below; a metric
            of which less is better is limited from above.
        confidence: With which probability a predicted cost must keep to its limit: the predictor's bound is compared,
            not its value.

    Raises:
        ValueError: There is no goal, or a direction or a limit cannot be read.
    """

    goals: Mapping[str, str]
    constraints: Mapping[str, float | str] = field(default_factory=dict)
    confidence: float = 0.9

    def __post_init__(self) -> None:
        if not self.goals:
            raise ValueError("`goals` must name at least one objective, but it is empty.")
        for name, direction in self.goals.items():
            if direction not in get_args(Direction):
                raise ValueError(f"`goals.{name}` must be minimize or maximize, but got {direction!r}.")
        for name, limit in self.constraints.items():
            parse_limit(name, limit)
        number = isinstance(self.confidence, int | float) and not isinstance(self.confidence, bool)
        if not number or not 0 < self.confidence < 1:
            raise ValueError(f"`confidence` must be a number between 0 and 1, but got {self.confidence!r}.")

    def with_quality(self, metric: str, *, lower_is_better: bool = False) -> Objectives:
        """The same objectives with ``quality`` replaced by the name of the task's main metric.

        Args:
            metric: Its name.
            lower_is_better: Whether less of it is better: then maximising quality is minimising the metric.
        """

        def named(values: Mapping[str, float | str]) -> dict[str, float | str]:
            return {metric if name == QUALITY else name: value for name, value in values.items()}

        goals = {name: str(direction) for name, direction in named(self.goals).items()}
        if lower_is_better and QUALITY in self.goals:
            goals[metric] = "minimize" if self.goals[QUALITY] == "maximize" else "maximize"
        return replace(self, goals=goals, constraints=named(self.constraints))

    @property
    def directions(self) -> list[Direction]:
        """Directions in the order of the goals: what Optuna wants."""
        return ["minimize" if direction == "minimize" else "maximize" for direction in self.goals.values()]

    def losses(self, values: Sequence[float]) -> tuple[float, ...]:
        """The goals' values with signs such that smaller is better."""
        signs = (1.0 if direction == "minimize" else -1.0 for direction in self.goals.values())
        return tuple(sign * value for sign, value in zip(signs, values, strict=True))


@dataclass(frozen=True, slots=True)
class ParsedLimit:
    """A limit as it was written: sign (or None), number, and whether it is a share of the teacher's value."""

    sign: str | None
    number: float
    relative: bool


def parse_limit(name: str, limit: float | str) -> ParsedLimit:
    """Read ``12``, ``"0.5x"``, ``"<= 12"`` or ``">= 0.98x"``.

    Raises:
        ValueError: It is none of these.
    """
    match = _BOUND.match(str(limit))
    try:
        number = float(match.group(2)) if match and not isinstance(limit, bool) else math.nan
    except ValueError:
        number = math.nan
    if match is None or not math.isfinite(number):
        raise ValueError(
            f"`constraints.{name}` must be a number such as 12, or text such as '0.5x' or '>= 0.9', but got {limit!r}."
        )
    return ParsedLimit(match.group(1), number, match.group(3) is not None)


@dataclass(frozen=True, slots=True)
class Limit:
    """One constraint in the unit of its name.

    Args:
        name: The cost or metric.
        bound: The limit.
        upper: Whether values must be at most the bound (else at least).
        predicted: Whether it is known before an evaluation.
    """

    name: str
    bound: float
    upper: bool
    predicted: bool

    def violation(self, value: float) -> float:
        """By which share of the bound the value breaks it; 0 or less where it keeps to it."""
        excess = value - self.bound if self.upper else self.bound - value
        return excess / max(abs(self.bound), 1e-12)

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.upper else '>='} {self.bound:.6g}"


def worst_violations(
    limits: Sequence[Limit], known: Mapping[str, Bounds], count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of so many subnets, by how much each breaks the limit that it breaks most, and which limit that is.

    Args:
        limits: The constraints; those on metrics are left out.
        known: Costs by name, arrays ``(count,)``; the bound on the limit's side is what counts, not the value.
        count: How many subnets.

    Returns:
        ``(count,)`` shares of the bounds, 0 or less where all limits hold; and ``(count,)`` indices into ``limits``.
    """
    worst, binding = np.full(count, -np.inf), np.zeros(count, dtype=np.int64)
    for index, limit in enumerate(limits):
        if limit.predicted and count:
            bounds = known[limit.name]
            side = bounds.upper if limit.upper else bounds.lower
            violation = (side - limit.bound if limit.upper else limit.bound - side) / max(abs(limit.bound), 1e-12)
            binding[violation > worst] = index
            worst = np.maximum(worst, violation)
    return worst, binding


def resolve_limits(
    objectives: Objectives,
    teacher_costs: Mapping[str, float],
    teacher_metrics: Callable[[], Mapping[str, float]],
    lower_is_better: Callable[[str], bool] = lambda _: False,
) -> tuple[Limit, ...]:
    """Turn constraints as written into numbers.

    Args:
        objectives: Where they are written.
        teacher_costs: The full model's costs by name; the names also tell what is known before an evaluation.
        teacher_metrics: Evaluates the full model; called only where a constraint on a metric is relative.
        lower_is_better: Of a metric's name: such are limited from above where the limit has no sign.

    Raises:
        ValueError: The teacher has no value of that name.
    """
    limits: list[Limit] = []
    metrics: Mapping[str, float] | None = None
    for name, written in objectives.constraints.items():
        parsed = parse_limit(name, written)
        predicted = name in teacher_costs
        bound = parsed.number
        if parsed.relative:
            if not predicted and metrics is None:
                metrics = teacher_metrics()
            reference = teacher_costs if predicted else metrics or {}
            if name not in reference:
                known = ", ".join(sorted({*teacher_costs, *(metrics or {})}))
                raise ValueError(f"`constraints.{name}`: the teacher has no such value; known are {known}.")
            bound *= reference[name]
        default = "<=" if predicted and name != THROUGHPUT else ">="
        if not predicted and (objectives.goals.get(name) == "minimize" or lower_is_better(name)):
            default = "<="
        limits.append(Limit(name, bound, (parsed.sign or default) == "<=", predicted))
    return tuple(limits)
