"""Where a study lies: a folder of its name below the root."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.workbench import Workbench

# Folders beside those of the studies.
RESERVED = ("cache", "logs", "reports")


def study_directory(bench: Workbench) -> Path:
    """The study's folder.

    Raises:
        ValueError: The study's name is not a plain file name.
    """
    return bench.root / plain_name(bench.config["study"])


def plain_name(study: object) -> str:
    """A study's name, once it is known to be a plain file name.

    Raises:
        ValueError: It is not.
    """
    name = str(study)
    if not name or name != Path(name).name or name.startswith(".") or name in RESERVED:
        raise ValueError(
            f"`study` must be a plain name without slashes, and not {', '.join(RESERVED)}, but got {name!r}."
        )
    return name
