"""Card: everything that is known of one exported model, beside its teacher."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.dashboard.app import Ask, Shown
from nas.dashboard.formats import format_value
from nas.dashboard.pages.front import drawing
from nas.dashboard.studies import Study
from nas.evaluation.card import METRICS_FILE, SECTIONS, ReportCard, counted, figures
from nas.evaluation.model_card import figure_row
from nas.reports.data import ModelRow, Report
from nas.reports.tables import describe, model_columns

MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Section:
    """A part of the report card: a title, and lines of name and value."""

    title: str
    lines: tuple[tuple[str, str], ...]


def show(ask: Ask) -> Shown:
    """The chosen model of the first chosen study."""
    study = ask.studies[0]
    report = study.report
    names = list(dict.fromkeys(m.name for m in report.models if m.role == "front")) if report else []
    name = ask.view.chosen("model", names, names[0] if names else "")
    rows = [model for model in report.models if model.name == name or model.role == "teacher"] if report else []
    own = next((model for model in rows if model.name == name and model.role == "front"), None)
    return Shown(
        {
            "study": study,
            "names": names,
            "name": name,
            "columns": list(model_columns(report)) if report else [],
            "rows": rows,
            "kept": kept(report, name) if report and own else [],
            "picture": own and drawing(own.subnet, study.teacher, f"Architecture of {name}"),
            "words": own and describe(own.subnet),
            "judged": judged(study, name) if own else [],
            "sections": sections(study, name) if own else [],
            "commands": report.commands if report else (),
            "report": report,
        }
    )


def kept(report: Report, name: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Metric -> precision and share of the fp32 teacher's value that is kept."""
    teacher = next((m for m in report.models if m.role == "teacher" and m.precision == "fp32"), None)
    models = [model for model in report.models if model.name == name and model.role == "front"]
    if teacher is None:
        return []
    return [
        (metric, [(model.precision, _share(model, teacher, metric)) for model in models])
        for metric in report.metric_names
    ]


def _share(model: ModelRow, teacher: ModelRow, metric: str) -> str:
    value, whole = model.metrics.get(metric), teacher.metrics.get(metric)
    return "-" if value is None or not whole else f"{value / whole:.1%}".replace("%", " %")


@dataclass(frozen=True)
class Judged:
    """A report card as the page shows it: a title, and each section's rows as `figure_row` gives them."""

    title: str
    note: str
    sections: tuple[tuple[str, tuple[list[str], ...]], ...]


def judged(study: Study, name: str) -> list[Judged]:
    """The report cards of a model and of its quantised graphs, which `nas search finalists.cards=true` writes."""
    found = []
    for folder, path in sorted(_folders(study, "cards").items()):
        if folder != name and not folder.startswith(f"{name}-model_"):
            continue
        try:
            card = ReportCard.load(path / METRICS_FILE)
            known = figures(card)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # Of another version, or not ours: the other numbers stay.
        parts = {part: tuple(figure_row(f) for f in known if f.section == part) for part in SECTIONS}
        precision = folder.removeprefix(name).removeprefix("-model_") or "fp32"
        note = f"{counted(card)} of the {card.task['split']} split, beside {card.model['teacher']}"
        found.append(Judged(precision, note, tuple((part, rows) for part, rows in parts.items() if rows)))
    return found


def sections(study: Study, name: str) -> list[Section]:
    """What the model's export wrote; each group of numbers a section, if there is any."""
    known = _folders(study, "models")
    if name not in known:
        return []
    try:
        with (known[name] / METRICS_FILE).open("rb") as file:
            data = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError):
        return []
    if not isinstance(data, Mapping):
        return []
    found: dict[str, list[tuple[str, str]]] = {}
    for path, text in _flat(data, ()):
        title, rest = (path[0], path[1:]) if len(path) > 1 else ("Summary", path)
        found.setdefault(title, []).append((" ".join(rest), text))
    return [Section(title.replace("_", " "), tuple(lines)) for title, lines in found.items()]


def _folders(study: Study, part: str) -> dict[str, Path]:
    """Name -> folder with metrics. Only what is really there: a name from a file never becomes a path."""
    folder = study.facts.directory / part if study.facts.directory else None
    inside = folder.iterdir() if folder is not None and folder.is_dir() else ()
    return {path.name: path for path in inside if (path / METRICS_FILE).is_file()}


def _flat(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The leaves of nested data; an estimate with its interval is one leaf."""
    if isinstance(value, Mapping):
        if {"value", "low", "high"} <= set(value) and all(_is_number(value[k]) for k in ("value", "low", "high")):
            text = f"{format_value(value['value'])} [{format_value(value['low'])}, {format_value(value['high'])}]"
            yield path, text
            return
        for key, item in value.items():
            yield from _flat(item, (*path, str(key)))
    elif _is_number(value):
        yield path, format_value(float(value), path[-1] if path else "")
    elif isinstance(value, list) and len(value) > 12:
        yield path, f"{len(value)} values"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flat(item, (*path, str(index + 1)))
    elif value is not None:
        yield path, str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
