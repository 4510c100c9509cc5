"""Finalists: what is said of the machine on which they were measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from nas.finishing import Finish


@pytest.mark.parametrize(("teacher_ms", "said"), [(10.2, ""), (9.9, ""), (11.0, "10% slower"), (9.0, "10% faster")])
def test_a_machine_that_changed_its_pace_since_it_was_profiled_is_told(teacher_ms, said):
    bench = SimpleNamespace(notes=[], say=lambda _: None, config={"finalists": {"steps": 1, "minutes": None}})
    device = SimpleNamespace(profile=SimpleNamespace(reference_level=10.0))
    costs = SimpleNamespace(names=("macs", "latency_ms"))
    finish = Finish(SimpleNamespace(bench=bench, device=device, directory=Path(), costs=costs))
    finish._note_pace(teacher_ms)
    assert len(bench.notes) == bool(said)
    assert said in " ".join(bench.notes)
    device.profile.reference_level = None
    finish._note_pace(teacher_ms)
    assert len(bench.notes) == bool(said), "without a reference there is nothing to compare with"
