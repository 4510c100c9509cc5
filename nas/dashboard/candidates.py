"""One candidate as pages show it: a trial of a study, or a model of its report, with its numbers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nas.dashboard.formats import format_value
from nas.dashboard.studies import Study
from nas.dashboard.view import Pin
from nas.reports.data import Interval, ModelRow
from nas.reports.tables import format_interval, format_speedup
from search_spaces.subnet import SubnetConfig


@dataclass(frozen=True)
class ShownCandidate:
    """What a card of a candidate says.

    Args:
        pin: What it is known by in URLs.
        title: Its name.
        note: Where it comes from, in a few words.
        subnet: Its architecture, or None where that cannot be read.
        numbers: Name -> value.
        texts: Name -> how the value is written, where that is more than the value (an interval).
    """

    pin: Pin
    title: str
    note: str
    subnet: SubnetConfig | None
    numbers: Mapping[str, float]
    texts: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """A value as people read it."""
        return self.texts.get(name) or format_value(self.numbers.get(name), name)


def of_trial(study: Study, index: int) -> ShownCandidate:
    """A trial."""
    row = study.trials.rows[index]
    texts = {
        name: format_interval(Interval(row.numbers[name], min(low, row.numbers[name]), max(high, row.numbers[name])))
        for name, (low, high) in row.bounds.items()
        if low != high
    }
    notes = [row.outcome or row.state.lower(), "" if row.origin == "sampler" else row.origin]
    notes += [
        "" if row.feasible or row.state != "COMPLETE" else "over a limit",
        f"{row.steps} steps" if row.steps else "",
    ]
    note = ", ".join(filter(None, notes))
    return ShownCandidate(
        Pin(study.key, index), f"trial {row.number}", note, study.subnet(index), dict(row.numbers), texts
    )


def of_model(study: Study, index: int, model: ModelRow) -> ShownCandidate:
    """A model of the study's report, measured on the device."""
    numbers: dict[str, float] = {**model.metrics, "parameters": float(model.parameters), "macs": float(model.macs)}
    texts = {}
    if model.measured is not None:
        numbers["latency_ms"] = model.measured.p50_ms
        texts["latency_ms"] = f"{format_value(model.measured.p50_ms, 'latency_ms')} measured"
    if model.predicted_ms is not None:
        numbers["predicted_ms"] = model.predicted_ms.value
        texts["predicted_ms"] = format_interval(model.predicted_ms)
    for name in ("speedup_fp32", "speedup_int8"):
        if (speedup := getattr(model, name)) is not None:
            numbers[name], texts[name] = speedup.value, format_speedup(speedup)
    if model.size_mb is not None:
        numbers["file_mb"] = model.size_mb
    note = f"{model.precision}, {'the teacher' if model.role == 'teacher' else 'exported'}, on the test split"
    pin = Pin(study.key, index, measured=True)
    return ShownCandidate(pin, model.name, note, model.subnet, numbers, texts)


def find(pin: Pin, studies: Mapping[str, Study]) -> ShownCandidate | None:
    """The candidate that a pin names; None where there is none any more."""
    study = studies.get(pin.study)
    if study is None:
        return None
    if not pin.measured:
        return of_trial(study, pin.index) if pin.index < len(study.trials) else None
    models = study.report.models if study.report is not None else ()
    return of_model(study, pin.index, models[pin.index]) if pin.index < len(models) else None


def compare(shown: Sequence[ShownCandidate]) -> list[tuple[str, list[str], str]]:
    """Name, each candidate's text, and the second's value relative to the first's, for all that any of them has."""
    names = dict.fromkeys(name for candidate in shown for name in candidate.numbers)
    rows = []
    for name in names:
        values = [candidate.numbers.get(name) for candidate in shown]
        ratio = ""
        if len(values) == 2 and values[0] and values[1] is not None and values[0] > 0:
            ratio = f"{values[1] / values[0]:.2f}x"
        rows.append((name, [candidate.text(name) for candidate in shown], ratio))
    return rows
