"""The report card as Markdown with the Hugging Face hub's metadata block: what a model's page shows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.evaluation.card import SECTIONS, Figure, ReportCard, counted, figures
from nas.reports.tables import escape_markdown, format_count, format_number, markdown_table

CARD_FILE = "model_card.md"
_PIPELINES: Mapping[str, str] = {
    "sentence_embedding": "sentence-similarity",
    "text_classification": "text-classification",
    "token_classification": "token-classification",
    "image_classification": "image-classification",
    "causal_lm": "text-generation",
}
# Our names of metrics -> those of the hub, where these differ.
_HUB_METRICS: Mapping[str, str] = {
    "macro_f1": "f1",
    "micro_f1": "f1",
    "entity_f1": "f1",
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "sts_spearman": "spearmanr",
    "sts_pearson": "pearsonr",
    "rmse": "rmse",
    "retrieval_recall": "recall",
}
_TITLES: Mapping[str, str] = {
    "quality": "Quality",
    "calibration": "Calibration",
    "fairness": "Fairness",
    "robustness": "Robustness",
    "efficiency": "Efficiency",
}
_NOTES: Mapping[str, str] = {
    "quality": "*kept* is the share of the teacher's value that is left, drawn over the same samples for both; where "
    "lower is better, it is turned round, so that 100 % is as good as the teacher.",
    "calibration": "Whether a probability of 80 % is right in 80 % of the cases: `ece` (15 bins), `brier` and "
    "`nll` are better when lower.",
    "fairness": "The worst of the groups, the gap between best and worst, and their ratio. Towards worse, "
    "intervals are of the worst of every resample; towards better, they hold for all groups at once.",
    "robustness": "The main measure on texts with changes that people read past; drops are against unchanged texts.",
    "efficiency": "Measured on the device that is named below, interleaved with the teacher.",
}


def render_model_card(card: ReportCard, *, architecture: str = "", usage: str = "") -> str:
    """The card as a page of the Hugging Face hub.

    Args:
        card: What was measured.
        architecture: Markdown about how the model is built, where it is known.
        usage: Markdown with lines that run it, where they are known.
    """
    from huggingface_hub import ModelCard

    body = [f"# {escape_markdown(card.name)}", _summary(card), _details(card, architecture)]
    if usage:
        body.append(f"## How to get started\n\n{usage}")
    body += [_uses(), _risks(card), _evaluation(card), _settings(card)]
    text = "\n\n".join(part.strip() for part in body if part.strip())
    return str(ModelCard(f"---\n{_metadata(card)}\n---\n\n{text}\n"))


def write_card(card: ReportCard, directory: Path, *, architecture: str = "", usage: str = "") -> tuple[Path, Path]:
    """Write ``metrics.json`` and ``model_card.md`` into a folder; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    metrics, page = directory / "metrics.json", directory / CARD_FILE
    card.save(metrics)
    page.write_text(render_model_card(card, architecture=architecture, usage=usage), encoding="utf-8")
    return metrics, page


def figure_row(figure: Figure) -> list[str]:
    """Name, value with interval, teacher's value, what is kept, note: the cells of a table's row."""
    return [
        figure.name,
        format_value(figure.value, figure.interval),
        "-" if figure.teacher is None else format_value(figure.teacher),
        "-" if figure.retention is None else format_share(figure.retention),
        figure.note,
    ]


def format_value(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """``0.912 [0.895, 0.929]``; ``undefined``; a dash where there is no value."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "undefined"
    if abs(value) >= 1e5:
        return format_count(value)
    bounds = "" if interval is None else f" [{format_number(interval[0])}, {format_number(interval[1])}]"
    return f"{format_number(value)}{bounds}"


def format_share(share: tuple[float, float, float]) -> str:
    """``98.4 % [97.6, 99.1]``."""
    value, low, high = (100 * part for part in share)
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def _metadata(card: ReportCard) -> str:
    from huggingface_hub import EvalResult

    task, kind = card.task, _PIPELINES.get(str(card.task["kind"]))
    teacher, metrics = str(card.model["teacher"]), [f for f in figures(card) if f.section == "quality"]
    own = [f for f in metrics if f.name in card.quality["metrics"] and f.value is not None and math.isfinite(f.value)]
    results = [
        EvalResult(
            task_type=kind or str(task["kind"]),
            dataset_type=_slug(str(task["data"])),
            dataset_name=shown_name(task["data"]),
            dataset_split=str(task["split"]),
            metric_type=_HUB_METRICS.get(figure.name, figure.name),
            metric_name=figure.name,
            metric_value=round(figure.value, 6),
        )
        for figure in own
        if figure.value is not None
    ]
    return hub_metadata(
        card.name,
        str(task["kind"]),
        teacher,
        library_name="transformers" if card.model["kind"] == "transformers" else "onnx",
        metrics=list(dict.fromkeys(_HUB_METRICS.get(figure.name, figure.name) for figure in own)),
        eval_results=results or None,
    )


def hub_metadata(name: str, kind: str, teacher: str, *, library_name: str = "transformers", **more: Any) -> str:
    """The metadata block of a page of the hub, as YAML.

    Args:
        name: What people call the model.
        kind: The task's kind.
        teacher: What it was made of: told where it is a name on the hub, not a place on somebody's disk.
        library_name: What loads it.
        more: Further fields of `huggingface_hub.ModelCardData`.
    """
    from huggingface_hub import ModelCardData

    data: Any = ModelCardData(
        model_name=_slug(name),
        library_name=library_name,
        pipeline_tag=_PIPELINES.get(kind),
        base_model=teacher if teacher and shown_name(teacher) == teacher and not Path(teacher).exists() else None,
        tags=["hwnas", "compressed"],
        **more,
    )
    return str(data.to_yaml()).strip()


def shown_name(place: Any) -> str:
    """A hub's name as it is, of a local path the last part: a page shall not tell how somebody's disk is laid out."""
    name = str(place)
    if Path(name).exists():
        return Path(name).name
    return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith(".") else Path(name).name


def _slug(name: str) -> str:
    """A name without its folders and without signs that the hub does not take."""
    return re.sub(r"[^\w.-]+", "-", name.rstrip("/").rsplit("/", 1)[-1]).strip("-") or "model"


def _summary(card: ReportCard) -> str:
    main = str(card.task["measure"])
    if main not in card.quality["metrics"]:
        return ""
    figure = next(figure for figure in figures(card) if figure.name == main)
    value = format_value(figure.value, figure.interval)
    data = escape_markdown(shown_name(card.task["data"]))
    text = f"{escape_markdown(main)} {value} on {counted(card)} of {data}"
    if figure.retention is not None:
        text += f": {format_share(figure.retention)} of its teacher's"
    faster = (card.efficiency or {}).get("speedup")
    if faster is not None:
        text += f", at {faster['value']:.2f} times its speed"
    return text + "."


def _details(card: ReportCard, architecture: str) -> str:
    lines = [
        f"- **Form:** {escape_markdown(card.model['kind'])}",
        f"- **Teacher:** {escape_markdown(shown_name(card.model['teacher']))}",
        f"- **Task:** {escape_markdown(str(card.task['kind']).replace('_', ' '))}",
    ]
    return "## Model details\n\n" + "\n".join(lines) + (f"\n\n{architecture}" if architecture else "")


def _uses() -> str:
    return (
        "## Uses\n\nThe model does what its teacher does, faster, and shares the teacher's licence and limits. What "
        "follows is how much of the teacher's quality was left on the data that are named; others may differ."
    )


def _risks(card: ReportCard) -> str:
    """What the figures warn of."""
    found = figures(card)
    lines = [
        f"- {escape_markdown(f.name)}: {format_value(f.value, f.interval)}"
        + (f" (teacher {format_value(f.teacher)})" if f.teacher is not None else "")
        + (f", {escape_markdown(f.note)}" if f.note else "")
        for f in found
        if f.name.startswith(("worst ", "gap of ", "flip_rate"))
    ]
    if not lines:
        lines = ["- Groups of people were not looked at: there were no group columns and no identity terms."]
    return "## Bias, risks and limitations\n\n" + "\n".join(lines)


def _evaluation(card: ReportCard) -> str:
    intro = (
        f"{counted(card)} of the split {escape_markdown(card.task['split'])} of "
        f"{escape_markdown(shown_name(card.task['data']))}. Brackets are bootstrap intervals of "
        f"{float(card.settings['intervals']['confidence']):.0%} over samples."
    )
    parts = ["## Evaluation", intro]
    found = figures(card)
    for section in SECTIONS:
        rows = [figure_row(figure) for figure in found if figure.section == section]
        if rows:
            numeric = [False, True, True, True, False]
            table = markdown_table(["", "value", "teacher", "kept", "note"], rows, numeric)
            parts += [f"### {_TITLES[section]}", _NOTES[section], table]
        if section == "calibration" and card.calibration:
            parts += ["Of decisions with like confidence, the share that is right:", _reliability(card.calibration)]
    return "\n\n".join(part.strip() for part in parts)


def _reliability(section: Mapping[str, Any]) -> str:
    """The points of the reliability diagram."""
    rows = [
        [format_number(point["confidence"]), format_number(point["accuracy"]), str(point["samples"])]
        for point in section["reliability"]
    ]
    return markdown_table(["mean confidence", "right", "decisions"], rows, [True, True, True])


def _settings(card: ReportCard) -> str:
    """What is needed to repeat it."""
    lines = [f"- {escape_markdown(name)} {escape_markdown(version)}" for name, version in card.versions.items()]
    device = (card.efficiency or {}).get("device")
    if device:
        lines.insert(0, "- measured on " + escape_markdown(", ".join(f"{k} {v}" for k, v in device.items() if v)))
    text = "Every number, with the settings and seeds that give it again, is in `metrics.json`."
    return "## Technical specifications\n\n" + text + ("\n\n" + "\n".join(lines) if lines else "")
