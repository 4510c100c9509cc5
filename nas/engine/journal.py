"""Optuna's journal in a file of a study's folder, or in one that the studies of a sweep share."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from nas.engine.locks import FileLock

JOURNAL = "journal.log"
_FINISHING = 6  # Optuna's journal operation that changes a trial's state.


class JournalFile:
    """Optuna's journal in a file: the same lines as its own backend writes, and any Optuna tool reads it.

    It differs in what happens when a process is killed: the lock is the operating system's, so that nobody waits for a
    dead holder, and a line that was left unfinished is cut off instead of making the file unreadable. The file is
    flushed to the disk when a trial changes its state, not at each of its forty parameters.

    Args:
        path: The file; made with its folder where missing.

    Raises:
        OSError: It cannot be made or read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path.with_name(self.path.name + ".lock"))
        self._read_to = (0, 0)  # Number of the next line, and where it begins.
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Finished lines from the given number on."""
        first, offset = self._read_to if self._read_to[0] == log_number_from else (0, 0)
        if first and self.path.stat().st_size <= offset:
            return
        with self.path.open("rb") as file:
            file.seek(offset)
            for number, line in enumerate(file, start=first):
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                if number >= log_number_from:
                    self._read_to = (number + 1, offset)
                    yield self._parsed(line, number)

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            log: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: line {number + 1} is damaged ({error}); take it out, or put a copy of the file back."
            ) from None
        return log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines at the end, all or none.

        Raises:
            OSError: The file cannot be written (disk full, read-only); what was there stays readable.
        """
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._lock:
            descriptor = os.open(self.path, os.O_RDWR)
            try:
                end = _finished_end(descriptor)
                _write_all(descriptor, text, end)
                if any(log.get("op_code") == _FINISHING for log in logs):
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _finished_end(descriptor: int) -> int:
    """Where the last finished line ends; a dying writer's half line behind it is cut off."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    if end == 0 or os.pread(descriptor, 1, end - 1) == b"\n":
        return end
    start = max(0, end - (1 << 20))
    newline = os.pread(descriptor, end - start, start).rfind(b"\n")
    whole = start + newline + 1 if newline >= 0 else start
    os.ftruncate(descriptor, whole)
    return whole


def _write_all(descriptor: int, text: bytes, end: int) -> None:
    try:
        written = 0
        while written < len(text):
            written += os.pwrite(descriptor, text[written:], end + written)
    except OSError:
        os.ftruncate(descriptor, end)
        raise


def share_journal(directory: Path) -> None:
    """Keep a new study of a sweep in the journal that all studies of its root share.

    The study's own journal becomes a link to it, so that the study is continued alone, too. A study that has a journal
    keeps it.
    """
    own = directory / JOURNAL
    if own.exists() or own.is_symlink():
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory.parent / JOURNAL).touch()
    try:
        own.symlink_to(Path("..") / JOURNAL)
    except FileExistsError:
        return  # Another worker of the same job was faster.
