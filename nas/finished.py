"""What is known of finished models: metrics and costs that the search was asked for by name, and their own files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_models.measurement import speedup
from nas.engine.costs import THROUGHPUT
from nas.evaluation.aspects import Aspects
from nas.evaluation.metrics import count_rows
from nas.reports.data import Goal, Interval, MeasuredLatency, ModelRow
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from latency_models.deployed import Deployed
    from latency_models.measurement import Measurement
    from nas.engine.limits import Limit, Objectives
    from nas.evaluation.evaluate import Extras, Run
    from nas.tasks.task import Outputs, Task
    from nas.workbench import Workbench


@dataclass(frozen=True)
class Member:
    """One model on its way into the report.

    Args:
        name: What people call it.
        role: ``teacher`` or ``front``.
        subnet: Its architecture.
        directory: Folder with its graphs.
        graphs: Precision -> ONNX file.
        predicted: Predicted latency, or None.
        metrics: Precision -> metrics on the test split.
        intervals: Precision -> the main one's interval.
        trial: Number of its trial.
        costs: Costs by name, as the search knows them.
    """

    name: str
    role: Any
    subnet: SubnetConfig
    directory: Path
    graphs: dict[str, Path]
    predicted: Interval | None
    metrics: dict[str, dict[str, float]]
    intervals: dict[str, Interval] = field(default_factory=dict)
    trial: int | None = None
    costs: Mapping[str, float] = field(default_factory=dict)


def goals_of(objectives: Objectives, limits: Sequence[Limit] = ()) -> tuple[Goal, ...]:
    """Goals and constraints by name, goals first.

    Args:
        objectives: Names and directions.
        limits: The constraints in numbers.
    """
    names = dict.fromkeys([*objectives.goals, *(limit.name for limit in limits)])
    return tuple(
        Goal(
            name,
            str(objectives.goals.get(name, "")),
            tuple(("<=" if limit.upper else ">=", limit.bound) for limit in limits if limit.name == name),
        )
        for name in names
    )


# Costs that a table of models has a column for only where they are asked for.
OWN_COLUMN = (THROUGHPUT, "weight_mb", "peak_memory_mb", "energy_mj")


class FinalMetrics:
    """Metrics of finished models beyond those that a task always gives: those asked for by name, and an interval.

    Args:
        task: Its main measure gets the interval.
        aspects: How the interval is drawn.
        named: Metrics that goals and constraints name.
    """

    def __init__(self, task: Task, aspects: Aspects, named: Extras | None) -> None:
        self.task = task
        self.aspects = aspects
        self.named = named
        self.interval: Interval | None = None

    @classmethod
    def of(cls, bench: Workbench) -> FinalMetrics:
        """Those of a search; a metric that the test split does not give is told, and the others stay."""
        from nas.config import build

        aspects = build(bench.config["evaluation"])
        assert isinstance(aspects, Aspects)
        return cls(bench.task, aspects, None if bench.extras is None else bench.extras.tolerant(bench.say))

    def __call__(
        self, run: Run, split: str, outputs: Outputs, teacher: Outputs, batch_size: int = 64
    ) -> dict[str, float]:
        """The metrics by name; ``interval`` then holds the main measure of the same outputs."""
        quality = next(measure for measure in self.task.measures if measure.name == self.task.quality)
        rows, resampling = self.task.tables(split, outputs, teacher)[quality.table], self.aspects.intervals
        self.interval = None
        if count_rows(rows) > 1:
            found = resampling.interval(resampling.values(quality, rows), quality.span)
            if found.low <= found.value <= found.high:
                self.interval = Interval(found.value, found.low, found.high)
        return {} if self.named is None else self.named(run, split, outputs, teacher, batch_size)


def finished_costs(
    names: Collection[str],
    model: Deployed,
    inputs: Mapping[str, Any],
    sequences: int,
    latency_ms: float | None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Costs of a deployed model, measured, of those that are asked for.

    Args:
        names: What is asked for.
        model: The model where it runs.
        inputs: What one run processes.
        sequences: How many of them that are.
        latency_ms: What one run takes, where it was measured.
        say: Told of what takes a while.

    Returns:
        ``throughput`` (sequences per second), ``peak_memory_mb`` and ``energy_mj``, where they can be measured.
    """
    from latency_models.meters import find_energy_meter, measure_energy, peak_memory

    found: dict[str, float] = {}
    if THROUGHPUT in names and latency_ms:
        found[THROUGHPUT] = sequences * 1e3 / latency_ms
    if "peak_memory_mb" in names:
        say(f"memory of {model.name}")
        found["peak_memory_mb"] = peak_memory(model.job(inputs), model.device).host_mb
    if "energy_mj" in names and (meter := find_energy_meter(model.device)) is not None:
        say(f"energy of {model.name}")
        found["energy_mj"] = measure_energy(model.job(inputs)(), meter).millijoules
    return found


def write_model_metrics(
    directory: Path, rows: Sequence[ModelRow], intervals: Mapping[str, Interval], main: str, told: Mapping[str, Any]
) -> None:
    """Write what a search knows of an exported model into its folder, in the form that `nas export` gives it.

    Args:
        directory: The exported folder.
        rows: The model, once for each precision.
        intervals: Precision -> the main measure's interval.
        main: The main measure's name.
        told: What else is written: study, trial, device and workload.
    """
    from nas.export.export import write_metrics

    quality: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    for row in rows:
        bounds = intervals.get(row.precision)
        given = {} if bounds is None else {f"{main}_low": bounds.low, f"{main}_high": bounds.high}
        # In fp32 it is the model itself that was judged, with which its graph agrees.
        quality["transformers" if row.precision == "fp32" else f"onnx {row.precision}"] = {**row.metrics, **given}
        if row.measured is not None:
            same = "speedup_same_precision" if row.precision == "int8" else "speedup_teacher_int8"
            ratios = {
                "speedup_teacher_fp32": row.speedup_fp32,
                same: row.speedup_int8,
                "predicted_ms": row.predicted_ms,
            }
            measured[f"onnx {row.precision}"] = {
                "p50_ms": row.measured.p50_ms,
                "p90_ms": row.measured.p90_ms,
                "min_ms": row.measured.min_ms,
                "runs": row.measured.n,
                **{name: asdict(ratio) for name, ratio in ratios.items() if ratio is not None},
                **row.costs,
                "size_mb": row.size_mb,
            }
    found = {**told, "split": "test", "quality": quality}
    write_metrics(directory, found | ({"measured": measured} if measured else {}))


def latency_of(measured: Measurement) -> MeasuredLatency:
    """A measurement as reports tell it."""
    return MeasuredLatency(measured.p50, measured.minimum, measured.p90, measured.n)


def speedup_of(measured: Measurement, seed: int) -> Interval | None:
    """The paired speed-up over the reference of a measurement, where it has one."""
    found = speedup(measured, seed)
    return None if found is None else Interval(found.value, found.low, found.high)
