"""How far predictions can be trusted, as figures of a predictor's cross-validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nas.dashboard.figures import round_for_page
from nas.reports.data import Interval
from nas.reports.figure_parts import Figure, base_layout, dashed_line
from nas.reports.figures import checks_figure
from nas.reports.tables import describe

if TYPE_CHECKING:
    from latency_models.trust import Trust


def trust_figures(trust: Trust) -> dict[str, Figure | None]:
    """All figures of a cross-validation, by name."""
    return {
        "predicted": predicted_figure(trust),
        "errors": error_figure(trust),
        "learning": learning_figure(trust),
        "drift": drift_figure(trust),
        "coverage": coverage_figure(trust),
    }


def predicted_figure(trust: Trust) -> Figure | None:
    """Predicted against measured, with intervals."""
    rows = zip(trust.subnets, trust.predicted, trust.lower, trust.upper, trust.measured, strict=True)
    return checks_figure(
        [
            (describe(subnet), "cross-validated", Interval(float(p), float(low), float(up)), float(m))
            for subnet, p, low, up, m in rows
        ]
    )


def error_figure(trust: Trust) -> Figure:
    """Histogram of the relative errors."""
    errors = 100.0 * trust.errors
    half = max(float(np.abs(errors).max()), 1.0)
    counts, edges = np.histogram(errors, bins=min(31, max(9, len(errors) // 4)), range=(-half, half))
    layout = base_layout("predicted over measured, %", "subnets", 300)
    layout |= {"bargap": 0.05, "showlegend": False}
    layout["shapes"] = [dashed_line(x0=0, x1=0, y0=0, y1=1, yref="paper")]
    trace: Figure = {"type": "bar", "x": [round_for_page(v) for v in (edges[:-1] + edges[1:]) / 2]}
    trace |= {"y": counts.tolist(), "marker": {"color": "var(--series-0)"}}
    return {"data": [{**trace, "hovertemplate": "%{x:.2f} %: %{y} subnets<extra></extra>"}], "layout": layout}


def learning_figure(trust: Trust) -> Figure | None:
    """Error by the number of measured subnets: whether more profiling would help."""
    if len(trust.learning) < 2:
        return None
    points = trust.learning
    layout = base_layout("subnets fitted to", "mean absolute error, %", 300)
    layout |= {"showlegend": False}
    layout["yaxis"]["rangemode"] = "tozero"
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [point.rows for point in points],
        "y": [round_for_page(point.mape) for point in points],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [round_for_page(point.high - point.mape) for point in points],
            "arrayminus": [round_for_page(point.mape - point.low) for point in points],
            "thickness": 1.2,
            "width": 3,
            "color": "var(--series-0)",
        },
        "line": {"color": "var(--series-0)", "width": 2},
        "hovertemplate": "%{x} subnets: %{y:.2f} %<extra></extra>",
    }
    return {"data": [trace], "layout": layout}


def drift_figure(trust: Trust) -> Figure:
    """The reference model's level and the predictor's errors, in the order in which subnets were measured."""
    order = list(range(1, len(trust.measured) + 1))
    layout = base_layout("order of measurement", "off the usual level, %", 320)
    layout["shapes"] = [dashed_line(x0=0, x1=len(order) + 1, y0=0, y1=0)]
    traces: list[Figure] = []
    for segment in trust.drift.segments if trust.drift else ():
        where = {"x0": segment.start + 0.5, "x1": segment.stop + 0.5, "y0": 0, "y1": 1, "yref": "paper"}
        layout["shapes"].append(
            {"type": "rect", "fillcolor": "var(--heat-middle)", "opacity": 0.25, "line": {"width": 0}, **where}
        )
    known = np.isfinite(trust.reference_drift)
    for name, values, colour, symbol in (
        ("reference model", np.where(known, trust.reference_drift, np.nan), "var(--series-1)", "line-ew-open"),
        ("measured over predicted", trust.measured / trust.predicted - 1.0, "var(--series-0)", "circle"),
    ):
        if np.isfinite(values).any():
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if symbol != "circle" else "markers",
                    "name": name,
                    "x": order,
                    "y": [round_for_page(100.0 * v) if np.isfinite(v) else None for v in values],
                    "line": {"color": colour, "width": 1.5},
                    "marker": {"color": colour, "size": 5, "symbol": symbol},
                    "hovertemplate": f"row %{{x}}: %{{y:.2f}} %<extra>{name}</extra>",
                }
            )
    return {"data": traces, "layout": layout}


def coverage_figure(trust: Trust) -> Figure:
    """Share of measurements inside the intervals, against what the intervals promise."""
    aims, shares = zip(*trust.coverage, strict=True)
    layout = base_layout("promised, %", "inside, %", 300)
    layout |= {"showlegend": False}
    layout["xaxis"]["range"], layout["yaxis"]["range"] = [45, 100], [0, 102]
    layout["shapes"] = [dashed_line(x0=45, x1=100, y0=45, y1=100)]
    trace: Figure = {"type": "scatter", "mode": "lines+markers", "line": {"color": "var(--series-2)", "width": 2}}
    trace |= {"x": [100 * aim for aim in aims], "y": [round_for_page(100 * share) for share in shares]}
    return {"data": [{**trace, "hovertemplate": "promised %{x} %, inside %{y:.0f} %<extra></extra>"}], "layout": layout}
