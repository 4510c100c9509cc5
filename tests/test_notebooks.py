"""Notebooks: the script and the notebook of a pair hold the same cells, and results are in neither."""

from __future__ import annotations

from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed: pip install 'hwnas[dev]'")
SCRIPTS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


def test_there_are_notebooks():
    assert len(SCRIPTS) >= 4


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_both_of_a_pair_hold_the_same_cells(script):
    written, paired = (jupytext.read(path) for path in (script, script.with_suffix(".ipynb")))
    cells = [[(cell.cell_type, cell.source) for cell in notebook.cells] for notebook in (written, paired)]
    assert cells[0] == cells[1], f"run: jupytext --to ipynb {script}"
    assert not any(cell.get("outputs") for cell in paired.cells)
