"""Report cards side by side: the same table in the terminal, in Markdown, in CSV and on a report's page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from nas.evaluation.card import SECTIONS, Figure, ReportCard, figures
from nas.evaluation.model_card import figure_row, format_share, format_value
from nas.reports.raw import no_formula
from nas.reports.tables import format_number, markdown_table, print_whole

if TYPE_CHECKING:
    from rich.table import Table


def side_by_side(cards: Sequence[ReportCard]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one figure a row, one model a column, and a note where it holds for all models.

    What is kept of the teacher's stands behind the value.
    """
    columns = [{(figure.section, figure.name): figure for figure in figures(card)} for card in cards]
    keys = sorted(dict.fromkeys(key for column in columns for key in column), key=lambda key: SECTIONS.index(key[0]))
    rows = []
    for key in keys:
        known = [column.get(key) for column in columns]
        notes = {figure.note for figure in known if figure is not None}
        rows.append([*key, *map(_cell, known), notes.pop() if len(notes) == 1 else ""])
    return ["", "figure", *(card.name for card in cards), "note"], rows


def print_card(card: ReportCard, stream: TextIO | None = None) -> None:
    """One card as a table in the terminal."""
    rows = [[figure.section, *figure_row(figure)] for figure in figures(card)]
    _print(card.name, ["", "figure", "value", "teacher", "kept", "note"], rows, [0, 0, 1, 1, 1, 0], stream)


def print_comparison(cards: Sequence[ReportCard], stream: TextIO | None = None) -> None:
    """Cards side by side in the terminal."""
    header, rows = side_by_side(cards)
    _print("Models side by side", header, rows, [0, 0, *[1] * len(cards), 0], stream)


def comparison_markdown(cards: Sequence[ReportCard]) -> str:
    """Cards side by side as a Markdown table."""
    header, rows = side_by_side(cards)
    return markdown_table(header, rows, [False, False, *[True] * len(cards), False])


def comparison_csv(cards: Sequence[ReportCard]) -> str:
    """One raw number a cell, one figure of one model a line."""
    stream = io.StringIO()
    names = ["model", "section", "figure", "value", "low", "high", "teacher", "kept", "kept_low", "kept_high", "note"]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    for card in cards:
        for figure in figures(card):
            bounds, kept = figure.interval or ("", ""), figure.retention or ("", "", "")
            value, teacher = ("" if n is None or math.isnan(n) else n for n in (figure.value, figure.teacher))
            row = [figure.section, figure.name, value, *bounds, teacher, *kept, figure.note]
            writer.writerow([no_formula(cell) if isinstance(cell, str) else cell for cell in (card.name, *row)])
    return stream.getvalue()


def _cell(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return "-"
    if figure.retention is not None:
        return f"{format_number(figure.value)}, {format_share(figure.retention)} kept"
    return format_value(figure.value, figure.interval)


def _print(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int], stream: TextIO | None
) -> None:
    from rich.console import Console

    print_whole(_table(title, header, rows, numeric), Console(file=stream))


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int]) -> Table:
    """A table with a line between sections; no text of it is read as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", padding=(0, 1))
    for name, right in zip(header, numeric, strict=True):
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    previous = None
    for row in rows:
        if previous is not None and row[0] != previous:
            table.add_section()
        table.add_row(Text("" if row[0] == previous else row[0]), *(Text(cell) for cell in row[1:]))
        previous = row[0]
    return table
