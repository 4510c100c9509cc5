"""Sweeps: every study in one table, sorted, filtered, and compared."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from nas.dashboard.app import Ask, Shown
from nas.dashboard.formats import format_value
from nas.dashboard.studies import Study
from nas.engine.pareto import Floats

SPARK_WIDTH, SPARK_HEIGHT = 110, 26
STATES = ("running", "finished", "stopped", "empty")


@dataclass(frozen=True)
class Row:
    """One study in the table.

    Args:
        study: The study.
        budget: Its constraints in words.
        finished: Trials that have ended.
        quality, cost: Of the best feasible trial; NaN where there is none.
        volume: Hypervolume now, in units of its own first trials; NaN where there is none.
    """

    study: Study
    budget: str
    finished: int
    quality: float
    cost: float
    volume: float

    @classmethod
    def of(cls, study: Study) -> Row:
        """The row of a study."""
        best, volumes = study.best, study.history[1]

        def value(name: str) -> float:
            return math.nan if best is None else float(study.trials.column(name)[best])

        return cls(
            study=study,
            budget=", ".join(_short(text) for text in study.facts.constraints) or "none",
            finished=int(study.trials.finished.sum()),
            quality=value(study.trials.quality),
            cost=value(study.trials.cost),
            volume=float(volumes[-1]) if volumes.size else math.nan,
        )

    @property
    def words(self) -> str:
        """What the filter looks at."""
        return f"{self.study.key} {self.study.facts.device} {self.budget} {self.study.state}".lower()

    @property
    def sparkline(self) -> Markup:
        """How the hypervolume grew."""
        return sparkline(*self.study.history, label=f"Hypervolume of {self.study.key}")


def _name(row: Row) -> str:
    return row.study.key.lower()


# Column -> (title, sort key, whether the largest comes first).
COLUMNS = {
    "study": ("study", _name, False),
    "device": ("device", lambda row: row.study.facts.device, False),
    "budget": ("budget", lambda row: row.budget, False),
    "state": ("state", lambda row: STATES.index(row.study.state), False),
    "trials": ("trials", lambda row: row.finished, True),
    "feasible": ("feasible", lambda row: _last(row.study.feasible_share, largest_first=True), True),
    "best": ("best under budget", lambda row: _last(row.quality, largest_first=True), True),
    "cost": ("at", lambda row: _last(row.cost, largest_first=False), False),
    "hypervolume": ("hypervolume", lambda row: _last(row.volume, largest_first=True), True),
    "active": ("last trial", lambda row: row.study.last_active or 0.0, True),
}


def show(ask: Ask) -> Shown:
    """The table of studies."""
    rows = [Row.of(study) for study in ask.snapshot.studies.values()]
    words = ask.view.get("q").lower().split()
    shown = [row for row in rows if all(word in row.words for word in words)]
    sort = ask.view.chosen("sort", COLUMNS, "active")
    descending = (ask.view.get("order") or ("down" if COLUMNS[sort][2] else "up")) == "down"
    shown.sort(key=_name)
    shown.sort(key=COLUMNS[sort][1], reverse=descending)
    return Shown(
        {
            "rows": shown,
            "total": len(rows),
            "columns": {name: title for name, (title, _, _) in COLUMNS.items()},
            "largest_first": {name: first for name, (_, _, first) in COLUMNS.items()},
            "sort": sort,
            "descending": descending,
            "counts": Counter(row.study.state for row in rows),
            "matrix": matrix(shown),
        }
    )


@dataclass(frozen=True)
class Matrix:
    """Best quality by device and budget: rows are devices, cells texts; ``quality`` names the metric."""

    quality: str
    budgets: tuple[str, ...]
    devices: tuple[tuple[str, tuple[str, ...]], ...]


def matrix(rows: Iterable[Row]) -> Matrix | None:
    """What a sweep over devices and budgets found, its seeds averaged; None where there is nothing to compare."""
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    names: Counter[str] = Counter()
    for row in rows:
        if math.isfinite(row.quality):
            cells[row.study.facts.device, row.budget].append(row.quality)
            names[row.study.trials.quality] += 1
    devices, budgets = (sorted({key[i] for key in cells}) for i in (0, 1))
    if len(names) != 1 or len(cells) < 2 or len(budgets) > 12:
        return None
    quality = next(iter(names))

    def cell(device: str, budget: str) -> str:
        values = cells.get((device, budget))
        if not values:
            return "-"
        spread = f" ± {np.std(values, ddof=1):.3f} (n={len(values)})" if len(values) > 1 else ""
        return format_value(float(np.mean(values)), quality) + spread

    return Matrix(quality, tuple(budgets), tuple((d, tuple(cell(d, b) for b in budgets)) for d in devices))


def sparkline(counts: Floats, values: Floats, *, label: str) -> Markup:
    """A curve as a small SVG, from the first trial to the last."""
    if not values.size:
        return Markup("")
    picked = np.unique(np.linspace(0, len(values) - 1, min(len(values), 60)).astype(int))
    x = counts[picked] / counts[-1] * (SPARK_WIDTH - 4) + 2
    top = float(values.max()) or 1.0
    y = SPARK_HEIGHT - 3 - values[picked] / top * (SPARK_HEIGHT - 6)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return Markup(
        '<svg class="spark" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{label}">'
        '<polyline points="{points}"/><circle cx="{cx:.1f}" cy="{cy:.1f}" r="2"/></svg>'
    ).format(w=SPARK_WIDTH, h=SPARK_HEIGHT, label=label, points=points, cx=float(x[-1]), cy=float(y[-1]))


def _short(constraint: str) -> str:
    """``latency_ms <= 22.7181`` as ``latency <= 22.7 ms``."""
    name, _, bound = constraint.partition(" ")
    sign, _, number = bound.partition(" ")
    stem, _, unit = name.rpartition("_")
    sign = sign.replace("<=", "≤").replace(">=", "≥")
    try:
        text = format_value(float(number), name)
    except ValueError:
        return constraint
    return (
        f"{stem} {sign} {text} {unit.upper() if unit == 'mb' else unit}"
        if unit in ("ms", "mb")
        else (f"{name} {sign} {text}")
    )


def _last(value: float | None, *, largest_first: bool) -> float:
    """A sort key that puts what is not known behind everything else in the column's usual order."""
    if value is None or not math.isfinite(value):
        return -math.inf if largest_first else math.inf
    return value
