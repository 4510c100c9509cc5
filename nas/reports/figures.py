"""Figures of a report: Plotly figures as plain data, and one PNG drawn by matplotlib.

Every text that comes from outside is escaped, because Plotly reads some HTML in labels.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

from nas.reports.data import Interval, ModelRow, Report
from nas.reports.figure_parts import (
    PRECISION_COLOURS,
    PRECISION_SYMBOLS,
    Figure,
    base_layout,
    dashed_line,
    error_bars,
    heat_figure,
)
from nas.reports.tables import describe, format_interval, format_metric, format_number, format_speedup

Check = tuple[str, str, Interval, float]
"""A prediction beside its measurement: (name, kind, predicted ms, measured ms)."""
# Colours of the page for lines beside each other.
SERIES = 8
# Beyond so many points, drawing each as an SVG element makes a browser slow.
MOST_SVG_POINTS = 3000


def front_figure(report: Report) -> Figure | None:
    """Quality against latency: explored trials, predictions with intervals, measurements, teachers, the budget."""
    rows = [row for row in report.models if row.latency_ms is not None and report.quality in row.metrics]
    if not rows and not report.explored:
        return None
    traces = [*_explored_traces(report), *_front_traces(report, rows), *_teacher_traces(report, rows)]
    layout = base_layout("latency, ms", report.quality)
    layout["xaxis"]["rangemode"] = "tozero"
    if report.budget_ms is not None:
        layout["shapes"] = [dashed_line(x0=report.budget_ms, x1=report.budget_ms, y0=0, y1=1, yref="paper")]
        layout["annotations"] = [
            {
                "x": report.budget_ms,
                "y": 0,
                "yref": "paper",
                "text": f"budget {format_number(report.budget_ms)} ms",
                "showarrow": False,
                "xanchor": "left",
                "yanchor": "bottom",
                "xshift": 3,
                "font": {"size": 11, "color": "var(--muted)"},
            }
        ]
    return {"data": traces, "layout": layout}


def _explored_traces(report: Report) -> list[Figure]:
    kind = "scattergl" if len(report.explored) > MOST_SVG_POINTS else "scatter"
    traces = []
    for feasible, name, symbol in ((True, "explored", "circle"), (False, "over budget", "x-thin")):
        points = [p for p in report.explored if p.feasible == feasible and math.isfinite(p.latency_ms + p.quality)]
        if points:
            marker = {"color": "var(--faint)", "size": 5, "symbol": symbol}
            marker["line"] = {"color": "var(--faint)", "width": 0 if feasible else 1}
            traces.append(
                {
                    "type": kind,
                    "mode": "markers",
                    "name": name,
                    "x": [p.latency_ms for p in points],
                    "y": [p.quality for p in points],
                    "marker": marker,
                    "hovertemplate": "%{x:.2f} ms, %{y:.3f}<extra>" + name + "</extra>",
                }
            )
    return traces


def _front_traces(report: Report, rows: list[ModelRow]) -> list[Figure]:
    front = [row for row in rows if row.role == "front"]
    traces = []
    if predicted := [row for row in front if row.predicted_ms is not None]:
        predicted.sort(key=lambda row: row.predicted_ms.value if row.predicted_ms else 0.0)
        intervals = [row.predicted_ms for row in predicted if row.predicted_ms is not None]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "predicted",
                "x": [interval.value for interval in intervals],
                "y": [row.metrics[report.quality] for row in predicted],
                "error_x": error_bars(intervals),
                "marker": {"color": "var(--predicted)", "size": 8, "symbol": "circle-open", "line": {"width": 2}},
                "text": [_hover(report, row) for row in predicted],
                "hovertemplate": "%{text}<extra>predicted</extra>",
            }
        )
    for precision in dict.fromkeys(row.precision for row in front):
        measured = [row for row in front if row.precision == precision and row.measured is not None]
        if measured:
            traces.append(_measured_trace(report, measured, f"measured {precision}", precision, "front"))
            traces.append(_unbeaten_line(report, measured, precision))
    return traces


def _unbeaten_line(report: Report, rows: list[ModelRow], precision: str) -> Figure:
    """A line through the measured models that no other of the same precision beats in both quality and latency."""
    sign = 1 if report.higher_is_better else -1
    kept: list[tuple[float, float]] = []
    for latency, quality in sorted((row.latency_ms or 0.0, row.metrics[report.quality]) for row in rows):
        if not kept or sign * quality > sign * kept[-1][1]:
            kept.append((latency, quality))
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [latency for latency, _ in kept],
        "y": [quality for _, quality in kept],
        "line": {"color": PRECISION_COLOURS.get(precision, "var(--other)"), "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _teacher_traces(report: Report, rows: list[ModelRow]) -> list[Figure]:
    teachers = [row for row in rows if row.role == "teacher"]
    return [_measured_trace(report, [row], f"teacher {row.precision}", row.precision, "teacher") for row in teachers]


def _measured_trace(report: Report, rows: list[ModelRow], name: str, precision: str, role: str) -> Figure:
    rows = sorted(rows, key=lambda row: row.latency_ms or 0.0)
    symbol = "star" if role == "teacher" else PRECISION_SYMBOLS.get(precision, "triangle-up")
    return {
        "type": "scatter",
        "mode": "markers",
        "name": html.escape(name),
        "x": [row.latency_ms for row in rows],
        "y": [row.metrics[report.quality] for row in rows],
        "marker": {
            "color": PRECISION_COLOURS.get(precision, "var(--other)"),
            "size": 15 if role == "teacher" else 11,
            "symbol": symbol,
            "line": {"color": "var(--page)", "width": 1},
        },
        "text": [_hover(report, row) for row in rows],
        "hovertemplate": "%{text}<extra>" + html.escape(name) + "</extra>",
    }


def _hover(report: Report, row: ModelRow) -> str:
    lines = [f"<b>{html.escape(row.name)}</b> {html.escape(row.precision)}", html.escape(describe(row.subnet))]
    lines.append(f"{html.escape(report.quality)} {format_metric(row.metrics.get(report.quality))}")
    if row.predicted_ms is not None:
        lines.append(f"predicted {format_interval(row.predicted_ms)} ms")
    if row.measured is not None:
        lines.append(f"measured {format_number(row.measured.p50_ms)} ms")
    if row.speedup_fp32 is not None:
        lines.append(f"{format_speedup(row.speedup_fp32)} against the fp32 teacher")
    return "<br>".join(lines)


def checks_of(report: Report) -> list[Check]:
    """All pairs of prediction and measurement of a report."""
    pairs = [(check.name, "held out", check.predicted_ms, check.measured_ms) for check in report.checks]
    pairs.extend(
        (f"{row.name} {row.precision}", "front", row.predicted_ms, row.measured.p50_ms)
        for row in report.models
        if row.role == "front" and row.predicted_ms is not None and row.measured is not None
    )
    return pairs


def predicted_vs_measured_figure(report: Report) -> Figure | None:
    """Predicted against measured latency with the diagonal; None where nothing was measured."""
    return checks_figure(checks_of(report))


def checks_figure(pairs: Sequence[Check]) -> Figure | None:
    """Pairs of prediction and measurement with their intervals and the diagonal; None where there are none."""
    if not pairs:
        return None
    traces = []
    for kind in dict.fromkeys(kind for _, kind, _, _ in pairs):
        colour, symbol = ("var(--measured)", "diamond") if kind == "front" else ("var(--predicted)", "circle")
        part = [pair for pair in pairs if pair[1] == kind]
        if part:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": kind,
                    "x": [measured for *_, measured in part],
                    "y": [interval.value for _, _, interval, _ in part],
                    "error_y": error_bars([interval for _, _, interval, _ in part]),
                    "marker": {"color": colour, "size": 8, "symbol": symbol},
                    "text": [html.escape(name) for name, *_ in part],
                    "hovertemplate": "<b>%{text}</b><br>measured %{x:.2f} ms, predicted %{y:.2f} ms<extra></extra>",
                }
            )
    low, high = _range(pairs)
    layout = base_layout("measured, ms", "predicted, ms")
    layout["shapes"] = [dashed_line(x0=low, x1=high, y0=low, y1=high)]
    return {"data": traces, "layout": layout}


def _range(pairs: Sequence[Check]) -> tuple[float, float]:
    low = min(min(interval.low, measured) for _, _, interval, measured in pairs)
    high = max(max(interval.high, measured) for _, _, interval, measured in pairs)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return max(low - margin, 0.0), high + margin  # A latency is never negative.


def sensitivity_figure(report: Report) -> Figure | None:
    """Heat map: what the whole model loses when one block takes one variant."""
    table = report.sensitivity
    if table is None or not table.variants:
        return None
    values = [[value if math.isfinite(value) else None for value in row] for row in table.losses]
    blocks = [str(index) for index in range(len(table.losses[0]))]
    return heat_figure(values, blocks, table.variants, ("block", f"loss of {table.metric}"), ".3f")


def reliability_figure(report: Report) -> Figure | None:
    """Reliability diagram of the report cards: how often each model is right at each confidence; None without any."""
    traces = []
    for index, card in enumerate(report.cards):
        points = (card.get("calibration") or {}).get("reliability") or []
        if points:
            colour = f"var(--series-{index % SERIES})"
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": html.escape(str(card["name"])),
                    "x": [point["confidence"] for point in points],
                    "y": [point["accuracy"] for point in points],
                    "text": [str(point["samples"]) for point in points],
                    "line": {"color": colour, "width": 1.5},
                    "marker": {"color": colour, "size": 7},
                    "hovertemplate": "confidence %{x:.3f}, right %{y:.3f}, %{text} of the decisions<extra></extra>",
                }
            )
    if not traces:
        return None
    layout = base_layout("confidence", "share that is right", 380)
    layout["xaxis"]["range"] = layout["yaxis"]["range"] = [0, 1.02]
    layout["shapes"] = [dashed_line(x0=0, x1=1, y0=0, y1=1)]
    return {"data": traces, "layout": layout}


def save_predicted_vs_measured_png(report: Report, path: Path | str) -> bool:
    """Draw a report's predicted against its measured latencies as a PNG.

    Returns:
        Whether there was anything to draw; without measurements no file is written.
    """
    pairs = checks_of(report)
    if pairs:
        save_checks_png(pairs, path)
    return bool(pairs)


def save_checks_png(pairs: Sequence[Check], path: Path | str) -> None:
    """Draw pairs of prediction and measurement (at least one) with their intervals and the diagonal as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    # Without pyplot, which keeps global state and chooses a window system.
    figure = MatplotlibFigure(figsize=(5.2, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    low, high = _range(pairs)
    axes.plot([low, high], [low, high], color="0.6", linewidth=1, linestyle="--", zorder=1)
    for kind, colour, marker in (("held out", "#1f6fb4", "o"), ("front", "#c8501e", "D")):
        part = [pair for pair in pairs if pair[1] == kind]
        if part:
            below = [interval.value - interval.low for _, _, interval, _ in part]
            above = [interval.high - interval.value for _, _, interval, _ in part]
            axes.errorbar(
                [measured for *_, measured in part],
                [interval.value for _, _, interval, _ in part],
                yerr=[below, above],
                fmt=marker,
                color=colour,
                markersize=5,
                elinewidth=1,
                capsize=2,
                label=f"{kind} (n={len(part)})",
            )
    axes.set(xlabel="measured, ms", ylabel="predicted, ms", xlim=(low, high), ylim=(low, high))
    axes.set_title("Predicted vs measured latency", fontsize=11)
    axes.grid(visible=True, color="0.92")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9)
    # A version number in the file would change it from one installation to the next.
    figure.savefig(path, format="png", metadata={"Software": None})
