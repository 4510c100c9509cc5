"""Write a report in all its forms: HTML page, Markdown, CSV, PNG, and the data from which all are drawn again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nas.progress import format_duration
from nas.reports.data import Report
from nas.reports.figures import save_predicted_vs_measured_png
from nas.reports.page import NO_PARTS, StudyParts, render_page
from nas.reports.raw import models_csv
from nas.reports.tables import (
    broken_note,
    escape_markdown,
    format_number,
    markdown_table,
    model_columns,
    model_rows,
    scorecard_table,
)

DATA_NAME = "report.json"


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where the forms of a report lie; ``data``, ``png`` and ``trials`` are None where they were not written."""

    data: Path | None
    html: Path
    markdown: Path
    csv: Path
    png: Path | None
    trials: Path | None = None


def write_report(
    report: Report, directory: Path | str, parts: StudyParts = NO_PARTS, *, keep: bool = True
) -> ReportFiles:
    """Write all the forms of a report; the same report gives the same bytes.

    Args:
        report: What to show.
        directory: Folder that gets ``report.json``, ``report.html``, ``report.md``, ``models.csv`` and
            ``predicted_vs_measured.png``, and ``trials.csv`` where the trials are known; made where it does not exist.
        parts: What the study's trials and profile show beside that.
        keep: Whether ``report.json`` is written: not where the storage knows all of it, and more later.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    png = folder / "predicted_vs_measured.png"
    drawn = save_predicted_vs_measured_png(report, png)
    written = ReportFiles(
        data=folder / DATA_NAME if keep else None,
        html=folder / "report.html",
        markdown=folder / "report.md",
        csv=folder / "models.csv",
        png=png if drawn else None,
        trials=folder / "trials.csv" if parts.csv else None,
    )
    if written.data is not None:
        report.save(written.data)
    # newline: the same bytes on every system.
    written.html.write_text(render_page(report, parts), encoding="utf-8", newline="\n")
    text = render_markdown(report, png.name if drawn else None, parts)
    written.markdown.write_text(text, encoding="utf-8", newline="\n")
    written.csv.write_text(models_csv(report), encoding="utf-8", newline="\n")
    if written.trials is not None:
        written.trials.write_text(parts.csv, encoding="utf-8", newline="\n")
    return written


def render_markdown(report: Report, png_name: str | None = None, parts: StudyParts = NO_PARTS) -> str:
    """The report as Markdown.

    Args:
        report: What to show.
        png_name: File name of the predicted-vs-measured picture, where there is one beside the text.
        parts: What the study's trials show beside the report.
    """
    text = [f"# {escape_markdown(report.study)}\n", _facts(report)]
    if report.models:
        columns = model_columns(report)
        header, numeric = [column.title for column in columns], [column.numeric for column in columns]
        text += ["## Models\n", markdown_table(header, model_rows(report), numeric)]
        text += [f"{escape_markdown(note)}\n"] if (note := broken_note(report)) else []
    if report.scorecard or png_name:
        text.append("## Latency model\n")
        if report.scorecard:
            text.append(markdown_table(*scorecard_table(report.scorecard)))
        if png_name:
            text.append(f"![Predicted against measured latency]({png_name})\n")
    if report.sensitivity:
        table = report.sensitivity
        header = [f"loss of {table.metric}", *(f"block {index}" for index in range(len(report.teacher_subnet.blocks)))]
        rows = [
            [name, *(format_number(value) for value in row)]
            for name, row in zip(table.variants, table.losses, strict=True)
        ]
        text += ["## Sensitivity\n", markdown_table(header, rows)]
    if parts.markdown:
        text.append(parts.markdown)
    if report.commands:
        text.append("## Load a model\n")
        text += [f"{escape_markdown(command.purpose)}\n\n{_code(command.text)}" for command in report.commands]
    if report.stages:
        rows = [[s.name, "reused" if s.reused else format_duration(s.seconds), s.note] for s in report.stages]
        text += ["## The run\n", markdown_table(["stage", "time", "note"], rows, [False, True, False])]
    text += [f"{escape_markdown(note)}\n" for note in report.notes]
    return "\n".join(text)


def _facts(report: Report) -> str:
    workload = report.workload
    facts = {
        "Teacher": report.teacher,
        "Task": report.task,
        "Workload": f"batch {workload.batch_size}, {workload.sequence_length} tokens, {workload.phase}",
        "Budget": "none" if report.budget_ms is None else f"{format_number(report.budget_ms)} ms",
        **({"Goals": "; ".join(map(str, report.goals))} if report.goals else {}),
        "Trials": str(len(report.explored)),
        "Device": ", ".join(f"{key} {value}" for key, value in report.device.items()),
        "Written": report.created,
    }
    return "".join(f"- {key}: {escape_markdown(value)}\n" for key, value in facts.items())


def _code(text: str) -> str:
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}\n"
