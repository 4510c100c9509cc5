"""Work that takes longer than a page may: done once in the background, and shown when it is there."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

MOST_KEPT = 64


@dataclass(frozen=True, slots=True)
class Result:
    """What a job gave: a value, or a problem in words; neither while it is at work."""

    value: Any = None
    problem: str = ""
    done: bool = False


class Jobs:
    """One thread that works off what pages ask for, the newest wish first; the last results are kept."""

    def __init__(self) -> None:
        self.version = 0
        self._results: OrderedDict[Hashable, Result] = OrderedDict()
        self._waiting: OrderedDict[Hashable, Callable[[], Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def get(self, key: Hashable, work: Callable[[], Any]) -> Result:
        """The result of a piece of work, begun where it was never asked for.

        Args:
            key: Everything that the result depends on.
            work: Called once, in the background.
        """
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
            self._waiting[key] = work
            self._waiting.move_to_end(key)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
                self._thread.start()
            return Result()

    def known(self, key: Hashable, read: Callable[[], Any]) -> Any:
        """What is read at once, in a moment, and remembered once there is any.

        Args:
            key: Everything that it depends on.
            read: Gives None where there is nothing yet.
        """
        with self._lock:
            if key in self._results:
                return self._results[key].value
        if (value := read()) is not None:
            with self._lock:
                self._results[key] = Result(value, done=True)
        return value

    def wait(self) -> None:
        """Return when nothing is waited for any more; for tests and scripts."""
        while (thread := self._thread) is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                key, work = self._waiting.popitem()
            try:
                result = Result(work(), done=True)
            except Exception as error:  # noqa: BLE001 - a page tells what went wrong; the server goes on
                result = Result(problem=" ".join(str(error).split()) or type(error).__name__, done=True)
            with self._lock:
                self._results[key] = result
                while len(self._results) > MOST_KEPT:
                    self._results.popitem(last=False)
                self.version += 1
