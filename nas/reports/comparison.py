"""Several studies in one report: their fronts over each other, their searches, their models in one table."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas.dashboard.figures import Axes, front_figure, lines_figure
from nas.dashboard.formats import format_share, format_value
from nas.reports.data import ModelRow, Report
from nas.reports.document import document, figure_box, section, table
from nas.reports.drawing import draw_subnet
from nas.reports.raw import models_csv, no_formula
from nas.reports.stored import stored_report
from nas.reports.tables import describe, escape_markdown, markdown_table, model_columns

if TYPE_CHECKING:
    from nas.dashboard.studies import Study


@dataclass(frozen=True, slots=True)
class ComparisonFiles:
    """Where the forms of a comparison lie."""

    html: Path
    markdown: Path
    csv: Path


def write_comparison(studies: Sequence[Study], directory: Path | str) -> ComparisonFiles:
    """Write a comparison as HTML, Markdown and CSV; the same studies give the same bytes.

    Args:
        studies: At least one, in the order in which they are shown.
        directory: Folder that gets the files; made where it does not exist.

    Raises:
        ValueError: A study does not tell what it searched.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    reports = [stored_report(study) for study in studies]
    written = ComparisonFiles(folder / "comparison.html", folder / "comparison.md", folder / "comparison.csv")
    written.html.write_text(render_comparison(studies, reports), encoding="utf-8", newline="\n")
    written.markdown.write_text(_markdown(studies, reports), encoding="utf-8", newline="\n")
    written.csv.write_text(_csv(reports), encoding="utf-8", newline="\n")
    return written


def render_comparison(studies: Sequence[Study], reports: Sequence[Report]) -> str:
    """The page of a comparison."""
    trials = studies[0].trials
    figures = {
        "front": front_figure(studies, Axes(trials.cost, trials.quality)),
        "hypervolume": lines_figure([(s.key, *s.history) for s in studies], "trials", "hypervolume", step=True),
    }
    names = ", ".join(study.key for study in studies)
    header, rows, numeric = _studies_table(studies)
    sections = [
        f"<header><h1>{html.escape(names)}</h1></header>",
        section(
            "front",
            f"{trials.quality} against {trials.cost}",
            figure_box("front", "Pareto fronts", figures["front"], log_button=True),
            "Lines are fronts of predictions, with their intervals; filled marks are measurements of exported models; "
            "stars are teachers. Trials are judged on the validation split, models on the test split.",
        ),
        section("studies", "Studies", table(header, rows, numeric)),
        section(
            "search",
            "Searches",
            figure_box("hypervolume", "Hypervolume over trials", figures["hypervolume"]),
            "The volume that the feasible front covers, in units of the box that a study's first ten feasible "
            "trials span.",
        ),
        section("models", "Models", table(*_models_table(reports))),
        section("architectures", "Architectures", _architectures(reports)),
    ]
    return document(names, sections, figures)


def _studies_table(studies: Sequence[Study]) -> tuple[list[str], list[list[str]], list[bool]]:
    header = ["study", "device", "budget", "state", "trials", "feasible", "best", "at"]
    rows = []
    for study in studies:
        trials, best = study.trials, study.best
        values = [
            "-" if best is None else f"{format_value(float(trials.column(name)[best]), name)} {name}"
            for name in (trials.quality, trials.cost)
        ]
        share = format_share(study.feasible_share)
        budget = ", ".join(study.facts.constraints) or "none"
        finished = str(int(trials.finished.sum()))
        rows.append([study.key, study.facts.device, budget, study.state, finished, share, *values])
    return header, rows, [False] * 4 + [True] * 4


def _models_table(reports: Sequence[Report]) -> tuple[list[str], list[list[str]], list[bool]]:
    """All models of all reports; a column that only some of the reports have is empty in the others."""
    columns = [{column.title: column for column in model_columns(report, marked=False)} for report in reports]
    titles = list(dict.fromkeys(title for known in columns for title in known))
    numeric = {title: column.numeric for known in columns for title, column in known.items()}

    def cells(report: Report, known: dict[str, object], row: ModelRow) -> list[str]:
        return [report.study, *(known[title].cell(row) if title in known else "-" for title in titles)]  # type: ignore[attr-defined]

    rows = [
        cells(report, dict(known), row) for report, known in zip(reports, columns, strict=True) for row in report.models
    ]
    return ["study", *titles], rows, [False, *(numeric[title] for title in titles)]


def _architectures(reports: Sequence[Report]) -> str:
    cards = []
    for report in reports:
        for name, subnet in {row.name: row.subnet for row in report.models if row.role == "front"}.items():
            drawing = draw_subnet(subnet, report.teacher_subnet, f"Architecture of {name}")
            cards.append(
                f"<figure><figcaption><b>{html.escape(name)}</b><span>{html.escape(report.study)} · "
                f'{html.escape(describe(subnet))}</span></figcaption><div class="scroll" tabindex="0">{drawing}</div>'
                "</figure>"
            )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _markdown(studies: Sequence[Study], reports: Sequence[Report]) -> str:
    title = escape_markdown(", ".join(study.key for study in studies))
    return "\n".join(
        [
            f"# {title}\n",
            "## Studies\n",
            markdown_table(*_studies_table(studies)),
            "## Models\n",
            markdown_table(*_models_table(reports)),
        ]
    )


def _csv(reports: Sequence[Report]) -> str:
    """The reports' tables of models below each other, with the study in front; raw numbers."""
    rows = [
        {"study": no_formula(report.study), **row}
        for report in reports
        for row in csv.DictReader(io.StringIO(models_csv(report)))
    ]
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, fieldnames=names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
