"""Processes of their own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from latency_models.backends.base import BackendError
from latency_models.isolation import run_isolated

ROOT = Path(__file__).parents[2]


def test_what_a_function_returns_comes_back():
    assert run_isolated(math.sqrt, 4.0) == 2.0
    assert run_isolated(os.getpid) != os.getpid()
    with pytest.raises(BackendError, match="ValueError"):
        run_isolated(math.sqrt, -1.0)


def test_a_script_without_a_guard_is_not_run_again(tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text(
        "import math\nfrom latency_models.isolation import run_isolated\nprint(run_isolated(math.sqrt, 9.0))\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["3.0"], done.stderr
