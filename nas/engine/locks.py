"""Locks that the operating system releases when their holder dies, however it dies.

Built on ``flock``, so they hold between the processes of one machine (Linux, macOS). A lock file is never deleted: a
process that waits for a deleted file's lock would not see the new file's.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class FileLock:
    """One lock, held by at most one process of this machine.

    Args:
        path: The file that stands for the lock; made where it is missing, its folder too.

    Example:
        ``with FileLock(folder / "device.lock"): measure()`` serialises measurements on a device.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock.

        Args:
            wait: Whether to wait until it is free.

        Returns:
            Whether the lock is held now.

        Raises:
            OSError: The file cannot be made or opened.
        """
        if self._descriptor is not None:
            return True
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(self.path, flags, 0o644)
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, flags, 0o644)

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def is_held(path: Path | str) -> bool:
    """Whether some living process of this machine holds the lock; False where the file does not exist."""
    if not Path(path).exists():
        return False
    lock = FileLock(path)
    if not lock.acquire(wait=False):
        return True
    lock.release()
    return False
