"""``nas search -m``: every job of a sweep has a study of its own, named after what the sweep varies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


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
