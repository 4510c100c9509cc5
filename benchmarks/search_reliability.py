"""No trial is lost and none is done twice, whatever dies on the way.

    python benchmarks/search_reliability.py            # 30 kills, then four workers on a journal and on PostgreSQL
    python benchmarks/search_reliability.py --quick    # 3 kills, fewer trials

Workers are processes that are killed with SIGKILL at random moments. Where PostgreSQL is installed, a server is started
on the loopback address, killed with its workers at work, and started again. Evaluations are a formula and a pause.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = ("finished", "lost", "doubled")


def start(directory: Path, trials: int, pause_s: float, storage: str = "") -> subprocess.Popen[str]:
    """A worker; prints a line at each evaluation."""
    command = [sys.executable, "-m", "tests.engine.worker", str(directory), str(trials), str(pause_s), storage]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def first_evaluation(worker: subprocess.Popen[str]) -> bool:
    """Wait for it; False where the worker ended without one."""
    assert worker.stdout is not None
    return worker.stdout.readline().startswith("evaluating")


def kill(worker: subprocess.Popen[str]) -> None:
    """SIGKILL, and collect it."""
    worker.send_signal(signal.SIGKILL)
    worker.communicate()


def rows(title: str, storage: Any, directory: Path, total: int, kills: int) -> list[common.Result]:
    """What the study holds in the end."""
    import optuna

    from nas.engine.slots import abandoned

    trials = optuna.load_study(study_name="study", storage=storage.open(directory).backend).get_trials(deepcopy=False)
    done = [trial.user_attrs["subnet"] for trial in trials if trial.state.is_finished() and not abandoned(trial)]
    left = {trial.number for trial in trials if abandoned(trial) and "subnet" in trial.user_attrs}
    retried = {trial.user_attrs["retry_of"] for trial in trials if "retry_of" in trial.user_attrs}
    values = (len(done), len(left - retried), len(done) - len(set(done)))
    wanted = (total, 0, 0)
    context = common.machine(trials=total, kills=kills, retried=len(retried))
    return [
        common.Result(f"{title}: {claim}", float(value), "trials", kills, anchor=f"must be {right}", context=context)
        for claim, value, right in zip(CLAIMS, values, wanted, strict=True)
    ]


def resumed(kills: int, directory: Path) -> list[common.Result]:
    """One worker, killed at random moments and started again."""
    from nas.engine.storage import JournalStorage

    generator, total, happened = random.Random(0), 20 * kills, 0
    for _ in range(kills):
        worker = start(directory, total, 0.005)
        if first_evaluation(worker):
            time.sleep(generator.uniform(0.0, 0.4))
            happened += worker.poll() is None
        kill(worker)
    start(directory, total, 0.0).communicate()
    return rows(f"killed {happened} times and resumed", JournalStorage(), directory, total, happened)


def together(
    title: str, storage: Any, address: str, directory: Path, total: int, server: Any = None
) -> list[common.Result]:
    """Four workers, one of them killed midway; the server, where there is one, killed and started again."""
    workers = [start(directory, total, 0.02, address) for _ in range(4)]
    for worker in workers:
        first_evaluation(worker)
    time.sleep(0.5)
    kill(workers[0])
    if server is not None:
        server.stop("immediate")
        time.sleep(1.0)
        server.start()
    for worker in workers[1:]:
        worker.communicate()
    return rows(title, storage, directory, total, 1)


def main() -> int:
    options = common.parser(__doc__ or "").parse_args()
    from nas.engine.storage import DatabaseStorage, JournalStorage
    from tests.engine.servers import PostgreSQL, postgresql_programs

    total = 40 if options.quick else 200
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        results = resumed(3 if options.quick else 30, root / "resumed")
        results += together("4 workers on a journal", JournalStorage(), "", root / "journal", total)
        programs = postgresql_programs()
        if programs is None:
            print("skipped PostgreSQL: it is not installed (Debian: apt-get install postgresql)")
        else:
            server = PostgreSQL(programs, root / "postgresql")
            server.create()
            server.start()
            try:
                storage = DatabaseStorage(url=server.url)
                results += together(
                    "4 workers on PostgreSQL, restarted", storage, server.url, root / "database", total, server
                )
            finally:
                server.stop()
    common.show(results)
    print(common.write("search_reliability_quick" if options.quick else "search_reliability", results, options.output))
    return 0 if all(f"must be {result.value:.0f}" == result.anchor for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
