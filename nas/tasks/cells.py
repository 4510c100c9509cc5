"""Cells of tables as texts and as groups' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.tasks.sources import Source

if TYPE_CHECKING:
    import pandas as pd

# The group of samples whose cell is empty.
NO_GROUP = "(not given)"


def names_of(columns: str | Sequence[str]) -> list[str]:
    """Columns as a list, also where there is only one."""
    return [columns] if isinstance(columns, str) else list(columns)


def groups_of(
    table: pd.DataFrame, columns: str | Sequence[str], source: Source, rows: NDArray[np.int64]
) -> dict[str, tuple[str, ...]]:
    """Group column -> the rows' values in it; empty cells are a group of their own.

    Args:
        table: The rows.
        columns: The columns.
        source: Where the rows stand, for messages.
        rows: Their places there.

    Raises:
        ValueError: A cell holds a list or something else that is no name.
    """
    found = {}
    for name in names_of(columns):
        cells = table[name].tolist()
        for cell, row in zip(cells, rows, strict=True):
            if not _is_plain(cell):
                raise ValueError(
                    f"{source.place(int(row))}: a group must be a name or a number, but column {name!r} holds a "
                    f"{type(cell).__name__}."
                )
        found[name] = tuple(map(_group_name, cells))
    return found


def _group_name(cell: Any) -> str:
    """A group as text: ``1.0`` is ``1``, as in a column of numbers of which some are missing."""
    import pandas as pd

    if pd.isna(cell):
        return NO_GROUP
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _is_plain(cell: Any) -> bool:
    """Whether a cell is one text, number, date or the like."""
    return not isinstance(cell, list | tuple | set | Mapping | np.ndarray | bytes)


def texts_of(table: pd.DataFrame, column: str, source: Source) -> list[str]:
    """Cells as texts without space around them, empty where there is none; lists of words with one space between them.

    Raises:
        ValueError: A cell is no text and no list of words, or a word is empty or has a space inside, so that words
            could not be told apart again.
    """
    texts = []
    for row, cell in enumerate(table[column].tolist()):
        try:
            texts.append(_as_text(cell))
        except ValueError as error:
            raise ValueError(f"{source.place(row)}: column {column!r} {error}") from error
    return texts


def _as_text(cell: Any) -> str:
    import pandas as pd

    if not isinstance(cell, list | tuple | np.ndarray):
        if not _is_plain(cell):
            raise ValueError(f"must hold texts or lists of words, but holds a {type(cell).__name__}.")
        return "" if pd.isna(cell) else str(cell).strip()
    for word in cell:
        if word is None or not _is_plain(word):
            raise ValueError(f"must hold texts or lists of words, but a list holds a {type(word).__name__}.")
        if len(str(word).split()) != 1:
            raise ValueError(f"must hold words that are not empty and have no spaces inside, but one is {str(word)!r}.")
    return " ".join(map(str, cell))
