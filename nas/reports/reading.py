"""Read the parts of a report from plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nas.reports.data import (
    ExploredTrial,
    Goal,
    Interval,
    LoadCommand,
    MeasuredLatency,
    ModelRow,
    PredictionCheck,
    PredictorScore,
    Sensitivity,
    StageTiming,
)
from search_spaces.subnet import SubnetConfig

T = TypeVar("T")


def optional(read: Callable[[Any], T], data: Any) -> T | None:
    """What is read of the data, where there are any."""
    return None if data is None else read(data)


def _interval(data: Mapping[str, float]) -> Interval:
    return Interval(**data)


def _model(data: Mapping[str, Any]) -> ModelRow:
    values = dict(data)
    for name in ("predicted_ms", "speedup_fp32", "speedup_int8"):
        values[name] = optional(_interval, values.get(name))
    measured = optional(lambda plain: MeasuredLatency(**plain), values.pop("measured", None))
    subnet = SubnetConfig.from_dict(values.pop("subnet"))
    numbers = (values.pop("metrics"), values.pop("costs", {}))
    metrics, costs = ({key: _number(value) for key, value in part.items()} for part in numbers)
    return ModelRow(subnet=subnet, measured=measured, metrics=metrics, costs=costs, **values)


def _check(data: Mapping[str, Any]) -> PredictionCheck:
    return PredictionCheck(data["name"], _interval(data["predicted_ms"]), data["measured_ms"])


def _score(data: Mapping[str, Any]) -> PredictorScore:
    scores = {key: _number(value) for key, value in data["scores"].items()}
    return PredictorScore(data["predictor"], data["n"], scores)


def read_sensitivity(data: Mapping[str, Any]) -> Sensitivity:
    """Read a table of losses."""
    rows = tuple(tuple(_number(value) for value in row) for row in data["losses"])
    return Sensitivity(data["metric"], tuple(data["variants"]), rows)


def _goal(data: Mapping[str, Any]) -> Goal:
    limits = tuple((str(sign), float(bound)) for sign, bound in data["limits"])
    return Goal(data["name"], data["direction"], limits)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


# Part of a report of which there are many -> what reads one of them.
READERS: dict[str, Callable[[Any], Any]] = {
    "models": _model,
    "explored": lambda data: ExploredTrial(**data),
    "checks": _check,
    "scorecard": _score,
    "stages": lambda data: StageTiming(**data),
    "commands": lambda data: LoadCommand(**data),
    "notes": str,
    "cards": dict,
    "goals": _goal,
}
