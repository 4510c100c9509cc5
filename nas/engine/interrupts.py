"""Signals: Ctrl-C that waits for the running trial, and a limit to how long an evaluation may take."""

from __future__ import annotations

import ctypes
import signal
import sys
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

        _leave_alternate_stack()
        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def _leave_alternate_stack() -> None:
    """Let signals of this thread be handled on its own stack.

    Python's handlers ask for the alternate one where there is any. Native libraries (OpenVINO, when it refuses a model)
    put theirs in its place and free it later, and a signal that comes then ends the process without a word.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(None, _SS_DISABLE, 0)), None)


_SS_DISABLE = 2
_STEPS = 1000  # The interpreter looks for exceptions from other threads whenever a loop turns.


@contextmanager
def time_limit(seconds: float | None) -> Generator[None, None, None]:
    """Raise TimeoutError in this thread after so many seconds.

    A thread of its own watches the clock, and not SIGALRM: a process has one such alarm, which whoever embeds a search
    may need, and none outside its main thread. What runs in one native call ends when that returns.
    """
    if not seconds:
        yield
        return
    watch = _Watch(threading.get_ident())
    timer = threading.Timer(seconds, watch.expire)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
        finally:
            timer.cancel()
            watch.end()
    except TimeoutError:
        if watch.expired:  # The interpreter raises the bare class.
            raise TimeoutError(f"the evaluation took longer than `trial_timeout_s` {seconds:g}") from None
        raise


class _Watch:
    """Raises in a thread as long as that is wanted.

    Args:
        thread: Its identifier.
    """

    def __init__(self, thread: int) -> None:
        self.expired = False
        self._thread = ctypes.c_ulong(thread)
        self._wanted = True
        self._lock = threading.Lock()

    def expire(self) -> None:
        """Time is up."""
        with self._lock:
            if self._wanted:
                self.expired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, ctypes.py_object(TimeoutError))

    def end(self) -> None:
        """What was to be watched has ended.

        An exception that is still on its way comes here, in the loop. Called back by another one of None it would leave
        CPython 3.11 believing for ever that one is pending, which stops it dead where lines are traced.
        """
        with self._lock:
            self._wanted = False
        for _ in range(_STEPS if self.expired else 0):
            pass
