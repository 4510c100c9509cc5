"""Workers that die, servers that restart, disks that fill: no trial is lost and none is done twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest

from nas.engine.errors import SearchFailedError
from nas.engine.journal import JournalFile
from nas.engine.slots import abandoned
from nas.engine.storage import DatabaseStorage, JournalStorage, ProxyStorage
from tests.engine.servers import PostgreSQL, free_port, postgresql_programs, start_proxy
from tests.engine.worlds import Formula, tiny_search

ROOT = Path(__file__).parents[2]


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_worker() -> Iterator[Start]:
    """Starts workers as processes; those that a failing test leaves are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(directory: Path, trials: int, sleep_s: float, storage: str = "") -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.engine.worker", str(directory), str(trials), str(sleep_s), storage]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes))
        return started[-1]

    yield start
    for worker in started:
        if worker.poll() is None:
            worker.kill()
        worker.communicate()


def wait_for_evaluation(worker: subprocess.Popen[str]) -> None:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    assert line, worker.stderr.read() if worker.stderr else ""


def counted(trials) -> list[str]:
    return [trial.state.name for trial in trials if not abandoned(trial)]


def check_whole(trials, total: int) -> None:
    """Exactly so many finished trials; every subnet that a dead worker left was tried again."""
    assert counted(trials) == ["COMPLETE"] * total
    lost = {t.number for t in trials if abandoned(t) and "subnet" in t.user_attrs and "withdrawn" not in t.user_attrs}
    retried = {t.user_attrs["retry_of"] for t in trials if "retry_of" in t.user_attrs}
    assert lost <= retried
    evaluated = [t.user_attrs["subnet"] for t in trials if t.state.name == "COMPLETE"]
    assert len(set(evaluated)) == total


def read(storage, directory: Path):
    opened = storage.open(directory)
    trials = optuna.load_study(study_name="study", storage=opened.backend).get_trials(deepcopy=False)
    opened.disconnect()
    return trials


def test_killed_at_random_moments_and_resumed_the_study_is_whole(start_worker, tmp_path):
    generator = random.Random(0)
    for _ in range(3):
        worker = start_worker(tmp_path, 60, 0.002)
        wait_for_evaluation(worker)
        time.sleep(generator.uniform(0.0, 0.5))
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    assert start_worker(tmp_path, 60, 0.0).communicate(timeout=120)[0].splitlines()[-1].startswith("done")
    check_whole(read(JournalStorage(), tmp_path), 60)


def test_four_workers_finish_exactly_the_trials_asked_for_also_when_one_is_killed(start_worker, tmp_path):
    workers = [start_worker(tmp_path, 60, 0.01) for _ in range(4)]
    wait_for_evaluation(workers[0])
    workers[0].send_signal(signal.SIGKILL)
    finished = [worker.communicate(timeout=120) for worker in workers]
    assert all(out.splitlines()[-1].startswith("done") for out, _ in finished[1:])
    trials = read(JournalStorage(), tmp_path)
    check_whole(trials, 60)
    assert len({t.user_attrs["worker"]["name"] for t in trials if "worker" in t.user_attrs}) == 4


def test_a_line_that_a_dying_writer_left_unfinished_is_cut_off(tmp_path):
    tiny_search(tmp_path, 4).run()
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(b'{"op_code":5,"trial_id":3,"wor')
    search = tiny_search(tmp_path, 8)
    search.run()
    assert counted(read(JournalStorage(), tmp_path)) == ["COMPLETE"] * 8
    assert all(json.loads(line) for line in (tmp_path / "journal.log").read_text().splitlines())


def test_a_full_disk_gives_one_clear_error_and_what_was_recorded_stays_readable(tmp_path):
    tiny_search(tmp_path, 5).run()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "journal.log").stat().st_size + 3000, before[1]))
        with pytest.raises(SearchFailedError, match=r"journal\.log cannot be written: .*What was recorded is safe"):
            tiny_search(tmp_path, 50).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    kept = read(JournalStorage(), tmp_path)
    assert counted(kept)[:5] == ["COMPLETE"] * 5
    tiny_search(tmp_path, 12).run()
    assert counted(read(JournalStorage(), tmp_path)) == ["COMPLETE"] * 12


def test_read_only_storage_gives_one_clear_error(tmp_path, monkeypatch):
    tiny_search(tmp_path, 3).run()
    really_open = os.open

    def read_only(path, flags, *arguments, **options):
        if flags & (os.O_RDWR | os.O_WRONLY) and str(path).startswith(str(tmp_path)):
            raise OSError(30, "Read-only file system", str(path))
        return really_open(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(SearchFailedError, match="Read-only file system"):
        tiny_search(tmp_path, 6).run()
    monkeypatch.undo()
    assert len(read(JournalStorage(), tmp_path)) == 3


def test_a_folder_that_cannot_be_made_gives_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SearchFailedError, match="storage cannot be opened"):
        tiny_search(tmp_path / "file" / "run", 3).run()


def test_optunas_own_journal_reads_what_ours_wrote(tmp_path):
    tiny_search(tmp_path, 4).run()
    theirs = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log")))
    assert len(optuna.load_study(study_name="study", storage=theirs).trials) == 4
    ours = optuna.storages.JournalStorage(JournalFile(tmp_path / "journal.log"))
    assert len(optuna.load_study(study_name="study", storage=ours).trials) == 4


# -- PostgreSQL -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("psycopg")
    programs = postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    found = PostgreSQL(programs, tmp_path_factory.mktemp("server") / "postgresql")
    found.create()
    found.start()
    yield found
    with contextlib.suppress(subprocess.CalledProcessError):  # A test that failed half-way has stopped it.
        found.stop()


@pytest.fixture
def database(server):
    """The server's URL, without studies of earlier tests."""
    opened = DatabaseStorage(url=server.url).open(Path())
    for name in optuna.get_all_study_names(opened.backend):
        optuna.delete_study(study_name=name, storage=opened.backend)
    opened.disconnect()
    return server.url


def test_workers_on_postgresql_survive_a_kill_and_a_restart_of_the_server(start_worker, server, database, tmp_path):
    workers = [start_worker(tmp_path, 40, 0.05, database) for _ in range(3)]
    for worker in workers:
        wait_for_evaluation(worker)
    workers[0].send_signal(signal.SIGKILL)
    time.sleep(0.5)
    server.stop()
    server.start()
    finished = [worker.communicate(timeout=250) for worker in workers]
    assert all(out.splitlines()[-1].startswith("done") for out, _ in finished[1:]), "\n".join(
        errors for _, errors in finished[1:]
    )
    storage = DatabaseStorage(url=database)
    check_whole(read(storage, tmp_path), 40)


def test_a_password_is_never_shown(server, database, tmp_path):
    storage = DatabaseStorage(url=database)
    opened = storage.open(tmp_path)
    opened.disconnect()
    assert "s3cr3t" not in repr(storage) + opened.described
    wrong = DatabaseStorage(url=database.replace("s3cr3t", "wr0ng"))
    with pytest.raises(OSError, match="storage: cannot open") as raised:
        wrong.open(tmp_path)
    assert "wr0ng" not in str(raised.value)
    search = tiny_search(tmp_path, 3, storage=wrong)
    with pytest.raises(SearchFailedError) as failed:
        search.run()
    assert "wr0ng" not in str(failed.value)
    tiny_search(tmp_path, 3, storage=storage).run()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or "s3cr3t" not in path.read_text()


def test_a_storage_needs_an_address(monkeypatch):
    monkeypatch.delenv("NAS_STORAGE_URL", raising=False)
    with pytest.raises(ValueError, match="NAS_STORAGE_URL"):
        DatabaseStorage()
    monkeypatch.setenv("NAS_STORAGE_URL", "postgresql+psycopg://me:s3cr3t@nowhere/db")
    assert "s3cr3t" not in repr(DatabaseStorage())


# -- Optuna's gRPC proxy ----------------------------------------------------------------------------------------------


def test_workers_on_a_proxy_finish_exactly_the_trials_asked_for(start_worker, tmp_path):
    pytest.importorskip("grpc")
    port = free_port()
    proxy = start_proxy(tmp_path / "server.log", port)
    try:
        workers = [start_worker(tmp_path, 24, 0.01, f"grpc:{port}") for _ in range(3)]
        finished = [worker.communicate(timeout=120) for worker in workers]
        assert all(out.splitlines()[-1:] and out.splitlines()[-1].startswith("done") for out, _ in finished), finished
        check_whole(read(ProxyStorage(host="127.0.0.1", port=port), tmp_path), 24)
    finally:
        proxy.kill()
        proxy.wait()


def test_a_proxy_that_is_not_there_gives_one_clear_error(tmp_path):
    pytest.importorskip("grpc")
    storage = ProxyStorage(host="127.0.0.1", port=free_port(), timeout_s=0.3)
    with pytest.raises(SearchFailedError, match="no server answers"):
        tiny_search(tmp_path, 3, storage=storage).run()


def test_the_evaluation_of_a_lost_trial_is_not_repeated_where_there_is_a_cache(tmp_path):
    formula = Formula()

    def interrupted(subnet, steps):
        if formula.calls == 3:
            raise KeyboardInterrupt
        return formula(subnet, steps)

    with pytest.raises(KeyboardInterrupt):
        tiny_search(tmp_path, 8, evaluate=interrupted, cache=True).run()
    after = Formula()
    tiny_search(tmp_path, 8, evaluate=after, cache=True).run()
    assert formula.calls + after.calls == 8
