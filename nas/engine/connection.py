"""Connections that may be lost for a while: an action is repeated until the server is back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
PATIENCE_S = 600.0
_FULL = "53"  # SQLSTATE class "insufficient resources", of which a full disk is one: waiting does not mend it.


class ConnectionLostError(OSError):
    """The server did not come back in time."""


def patiently(
    action: Callable[[], T],
    lost: Callable[[BaseException], bool],
    *,
    patience_s: float = PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """The action's result; it is repeated, with growing pauses, as long as the connection is lost.

    Args:
        action: May be run again after it failed half-way.
        lost: Whether an exception means that the connection is gone for now.
        patience_s: Give up after so many seconds.
        sleep: Waits; tests pass their own.
        clock: Gives seconds; tests pass their own.

    Raises:
        ConnectionLostError: The connection was lost for longer.
    """
    started, pause = clock(), 0.2
    while True:
        try:
            return action()
        except Exception as error:
            if not lost(error):
                raise
            if clock() - started > patience_s:
                raise ConnectionLostError(f"no connection for {patience_s:.0f} s ({_first_line(error)})") from error
            sleep(pause)
            pause = min(2 * pause, 10.0)


def database_lost(error: BaseException) -> bool:
    """Whether an error of Optuna's relational storage means that the server is not there just now."""
    from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError

    for cause in _causes(error):
        if isinstance(cause, PendingRollbackError):  # The connection broke in the middle of a transaction.
            return True
        if isinstance(cause, InterfaceError | OperationalError):
            code = str(getattr(cause.orig, "sqlstate", None) or getattr(cause.orig, "pgcode", None) or "")
            return not code.startswith(_FULL)
    return False


def server_lost(error: BaseException) -> bool:
    """Whether an error of Optuna's gRPC client means that the server, or the database behind it, is not there."""
    import grpc

    gone = ("UNAVAILABLE", "UNKNOWN", "INTERNAL", "DEADLINE_EXCEEDED", "CANCELLED")
    return isinstance(error, grpc.RpcError) and error.code().name in gone


def storage_failed(error: BaseException) -> bool:
    """Whether an error comes from a storage, and not from what is stored in it."""
    if isinstance(error, OSError):
        return True
    names = {f"{type(cause).__module__.partition('.')[0]}.{type(cause).__name__}" for cause in _causes(error)}
    return "optuna.StorageInternalError" in names or any(name.startswith(("sqlalchemy.", "grpc.")) for name in names)


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__
    return found


def _first_line(error: BaseException) -> str:
    return (str(_causes(error)[-1]).strip().splitlines() or [type(error).__name__])[0]


class Heartbeat:
    """Signs of life of a running trial, for workers on other machines, from a thread of its own.

    Args:
        backend: Optuna's storage.
        trial_id: Of the trial, in the storage.
        interval_s: Seconds between two signs.
    """

    def __init__(self, backend: Any, trial_id: int, interval_s: float = 20.0) -> None:
        self._backend = backend
        self._trial_id = trial_id
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(self._interval_s):
            count += 1
            try:
                self._backend.set_trial_user_attr(self._trial_id, "alive", count)
            except Exception:  # noqa: BLE001, S112 - the worker itself finds out what is wrong with its connection
                continue
