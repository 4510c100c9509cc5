"""The report's table of models as CSV: raw numbers."""

from __future__ import annotations

import csv
import io
from typing import Any

from nas.reports.data import Interval, ModelRow, Report


def models_csv(report: Report) -> str:
    """The table of models as CSV: one raw number per cell, units in the column names, the subnet as JSON."""
    rows = [_flat(row, report) for row in report.models]
    stream = io.StringIO()
    if rows:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return stream.getvalue()


def _flat(row: ModelRow, report: Report) -> dict[str, Any]:
    def bounds(name: str, interval: Interval | None) -> dict[str, Any]:
        parts = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
        return dict(zip((name, f"{name}_low", f"{name}_high"), parts, strict=True))

    measured = row.measured
    return {
        "model": no_formula(row.name),
        "role": row.role,
        "precision": no_formula(row.precision),
        "parameters": row.parameters,
        "macs": row.macs,
        **bounds("predicted_ms", row.predicted_ms),
        "measured_p50_ms": measured and measured.p50_ms,
        "measured_min_ms": measured and measured.min_ms,
        "measured_p90_ms": measured and measured.p90_ms,
        "measured_runs": measured and measured.n,
        **bounds("speedup_fp32", row.speedup_fp32),
        **bounds("speedup_int8", row.speedup_int8),
        **{f"metric_{name}": row.metrics.get(name) for name in report.metric_names},
        **{f"cost_{name}": row.costs.get(name) for name in dict.fromkeys(n for r in report.models for n in r.costs)},
        **{f"wanted_{goal.name}": no_formula(goal.wanted) for goal in report.goals},
        "breaks": no_formula(" ".join(goal.name for goal in report.goals if goal.broken_by(row))),
        "size_mb": row.size_mb,
        "directory": no_formula(row.directory or ""),
        "subnet": row.subnet.to_json(),
    }


def no_formula(text: str) -> str:
    """Text of a CSV cell that no spreadsheet takes for a formula."""
    # Spreadsheets run cells that begin like this.
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
