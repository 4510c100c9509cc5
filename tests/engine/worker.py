"""A worker as a process of its own: `python -m tests.engine.worker FOLDER TRIALS SLEEP_S [STORAGE]`.

Prints a line before each evaluation, so that whoever watches knows where to kill it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from nas.engine.guided_sampler import GuidedSampler
from nas.engine.storage import DatabaseStorage, JournalStorage, ProxyStorage
from tests.engine.worlds import Formula, tiny_search


def storage_of(text: str) -> Any:
    if text.startswith("grpc:"):
        return ProxyStorage(host="127.0.0.1", port=int(text.removeprefix("grpc:")))
    return DatabaseStorage(url=text) if text else JournalStorage()


def main(directory: str, trials: str, sleep_s: str, storage: str = "") -> None:
    formula = Formula()

    def evaluate(subnet: Any, steps: int) -> Any:
        print("evaluating", flush=True)
        time.sleep(float(sleep_s))
        return formula(subnet, steps)

    search = tiny_search(
        Path(directory),
        int(trials),
        evaluate=evaluate,
        sampler=GuidedSampler(startup_trials=12, candidates=60),
        storage=storage_of(storage),
        max_retries=1000,
    )
    search.run()
    print(f"done {formula.calls}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
