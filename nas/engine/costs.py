"""Costs of a subnet that are known without evaluating it: analytic ones exactly, predicted ones with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from search_spaces.cost import Workload, costs
from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig, SubnetTable

Floats = NDArray[np.float64]
ANALYTIC = ("parameters", "macs", "weight_mb")
THROUGHPUT = "throughput"
# What a profile may be asked for, and a predictor then be fitted to.
PROFILED = ("latency_ms", "peak_memory_mb", "energy_mj")
KNOWN_COSTS = (*ANALYTIC, THROUGHPUT, *PROFILED)


class Interval(Protocol):
    """What a predictor gives: three arrays of shape ``(subnets,)``."""

    @property
    def value(self) -> Floats:
        """The expected cost."""

    @property
    def lower(self) -> Floats:
        """Where the cost begins, with the confidence that was asked for."""

    @property
    def upper(self) -> Floats:
        """Where it ends."""


class Predicts(Protocol):
    """A fitted predictor of one cost, bound to its device and workload."""

    def predict(self, subnets: Sequence[SubnetConfig] | SubnetTable, confidence: float = 0.9) -> Interval:
        """Values and bounds that hold with the given confidence."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Arrays of shape ``(subnets,)`` with ``lower <= value <= upper``."""

    value: Floats
    lower: Floats
    upper: Floats


class SubnetCosts:
    """All known costs of subnets, by name.

    Analytic: ``parameters``, ``macs``, ``weight_mb`` (10^6 bytes of weights). Predicted: one per predictor, under its
    key, e.g. ``latency_ms``, ``energy_mj``, ``memory_mb``. Where ``latency_ms`` is among them there is also
    ``throughput``, in sequences per second.

    Args:
        space: The space whose subnets these are.
        workload: What one run processes.
        predictors: Name with unit -> fitted predictor.
        confidence: Of the predicted bounds, in (0, 1).

    Raises:
        ValueError: The confidence is out of range, or a predictor has the name of an analytic cost.
    """

    def __init__(
        self,
        space: SearchSpace,
        workload: Workload | None = None,
        predictors: Mapping[str, Predicts] | None = None,
        confidence: float = 0.9,
    ) -> None:
        if not 0 < confidence < 1:
            raise ValueError(f"`confidence` must be between 0 and 1, but got {confidence}.")
        self.space = space
        self.workload = workload or Workload()
        self.predictors = dict(predictors or {})
        self.confidence = confidence
        if taken := sorted({*ANALYTIC, THROUGHPUT} & set(self.predictors)):
            raise ValueError(f"`predictors` must not redefine {taken[0]!r}, which is computed.")

    @property
    def names(self) -> tuple[str, ...]:
        """The names that `__call__` gives."""
        throughput = (THROUGHPUT,) if "latency_ms" in self.predictors else ()
        return (*ANALYTIC, *self.predictors, *throughput)

    def __call__(self, subnets: Sequence[SubnetConfig] | SubnetTable) -> dict[str, Bounds]:
        """Costs of many subnets; each array has one element a subnet."""
        table = subnets if isinstance(subnets, SubnetTable) else SubnetTable.from_subnets(subnets)
        exact = costs(self.space.shape, table, self.workload)
        found = {
            "parameters": _exact(exact.parameters),
            "macs": _exact(exact.macs),
            "weight_mb": _exact(exact.weight_bytes / 1e6),
        }
        for name, predictor in self.predictors.items():
            interval = predictor.predict(table, self.confidence)
            found[name] = Bounds(*(np.asarray(a, np.float64) for a in (interval.value, interval.lower, interval.upper)))
        if latency := found.get("latency_ms"):
            sequences = self.workload.batch_size * 1000.0
            found[THROUGHPUT] = Bounds(
                *(sequences / np.maximum(a, 1e-9) for a in (latency.value, latency.upper, latency.lower))
            )
        return found

    def of(self, subnet: SubnetConfig) -> dict[str, tuple[float, float, float]]:
        """Costs of one subnet: name -> (value, lower, upper)."""
        return {n: (float(b.value[0]), float(b.lower[0]), float(b.upper[0])) for n, b in self([subnet]).items()}


def _exact(values: NDArray[np.int64] | Floats) -> Bounds:
    numbers = np.asarray(values, dtype=np.float64)
    return Bounds(numbers, numbers, numbers)
