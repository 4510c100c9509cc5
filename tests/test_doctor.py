"""The doctor: says what is there, names what is not and what mends it, and never dies of what it finds."""

from __future__ import annotations

import logging
import shutil
from importlib import metadata

from nas import doctor
from nas.__main__ import run
from nas.engine.storage import DatabaseStorage, JournalStorage


def by_name(checks):
    return {check.name: check for check in checks}


def test_this_installation_has_no_problem(tmp_path):
    found = by_name(doctor.examine(tmp_path / "runs", JournalStorage(), check_seconds=0))
    assert {"python", "packages", "root", "disk", "locks", "storage", "memory", "load"} <= set(found)
    assert found["device onnxruntime_cpu"].state == "ok"
    assert not [check for check in found.values() if check.state == "problem"]
    assert not (tmp_path / "runs").exists(), "examining leaves nothing behind"


def test_missing_and_old_packages_are_named(monkeypatch):
    def version(name):
        if name == "plotly":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "optuna" else metadata.version(name)

    monkeypatch.setattr(doctor, "version", version)
    check = by_name(doctor.check_packages())["packages"]
    assert check.state == "problem"
    assert "plotly is missing" in check.found
    assert "optuna 0.1 (>=5.0)" in check.found
    assert "pip install" in check.mend


def test_a_full_disk_and_a_busy_machine_are_notes(monkeypatch, tmp_path):
    import psutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**8))
    monkeypatch.setattr(psutil, "getloadavg", lambda: (99.0, 99.0, 99.0))
    assert by_name(doctor.check_root(tmp_path))["disk"].state == "note"
    assert "idle" in by_name(doctor.check_machine())["load"].mend


def test_a_folder_that_cannot_be_written_is_a_problem(monkeypatch, tmp_path):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    check = by_name(doctor.check_root(tmp_path))["root"]
    assert check.state == "problem"
    assert "root=FOLDER" in check.mend


def test_a_storage_that_does_not_answer_is_a_problem_without_its_password(tmp_path):
    (check,) = doctor.check_storage(tmp_path, DatabaseStorage("postgresql+psycopg://u:secret@nowhere.invalid/x"))
    assert check.state == "problem"
    assert "secret" not in check.found
    (check,) = doctor.check_storage(tmp_path, DatabaseStorage(f"sqlite:///{tmp_path}/all.db"))
    assert check.found.endswith("0 studies")


def broken():
    raise OSError("no such file")
    yield


def test_the_command_tells_and_fails_with_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(doctor, "check_devices", lambda _: iter(()))
    assert run(["doctor", f"root={tmp_path}", "progress=quiet"]) == 0
    assert "0 problems" in capsys.readouterr().out
    assert not [one for one in logging.getLogger().handlers if isinstance(one, logging.FileHandler)], (
        "Hydra's log is closed"
    )
    monkeypatch.setattr(doctor, "check_machine", broken)
    assert run(["doctor", f"root={tmp_path}", "progress=quiet"]) == 1
    said = capsys.readouterr()
    assert "no such file" in said.out
    assert said.err.startswith("nas: doctor: 1 problems")
