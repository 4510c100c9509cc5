"""What a measuring process holds beside the model; nothing is imported here that would stand in its memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from latency_models.backends.base import BackendError, Run


def allocating_run(megabytes: int) -> Callable[[], Any]:
    return partial(np.ones, megabytes * 125_000)


def failing_run() -> Run:
    raise BackendError("device 'x': gone.")


def without(compile_run: Callable[[], Run], names: Sequence[str]) -> Run:
    """Compile and run, and refuse where a module was imported for it."""
    run = compile_run()
    run()
    if found := [name for name in names if name in sys.modules]:
        raise BackendError(f"{', '.join(found)} imported")
    return run
