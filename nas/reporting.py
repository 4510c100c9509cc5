"""What a finished search leaves to be read: everything that its report shows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from nas.evaluation.aspects import lower_is_better
from nas.evaluation.metrics import judged_on
from nas.finished import goals_of
from nas.reports.data import ExploredTrial, LoadCommand, ModelRow, Report, Sensitivity
from nas.searching import Found, SearchBench
from nas.workbench import Workbench


def make_report(search: SearchBench, found: Found, rows: Sequence[ModelRow]) -> Report:
    """A finished study's report.

    Args:
        search: Its stages.
        found: All candidates, and the front.
        rows: The teacher and the members of the front, measured.
    """
    bench, device = search.bench, search.device
    fitted = device.fitted if "latency_ms" in search.costs.names else None
    quality = bench.task.quality
    limit = next((limit.bound for limit in search.limits if limit.name == "latency_ms"), None)
    explored = tuple(
        ExploredTrial(c.number_of("latency_ms"), c.number_of(quality), c.feasible)
        for c in found.candidates
        if "latency_ms" in c.predicted and quality in c.metrics
    )
    best = next((row for row in rows if row.role == "front"), rows[0])
    load = (
        f'python -c "from search_spaces.checkpoint import load_subnet; from pathlib import Path; '
        f"print(load_subnet(Path('{best.directory}')))\""
    )
    return Report(
        study=str(bench.config["study"]),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        teacher=str(bench.config["model"]["path"]),
        task=f"{bench.task.kind}, {_judged_on(bench)} that neither calibration nor search saw",
        quality=quality,
        higher_is_better=not lower_is_better(quality, bench.task),
        device=dict(device.fingerprint),
        workload=bench.workload,
        teacher_subnet=bench.space.teacher,
        budget_ms=limit,
        confidence=search.objectives.confidence,
        models=tuple(rows),
        explored=explored,
        checks=fitted.checks if fitted else (),
        scorecard=fitted.scores if fitted else (),
        sensitivity=_sensitivity(search),
        stages=tuple(bench.timings),
        commands=(
            LoadCommand("Load a found model in Python", load),
            LoadCommand("Export the best compromise again", f"nas export study={bench.config['study']} pick=knee"),
        ),
        notes=tuple(bench.notes),
        goals=goals_of(search.objectives, search.limits),
    )


def _judged_on(bench: Workbench) -> str:
    """How many of what the models were judged on: ``2000 pairs``."""
    teacher = bench.evaluator.teacher.main("test")
    return " ".join(map(str, judged_on(bench.task, bench.task.tables("test", teacher, teacher), "test")))


def _sensitivity(search: SearchBench) -> Sensitivity | None:
    """The replacement losses, block by block, or None where none were measured."""
    if not search.settings["sensitivity_evaluations"]:
        return None
    rows: dict[str, list[float]] = {}
    space = search.space
    for dimension, losses in zip(space.dimensions, search.sensitivity.losses, strict=True):
        for choice, loss in zip(dimension.choices, losses, strict=True):
            name = "skipped" if choice is True else f"{dimension.name} {choice}"
            if choice is False or dimension.block is None:
                continue
            rows.setdefault(name, [float("nan")] * space.shape.num_blocks)[dimension.block] = float(loss)
    return Sensitivity(search.bench.task.quality, tuple(rows), tuple(tuple(row) for row in rows.values()))
