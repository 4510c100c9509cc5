"""What a report shows of its study's trials and profile: the figures of the dashboard's pages, drawn once."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nas.dashboard.agreement import agreement_figure
from nas.dashboard.figures import Axes, front_figure, lines_figure
from nas.dashboard.formats import format_value
from nas.dashboard.latency_figures import trust_figures
from nas.dashboard.search_figures import (
    failures,
    importance_figure,
    outcomes,
    outcomes_figure,
    pace,
    promotions_figure,
    rungs,
)
from nas.dashboard.spreadsheet import trials_csv
from nas.reports.document import figure_box, table
from nas.reports.figure_parts import Figure
from nas.reports.page import StudyParts
from nas.reports.tables import format_number, markdown_table

if TYPE_CHECKING:
    from latency_models.trust import Trust
    from nas.dashboard.studies import Study
    from nas.dashboard.trials import Trials


def study_parts(
    study: Study, importances: Mapping[str, Mapping[str, float]] | None = None, trust: Trust | None = None
) -> StudyParts:
    """Draw a study; equal trials and an equal profile give equal parts.

    Args:
        study: With its trials.
        importances: Goal -> parameter -> share of the importance; of goals that have enough trials.
        trust: The latency predictor's cross-validation, where there is a profile.
    """
    trials = study.trials
    members = [subnet for index in trials.front if (subnet := study.subnet(int(index))) is not None]
    searched: dict[str, Figure | None] = {
        "hypervolume": lines_figure([(study.key, *study.history)], "trials", "hypervolume", step=True),
        "outcomes": outcomes_figure(trials),
        "promotions": promotions_figure(trials),
    }
    searched |= {f"importance-{n}": importance_figure(found) for n, found in enumerate((importances or {}).values())}
    judged = trust_figures(trust) if trust else {}
    agreed = agreement_figure(members)
    return StudyParts(
        front=front_figure([study], Axes(trials.cost, trials.quality)) if len(trials) else None,
        agreement=_agreement(agreed, len(members)),
        latency=_latency(trust, judged) if trust else "",
        search=_search(study, searched, tuple(importances or ())),
        markdown=_markdown(study),
        csv=trials_csv([study]),
        figures={"agreement": agreed, **searched, **judged},
    )


def _agreement(figure: Figure | None, members: int) -> str:
    if figure is None:
        return ""
    note = _note(f"For each block, the share of the {members} members of the front that make a choice.")
    drawn = figure_box("agreement", "Choices of the front by block", figure)
    return f"<h3>What the front agrees on</h3>{note}{drawn}"


def _latency(trust: Trust, figures: Mapping[str, Figure | None]) -> str:
    """The cross-validation on the profile: facts, then a figure for each question."""
    drift = trust.drift
    shifted = "; ".join(str(segment) for segment in drift.segments) if drift else ""
    facts = [
        ("subnets", str(len(trust.measured))),
        ("mean absolute error", f"{format_number(trust.mape)} %"),
        ("parts", str(trust.folds)),
        *([("autocorrelation", format_number(drift.autocorrelation))] if drift else []),
        ("shifted stretches", shifted or "none"),
    ]
    boxes = [
        ("errors", "Errors", "Histogram of relative errors"),
        ("coverage", "Coverage of the intervals", "Coverage of the intervals"),
        ("learning", "Learning curve", "Error by number of measured subnets"),
        ("drift", "Drift over the order of measurement", "Residuals and reference model in order of measurement"),
    ]
    drawn = [
        f"<div><h3>{title}</h3>{figure_box(name, label, figures[name])}</div>"
        for name, title, label in boxes
        if figures.get(name)
    ]
    return (
        "<h3>Cross-validated on the profile</h3>"
        + _note("Every profiled subnet is predicted by a predictor that was fitted without it.")
        + f'{_facts(facts)}<div class="columns">{"".join(drawn)}</div>'
    )


def _search(study: Study, figures: Mapping[str, Figure | None], goals: tuple[str, ...]) -> str:
    """Volume, pace, importances, rungs and failures."""
    trials = study.trials
    if not trials.finished.any():
        return ""
    parts = [
        figure_box("hypervolume", "Hypervolume over trials", figures["hypervolume"]),
        _facts(_pace_facts(study)),
        figure_box("outcomes", "Trials per minute by outcome", figures["outcomes"]),
    ]
    for number, goal in enumerate(goals):
        parts.append(f"<h3>What matters for {html.escape(goal)}</h3>")
        parts.append(figure_box(f"importance-{number}", "Importance of parameters", figures[f"importance-{number}"]))
    for title, header, rows, numeric in _tables(trials):
        parts.append(f"<h3>{title}</h3>{table(header, rows, numeric)}")
        if title == "Rungs":
            parts.append(figure_box("promotions", "Quality of promoted subnets at each rung", figures["promotions"]))
    return "".join(parts)


def _tables(trials: Trials) -> list[tuple[str, list[str], list[list[str]], list[bool]]]:
    """Title, header, rows, and which columns are numbers, of the tables that there is anything for."""
    found = []
    if len(levels := rungs(trials)) > 1:
        header = ["steps of distillation", "subnets", "promoted", f"best {trials.quality}"]
        rows = [[str(r.steps), str(r.trials), str(r.promoted), format_value(r.best, trials.quality)] for r in levels]
        found.append(("Rungs", header, rows, [False, True, True, True]))
    if failed := failures(trials):
        rows = [[str(f.count), ", ".join(map(str, f.examples)), f.reason] for f in failed]
        found.append(("Failures", ["trials", "first ones", "reason"], rows, [True, False, False]))
    return found


def _pace_facts(study: Study) -> list[tuple[str, str]]:
    speed = pace(study.trials)
    volume = study.history[1]
    return [
        ("trials per minute", "-" if speed is None else format_number(speed)),
        ("hypervolume", format_number(float(volume[-1])) if len(volume) else "-"),
        *((name, str(count)) for name, count in outcomes(study.trials)),
    ]


def _facts(facts: list[tuple[str, str]]) -> str:
    items = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts)
    return f'<dl class="facts">{items}</dl>'


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _markdown(study: Study) -> str:
    if not study.trials.finished.any():
        return ""
    facts = [list(fact) for fact in _pace_facts(study)]
    parts = ["## The search\n", markdown_table(["", "value"], facts, [False, True])]
    for title, header, rows, numeric in _tables(study.trials):
        parts += [f"### {title}\n", markdown_table(header, rows, numeric)]
    return "\n".join(parts)
