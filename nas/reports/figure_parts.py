"""What all figures share: colours, axes, error bars.

Colours are names of the page's CSS variables (``var(--measured)``), which the page resolves when it draws, so that
the same figure is readable on a light and on a dark background.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from nas.reports.data import Interval

Figure = dict[str, Any]
PRECISION_COLOURS = {"fp32": "var(--measured)", "int8": "var(--int8)"}
PRECISION_SYMBOLS = {"fp32": "diamond", "int8": "square"}


def error_bars(intervals: list[Interval]) -> Figure:
    """Error bars of intervals around their values."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [interval.high - interval.value for interval in intervals],
        "arrayminus": [interval.value - interval.low for interval in intervals],
        "thickness": 1.2,
        "width": 3,
        "color": "var(--predicted)",
    }


def dashed_line(**where: Any) -> Figure:
    """A dashed line below the traces, as a shape of the layout."""
    return {"type": "line", "line": {"color": "var(--muted)", "width": 1, "dash": "dash"}, "layer": "below", **where}


def base_layout(x: str, y: str, height: int = 460) -> Figure:
    """A layout with titled axes; what is not data is transparent, so that it stands on any background.

    Args:
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        height: Of the whole figure, in pixels.
    """

    def axis(title: str) -> Figure:
        return {
            "title": {"text": html.escape(title), "standoff": 8},
            "gridcolor": "var(--line)",
            "zerolinecolor": "var(--line)",
            "linecolor": "var(--line)",
            "automargin": True,
        }

    return {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 30, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--ink)", "size": 13, "family": "system-ui, sans-serif"},
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "var(--faint)", "activecolor": "var(--ink)"},
        # As far below the axis in low figures as in high ones: its title stands between.
        "legend": {"orientation": "h", "y": -83 / height, "yanchor": "top", "x": 0},
        "xaxis": axis(x),
        "yaxis": axis(y),
    }


def heat_figure(
    values: Sequence[Sequence[float | None]],
    x: Sequence[str],
    y: Sequence[str],
    titles: tuple[str, str],
    digits: str,
    *,
    zeros: bool = True,
) -> Figure:
    """A heat map with its numbers in the cells.

    Args:
        values: One row per entry of ``y``.
        x: Names of the columns.
        y: Names of the rows.
        titles: Of the horizontal axis and of the colour bar.
        digits: Format of the numbers, which Python and d3 read alike.
        zeros: Whether zeros are written; without them the eye finds what is not zero.
    """
    layout = base_layout(titles[0], "", max(200, 120 + 22 * len(y)))
    layout["xaxis"] |= {"type": "category", "showgrid": False}
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "showgrid": False}
    trace = {
        "type": "heatmap",
        "z": [list(row) for row in values],
        "x": [html.escape(name) for name in x],
        "y": [html.escape(name) for name in y],
        "xgap": 2,
        "ygap": 2,
        "colorscale": [[0, "var(--heat-low)"], [0.5, "var(--heat-middle)"], [1, "var(--heat-high)"]],
        "colorbar": {"title": {"text": html.escape(titles[1]), "side": "right"}, "thickness": 12, "outlinewidth": 0},
        "hovertemplate": f"%{{y}}, {html.escape(titles[0])} %{{x}}: %{{z:{digits}}}<extra></extra>",
    }
    if len(x) <= 12:
        blank = (None,) if zeros else (None, 0.0)
        trace["text"] = [["" if value in blank else format(value, digits) for value in row] for row in values]
        trace |= {"texttemplate": "%{text}", "textfont": {"size": 10}}
    return {"data": [trace], "layout": layout}
