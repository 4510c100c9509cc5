"""What can stop a search, told so that its user can mend it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class StudyChangedError(ValueError):
    """A study is continued with another space, task, device or set of objectives than it was begun with."""


class SearchFailedError(RuntimeError):
    """Too large a share of the trials failed, or the storage cannot be written."""


class InfeasibleError(ValueError):
    """No subnet of the space satisfies the constraints."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two pieces of nested plain data differ, one line a place: ``device.threads: 1 -> 2``."""
    lines: list[str] = []
    for key in sorted({*before, *now}):
        name = f"{prefix}{key}"
        if key not in before:
            lines.append(f"{name}: (nothing) -> {_short(now[key])}")
        elif key not in now:
            lines.append(f"{name}: {_short(before[key])} -> (nothing)")
        elif isinstance(before[key], Mapping) and isinstance(now[key], Mapping):
            lines.extend(differences(before[key], now[key], f"{name}."))
        elif before[key] != now[key]:
            lines.append(f"{name}: {_short(before[key])} -> {_short(now[key])}")
    return lines


def _short(value: Any, length: int = 120) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}..."
