"""The report card: everything that is known of one model on one task, as plain data with a versioned JSON form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nas.stored_json import finite, read_object, write_object

METRICS_FILE = "metrics.json"
FORMAT = "hwnas report card"
# Raise it when a key changes its meaning or goes; keys may be added without.
VERSION = 1
# A table lists so many groups of a column; all of them are in the card.
MOST_GROUPS = 20
SECTIONS = ("quality", "calibration", "fairness", "robustness", "efficiency")


@dataclass(frozen=True)
class ReportCard:
    """One model on one task, beside its teacher. `docs/report-card.md` says what every key of the sections means.

    Args:
        name: What people call the model.
        model: Path or hub name; ``kind`` (``transformers`` or ``onnx``) and ``teacher`` beside it.
        task: Kind, data, split, main measure, and how many samples of which unit it was computed of.
        settings: Of intervals, fairness and robustness: with them, the same model gives the same numbers.
        quality: Every measure with interval, teacher's value and retention; McNemar's test.
        calibration: Of probabilities; None without any.
        fairness: By group; None without groups and identity terms.
        robustness: Under perturbations; None where there is no text.
        efficiency: On a device; None where nothing was measured.
        versions: Of the libraries that the figures depend on.
    """

    name: str
    model: Mapping[str, Any]
    task: Mapping[str, Any]
    settings: Mapping[str, Any]
    quality: Mapping[str, Any]
    calibration: Mapping[str, Any] | None = None
    fairness: Mapping[str, Any] | None = None
    robustness: Mapping[str, Any] | None = None
    efficiency: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` reads back; numbers that are not finite become None."""
        data = finite(asdict(self))
        assert isinstance(data, dict)
        return {"format": FORMAT, "version": VERSION, **data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ReportCard:
        """Rebuild from plain data.

        Raises:
            ValueError: It is no report card, of another version, or a key is missing or unknown.
        """
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            found = f"{data.get('format')!r} version {data.get('version')!r}"
            raise ValueError(f"report card: must be {FORMAT!r} version {VERSION}, but is {found}.")
        known = {part.name for part in fields(cls)}
        given = {key: value for key, value in data.items() if key not in ("format", "version")}
        if wrong := sorted(known.symmetric_difference(given)):
            raise ValueError(f"report card: key {wrong[0]!r} is {'missing' if wrong[0] in known else 'unknown'}.")
        for key, value in given.items():
            if not isinstance(value, str if key == "name" else Mapping) and not (key in SECTIONS[1:] and value is None):
                raise ValueError(f"report card: `{key}` must be an object, but is {value!r}.")
        return cls(**given)

    def save(self, path: Path | str) -> None:
        """Write as JSON, with keys in a fixed order."""
        write_object(path, self.to_dict())

    @classmethod
    def load(cls, path: Path | str) -> ReportCard:
        """Read what ``save`` wrote.

        Raises:
            ValueError: The file is no report card.
            OSError: The file cannot be read.
        """
        data = read_object(path, "report card")
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a card, as tables show it.

    Args:
        section: Where it stands.
        name: Its name.
        value: The number; not a number where it is undefined, as a correlation with what is constant; None where it
            cannot be computed: then the note says why.
        interval: Where it begins and ends, or None.
        teacher: The teacher's own number, or None.
        retention: Share of the teacher's that is kept, with its interval, or None.
        note: What else must be said.
    """

    section: str
    name: str
    value: float | None
    interval: tuple[float, float] | None = None
    teacher: float | None = None
    retention: tuple[float, float, float] | None = None
    note: str = ""


def figures(card: ReportCard) -> list[Figure]:
    """The card's numbers, one by one, in the order in which tables show them."""
    found = [
        _estimated("quality", name, entry, _counted(card, entry)) for name, entry in card.quality["metrics"].items()
    ]
    if test := card.quality.get("mcnemar"):
        note = f"{test['own_only']} samples only it got right, {test['teacher_only']} only its teacher"
        found.append(Figure("quality", "McNemar p", test["p_value"], note=note))
    found += _calibration(card.calibration or {})
    found += _fairness(card.fairness or {})
    found += _robustness(card.robustness or {})
    return found + _efficiency(card.efficiency or {})


def counted(card: ReportCard) -> str:
    """How many of what the main measure was computed of: ``2000 pairs``."""
    return f"{card.task['samples']} {card.task.get('unit', 'samples')}"


def _counted(card: ReportCard, entry: Mapping[str, Any]) -> str:
    """What a measure was computed of, where that is not what the main one was."""
    own = entry.get("samples", card.task["samples"])  # Cards of earlier runs do not tell.
    return "" if own == card.task["samples"] else f"of {own} texts"


def _estimated(section: str, name: str, entry: Mapping[str, Any], note: str = "") -> Figure:
    value, teacher, kept = entry["value"], entry["teacher"], entry["retention"]
    return Figure(
        section,
        name,
        _number(value["value"]),
        _bounds(value),
        None if teacher is None else _number(teacher["value"]),
        None if kept is None or _bounds(kept) is None else (kept["value"], kept["low"], kept["high"]),
        note,
    )


def _number(value: float | None) -> float:
    """A number that JSON may have as null."""
    return math.nan if value is None else value


def _bounds(interval: Mapping[str, Any]) -> tuple[float, float] | None:
    """Where an interval begins and ends; None where it could not be drawn, as of a group without a class."""
    low, high = interval["low"], interval["high"]
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return (low, high) if known else None


def _calibration(section: Mapping[str, Any]) -> list[Figure]:
    found = [_estimated("calibration", name, entry) for name, entry in section.get("metrics", {}).items()]
    if scaled := section.get("temperature"):
        note = f"after scaling by temperature {scaled['value']:.2f}, fitted on {scaled['fitted_on']}"
        found += [
            Figure("calibration", f"{name} scaled", value, note=note) for name, value in scaled["metrics"].items()
        ]
    return found


def _fairness(section: Mapping[str, Any]) -> list[Figure]:
    found: list[Figure] = []
    told: set[str] = set()
    for column in section.get("columns", ()):
        left = [group["name"] for group in column["groups"] if group["too_small"] or group["score"] is None]
        note = f"left out, too small for a claim: {', '.join(left)}" if left else ""
        if column["column"] not in told:  # The main measure comes first; of the others, the groups are in the file.
            told.add(column["column"])
            found += _groups(column)
        for name, title in (("worst", "worst"), ("gap", "gap of"), ("ratio", "ratio of")):
            group = f"group {column['worst_group']}" if name == "worst" else ""
            value, teacher = column[name], column["teacher"][name]
            known = value["value"] is not None and math.isfinite(value["value"])
            if not known and name != "worst":
                continue  # Told once a measure.
            said = group if known else "nothing is claimed: fewer than two groups are large enough"
            found.append(
                Figure(
                    "fairness",
                    f"{title} {column['measure']} by {column['column']}",
                    value["value"] if known else None,
                    _bounds(value),
                    teacher["value"] if known else None,
                    note="; ".join(part for part in (said, note) if part),
                )
            )
    for name, entry in section.get("substitution", {}).get("metrics", {}).items():
        found.append(_estimated("fairness", name, entry, f"{entry['samples']} texts with identity terms"))
    return found


def _groups(column: Mapping[str, Any]) -> list[Figure]:
    """The groups of a column one by one, the largest where there are many."""
    shown = sorted(column["groups"], key=lambda group: -group["samples"])[:MOST_GROUPS]
    found = []
    for group in (group for group in column["groups"] if group in shown):
        name, size = f"{column['measure']} of {column['column']} {group['name']}", group["samples"]
        note = f"{size or 'no'} {'sample' if size == 1 else 'samples'}"
        note += ", too few for a claim" if group["too_small"] else ""
        if group["score"] is None:
            found.append(Figure("fairness", name, None, note=note if size < 2 else f"{note}, cannot be computed"))
        else:
            found.append(_estimated("fairness", name, group["score"], note))
    return found


def _robustness(section: Mapping[str, Any]) -> list[Figure]:
    found = []
    for fall in section.get("conditions", ()):
        name = f"{section['measure']} under {fall['kind']} {fall['strength']:g}"
        found.append(_estimated("robustness", name, fall, f"{fall['changed']:.0%} of the texts change"))
    titles = {"worst_drop": "worst drop", "mean_drop": "mean drop", "worst_excess": "worst drop beyond the teacher's"}
    titles["mean_excess"] = "mean drop beyond the teacher's"
    summed = {title: section[key] for key, title in titles.items() if key in section}
    return found + [Figure("robustness", title, _number(value)) for title, value in summed.items()]


def _efficiency(section: Mapping[str, Any]) -> list[Figure]:
    if not section:
        return []
    latency, faster, energy = section["latency_ms"], section["speedup"], section["energy"]
    found = [
        Figure("efficiency", f"latency ms {name}", latency[name], note=f"{latency['n']} runs")
        for name in ("p50", "p90", "p99", "min")
    ]
    if faster is not None:
        found.append(Figure("efficiency", "speed-up", faster["value"], (faster["low"], faster["high"])))
    counted = ("throughput", "peak_memory_mb", "size_mb", "parameters", "macs")
    found += [Figure("efficiency", name, float(section[name])) for name in counted if section[name] is not None]
    if energy is not None:
        note = f"counted by {energy['source']}, {energy['runs']} runs"
        found.append(Figure("efficiency", "energy mJ", energy["millijoules"], note=note))
    return found
