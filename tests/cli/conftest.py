from __future__ import annotations

import pytest

from nas.__main__ import run

FAST = ["progress=quiet", "torch_threads=1"]


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def searched(root):
    """The folder of one real search of seconds."""
    assert run(["search", "experiment=smoke", f"root={root}", *FAST]) == 0
    return root / "smoke"
