"""JSON that people keep and pass on: report cards and reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """Plain data of JSON's own types; numbers that are not finite become None, tuples become lists."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_object(path: Path | str, data: Mapping[str, Any]) -> None:
    """Write an object, keys in the order in which they are given."""
    Path(path).write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_object(path: Path | str, what: str) -> Mapping[str, Any]:
    """Read an object.

    Args:
        path: The file.
        what: What it should be, for messages.

    Raises:
        ValueError: It is not JSON, or not an object.
        OSError: The file cannot be read.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{what}: {path} is not valid JSON ({error}).") from error
    if not isinstance(data, Mapping):
        raise ValueError(f"{what}: {path} must hold a JSON object, but holds a {type(data).__name__}.")
    return data
