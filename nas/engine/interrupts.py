"""Signals: Ctrl-C that waits for the running trial, and a limit to how long an evaluation may take."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether Ctrl-C was pressed: the first only sets `asked`, the second stops at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def watched(self) -> Generator[None, None, None]:
        """Within this context, in the main thread, the first Ctrl-C waits for whoever reads `asked`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def stop(_number: int, _frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def time_limit(seconds: float | None) -> Generator[None, None, None]:
    """Raise TimeoutError in the main thread after so many seconds; elsewhere there is no limit."""
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the evaluation took longer than `trial_timeout_s` {seconds:g}")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
