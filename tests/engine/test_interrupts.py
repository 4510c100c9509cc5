from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from nas.engine.interrupts import time_limit


def busy(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(0.005)


def test_what_takes_too_long_is_ended_and_told_by_its_setting():
    with pytest.raises(TimeoutError, match=r"longer than `trial_timeout_s` 0\.05"), time_limit(0.05):
        busy(30)


def test_what_ends_in_time_is_left_alone_also_afterwards():
    with time_limit(0.2):
        value = 1
    busy(0.4)
    assert value == 1


def test_without_a_limit_nothing_is_watched():
    before = threading.active_count()
    with time_limit(None):
        assert threading.active_count() == before


def test_a_timeout_of_the_evaluation_itself_keeps_its_words():
    with pytest.raises(TimeoutError, match="the hub did not answer"), time_limit(30):
        raise TimeoutError("the hub did not answer")


def test_other_errors_pass():
    with pytest.raises(ValueError, match="other"), time_limit(30):
        raise ValueError("other")


def test_it_holds_in_any_thread_and_leaves_the_alarm_to_others():
    found = []

    def work() -> None:
        try:
            with time_limit(0.05):
                busy(30)
        except TimeoutError as error:
            found.append(str(error))

    before = signal.getsignal(signal.SIGALRM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert len(found) == 1
    assert signal.getsignal(signal.SIGALRM) is before


def test_limits_within_limits_end_the_inner_one_first():
    with time_limit(30), pytest.raises(TimeoutError, match=r"0\.05"), time_limit(0.05):
        busy(30)


GONE_STACK = """
import ctypes, mmap, signal, sys
from nas.engine.interrupts import Interruption, _SignalStack

place = mmap.mmap(-1, 65536)
address = ctypes.addressof(ctypes.c_char.from_buffer(place))
libc = ctypes.CDLL(None)
assert libc.sigaltstack(ctypes.byref(_SignalStack(address, 0, 65536)), None) == 0
assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(65536), 0) == 0  # As good as freed.
if sys.argv[1] == "watched":
    watch = Interruption()
    with watch.watched():
        signal.raise_signal(signal.SIGINT)
    print("asked", watch.asked)
else:
    signal.signal(signal.SIGINT, lambda *_: print("never"))
    signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the structure is that of Linux")
@pytest.mark.parametrize(("how", "code", "printed"), [("watched", 0, "asked True"), ("alone", -signal.SIGSEGV, "")])
def test_ctrl_c_survives_a_library_that_freed_the_signal_stack_it_left_behind(how, code, printed):
    command = [sys.executable, "-c", GONE_STACK, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.strip() == printed
