"""Connections that are lost for a while, signs of life, and errors that no patience mends."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError, PendingRollbackError

from nas.engine.connection import ConnectionLostError, Heartbeat, database_lost, patiently, storage_failed
from nas.engine.errors import SearchFailedError
from nas.engine.slots import TrialSlots, Worker
from nas.engine.storage import JournalStorage
from tests.engine.worlds import tiny_search


class Driver(Exception):
    def __init__(self, sqlstate):
        super().__init__("server closed the connection")
        self.sqlstate = sqlstate


def error(sqlstate):
    from optuna.exceptions import StorageInternalError

    wrapped = StorageInternalError("commit")
    wrapped.__cause__ = OperationalError("SELECT 1", {}, Driver(sqlstate))
    return wrapped


def test_an_action_is_repeated_until_the_server_is_back():
    waited, failures = [], [error(None), error("57P01"), error("08006")]

    def action():
        if failures:
            raise failures.pop()
        return "done"

    assert patiently(action, database_lost, sleep=waited.append) == "done"
    assert waited == [0.2, 0.4, 0.8]


def test_patience_ends_and_other_errors_are_not_repeated():
    now = iter(range(0, 10_000, 100))

    def gone():
        raise error("08006")

    with pytest.raises(ConnectionLostError, match="no connection for 250 s"):
        patiently(gone, database_lost, patience_s=250, sleep=lambda _: None, clock=lambda: float(next(now)))
    calls = []

    def wrong():
        calls.append(1)
        raise ValueError("not the server")

    with pytest.raises(ValueError, match="not the server"):
        patiently(wrong, database_lost)
    assert len(calls) == 1


def test_a_full_disk_is_no_lost_connection():
    assert not database_lost(error("53100"))
    assert not database_lost(IntegrityError("INSERT", {}, Driver("23505")))
    assert database_lost(error("57P03"))
    assert database_lost(PendingRollbackError("Can't reconnect until invalid transaction is rolled back."))
    assert storage_failed(error("53100"))
    assert storage_failed(OSError("No space left on device"))
    assert not storage_failed(ValueError("cosine"))


def test_a_heartbeat_gives_signs_of_life_until_its_trial_ends():
    beats = []

    class Backend:
        def set_trial_user_attr(self, trial_id, key, value):
            beats.append((trial_id, key, value))
            raise OSError("a lost connection does not stop it")

    with Heartbeat(Backend(), 7, interval_s=0.01):
        while len(beats) < 3:
            time.sleep(0.005)
    assert beats[:2] == [(7, "alive", 1), (7, "alive", 2)]
    count = len(beats)
    time.sleep(0.05)
    assert len(beats) == count


def test_a_silent_worker_of_another_machine_is_given_up_after_the_grace_period(tmp_path):
    search = tiny_search(tmp_path, 5)
    study, opened = search.begin()
    now = [0.0]
    with Worker(opened.workers) as worker:
        slots = TrialSlots(study, opened, 5, worker, grace_s=60, clock=lambda: now[0])
        search.objective.propose(elsewhere := study.ask())
        elsewhere.set_user_attr("worker", {"name": "far-1", "host": "far", "pid": "1", "lock": "/nowhere/far-1.lock"})
        assert slots.claim().trial.number == 1
        now[0] = 50.0
        elsewhere.set_user_attr("alive", 1)
        slots.claim()
        now[0] = 100.0
        slots.claim()
        state = study.get_trials(deepcopy=False)[0].state.name
        assert state == "RUNNING"
        now[0] = 120.0
        slots.claim()
    trials = study.get_trials(deepcopy=False)
    assert trials[0].state.name == "FAIL"
    assert [t.user_attrs["retry_of"] for t in trials if "retry_of" in t.user_attrs][:1] == [0]


@pytest.mark.parametrize(("steps", "withdrawn"), [(0, True), (20, False)])
def test_a_subnet_that_another_worker_finished_meanwhile_is_given_back(tmp_path, steps, withdrawn):
    search = tiny_search(tmp_path, 5)
    study, opened = search.begin()
    with Worker(opened.workers) as worker:
        slots = TrialSlots(study, opened, 5, worker)
        mine, theirs = study.ask(), study.ask()
        if steps:
            mine.set_user_attr("steps", steps)
        for trial in (mine, theirs):
            trial.set_user_attr("subnet", "the same")
        study.tell(theirs, [0.5, 1.0])
        assert slots.withdraw(mine, "the same") is withdrawn
        later = study.ask()
        later.set_user_attr("subnet", "the same")
        assert (
            slots.withdraw(later, "the same") is not withdrawn
        )  # Proposed in the knowledge of theirs, unless mine runs.


@pytest.mark.parametrize(("steps", "retried"), [(0, False), (20, True)])
@pytest.mark.parametrize("finished", [False, True])
def test_a_subnet_that_another_worker_has_is_not_tried_again(tmp_path, finished, steps, retried):
    search = tiny_search(tmp_path, 5)
    study, opened = search.begin()
    with Worker(opened.workers) as worker:
        slots = TrialSlots(study, opened, 5, worker)
        mine, theirs = study.ask(), study.ask()
        subnet = search.objective.propose(mine).subnet.to_json()
        theirs.set_user_attr("subnet", subnet)
        theirs.set_user_attr("steps", steps)
        if finished:
            study.tell(theirs, [0.5, 1.0])
        slots.give_up(study.get_trials(deepcopy=False)[mine.number])
    trials = study.get_trials(deepcopy=False)
    assert trials[mine.number].state.name == "FAIL"
    assert [t.user_attrs["retry_of"] for t in trials if "retry_of" in t.user_attrs] == [mine.number] * retried
    assert ("withdrawn" in trials[mine.number].user_attrs) is not retried


def test_a_subnet_whose_worker_dies_again_and_again_counts_as_failed(tmp_path):
    def kills(subnet, steps):
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            tiny_search(tmp_path, 1, evaluate=kills, max_retries=2).run()
    search = tiny_search(tmp_path, 1, max_retries=2)
    assert search.run() == []
    trials = JournalStorage().open(tmp_path).backend.get_all_trials(0)
    assert [t.state.name for t in trials] == ["FAIL"] * 3
    assert "died 3 times" in trials[-1].user_attrs["reason"]


class LosesItsServer(JournalStorage):
    """A journal of which an error of the database's kind means that the server is not there just now."""

    def open(self, directory):
        return replace(super().open(directory), lost=database_lost)


@pytest.mark.parametrize("losses", [1, 2])
def test_a_server_lost_while_twins_are_looked_for_is_waited_for_and_counts_for_no_limit(tmp_path, monkeypatch, losses):
    asked = []

    def twin_of(study, proposal):
        asked.append(proposal)
        if len(asked) <= losses:
            raise error("57P01")

    monkeypatch.setattr("nas.engine.search.twin_of", twin_of)
    search = tiny_search(tmp_path, 2, storage=LosesItsServer(), trial_timeout_s=0.1)
    assert len(search.run()) == 2
    assert len(asked) == 2 + losses


def test_a_server_that_stays_away_ends_the_search_and_not_the_trial(tmp_path, monkeypatch):
    def twin_of(study, proposal):
        raise ConnectionLostError("no connection for 600 s")

    monkeypatch.setattr("nas.engine.search.twin_of", twin_of)
    with pytest.raises(SearchFailedError, match="no connection for 600 s"):
        tiny_search(tmp_path, 2).run()
    (trial,) = JournalStorage().open(tmp_path).backend.get_all_trials(0)
    assert trial.state.name == "RUNNING"
