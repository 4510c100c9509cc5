"""``nas search -m``: every job of a sweep has a study of its own, named after what the sweep varies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

JOURNAL = "journal.log"


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """Options that have several values on a command line, in its order."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    found: list[str] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except OverrideParseException:
            continue  # Hydra itself will say what is wrong with it.
        if override.is_sweep_override() and override.key_or_group not in found:
            found.append(override.key_or_group)
    return found


def study_of_job(study: str, keys: Sequence[str], config: Mapping[str, Any], choices: Mapping[str, Any]) -> str:
    """The name of a job's study: the sweep's with the job's own values behind it.

    Args:
        study: The name that the sweep gives.
        keys: What it varies; where the study itself is varied, its name is left alone.
        config: The job's configuration.
        choices: Group -> chosen file.
    """
    if "study" in keys or not keys:
        return study
    parts = []
    for key in keys:
        if key in choices:
            parts.append(str(choices[key]))
            continue
        value: Any = config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        parts.append(f"{key.rpartition('.')[2]}_{value}")
    plain = [re.sub(r"[^A-Za-z0-9.]+", "_", part).strip("_.") for part in parts]
    return "-".join([study, *plain])


def share_journal(directory: Path) -> None:
    """Keep a new study of a sweep in the journal that all studies of its root share.

    The study's own journal becomes a link to it, so that the study is continued alone, too. A study that has a journal
    keeps it.
    """
    own = directory / JOURNAL
    if own.exists() or own.is_symlink():
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory.parent / JOURNAL).touch()
    try:
        own.symlink_to(Path("..") / JOURNAL)
    except FileExistsError:
        return  # Another worker of the same job was faster.
