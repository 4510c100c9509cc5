"""Progress: what people and logs get to read."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.progress import Progress, format_duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (185, "3:05 min"),
        (7800, "2:10 h"),
        (-1, "0.0 s"),
    ],
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_log_gets_few_lines_with_the_time_left() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("Profiling", total=100, stream=stream, every_s=10, clock=clock) as bar:
        for step in range(100):
            clock.now += 0.5
            bar.advance(text=f"subnet {step}")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "Profiling ..."
    assert lines[1] == "Profiling: 20/100, 10 s so far, about 40 s left, subnet 19"
    assert lines[-1] == "Profiling: done in 50 s."
    assert len(lines) == 7


def test_an_error_is_told_with_the_place_and_passes_through() -> None:
    clock, stream = Clock(), io.StringIO()
    bar = Progress("Training", total=4, stream=stream, clock=clock)

    def work() -> None:
        with bar:
            bar.advance()
            clock.now += 2
            raise KeyError("x")

    with pytest.raises(KeyError):
        work()
    assert stream.getvalue().splitlines()[-1] == "Training: stopped at 1/4 after 2.0 s."


def test_quiet_writes_nothing() -> None:
    stream = io.StringIO()
    with Progress("Training", total=2, mode="quiet", stream=stream) as bar:
        bar.advance(2)
    assert stream.getvalue() == ""


def test_a_terminal_gets_one_changing_line_and_markup_stays_text() -> None:
    clock, stream = Clock(), Terminal()
    with Progress("Calibrating [red]", total=2, stream=stream, clock=clock) as bar:
        clock.now += 3
        bar.advance(text="[bold]x")
        clock.now += 3
        bar.advance()
    text = stream.getvalue()
    assert "Calibrating [red]" in text
    assert "3.0 s left" in text
    assert "[bold]x" in text
    assert text.rstrip().endswith("Calibrating [red]: done in 6.0 s.")


def test_two_bars_may_be_open_at_once() -> None:
    stream = Terminal()
    with Progress("outer", total=1, stream=stream) as outer:
        with Progress("inner", total=1, stream=stream) as inner:
            inner.advance()
        outer.advance()
    assert "inner: done" in stream.getvalue()


def test_without_a_total_there_is_no_time_left() -> None:
    bar = Progress("Reading", mode="quiet")
    bar.advance(3)
    assert bar.left_s is None


@given(total=st.integers(1, 1000), steps=st.lists(st.integers(0, 50), max_size=30))
def test_time_left_is_never_negative(total: int, steps: list[int]) -> None:
    clock = Clock()
    bar = Progress("x", total=total, mode="quiet", clock=clock)
    for step in steps:
        clock.now += 1
        bar.advance(step)
        assert bar.left_s is None or bar.left_s >= 0


@pytest.mark.parametrize(
    ("kwargs", "rule"), [({"total": -1}, "`total` must be >= 0"), ({"mode": "loud"}, "`mode` must be one of")]
)
def test_wrong_arguments_are_refused(kwargs: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Progress("x", **kwargs)  # type: ignore[arg-type]
