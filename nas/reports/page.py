"""The report as one self-contained HTML page: no network, every outside text escaped, light and dark, any width."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from nas.progress import format_duration
from nas.reports.data import ModelRow, Report
from nas.reports.document import document, figure_box, section, table
from nas.reports.drawing import draw_subnet
from nas.reports.figure_parts import Figure
from nas.reports.figures import front_figure, predicted_vs_measured_figure, reliability_figure, sensitivity_figure
from nas.reports.tables import (
    broken_note,
    describe,
    format_count,
    format_metric,
    format_number,
    model_columns,
    model_rows,
    scorecard_table,
)


@dataclass(frozen=True)
class StudyParts:
    """Parts of a report that its study's trials and profile give; all empty where only the report's data are there.

    Args:
        front: The front over all trials, with limits and baselines; in place of the figure of the report's data.
        agreement: HTML: what the front agrees on.
        latency: HTML: how the profile judges the latency model.
        search: HTML: how the search went.
        markdown: The search, as Markdown.
        csv: All trials.
        figures: What the HTML refers to, by name.
    """

    front: Figure | None = None
    agreement: str = ""
    latency: str = ""
    search: str = ""
    markdown: str = ""
    csv: str = ""
    figures: Mapping[str, Figure | None] = field(default_factory=dict)


NO_PARTS = StudyParts()


def render_page(report: Report, parts: StudyParts = NO_PARTS) -> str:
    """The whole page as text; equal reports give equal text.

    Args:
        report: What its search left.
        parts: What its study's trials and profile show beside that.
    """
    figures = {
        **parts.figures,
        "front": parts.front or front_figure(report),
        "checks": predicted_vs_measured_figure(report),
        "sensitivity": sensitivity_figure(report),
        "reliability": reliability_figure(report),
    }
    sections = [
        _header(report),
        section(
            "front",
            f"{report.quality} against latency",
            figure_box("front", "Pareto front", figures["front"], log_button=True),
            "Up and to the left is better. Open circles are predictions with their intervals; filled marks are "
            "measurements of the exported models; stars are the teacher.",
        ),
        section("models", "Models", _models_table(report), broken_note(report)),
        section("architectures", "Architectures", _architectures(report) + parts.agreement, _DRAWING_NOTE),
        section("predictions", "Latency model", _predictions(report, figures["checks"]) + parts.latency),
        section(
            "sensitivity",
            "Sensitivity",
            figure_box("sensitivity", "Sensitivity heat map", figures["sensitivity"]),
            "What the whole model loses when one block alone takes one variant.",
        ),
        section("search", "The search", parts.search, _SEARCH_NOTE),
        section("cards", "Report cards", _cards(report, figures["reliability"]), _CARDS_NOTE),
        section("load", "Load a model", _commands(report)),
        section("run", "The run", _run(report)),
    ]
    return document(f"{report.study}: {report.teacher}", sections, figures)


_DRAWING_NOTE = (
    "One column per block: attention heads above the line, FFN neurons below, as shares of the teacher, whose outline "
    "is drawn around. Hatched: low rank (r on the projections that read, o on the one that writes). Dashed: skipped."
)


_SEARCH_NOTE = (
    "The volume that the feasible front covers, in units of the box that the first ten feasible trials span. "
    "Importances: shares for reaching the best tenth of the trials (PED-ANOVA, Watanabe et al. 2023)."
)


_CARDS_NOTE = (
    "Every model on data that neither calibration nor search saw. In brackets: bootstrap intervals over samples; with "
    "a percent sign: what is kept of the teacher's value."
)


def _header(report: Report) -> str:
    workload = report.workload
    processor = report.device.get("cpu") or report.device.get("gpu") or report.device.get("name") or "unknown device"
    facts = [
        ("Teacher", report.teacher),
        ("Task", report.task),
        ("Device", processor),
        ("Workload", f"batch {workload.batch_size}, {workload.sequence_length} tokens, {workload.phase}"),
        ("Budget", "none" if report.budget_ms is None else f"{format_number(report.budget_ms)} ms"),
        *([("Goals", "; ".join(map(str, report.goals)))] if report.goals else []),
        ("Trials", str(len(report.explored))),
        ("Written", report.created),
    ]
    items = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts)
    return f'<header><h1>{html.escape(report.study)}</h1>{_headline(report)}<dl class="facts">{items}</dl></header>'


def _headline(report: Report) -> str:
    """What the measured front spans, in one sentence per precision."""
    lines = []
    for precision in dict.fromkeys(row.precision for row in report.models):
        rows = [row for row in report.models if row.role == "front" and row.precision == precision and row.speedup_fp32]
        if rows:
            speedups = sorted(row.speedup_fp32.value for row in rows if row.speedup_fp32)
            values = sorted(
                (row.metrics.get(report.quality, math.nan) for row in rows), reverse=report.higher_is_better
            )
            text = (
                f"{precision}: {_span(f'{speedups[0]:.2f}x', f'{speedups[-1]:.2f}x')} the speed of the fp32 teacher "
                f"at {report.quality} {_span(format_metric(values[0]), format_metric(values[-1]))}"
            )
            lines.append(f'<p class="headline">{html.escape(text)}</p>')
    return "".join(lines)


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _models_table(report: Report) -> str:
    columns = model_columns(report)
    if not report.models:
        return '<p class="empty">No model was kept: nothing that was tried keeps the constraints.</p>'
    return table([c.title for c in columns], model_rows(report), [c.numeric for c in columns])


def _architectures(report: Report) -> str:
    rows = {row.name: row for row in reversed(report.models) if row.role == "front"}
    cards = [_card(report, report.teacher, report.teacher_subnet, None)] if rows else []
    cards += [_card(report, name, row.subnet, row) for name, row in reversed(rows.items())]
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _card(report: Report, name: str, subnet: Any, row: ModelRow | None) -> str:
    facts = [describe(subnet, report.teacher_subnet)]
    if row is not None:
        facts.append(f"{format_count(row.parameters)} parameters")
        facts.append(f"{report.quality} {format_metric(row.metrics.get(report.quality))}")
        if row.latency_ms is not None:
            facts.append(f"{format_number(row.latency_ms)} ms {row.precision}")
    drawing = draw_subnet(subnet, report.teacher_subnet, f"Architecture of {name}")
    return (
        f"<figure><figcaption><b>{html.escape(name)}</b><span>{html.escape(' · '.join(facts))}</span></figcaption>"
        f'<div class="scroll" tabindex="0">{drawing}</div></figure>'
    )


def _predictions(report: Report, figure: Figure | None) -> str:
    parts = [figure_box("checks", "Predicted against measured latency", figure)]
    if report.scorecard:
        header, rows = scorecard_table(report.scorecard)
        parts.append(table(header, rows, [False] + [True] * (len(header) - 1)))
    return "".join(parts)


def _cards(report: Report, reliability: Figure | None) -> str:
    """Report cards side by side, one table a section."""
    from nas.evaluation.card import ReportCard
    from nas.reports.compare import side_by_side

    if not report.cards:
        return ""
    header, rows = side_by_side([ReportCard.from_dict(card) for card in report.cards])
    numeric = [False, *[True] * len(report.cards), False]

    def shown(rows: list[list[str]]) -> str:
        last = None if any(row[-1] for row in rows) else -1  # No empty column of notes.
        return table(header[1:last], [row[1:last] for row in rows], numeric[:last])

    return "".join(
        f"<h3>{html.escape(section.capitalize())}</h3>"
        + shown(some)
        + (figure_box("reliability", "Reliability diagram", reliability) if section == "calibration" else "")
        for section, group in groupby(rows, key=lambda row: row[0])
        if (some := list(group))
    )


def _commands(report: Report) -> str:
    return "".join(
        f'<h3>{html.escape(command.purpose)}</h3><pre tabindex="0"><code>{html.escape(command.text)}</code></pre>'
        for command in report.commands
    )


def _run(report: Report) -> str:
    parts = ["".join(f"<p>{html.escape(note)}</p>" for note in report.notes)]
    if report.stages:
        rows = [
            [stage.name, "reused" if stage.reused else format_duration(stage.seconds), stage.note]
            for stage in report.stages
        ]
        total = sum(stage.seconds for stage in report.stages if not stage.reused)
        rows.append(["total", format_duration(total), ""])
        parts.append(table(["stage", "time", ""], rows, [False, True, False]))
    if report.device:
        parts.append("<h3>Device</h3>")
        parts.append(table(["property", "value"], [[k, str(v)] for k, v in report.device.items()], [False, False]))
    return "".join(parts)
