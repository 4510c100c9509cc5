"""Work in a process of its own: nothing that the parent has imported, allocated or still runs disturbs it."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, TypeVar

from latency_models.backends.base import BackendError
from latency_models.measurement import Measurement
from latency_models.session import Compile, LocalSession, Settings

Result = TypeVar("Result")


class RemoteSession:
    """A `LocalSession` in a process of its own, while this one sleeps.

    What compiles a model is sent to that process, so it must be picklable: a function of a module, or
    `functools.partial` of one; it travels between two of our own processes and is never read from a file.

    Args:
        settings: The measurement protocol.
        reference: Compiles the reference model; None for none.
        reference_level: What it usually takes in milliseconds; found out when None.
    """

    def __init__(
        self, settings: Settings, reference: Compile | None = None, reference_level: float | None = None
    ) -> None:
        self._process, self._pipe = _start(_serve_session)
        _ask(self._process, self._pipe, (settings, reference, reference_level))

    def chunk(self, compile_runs: Sequence[Compile]) -> list[Measurement]:
        """Measure some models together there; see `Session`.

        Raises:
            BackendError: The process died, or what it ran raised.
        """
        measurements: list[Measurement] = _ask(self._process, self._pipe, list(compile_runs))
        return measurements

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def run_isolated(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a picklable function in a fresh process and return what it returns, while this one sleeps.

    Raises:
        BackendError: The process died, or the function raised.
    """
    process, pipe = _start(_serve_call)
    try:
        result: Result = _ask(process, pipe, (function, arguments))
    finally:
        pipe.close()
        process.join()
    return result


def _start(target: Callable[[Connection], None]) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    """A fresh interpreter: a fork would inherit thread pools that no longer run."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs,), daemon=True)
    with _without_main():
        process.start()
    theirs.close()
    return process, ours


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep a new process from running the script that started it once more: a notebook's has no guard against it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _ask(process: multiprocessing.process.BaseProcess, pipe: Connection, question: Any) -> Any:
    try:
        pipe.send(question)
        fine, answer = pipe.recv()
    except (EOFError, OSError) as error:
        process.join(timeout=10)
        raise BackendError(f"The measuring process ended unexpectedly (exit code {process.exitcode}).") from error
    if not fine:
        line, details = answer
        failure = BackendError(line)
        failure.add_note(details)
        raise failure
    return answer


def _answer(pipe: Connection, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call and send the result, or the error as texts: its class may not exist on the other side."""
    try:
        result = function(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other process must hear of it.
        line = str(error) if isinstance(error, BackendError) else f"{type(error).__name__}: {error}"
        pipe.send((False, (line, traceback.format_exc())))
        raise SystemExit(1) from None
    return result


def _serve_call(pipe: Connection) -> None:
    function, arguments = pipe.recv()
    pipe.send((True, _answer(pipe, function, *arguments)))


def _serve_session(pipe: Connection) -> None:
    session = _answer(pipe, LocalSession, *pipe.recv())
    pipe.send((True, None))
    while True:
        try:
            compile_runs = pipe.recv()
        except EOFError:
            return
        pipe.send((True, _answer(pipe, session.chunk, compile_runs)))
