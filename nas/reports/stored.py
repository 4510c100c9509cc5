"""A report of what a study's storage holds: for a search that is under way, was stopped, or ran without finalists."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.engine.pareto import spread
from nas.reports.data import ExploredTrial, Goal, Interval, LoadCommand, ModelRow, Report
from search_spaces.cost import Workload

if TYPE_CHECKING:
    from nas.dashboard.studies import Study

MOST_MODELS = 10
# Costs that a row of a report has fields of its own for.
_OWN_FIELDS = ("parameters", "macs", "latency_ms")


def stored_report(study: Study) -> Report:
    """The report of a study: what its search left when it ended, else what its trials tell.

    Equal trials give an equal report: nothing in it depends on when it is drawn.

    Raises:
        ValueError: The trials do not tell what was searched, because another program wrote them.
    """
    if study.report is not None:
        return study.report
    facts, trials, teacher = study.facts, study.trials, study.teacher
    if teacher is None:
        raise ValueError(
            f"report: study {facts.name!r} does not say which space it searches; `nas search` writes that."
        )
    quality, cost = trials.quality, trials.column("latency_ms")
    values = trials.column(quality)
    known = np.flatnonzero(np.isfinite(values) & np.isfinite(cost))
    task = _mapping(facts.context.get("task"))
    last = study.last_active
    bound = facts.bounds.get("latency_ms")
    return Report(
        study=facts.name,
        created="-" if last is None else datetime.fromtimestamp(last, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        teacher=str(task.get("model", "teacher")),
        task=f"{task.get('name', 'quality')} on the validation split; nothing has been exported and measured yet",
        quality=quality,
        device={str(k): str(v) for k, v in _mapping(facts.context.get("device")).items()},
        workload=Workload(**_mapping(facts.context.get("workload"))),
        teacher_subnet=teacher,
        budget_ms=bound[1] if bound else None,
        higher_is_better=trials.objectives.goals.get(quality, "maximize") == "maximize",
        models=_front(study),
        goals=_goals(study),
        explored=tuple(ExploredTrial(float(cost[i]), float(values[i]), bool(trials.feasible[i])) for i in known),
        commands=(
            LoadCommand(
                "Go on with the search, with the overrides that began it", f"nas search study={facts.name} ..."
            ),
        ),
        notes=(f"{int(trials.finished.sum())} trials have ended; the study is {study.state}.",),
    )


def _front(study: Study) -> tuple[ModelRow, ...]:
    """The front's members, at most ten, spread along it."""
    trials, front = study.trials, study.trials.front
    chosen = front[spread(trials.losses[front], MOST_MODELS)] if front.size > MOST_MODELS else front
    rows = []
    for index in sorted(chosen, key=lambda i: trials.column(trials.cost)[i]):
        row, subnet = trials.rows[index], study.subnet(int(index))
        if subnet is None:
            continue
        bounds = row.bounds.get("latency_ms")
        value = row.numbers.get("latency_ms", 0.0)
        rows.append(
            ModelRow(
                name=f"trial {row.number}",
                role="front",
                subnet=subnet,
                parameters=int(row.numbers.get("parameters", 0)),
                macs=int(row.numbers.get("macs", 0)),
                metrics={name: number for name, number in row.numbers.items() if name not in row.bounds},
                costs={name: row.numbers[name] for name in row.bounds if name not in _OWN_FIELDS},
                predicted_ms=Interval(value, min(bounds[0], value), max(bounds[1], value)) if bounds else None,
            )
        )
    return tuple(rows)


def _goals(study: Study) -> tuple[Goal, ...]:
    """What the search was asked for: goals first."""
    goals, bounds = study.trials.objectives.goals, study.facts.bounds
    names = dict.fromkeys([*goals, *bounds])
    return tuple(Goal(name, goals.get(name, ""), (bounds[name],) if name in bounds else ()) for name in names)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
