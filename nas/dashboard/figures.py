"""Figures of the pages, as plain data for Plotly; texts from outside are escaped, since Plotly reads HTML in labels."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from nas.dashboard.formats import format_value
from nas.dashboard.studies import Study
from nas.dashboard.thinning import thin
from nas.dashboard.view import Pin
from nas.engine.pareto import Floats
from nas.reports.data import ModelRow
from nas.reports.figure_parts import PRECISION_COLOURS, PRECISION_SYMBOLS, Figure, base_layout, dashed_line
from nas.reports.tables import describe
from search_spaces.subnet import RANKS, SubnetConfig

SERIES = 8
BASELINES = ("uniform", "largest", "smallest")
# A line of more numbers is wider than a phone.
MOST_BLOCKS = 16


@dataclass(frozen=True)
class Axes:
    """What the front is drawn over.

    Args:
        x: Name of the cost.
        y: Name of the quality.
        log: Which axes are logarithmic: ``x``, ``y``.
    """

    x: str
    y: str
    log: tuple[str, ...] = ()


def front_figure(studies: Sequence[Study], axes: Axes) -> Figure:
    """Quality against cost: every trial, the fronts with intervals, measured models, baselines and limits."""
    layout = base_layout(axes.x, axes.y, 520)
    layout |= {"hovermode": "closest", "shapes": [], "annotations": []}
    layout["xaxis"]["rangemode"] = "tozero"
    for name in axes.log:
        layout[f"{name}axis"]["type"] = "log"
    traces: list[Figure] = []
    for number, study in enumerate(studies):
        single = len(studies) == 1
        traces += _study_traces(study, axes, f"var(--series-{number % SERIES})", "" if single else f"{study.key}: ")
    for name in (axes.x, axes.y):
        for (sign, bound), keys in _limits(studies, name).items():
            shared = len(keys) == len(studies)
            _add_limit(layout, axes, name, sign, bound, "" if shared else f" ({html.escape(', '.join(keys))})")
    return {"data": traces, "layout": layout}


def _study_traces(study: Study, axes: Axes, colour: str, prefix: str) -> list[Figure]:
    trials = study.trials
    x, y = trials.column(axes.x), trials.column(axes.y)
    known = np.isfinite(x) & np.isfinite(y)
    front = np.array([i for i in trials.front if known[i]], dtype=np.int64)
    rest = known.copy()
    rest[front] = False
    baselines = np.array([row.origin in BASELINES for row in trials.rows], dtype=bool) & known
    traces = []
    for able, name, symbol in ((True, "tried", "circle"), (False, "over a limit", "x-thin")):
        points = np.flatnonzero(rest & (trials.feasible == able))
        points = points[thin(x[points], y[points])]
        if points.size:
            marker = {"color": colour, "size": 5, "symbol": symbol, "opacity": 0.5}
            marker["line"] = {"color": colour, "width": 0 if able else 1}
            traces.append(_points(study, points, axes, prefix + name, marker))
    if baselines.any():
        marker = {"color": colour, "size": 9, "symbol": "triangle-up-open", "line": {"width": 1.5}}
        points = np.flatnonzero(baselines)
        points = points[thin(x[points], y[points], 200)]
        traces.append(_points(study, points, axes, f"{prefix}uniform baselines", marker))
    if front.size:
        marker = {"color": "var(--card)", "size": 8, "symbol": "circle", "line": {"color": colour, "width": 2}}
        trace = _points(study, front, axes, f"{prefix}front, predicted", marker)
        trace |= {"mode": "lines+markers", "line": {"color": colour, "width": 1, "dash": "dot"}}
        if (bars := _intervals(study, front, axes.x, colour)) is not None:
            trace["error_x"] = bars
        traces.append(trace)
    return traces + _model_traces(study, axes, colour, prefix)


def _points(study: Study, indices: Any, axes: Axes, name: str, marker: Figure) -> Figure:
    rows = study.trials.rows
    name = html.escape(name)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [round_for_page(v) for v in study.trials.column(axes.x)[indices]],
        "y": [round_for_page(v) for v in study.trials.column(axes.y)[indices]],
        "marker": marker,
        "text": [f"<b>trial {rows[i].number}</b>{blocks_in_words(rows[i].subnet)}" for i in indices],
        "customdata": [str(Pin(study.key, int(i))) for i in indices],
        "hovertemplate": f"%{{text}}<br>{html.escape(axes.x)} %{{x:.4g}}<br>{html.escape(axes.y)} "
        f"%{{y:.4g}}<extra>{name}</extra>",
    }


@lru_cache(maxsize=20_000)
def blocks_in_words(subnet: str) -> str:
    """What a hover tells of an architecture, from its JSON: a line for each kind of choice, a number for each block."""
    try:
        found = SubnetConfig.from_json(subnet)
    except ValueError:
        return ""
    if len(found.blocks) > MOST_BLOCKS:
        return f"<br>{html.escape(describe(found))}"
    kinds: dict[str, list[Any]] = {"heads": [block.heads for block in found.blocks]}
    kinds["FFN"] = [block.ffn for block in found.blocks]
    kinds |= {name.replace("_", " "): [getattr(block, name) for block in found.blocks] for name in RANKS}
    lines = [f"<br>{kind}: {' '.join(str(n or '-') for n in sizes)}" for kind, sizes in kinds.items() if any(sizes)]
    precisions = [block.precision for block in found.blocks]
    if set(precisions) != {"fp32"}:
        lines.append(f"<br>precision: {html.escape(' '.join(precisions))}")
    return "".join(lines) + (f"<br>hidden size: {found.hidden_size}" if found.hidden_size else "")


def _intervals(study: Study, front: Any, name: str, colour: str) -> Figure | None:
    rows = [study.trials.rows[i] for i in front]
    bounds = [(row.numbers[name], *row.bounds.get(name, (row.numbers[name],) * 2)) for row in rows]
    if all(low == high for _, low, high in bounds):
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(high - value, 0.0) for value, _, high in bounds],
        "arrayminus": [max(value - low, 0.0) for value, low, _ in bounds],
        "thickness": 1.2,
        "width": 3,
        "color": colour,
    }


def _model_traces(study: Study, axes: Axes, colour: str, prefix: str) -> list[Figure]:
    """Measured models and teachers of the report, one trace per role and precision."""
    groups: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for index, model in enumerate(study.report.models if study.report else ()):
        x, y = model_number(model, axes.x), model_number(model, axes.y)
        if x is not None and y is not None:
            groups.setdefault((model.role, model.precision), []).append((index, x, y))
    traces = []
    for (role, precision), points in groups.items():
        assert study.report is not None
        models = [study.report.models[index] for index, _, _ in points]
        name = html.escape(f"{prefix}{'teacher' if role == 'teacher' else 'measured'} {precision}")
        symbol = "star" if role == "teacher" else PRECISION_SYMBOLS.get(precision, "triangle-up")
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [x for _, x, _ in points],
                "y": [y for _, _, y in points],
                "marker": {
                    "color": colour if prefix else PRECISION_COLOURS.get(precision, "var(--other)"),
                    "size": 15 if role == "teacher" else 11,
                    "symbol": f"{symbol}-open" if prefix and precision != "fp32" else symbol,
                    "line": {"color": "var(--card)" if not prefix or precision == "fp32" else colour, "width": 1},
                },
                "text": [f"<b>{html.escape(m.name)}</b><br>{html.escape(describe(m.subnet))}" for m in models],
                "customdata": [str(Pin(study.key, index, measured=True)) for index, _, _ in points],
                "hovertemplate": f"%{{text}}<br>{html.escape(axes.x)} %{{x:.4g}}<br>{html.escape(axes.y)} %{{y:.4g}} "
                f"(test split)<extra>{name}</extra>",
            }
        )
    return traces


def model_number(model: ModelRow, name: str) -> float | None:
    """One number of a report's model by the name that trials use; latency as measured."""
    if name == "latency_ms":
        return None if model.measured is None else model.measured.p50_ms
    if name in ("parameters", "macs"):
        return float(getattr(model, name))
    return model.metrics.get(name)


def _limits(studies: Sequence[Study], name: str) -> dict[tuple[str, float], list[str]]:
    """(``<=`` or ``>=``, limit) -> keys of the studies that keep to it."""
    found: dict[tuple[str, float], list[str]] = {}
    for study in studies:
        if name in study.facts.bounds:
            found.setdefault(study.facts.bounds[name], []).append(study.key)
    return found


def _add_limit(layout: Figure, axes: Axes, name: str, sign: str, bound: float, whose: str = "") -> None:
    """A dashed line across the axis on which the limit lies, with its value and whose it is."""
    text = f"{'≤' if sign == '<=' else '≥'} {format_value(bound, name)}{whose}"
    across = "x" if name == axes.x else "y"
    along = "y" if across == "x" else "x"
    # On a logarithmic axis annotations stand at logarithms, but shapes at values.
    at = float(np.log10(bound)) if across in axes.log and bound > 0 else bound
    shape = {f"{across}0": bound, f"{across}1": bound, f"{along}0": 0, f"{along}1": 1, f"{along}ref": "paper"}
    note = {across: at, along: 0 if across == "x" else 1, f"{along}ref": "paper", "yanchor": "bottom"}
    note |= {"xanchor": "left", "xshift": 3} if across == "x" else {"xanchor": "right"}
    style = {"text": text, "showarrow": False, "font": {"size": 11, "color": "var(--muted)"}}
    layout["shapes"].append(dashed_line(**shape))
    layout["annotations"].append({**style, **note})


def lines_figure(lines: Sequence[tuple[str, Floats, Floats]], x: str, y: str, *, step: bool = False) -> Figure | None:
    """Curves by name, each thinned to what a screen can show; None where there is none."""
    traces = []
    for number, (name, xs, ys) in enumerate(lines):
        if not len(xs):
            continue
        kept = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), 600)).astype(int))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": html.escape(name),
                "x": [round_for_page(v) for v in xs[kept]],
                "y": [round_for_page(v) for v in ys[kept]],
                "line": {"color": f"var(--series-{number % SERIES})", "width": 2, "shape": "hv" if step else "linear"},
                "hovertemplate": f"%{{x:.5g}}, %{{y:.4g}}<extra>{html.escape(name)}</extra>",
            }
        )
    if not traces:
        return None
    layout = base_layout(x, y, 340)
    layout |= {"showlegend": len(traces) > 1}
    layout["xaxis"]["rangemode"] = "tozero"
    return {"data": traces, "layout": layout}


def round_for_page(value: float) -> float:
    """Six digits: half the bytes, and more than any screen shows."""
    return float(f"{value:.6g}")
