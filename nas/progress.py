"""Progress with time left: one line that changes on a terminal, a few plain lines in a log, or nothing.

with Progress("Calibrating", total=40) as bar:
    for block in blocks:
        ...
        bar.advance(text=f"block {block}")
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TextIO, get_args

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Mode = Literal["auto", "terminal", "plain", "quiet"]


def format_duration(seconds: float) -> str:
    """Seconds as people read them: ``0.4 s``, ``12 s``, ``3:05 min``, ``2:10 h``."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class Progress:
    """How far a long piece of work has come, and how long it will still take.

    Args:
        title: What is being done, in a word or two.
        total: Number of steps, or None where nobody knows; then there is no time left to tell.
        mode: ``terminal`` (one changing line), ``plain`` (a line every ``every_s`` seconds), ``quiet`` (nothing), or
            ``auto``: the first on a terminal, the second elsewhere.
        stream: Where to write; standard error by default, so that piped results stay clean.
        every_s: Seconds between two plain lines.
        clock: Gives seconds; tests pass their own.

    Raises:
        ValueError: The total is negative or the mode is unknown.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        *,
        mode: Mode = "auto",
        stream: TextIO | None = None,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if total is not None and total < 0:
            raise ValueError(f"`total` must be >= 0 or None, but got {total}.")
        if mode not in get_args(Mode):
            raise ValueError(f"`mode` must be one of {', '.join(get_args(Mode))}, but got {mode!r}.")
        self.title = title
        self.total = total
        self.done = 0
        self.text = ""
        self._before = 0
        self._stream = stream or sys.stderr
        self._mode = mode if mode != "auto" else ("terminal" if self._stream.isatty() else "plain")
        self._every_s = every_s
        self._clock = clock
        self._started = self._spoken = clock()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._started = self._spoken = self._clock()
        if self._mode == "plain":
            self._write(f"{self.title} ...")
        elif self._mode == "terminal":
            self._open_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        took = format_duration(self.elapsed_s)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._mode == "quiet":
            return
        where = f" at {self.done}/{self.total}" if self.total else ""
        self._write(f"{self.title}: done in {took}." if kind is None else f"{self.title}: stopped{where} after {took}.")

    def advance(self, steps: int = 1, *, text: str | None = None) -> None:
        """Tell that ``steps`` more steps are done.

        Args:
            steps: How many; 0 only changes the text.
            text: What is at work now; stays until the next text.
        """
        self.done += steps
        if text is not None:
            self.text = text
        now = self._clock()
        if self._mode == "terminal" and self._bar is not None and self._task is not None:
            # Drawn here and never by a thread of its own, which would disturb latency measurements.
            last = self.total is not None and self.done >= self.total
            self._bar.update(self._task, completed=self.done, status=self._status())
            if last or text is not None or now - self._spoken >= 0.1:
                self._bar.refresh()
                self._spoken = now
        elif self._mode == "plain" and now - self._spoken >= self._every_s:
            self._spoken = now
            count = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
            self._write(f"{self.title}: {count}, {self._status()}")

    def resume(self, done: int) -> None:
        """Tell that so many steps were done by an earlier run: they say nothing about the pace of this one."""
        self.done = self._before = done

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began."""
        return self._clock() - self._started

    @property
    def left_s(self) -> float | None:
        """Seconds that the remaining steps will take at the pace so far; None while that is unknown."""
        own = self.done - self._before
        if self.total is None or own <= 0:
            return None
        return max(self.total - self.done, 0) * self.elapsed_s / own

    def _status(self) -> str:
        parts = [f"{format_duration(self.elapsed_s)} so far"]
        if (left := self.left_s) is not None:
            parts.append(f"about {format_duration(left)} left")
        if self.text:
            parts.append(self.text)
        return ", ".join(parts)

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=Console(file=self._stream, force_terminal=True),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task(self.title, total=self.total, status="")
        self._bar.start()
        self._bar.refresh()
