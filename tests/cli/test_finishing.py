"""Finalists: what is said of the machine on which they were measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from nas.export.verify import ExportError
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


def test_a_member_that_does_not_bear_quantisation_is_exported_without_it(monkeypatch):
    tried = []

    def export(*_, precisions, **__):
        tried.append(precisions)
        if "int8" in precisions:
            raise ExportError("export: model_int8.onnx: logits at 4 x 23: cosine must be >= 0.9, but is 0.4.")

    monkeypatch.setattr("nas.export.export.export_candidate", export)
    said = []
    config = {"finalists": {"steps": 1, "minutes": None}, "model": {"path": "teacher"}}
    space = SimpleNamespace(shape=None)
    bench = SimpleNamespace(notes=[], say=said.append, config=config, space=space, task=None)
    device = SimpleNamespace(compiler=SimpleNamespace(template=None))
    finish = Finish(SimpleNamespace(bench=bench, device=device, directory=Path()))
    finish._export(None, None, "study-1", Path("models"))
    assert tried == [("fp32", "int8"), ("fp32",)]
    assert "cosine must be >= 0.9, but is 0.4. So study-1 is exported in fp32 alone." in said[0]
