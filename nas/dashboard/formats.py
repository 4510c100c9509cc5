"""How the pages' templates write numbers and moments, beside what reports use."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from nas.progress import format_duration
from nas.reports.document import interval_cell
from nas.reports.tables import format_count, format_metric, format_number


def format_share(value: float | None) -> str:
    """``73 %``, or a dash."""
    return "-" if value is None or value != value else f"{value:.0%}".replace("%", " %")  # noqa: PLR0124 - NaN


def format_value(value: float | None, name: str = "") -> str:
    """A quantity as people read it, by its name: costs with three digits, metrics with three decimals."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "-"
    if name in ("parameters", "macs"):
        return format_count(value)
    return format_number(value) if abs(value) >= 1.5 or name.endswith(("_ms", "_mb")) else format_metric(value)


def format_ago(moment: float | None, now: float | None = None) -> str:
    """``3:05 min ago`` for a moment in seconds since 1970, or a dash; dates for what is long past."""
    if moment is None:
        return "-"
    passed = max((time.time() if now is None else now) - moment, 0.0)
    if passed < 60:
        return "just now"
    if passed < 86_400:
        return f"{format_duration(60 * (passed // 60)).replace(':00 min', ' min')} ago"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def format_stacked(text: str) -> Markup:
    """A value with its interval small beneath it."""
    return Markup(interval_cell(text))  # noqa: S704 - it escapes the text


_AFTER = {"-": Markup("-<wbr>"), "_": Markup("_<wbr>")}


def format_breakable(name: str) -> Markup:
    """A name that may be broken after its hyphens and underscores."""
    pieces = re.split("([-_])", name)
    return Markup("").join(_AFTER.get(piece, piece) for piece in pieces)  # Joining escapes what is plain text.


FILTERS: dict[str, Callable[..., Any]] = {
    "number": format_number,
    "count": format_count,
    "metric": format_metric,
    "share": format_share,
    "value": format_value,
    "duration": format_duration,
    "ago": format_ago,
    "stacked": format_stacked,
    "breakable": format_breakable,
    "prefixed": lambda text, prefix: f"{prefix}{text}",
}
