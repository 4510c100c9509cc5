"""A self-contained HTML document: no network, every outside text escaped, light and dark, any width."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from nas.reports.drawing import HATCH
from nas.reports.figure_parts import Figure

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src {hashes}; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{hatch}
<main>
{body}
</main>
<script>{plotly}</script>
<script type="application/json" id="figures">{figures}</script>
<script>{script}</script>
</body>
</html>
"""


def document(title: str, sections: Iterable[str], figures: Mapping[str, Figure | None]) -> str:
    """The whole document as text; equal contents give equal text.

    Args:
        title: What the browser's tab says.
        sections: HTML of the parts; empty ones are left out.
        figures: By the names under which `figure_box` refers to them.
    """
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    scripts = (plotly_source() if drawn else "", page_resource("plots.js") + page_resource("page.js"))
    return _PAGE.format(
        title=html.escape(title),
        style=page_resource("theme.css") + page_resource("page.css"),
        hatch=HATCH,
        body="\n".join(part for part in sections if part),
        figures=script_json(drawn),
        plotly=scripts[0],
        script=scripts[1],
        hashes=" ".join(_script_hash(script) for script in scripts),
    )


def section(name: str, title: str, body: str, note: str = "") -> str:
    """A titled part of the page; nothing where it has no body."""
    if not body:
        return ""
    text = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f'<section id="{name}"><h2>{html.escape(title)}</h2>{text}{body}</section>'


def figure_box(name: str, label: str, figure: Figure | None, *, log_button: bool = False) -> str:
    """Where a figure is drawn, with a button that makes its cost axis logarithmic where wanted; nothing without one."""
    if figure is None:
        return ""
    button = '<button type="button" class="log" aria-pressed="false">log latency</button>' if log_button else ""
    height = figure["layout"]["height"]
    return (
        f'<div class="figure">{button}<div class="plot" data-figure="{name}" role="img" aria-label="{label}" '
        f'style="min-height:{height}px"></div></div>'
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[bool]) -> str:
    """A table that scrolls by itself where it is too wide; numbers stand on the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        opened = [f'<{tag} class="number">' if right else f"<{tag}>" for right in numeric]
        parts = [f"{start}{interval_cell(cell)}</{tag}>" for start, cell in zip(opened, cells, strict=True)]
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(line("td", row) for row in rows)
    head = line("th", header)
    return f'<div class="scroll" tabindex="0"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def interval_cell(text: str) -> str:
    """Escaped text; an interval stands small beneath its value, which halves the width of the table."""
    value, bracket, bounds = text.partition(" [")
    return html.escape(value) + (f"<small>{html.escape(bracket.strip() + bounds)}</small>" if bracket else "")


def page_resource(name: str) -> str:
    """A style sheet or script that pages are made of."""
    return files("nas.reports").joinpath(name).read_text(encoding="utf-8")


def plotly_source() -> str:
    """Plotly's own minified source, from the installed package; ``</script`` cannot occur inside."""
    source = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    return source.replace("</script", "<\\/script")


def _script_hash(script: str) -> str:
    """The only scripts that the page's policy lets run are those with these hashes."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def script_json(data: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
