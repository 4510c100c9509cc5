"""Several workers on one machine: processes that share a study, each with cores of its own.

The parent prepares everything once, begins the study, shows the progress and hears of every trial; its workers only
evaluate. A worker that dies costs nothing but time: the others retry its trial.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nas.engine.errors import SearchFailedError

if TYPE_CHECKING:
    from nas.engine.candidates import Candidate
    from nas.engine.search import Search

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def share_cores(cores: Sequence[int], workers: int) -> list[list[int]]:
    """Cores of each worker, neighbours together, so that no two disturb each other's caches and timings.

    Raises:
        ValueError: There are more workers than cores.
    """
    if not 1 <= workers <= len(cores):
        raise ValueError(f"`search.workers` must be from 1 to this machine's {len(cores)} cores, but got {workers}.")
    edges = [round(index * len(cores) / workers) for index in range(workers + 1)]
    return [list(cores[start:end]) for start, end in pairwise(edges)]


def usable_cores() -> list[int]:
    """Cores that this process may use, those that a container or `taskset` took away left out."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@dataclass
class WorkerTeam:
    """The workers of one search.

    Args:
        config: The resolved configuration.
        workers: How many.
        directory: The study's folder; each worker's messages go into a file of it.
    """

    config: Mapping[str, Any]
    workers: int
    directory: Path
    _processes: list[subprocess.Popen[str]] = field(default_factory=list, init=False)
    _told: bool = field(default=False, init=False)

    def run(self, search: Search) -> list[Candidate]:
        """Begin the study, let the workers finish it, and return its candidates.

        Raises:
            SearchFailedError: All workers stopped before the study was finished.
        """
        study, _ = search.begin()
        config = {**self.config, "study": study.study_name}
        try:
            for index, cores in enumerate(share_cores(usable_cores(), self.workers)):
                self._processes.append(self._start(index, cores, config))
            found = search.watch(self._busy)
        finally:
            self._end()
        if not search.interrupted and not search.complete:
            raise SearchFailedError(f"search: all {self.workers} workers stopped early. {self._last_words()}")
        return found

    def _start(self, index: int, cores: Sequence[int], config: Mapping[str, Any]) -> subprocess.Popen[str]:
        log = self._log(index)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **dict.fromkeys(_THREADS, str(len(cores)))}
        with log.open("w", encoding="utf-8") as messages:
            process = subprocess.Popen(
                [sys.executable, "-m", "nas.workers"],
                stdin=subprocess.PIPE,
                stdout=messages,
                stderr=messages,
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on once.
            )
        assert process.stdin is not None
        process.stdin.write(json.dumps({"config": config, "cores": list(cores)}) + "\n")
        process.stdin.flush()  # It stays open: its end tells the worker that the parent is gone.
        return process

    def _busy(self, interrupted: bool) -> bool:  # noqa: FBT001 - called by `Search.watch`
        if interrupted and not self._told:
            self._told = True
            for process in self._processes:
                process.send_signal(signal.SIGINT)
        return any(process.poll() is None for process in self._processes)

    def _end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def _log(self, index: int) -> Path:
        return self.directory / "workers" / f"worker-{index + 1}.txt"

    def _last_words(self) -> str:
        for index in range(self.workers):
            lines = self._log(index).read_text(encoding="utf-8").strip().splitlines()
            if lines:
                return f"{lines[-1].removeprefix('nas: ')} ({self._log(index)})"
        return f"They left no message in {self._log(0).parent}."


def main() -> int:
    """One worker: reads its job from standard input, and evaluates until the study is finished."""
    job = json.loads(sys.stdin.readline())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["cores"])
    threading.Thread(target=_follow_parent, args=(sys.stdin,), daemon=True).start()
    from nas.measuring import DeviceBench
    from nas.searching import SearchBench
    from nas.workbench import Workbench

    own = {"torch_threads": len(job["cores"]), "progress": "quiet"}
    bench = Workbench({**job["config"], **own})
    try:
        SearchBench(bench, DeviceBench(bench)).join()
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        print(f"nas: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _follow_parent(pipe: IO[str]) -> None:
    """Stop after the running trial when the parent is gone."""
    pipe.read()
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
