"""The watch: finds studies where they appear, reads only what is new, survives what cannot be read."""

from __future__ import annotations

import json

import optuna
import pytest

from nas.dashboard.watch import Watch
from nas.engine.storage import DatabaseStorage
from tests.dashboard.synthetic import search, write_trials


def test_studies_with_device_budget_and_state(watch):
    studies = watch.look().studies
    assert list(studies) == ["first", "second"]
    first, second = studies.values()
    assert first.facts.device == "onnxruntime_cpu"
    assert first.facts.bounds["latency_ms"][0] == "<="
    assert first.state == "finished"
    assert first.planned == 24
    assert int(first.trials.finished.sum()) == 24
    assert 0 < first.feasible_share <= 1
    assert first.teacher.depth == 4
    assert second.report is not None
    counts, volumes = first.history
    assert len(counts) == len(volumes) == int(first.trials.feasible.sum())
    assert (volumes[1:] >= volumes[:-1]).all()


def test_a_study_that_begins_later_appears_and_one_that_goes_on_grows(tmp_path):
    watch = Watch(tmp_path)
    assert not watch.read().studies
    search(tmp_path, "late", 5)
    before = watch.read()
    assert len(before.studies["late"].trials) == 5
    assert watch.read() is before, "nothing changed, so nothing is made anew"
    search(tmp_path, "late", 9)
    after = watch.read()
    assert after.version > before.version
    assert len(after.studies["late"].trials) == 9
    kept = [a is b for a, b in zip(before.studies["late"].trials.rows, after.studies["late"].trials.rows, strict=False)]
    assert all(kept), "a finished trial is read once"


def test_running_trials_are_read_until_they_end(tmp_path):
    folder = search(tmp_path, "run", 4)
    from nas.engine.storage import JournalStorage

    study = optuna.load_study(study_name="run", storage=JournalStorage().open(folder).backend)
    trial = study.ask()
    watch = Watch(tmp_path)
    study_now = watch.read().studies["run"]
    assert study_now.trials.rows[-1].state == "RUNNING"
    assert study_now.state == "running"
    study.tell(trial, [0.5, 3.0])
    assert watch.read().studies["run"].trials.rows[-1].state == "COMPLETE"


def test_a_dead_worker_is_not_running(tmp_path):
    folder = search(tmp_path, "dead", 4)
    from nas.engine.storage import JournalStorage

    study = optuna.load_study(study_name="dead", storage=JournalStorage().open(folder).backend)
    trial = study.ask()
    trial.set_user_attr("worker", {"name": "gone", "host": "here", "pid": "1"})
    (folder / "workers").mkdir(exist_ok=True)
    (folder / "workers" / "gone.lock").touch()
    study.set_user_attr("num_trials", 9)
    assert Watch(tmp_path).read().studies["dead"].state == "stopped"


def test_what_cannot_be_read_is_told_and_the_rest_is_shown(tmp_path):
    search(tmp_path, "good", 3)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "journal.log").write_text('{"op_code": "nonsense"}\n')
    snapshot = Watch(tmp_path).read()
    assert list(snapshot.studies) == ["good"]
    assert "bad" in snapshot.problems[0]


def test_an_unreadable_report_is_a_problem_of_its_study_alone(tmp_path):
    folder = search(tmp_path, "torn", 3)
    (folder / "report.json").write_text('{"format": "hwnas rep')
    study = Watch(tmp_path).read().studies["torn"]
    assert "not valid JSON" in study.problem
    assert study.report is None


def test_a_database_holds_all_studies_and_its_password_is_never_told(tmp_path):
    url = f"sqlite:///{tmp_path}/all.db"
    for name in ("one", "two"):
        study = optuna.create_study(storage=url, study_name=name, directions=["minimize"])
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    snapshot = Watch(tmp_path, DatabaseStorage(url)).read()
    assert list(snapshot.studies) == ["one", "two"]
    assert snapshot.studies["one"].facts.directory is None
    hidden = Watch(tmp_path, DatabaseStorage("postgresql+psycopg://u:secret@nowhere.invalid/x")).read()
    assert hidden.problems
    assert "secret" not in hidden.problems[0]


@pytest.mark.parametrize("name", ["../outside", "..", ".hidden", "a/b"])
def test_a_studys_name_never_leads_out_of_the_root(tmp_path, name):
    root = tmp_path / "runs"
    (root / "a" / "b").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    url = f"sqlite:///{tmp_path}/all.db"
    optuna.create_study(storage=url, study_name=name)
    (study,) = Watch(root, DatabaseStorage(url)).read().studies.values()
    assert study.facts.directory is None


def test_two_storages_may_hold_studies_of_one_name(tmp_path):
    for folder in ("a", "b"):
        write_trials(tmp_path / folder / "journal.log", 3, name="same")
    watch = Watch(tmp_path)
    snapshot = watch.read()
    assert len(snapshot.studies) == 2
    assert all(key.startswith("same (") for key in snapshot.studies)
    assert watch.read() is snapshot


def test_ten_thousand_trials_are_read_once(tmp_path):
    write_trials(tmp_path / "large" / "journal.log", 10_000)
    watch = Watch(tmp_path)
    study = watch.read().studies["large"]
    assert len(study.trials) == 10_000
    with (tmp_path / "large" / "journal.log").open("a") as file:
        file.write(
            json.dumps({"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {"num_trials": 10_001}}) + "\n"
        )
    again = watch.read().studies["large"]
    assert again.trials is study.trials
    assert again.planned == 10_001
