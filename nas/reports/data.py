"""What a report is made of: plain frozen data with a JSON round trip, so that a report is drawn again identically.

Nothing here knows the search engine. `nas/commands.py` fills a `Report`; tables, figures and pages only read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from nas.stored_json import finite, read_object, write_object
from search_spaces.cost import Workload
from search_spaces.subnet import SubnetConfig

Role = Literal["teacher", "front"]
FORMAT = "hwnas report 1"


@dataclass(frozen=True, slots=True)
class Interval:
    """A value between two bounds, all in the unit that the field's name tells."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"An interval needs low <= value <= high, but got {self.low}, {self.value}, {self.high}.")


@dataclass(frozen=True, slots=True)
class MeasuredLatency:
    """Latency as measured on the device, in milliseconds: median, minimum, 90th percentile of ``n`` runs."""

    p50_ms: float
    min_ms: float
    p90_ms: float
    n: int


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model of the report's table: a teacher or a front member, in one precision.

    Args:
        name: What people call it. The two precisions of one architecture share it.
        role: ``teacher`` or ``front``.
        subnet: The architecture; a teacher's is the largest one.
        parameters: Of the whole model, embeddings and head included.
        macs: Multiply-accumulates of one run of the workload.
        metrics: Metric name -> value on sentences that neither calibration nor search saw.
        precision: Of the deployed graph: ``fp32``, ``int8`` ...
        predicted_ms: What the latency model said before anything was measured.
        measured: What the device said.
        speedup_fp32: Paired median speed-up against the fp32 teacher of the same run.
        speedup_int8: Paired median speed-up against the int8 teacher of the same run.
        size_mb: Size of the deployed graph on disk, in megabytes (10^6 bytes).
        costs: Costs beside these that the search was asked for, by name: measured, else counted or predicted.
        directory: Folder that holds the exported model.
    """

    name: str
    role: Role
    subnet: SubnetConfig
    parameters: int
    macs: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    precision: str = "fp32"
    predicted_ms: Interval | None = None
    measured: MeasuredLatency | None = None
    speedup_fp32: Interval | None = None
    speedup_int8: Interval | None = None
    size_mb: float | None = None
    directory: str | None = None
    costs: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"`role` must be one of {', '.join(get_args(Role))}, but got {self.role!r}.")

    def value_of(self, name: str) -> float | None:
        """A metric or a cost by the name that a search knows it by, as measured where it was; None if unknown."""
        known = {"parameters": float(self.parameters), "macs": float(self.macs), "latency_ms": self.latency_ms}
        value = {**self.costs, **known, **self.metrics}.get(name)
        return None if value is None or math.isnan(value) else value

    @property
    def latency_ms(self) -> float | None:
        """The measured median where there is one, else the prediction, in milliseconds."""
        if self.measured is not None:
            return self.measured.p50_ms
        return None if self.predicted_ms is None else self.predicted_ms.value


@dataclass(frozen=True, slots=True)
class Goal:
    """What a search was asked for by name: a goal, a constraint, or both.

    Args:
        name: Of a metric or a cost.
        direction: ``maximize`` or ``minimize``; empty where it is only limited.
        limits: ``<=`` or ``>=`` with the bound, each.
    """

    name: str
    direction: str = ""
    limits: tuple[tuple[str, float], ...] = ()

    def broken_by(self, row: ModelRow) -> bool:
        """Whether a model breaks one of the limits."""
        value = row.value_of(self.name)
        return value is not None and any(
            value > bound if sign == "<=" else value < bound for sign, bound in self.limits
        )

    @property
    def wanted(self) -> str:
        """What was asked for: ``max, >= 0.9``."""
        limits = [f"{sign} {bound:.6g}" for sign, bound in self.limits]
        return ", ".join([*([self.direction[:3]] if self.direction else []), *limits])

    def __str__(self) -> str:
        return f"{self.name} {self.wanted}"


@dataclass(frozen=True, slots=True)
class ExploredTrial:
    """One evaluated trial: predicted latency in milliseconds, quality, and whether it kept the constraints."""

    latency_ms: float
    quality: float
    feasible: bool = True


@dataclass(frozen=True, slots=True)
class PredictionCheck:
    """A subnet that the predictor had not seen: its predicted and its measured latency, in milliseconds."""

    name: str
    predicted_ms: Interval
    measured_ms: float


@dataclass(frozen=True, slots=True)
class PredictorScore:
    """One line of the predictor's scorecard: score name -> value, on ``n`` subnets that it was not fitted to."""

    predictor: str
    n: int
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What the whole model loses when one block takes one variant.

    Args:
        metric: The metric whose loss it is.
        variants: Names of the variants (``heads 6``, ``ffn 768``), one per row.
        losses: One row per variant, one value per block of the teacher; NaN where a variant does not apply.

    Raises:
        ValueError: There is not one row per variant, or rows differ in length.
    """

    metric: str
    variants: tuple[str, ...]
    losses: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if len(self.variants) != len(self.losses) or len({len(row) for row in self.losses}) > 1:
            raise ValueError("Sensitivity needs one row of losses per variant, all of the same length.")


@dataclass(frozen=True, slots=True)
class StageTiming:
    """How long a stage took, in seconds, and whether its result was reused from an earlier run."""

    name: str
    seconds: float
    reused: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class LoadCommand:
    """A command or snippet that people can copy, and what it is good for."""

    purpose: str
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one study's report shows.

    Args:
        study: Name of the study.
        created: When the study ended, as text; reports read no clock, so that they stay identical.
        teacher: Name of the teacher.
        task: What the quality was measured on, in words.
        quality: Name of the main metric: a key of the rows' ``metrics``.
        device: The device's fingerprint.
        workload: What one run processes.
        teacher_subnet: The largest subnet, beside which architectures are drawn.
        budget_ms: The latency constraint of the search, in milliseconds.
        higher_is_better: Whether a higher quality is a better one.
        confidence: Coverage that the prediction intervals aim at.
        models: Teachers first, then the front; in the order in which tables show them.
        explored: Every evaluated trial.
        checks: Predictions beside measurements, of subnets that the predictor had not seen.
        scorecard: How well the predictors predict.
        sensitivity: Losses of the whole model, block by block.
        stages: How long everything took.
        commands: How to load the exported models.
        notes: Sentences for the reader: what was reused, what could not be done.
        cards: Report cards of the models, as `nas.evaluation.card.ReportCard` writes them.
        goals: What the search optimised and limited.
    """

    study: str
    created: str
    teacher: str
    task: str
    quality: str
    device: Mapping[str, str]
    workload: Workload
    teacher_subnet: SubnetConfig
    budget_ms: float | None = None
    higher_is_better: bool = True
    confidence: float = 0.9
    models: tuple[ModelRow, ...] = ()
    explored: tuple[ExploredTrial, ...] = ()
    checks: tuple[PredictionCheck, ...] = ()
    scorecard: tuple[PredictorScore, ...] = ()
    sensitivity: Sensitivity | None = None
    stages: tuple[StageTiming, ...] = ()
    commands: tuple[LoadCommand, ...] = ()
    notes: tuple[str, ...] = ()
    cards: tuple[Mapping[str, Any], ...] = ()
    goals: tuple[Goal, ...] = ()

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of all the rows' metrics, the main one first, in the order of first appearance."""
        names = dict.fromkeys(name for row in self.models for name in row.metrics)
        return tuple(sorted(names, key=lambda name: name != self.quality))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` reads back; NaN and infinities become None."""
        data = finite(asdict(self))
        assert isinstance(data, dict)
        return {"format": FORMAT, **data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Rebuild from plain data.

        Raises:
            ValueError: It is not a report, a key is missing or unknown, or a value breaks a rule.
        """
        if data.get("format") != FORMAT:
            raise ValueError(f"report: `format` must be {FORMAT!r}, but got {data.get('format')!r}.")
        values = {key: value for key, value in data.items() if key != "format"}
        from nas.reports.reading import READERS, optional, read_sensitivity

        try:
            many: dict[str, Any] = {
                name: tuple(read(item) for item in values.pop(name, ())) for name, read in READERS.items()
            }
            sensitivity = optional(read_sensitivity, values.pop("sensitivity", None))
            workload = Workload(**values.pop("workload"))
            teacher_subnet = SubnetConfig.from_dict(values.pop("teacher_subnet"))
            return cls(workload=workload, teacher_subnet=teacher_subnet, sensitivity=sensitivity, **many, **values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"report: the data do not fit ({type(error).__name__}: {error}).") from error

    def save(self, path: Path | str) -> None:
        """Write as JSON, with keys in a fixed order."""
        write_object(path, self.to_dict())

    @classmethod
    def load(cls, path: Path | str) -> Report:
        """Read what ``save`` wrote.

        Raises:
            ValueError: The file is no report.
            OSError: The file cannot be read.
        """
        return cls.from_dict(read_object(path, "report"))
