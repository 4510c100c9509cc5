"""Finalists: what is said of the machine on which they were measured."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from latency_models.profiler import Profiler
from nas.export.verify import ExportError
from nas.finalists import measure_each
from nas.finishing import Finish


@pytest.mark.parametrize(("teacher_ms", "said"), [(10.2, ""), (9.9, ""), (11.0, "10% slower"), (9.0, "10% faster")])
def test_a_machine_that_changed_its_pace_since_it_was_profiled_is_told(teacher_ms, said):
    bench = SimpleNamespace(
        notes=[], say=lambda _: None, config={"finalists": {"steps": 1, "minutes": None, "stages": 1}}
    )
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
    config = {"finalists": {"steps": 1, "minutes": None, "stages": 1}, "model": {"path": "teacher"}}
    space = SimpleNamespace(shape=None)
    bench = SimpleNamespace(notes=[], say=said.append, config=config, space=space, task=None)
    device = SimpleNamespace(student_graph=lambda *_: None)
    finish = Finish(SimpleNamespace(bench=bench, device=device, directory=Path()))
    finish._export(None, None, "study-1", Path("models"))
    assert tried == [("fp32", "int8"), ("fp32",)]
    assert "cosine must be >= 0.9, but is 0.4. So study-1 is exported in fp32 alone." in said[0]


class Refused(Exception):
    """As those of ONNX Runtime, whose own have no base class."""


def finishing(monkeypatch, exports):
    """A `Finish` of three candidates whose exports, by their number, succeed or raise, and what it says."""
    said, made = [], []
    config = {
        "finalists": {"steps": 1, "minutes": None, "stages": 1, "count": 3, "distil": 0},
        "study": "s",
        "model": {"path": "t"},
    }
    bench = SimpleNamespace(notes=[], say=said.append, config=config, stage=lambda _: nullcontext())
    bench.progress = lambda *_: nullcontext(SimpleNamespace(advance=lambda **_: None))
    finish = Finish(SimpleNamespace(bench=bench, device=None, directory=Path(), objectives=None))

    def member(name, candidate, **_):
        if (error := exports[candidate.number]) is not None:
            raise error
        made.append(name)
        return name

    monkeypatch.setattr(finish, "_teacher", lambda: "teacher")
    monkeypatch.setattr(finish, "_member", member)
    monkeypatch.setattr(finish, "_measure", lambda members: members)
    monkeypatch.setattr(finish, "_write_metrics", lambda *_: None)
    monkeypatch.setattr("nas.finishing.make_report", lambda _, __, rows: rows)
    monkeypatch.setattr("nas.finishing.shown", lambda front, *_: front)
    front = [SimpleNamespace(number=number) for number in range(len(exports))]
    return finish, SimpleNamespace(front=front), bench


def test_a_finalist_that_fails_for_whatever_reason_loses_no_other(monkeypatch):
    finish, found, bench = finishing(monkeypatch, [None, Refused("[ONNXRuntimeError] : 9\nno kernel"), None])
    assert finish.run(found) == ["teacher", "s-1", "s-3"]
    assert bench.notes == ["s-2 is left out, because it failed: [ONNXRuntimeError] : 9 no kernel."]


def test_where_all_finalists_fail_the_study_is_named(monkeypatch):
    finish, found, _ = finishing(monkeypatch, [Refused("no kernel"), ExportError("export: too far.")])
    with pytest.raises(ExportError, match=r"none could be exported\. s-2 .* too far\. The study is kept"):
        finish.run(found)


def test_ctrl_c_while_finalists_are_made_is_passed_on(monkeypatch):
    finish, found, _ = finishing(monkeypatch, [None, KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        finish.run(found)


def test_a_graph_that_a_runtime_refuses_is_not_measured_and_the_others_are():
    class Broken:
        def __call__(self):
            raise Refused("no kernel")

    jobs = {("teacher", "fp32"): lambda: lambda: None, ("a", "fp32"): lambda: lambda: None, ("a", "int8"): Broken}
    jobs |= {("b", "fp32"): lambda: lambda: None}
    profiler = Profiler(warmup_seconds=0.0, burst=1, min_visits=1, max_seconds=0.0, chunk_size=2, retries=0)
    measured, failed = [], []
    measure_each(
        profiler,
        jobs,
        ("teacher", "fp32"),
        lambda key, _: measured.append(key),
        lambda key, error: failed.append((key, str(error))),
    )
    assert {*measured} == {("teacher", "fp32"), ("a", "fp32"), ("b", "fp32")}
    assert failed == [(("a", "int8"), "no kernel")]
    jobs[("teacher", "fp32")] = Broken
    with pytest.raises(Refused):
        measure_each(profiler, jobs, ("teacher", "fp32"), lambda *_: None, lambda *_: None)
