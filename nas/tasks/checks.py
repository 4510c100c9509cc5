"""Options of data that YAML and the command line give in a wrong kind, told before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_path(path: Any) -> None:
    """Check that data are a place, or places by split.

    Raises:
        ValueError: They are something else.
    """
    places = list(path.values()) if isinstance(path, Mapping) else [path]
    if not places or not all(isinstance(place, str) and place for place in places):
        raise ValueError(
            "`task.data.path` must be a file, a folder or a name on the hub, or a file for each split such as "
            f"{{train: FILE, test: FILE}}, but got {path!r}."
        )


def check_columns(**columns: Any) -> None:
    """Check that options name columns: one, or a list where the option's name says ``columns`` or may.

    Raises:
        ValueError: One does not.
    """
    for option, value in columns.items():
        several = option in ("label_column", "group_columns")
        names = value if several and isinstance(value, list | tuple) else [value]
        if value is not None and not all(isinstance(name, str) and name for name in names):
            kind = "a column, or a list of columns" if several else "one column"
            raise ValueError(f"`task.data.{option}` must name {kind}, but got {value!r}.")
