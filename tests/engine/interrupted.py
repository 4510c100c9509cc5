"""A search that gets Ctrl-C in its fourth evaluation: `python -m tests.engine.interrupted FOLDER TRIALS TIMES`.

A process of its own, as signals belong to whole processes. Prints how many candidates it found and whether it was told
that it was interrupted; ends with 130 where it stopped at once.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from tests.engine.worlds import Formula, tiny_search


def main(directory: str, trials: str, times: str) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Whatever the test suite itself was started with.
    formula = Formula()

    def evaluate(subnet: Any, steps: int) -> Any:
        if formula.calls == 3:
            for _ in range(int(times)):
                signal.raise_signal(signal.SIGINT)
        return formula(subnet, steps)

    search = tiny_search(Path(directory), int(trials), evaluate=evaluate)
    try:
        found = search.run()
    except KeyboardInterrupt:
        return 130
    print(json.dumps({"found": len(found), "interrupted": search.interrupted}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
