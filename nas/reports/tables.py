"""The report's tables: the same columns in the terminal, in Markdown, in HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TextIO

from nas.reports.data import Goal, Interval, MeasuredLatency, ModelRow, PredictorScore, Report
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_COLUMNS = 2000


# Behind a value that breaks a limit of the search.
BROKEN, BROKEN_NOTE = (
    " (!)",
    "(!) breaks a limit of the search, which judged candidates by predictions and on other data.",
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table of models.

    Args:
        title: What stands above it.
        cell: How a row's cell reads.
        numeric: Whether it is a number.
        name: What a search may ask for by it: a metric or a cost.
    """

    title: str
    cell: Callable[[ModelRow], str]
    numeric: bool = True
    name: str = ""

    def marked(self, goal: Goal) -> Column:
        """The same column, with what was asked for in its title, and a mark in the cells that break a limit."""

        def cell(row: ModelRow) -> str:
            return self.cell(row) + (BROKEN if row.role == "front" and goal.broken_by(row) else "")

        return replace(self, title=f"{self.title}, {goal.wanted}", cell=cell)


def format_count(value: float) -> str:
    """A large number as people read it: ``950``, ``22.7 M``, ``1.45 G``."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{format_number(value / factor)} {letter}"
    return format_number(value)


def format_number(value: float) -> str:
    """Three significant digits, never in powers of ten: ``0.00123``, ``12.3``, ``1234``; ``< 0.000001`` below that."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    if abs(value) < 1e-6:
        return "< 0.000001" if value > 0 else "> -0.000001"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def format_interval(interval: Interval | None) -> str:
    """``12.3 [11.8, 12.9]``, or a dash."""
    if interval is None:
        return "-"
    low, high = format_number(interval.low), format_number(interval.high)
    return f"{format_number(interval.value)} [{low}, {high}]"


def format_speedup(interval: Interval | None) -> str:
    """``1.84x [1.81, 1.87]``, or a dash."""
    return "-" if interval is None else f"{interval.value:.2f}x [{interval.low:.2f}, {interval.high:.2f}]"


def format_metric(value: float | None) -> str:
    """Three digits behind the point, or a dash."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _format_known(value: float | None) -> str:
    return "-" if value is None else format_number(value)


def _format_measured(measured: MeasuredLatency | None) -> str:
    if measured is None:
        return "-"
    return format_interval(Interval(measured.p50_ms, measured.min_ms, max(measured.p50_ms, measured.p90_ms)))


def describe(subnet: SubnetConfig, teacher: SubnetConfig | None = None) -> str:
    """An architecture in one short line: depth, and the ranges of heads, FFN widths and ranks of its blocks.

    Args:
        subnet: The architecture.
        teacher: The full one: where it is given, a narrower residual stream is told, too.
    """
    kept = [block for block in subnet.blocks if not block.skipped]
    ranks = [rank for block in kept for rank in (block.rank_qkv, block.rank_attention_out)]
    ranks += [rank for block in kept for rank in (block.rank_ffn_in, block.rank_ffn_out)]
    parts = [
        f"{subnet.depth} {'block' if subnet.depth == 1 else 'blocks'}",
        f"heads {_span(block.heads for block in kept)}",
    ]
    parts.append(f"FFN {_span(block.ffn for block in kept)}")
    if any(ranks):
        parts.append(f"rank {_span(rank for rank in ranks if rank)}")
    if teacher is not None and subnet.hidden_size != teacher.hidden_size:
        parts.append(f"hidden size {subnet.hidden_size} of {teacher.hidden_size}")
    return ", ".join(parts)


def _span(values: Iterable[int]) -> str:
    found = sorted(set(values))
    if not found:
        return "-"
    return str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"


def model_columns(report: Report, *, marked: bool = True) -> tuple[Column, ...]:
    """Columns of the table of models; those of which no row knows anything are left out, but for what was asked for.

    Args:
        report: Whose models.
        marked: Whether titles say what the search asked for, and cells whether they break a limit.
    """

    def metric(name: str) -> Column:
        return Column(name, lambda row: format_metric(row.metrics.get(name)), name=name)

    def cost(name: str) -> Column:
        return Column(
            name, lambda row: "-" if (value := row.value_of(name)) is None else format_number(value), name=name
        )

    goals = {goal.name: goal for goal in report.goals}
    timed = any(row.measured is not None for row in report.models)
    known = {"parameters", "macs", "latency_ms", *report.metric_names}
    columns = (
        Column("model", lambda row: row.name, numeric=False),
        Column("precision", lambda row: row.precision, numeric=False),
        Column("parameters", lambda row: format_count(row.parameters), name="parameters"),
        Column("MACs", lambda row: format_count(row.macs), name="macs"),
        *(metric(name) for name in report.metric_names),
        *(cost(name) for name in goals if name not in known),
        Column("predicted ms", lambda row: format_interval(row.predicted_ms), name="" if timed else "latency_ms"),
        Column(
            "measured ms [min, p90]", lambda row: _format_measured(row.measured), name="latency_ms" if timed else ""
        ),
        Column("vs teacher fp32", lambda row: format_speedup(row.speedup_fp32)),
        Column("vs teacher int8", lambda row: format_speedup(row.speedup_int8)),
        Column("MB", lambda row: "-" if row.size_mb is None else format_number(row.size_mb)),
    )
    return tuple(
        column.marked(goals[column.name]) if marked and column.name in goals else column
        for column in columns
        if column.name in goals or any(column.cell(row) != "-" for row in report.models)
    )


def broken_note(report: Report) -> str:
    """What the mark in the table says, where there is any."""
    rows = (row for row in report.models if row.role == "front")
    return BROKEN_NOTE if any(goal.broken_by(row) for row in rows for goal in report.goals) else ""


def model_rows(report: Report) -> list[list[str]]:
    """The cells of the table of models, as text."""
    columns = model_columns(report)
    return [[column.cell(row) for column in columns] for row in report.models]


SCORE_TITLES = {
    "mape": "MAPE %",
    "rmse": "RMSE",
    "within_5": "within 5 %",
    "within_10": "within 10 %",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "coverage": "coverage %",
    "width": "width %",
    "noise_floor": "noise floor %",
}


def scorecard_table(scores: Sequence[PredictorScore]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a predictor's scorecard; the width is the mean width of the interval over the value."""
    given = {name for line in scores for name in line.scores}
    names = [name for name in SCORE_TITLES if name in given] + sorted(given - set(SCORE_TITLES))
    rows = [[line.predictor, str(line.n), *(_score(line.scores.get(name)) for name in names)] for line in scores]
    return ["", "n", *(SCORE_TITLES.get(name, name) for name in names)], rows


def _score(value: float | None) -> str:
    return _format_known(value)


def plain_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table for a terminal: the first column names its row, the others are numbers; no text is read as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def terminal_table(report: Report) -> Table:
    """The table of models for a terminal; no text of it is read as markup."""
    from rich.table import Table
    from rich.text import Text

    columns = model_columns(report)
    caption = Text(note) if (note := broken_note(report)) else None
    table = Table(
        title=Text(f"{report.study}: {report.teacher}"),
        title_justify="left",
        caption=caption,
        caption_justify="left",
        padding=(0, 0),
    )
    for column in columns:
        table.add_column(Text(column.title), justify="right" if column.numeric else "left", no_wrap=not column.numeric)
    previous = None
    for row in report.models:
        if previous is not None and row.role != previous:
            table.add_section()
        previous = row.role
        table.add_row(*(Text(column.cell(row)) for column in columns))
    return table


def print_table(report: Report, stream: TextIO | None = None) -> None:
    """Print the table of models."""
    from rich.console import Console

    print_whole(terminal_table(report), Console(file=stream))


def print_whole(table: Table, console: Console) -> None:
    """Print a table, into a file or a pipe as wide as it is: nothing there is 80 columns wide."""
    from rich.measure import Measurement

    if not console.is_terminal:
        options = console.options.update(max_width=MOST_COLUMNS)
        console.width = max(console.width, Measurement.get(console, options, table).maximum)
    console.print(table)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it stands, also inside a table."""
    text = " ".join(text.split())
    for sign in "\\`*_{}[]<>()#!|~":
        text = text.replace(sign, "\\" + sign)
    return text


def markdown_table(header: list[str], rows: list[list[str]], numeric: list[bool] | None = None) -> str:
    """A Markdown table; numbers stand on the right."""
    numeric = numeric or [False] + [True] * (len(header) - 1)
    lines = [header, ["--:" if right else ":--" for right in numeric]]
    body = [[escape_markdown(cell) for cell in row] for row in [header, *rows]]
    lines = [body[0], lines[1], *body[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
