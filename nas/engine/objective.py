"""What Optuna calls: a trial becomes a subnet, its predicted costs, and - where these permit - an evaluation.

Everything that a trial has learnt is written into its user attributes: ``subnet`` (JSON, from which the subnet is
always rebuilt), ``steps`` (of distillation), ``predicted`` (cost -> [value, lower, upper]), ``result`` (metrics,
seconds, and the outcome: ``evaluated``, ``cached``, ``duplicate``, ``pruned`` or ``infeasible``), and ``reason`` where
it failed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.engine.cache import EvaluationCache
from nas.engine.costs import SubnetCosts
from nas.engine.limits import Limit, Objectives
from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from optuna import Study, Trial

Evaluate = Callable[[SubnetConfig, int], Mapping[str, float]]
Predicted = dict[str, tuple[float, float, float]]
Twin = tuple[int, dict[str, float]]  # Number and metrics of a trial that has been through the same.


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a trial is about to evaluate: the subnet, its fidelity, its costs, and how far it breaks known limits."""

    subnet: SubnetConfig
    steps: int
    predicted: Predicted
    violations: dict[str, float]

    @property
    def infeasible(self) -> bool:
        """Whether a limit that is known before the evaluation is broken."""
        return any(value > 0 for value in self.violations.values())


@dataclass(frozen=True, slots=True)
class Measured:
    """What an evaluation gave: the goals' values, how far limited metrics break their limits, and the record."""

    values: tuple[float, ...]
    violations: dict[str, float]
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial ended: with values, pruned (``measured`` may hold the last rung's), or failed for a reason."""

    measured: Measured | None = None
    pruned: bool = False
    reason: str = ""


class Objective:
    """Maps a trial to the values of the goals; `search.Search` calls its two halves, Optuna may call the whole.

    Args:
        space: The choices.
        costs: Known costs of subnets.
        evaluate: Called with a canonical subnet and the steps of distillation; gives metrics by name.
        objectives: Goals and constraints, with ``quality`` already replaced by a metric's name.
        limits: The constraints in numbers.
        cache: Evaluations of earlier runs and other workers, or None.
    """

    def __init__(
        self,
        space: SearchSpace,
        costs: SubnetCosts,
        evaluate: Evaluate,
        objectives: Objectives,
        limits: tuple[Limit, ...] = (),
        cache: EvaluationCache | None = None,
    ) -> None:
        self.space = space
        self.costs = costs
        self.evaluate = evaluate
        self.objectives = objectives
        self.limits = limits
        self.cache = cache

    def __call__(self, trial: Trial) -> tuple[float, ...]:
        """Propose, evaluate and record.

        Raises:
            optuna.TrialPruned: The subnet breaks a limit that is known before the evaluation.
            ValueError: The evaluation gives no finite value for a goal.
        """
        import optuna

        proposal = self.propose(trial)
        if proposal.infeasible:
            raise optuna.TrialPruned("infeasible")
        measured = self.measure(proposal, twin_of(trial.study, proposal))
        self.record(trial, measured)
        return measured.values

    def propose(self, trial: Trial, steps: int = 0) -> Proposal:
        """Ask the sampler for a subnet and write it, its costs and its constraints into the trial. Microseconds.

        Args:
            trial: The trial.
            steps: Of distillation, where the trial does not come with its own.
        """
        subnet = self.space.suggest(trial)
        steps = int(trial.user_attrs.get("steps", steps))
        predicted = self.costs.of(subnet)
        violations: dict[str, float] = {}
        for limit in self.limits:
            if limit.predicted:
                _, lower, upper = predicted[limit.name]
                violations[limit.name] = limit.violation(upper if limit.upper else lower)
        if steps:
            trial.set_user_attr("steps", steps)
        trial.set_user_attr("subnet", subnet.to_json())
        trial.set_user_attr("predicted", {name: list(values) for name, values in predicted.items()})
        for name, violation in violations.items():
            trial.set_constraint(name, violation)
        proposal = Proposal(subnet, steps, predicted, violations)
        if proposal.infeasible:
            trial.set_user_attr("result", {"outcome": "infeasible", "metrics": {}, "seconds": 0.0})
        return proposal

    def measure(self, proposal: Proposal, twin: Twin | None = None) -> Measured:
        """The goals' values, from another trial, the cache or an evaluation. Knows nothing of the study.

        Args:
            proposal: What is evaluated.
            twin: See `twin_of`.

        Raises:
            ValueError: A goal or a limited metric is missing or not finite.
        """
        started = time.perf_counter()
        result: dict[str, Any] = {"outcome": "evaluated"}
        if twin is not None:
            number, metrics = twin
            result = {"outcome": "duplicate", "duplicate_of": number}
        elif self.cache and (known := self.cache.get(proposal.subnet, proposal.steps)) is not None:
            metrics, result = known, {"outcome": "cached"}
        else:
            metrics = {k: float(v) for k, v in self.evaluate(proposal.subnet, proposal.steps).items()}
        values = self._values(proposal, metrics)
        limited = [limit for limit in self.limits if not limit.predicted]
        violations = {limit.name: limit.violation(_finite(limit.name, metrics)) for limit in limited}
        if result["outcome"] == "evaluated" and self.cache is not None:
            self.cache.put(proposal.subnet, proposal.steps, metrics)
        result |= {"metrics": metrics, "seconds": round(time.perf_counter() - started, 6)}
        return Measured(values, violations, result)

    @staticmethod
    def record(trial: Trial, measured: Measured, *, pruned: bool = False) -> None:
        """Write what was measured into the trial; may be repeated after a lost connection."""
        known = trial.constraints if measured.violations else {}
        for name, violation in measured.violations.items():
            if name not in known:
                trial.set_constraint(name, violation)
        result = {**measured.result, "outcome": "pruned"} if pruned else measured.result
        trial.set_user_attr("result", result)

    def _values(self, proposal: Proposal, metrics: Mapping[str, float]) -> tuple[float, ...]:
        known = {**metrics, **{name: value for name, (value, _, _) in proposal.predicted.items()}}
        return tuple(_finite(name, known) for name in self.objectives.goals)


def twin_of(study: Study, proposal: Proposal) -> Twin | None:
    """Number and metrics of a finished trial with the same canonical subnet and fidelity."""
    from optuna.trial import TrialState

    text = proposal.subnet.to_json()
    for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        attributes = other.user_attrs
        if attributes.get("subnet") == text and int(attributes.get("steps", 0)) == proposal.steps:
            return other.number, dict(attributes["result"]["metrics"])
    return None


def _finite(name: str, values: Mapping[str, float]) -> float:
    if name not in values:
        raise ValueError(f"objectives: the evaluation gives no {name!r}; it gives {', '.join(sorted(values))}.")
    if not math.isfinite(values[name]):
        raise ValueError(f"`{name}` must be finite, but the evaluation gave {values[name]}.")
    return float(values[name])
