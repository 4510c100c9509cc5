"""Where studies are kept: a journal file in the run folder, a database, or a server in front of one."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nas.engine.connection import database_lost, server_lost
from nas.engine.journal import JOURNAL, JournalFile, share_journal
from nas.engine.locks import FileLock

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

# Up to the last @, as passwords may hold @, / and blanks; but never into another URL, a quoted neighbour or a new line.
# Hydra writes a backslash before the colons of a sweep's options.
_PASSWORD = re.compile(r"(?P<head>[a-zA-Z][a-zA-Z0-9+.-]*\\?://[^/@\s:]*):(?:(?!://)[^\"'\n])*@")
_PASSWORD_OPTION = re.compile(r"(?P<head>[?&](?:\w*password|passwd|pwd)\\?=)[^&\s\"']*", re.IGNORECASE)
_OPENINGS = 6
# Where a database's URL is looked for that no option gives.
URL_VARIABLE = "NAS_STORAGE_URL"


def hide_password(text: str) -> str:
    """The same text with the password of every URL in it replaced by ``***``."""
    return _PASSWORD_OPTION.sub(r"\g<head>***", _PASSWORD.sub(r"\g<head>:***@", text))


def hide_recorded_passwords(folders: Iterable[Path]) -> None:
    """Hide the passwords in the YAML files of some folders, where Hydra records what it was asked for.

    Args:
        folders: Those that are not there are left out.
    """
    import yaml

    for path in (path for folder in folders for path in folder.glob("*.yaml")):
        # By value: in the text, a long one may go on in the next line.
        recorded = yaml.safe_load(path.read_text(encoding="utf-8"))
        if (hidden := _hidden(recorded)) != recorded:
            path.write_text(yaml.safe_dump(hidden, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _hidden(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_hidden(item) for item in value]
    return hide_password(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Storage:
    """An opened storage and the lock under which workers claim trials.

    Args:
        backend: Optuna's storage.
        lock: Makes a context in which no other worker claims; a context that does nothing where there is no such lock.
        locked: Whether it is a real lock.
        local: Whether all workers are on this machine (and dead ones are known by their locks).
        described: How to name it to people, passwords hidden.
        workers: Folder for the lock files by which workers of one machine know each other.
        lost: Whether an exception means that the connection is gone for now.
        disconnect: Closes the connections; the storage can still be used and opens new ones.
    """

    backend: BaseStorage
    lock: Any
    locked: bool
    local: bool
    described: str
    workers: Path
    lost: Callable[[BaseException], bool] = lambda _: False
    disconnect: Callable[[], None] = lambda: None

    def claiming(self) -> AbstractContextManager[object]:
        """The context in which a worker claims a trial."""
        context: AbstractContextManager[object] = self.lock()
        return context


class OpensStorage(Protocol):
    """`JournalStorage`, `DatabaseStorage`, `ProxyStorage`."""

    def check(self) -> None:
        """Refuse at once what could not be opened after hours of work.

        Raises:
            OSError: There is no connection.
        """

    def open(self, directory: Path) -> Storage:
        """Open the storage for a run folder."""


class JournalStorage:
    """The default: one file, for all the workers of one machine.

    Args:
        path: The journal; relative paths are taken from the run folder.
        shared: Keep a new study in the journal that all studies of its root share, as a sweep's are.

    Raises:
        ValueError: The path is empty.
    """

    def __init__(self, path: str = JOURNAL, *, shared: bool = False) -> None:
        if not path:
            raise ValueError("`path` must be the name of a file, such as journal.log, but got ''.")
        self.path = path
        self.shared = shared

    def check(self) -> None:
        """Nothing to connect to."""

    def open(self, directory: Path) -> Storage:
        """Open it for a run folder."""
        from optuna.storages import JournalStorage as OptunaJournal

        if self.shared:
            share_journal(Path(directory))
        # Behind links, so that all who share a journal share its locks.
        path = (Path(directory) / self.path).resolve()
        # Optuna asks for its own base class by type only in annotations; two methods are the whole protocol.
        backend = OptunaJournal(JournalFile(path))  # type: ignore[arg-type]
        claim = path.with_name(path.name + ".claim")
        workers = path.with_name("workers")
        return Storage(backend, lambda: FileLock(claim), locked=True, local=True, described=str(path), workers=workers)


class DatabaseStorage:
    """A database that many machines reach, by Optuna's relational storage; PostgreSQL is what it is tested with.

    Args:
        url: ``postgresql+psycopg://user@host/name``. A password belongs into the environment or a password file
            (``PGPASSWORD``, ``~/.pgpass``), not here, but is never shown or written where it stands here.
        url_from: Name of an environment variable that holds the URL, used where ``url`` is empty.
        pool_size: Connections kept open by one worker.

    Raises:
        ValueError: There is no URL, or it cannot be read.
    """

    def __init__(self, url: str = "", url_from: str = URL_VARIABLE, pool_size: int = 2) -> None:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        self._url = url or os.environ.get(url_from, "")
        self.pool_size = pool_size
        if "://" not in self._url:
            raise ValueError(
                f"storage: give `url` or set the environment variable {url_from}, e.g. "
                "postgresql+psycopg://user@host/name; " + ("what was given has no ://." if self._url else "got none.")
            )
        try:
            make_url(self._url)
        except (ArgumentError, ValueError):
            # What the parser says may quote the URL.
            raise ValueError(
                "storage: `url` must read like postgresql+psycopg://user@host:5432/name, with %40 for an @ in a "
                f"password, but got {hide_password(self._url)}."
            ) from None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(url={hide_password(self._url)!r})"

    def check(self) -> None:
        """Connect once.

        Raises:
            OSError: The database cannot be reached or its driver is missing; the password is not in the message.
        """
        from sqlalchemy import create_engine

        try:
            engine = create_engine(self._url)
            engine.connect().close()
        except Exception as error:  # noqa: BLE001
            raise self._refused(error) from None
        engine.dispose()

    def _refused(self, error: Exception) -> OSError:
        # Whatever the driver says may quote the URL.
        return OSError(f"storage: cannot open {hide_password(self._url)}: {hide_password(str(error))}")

    def open(self, directory: Path) -> Storage:
        """Connect.

        Raises:
            OSError: As of `check`.
        """
        from optuna.storages import RDBStorage

        options: Mapping[str, Any] = {"pool_size": self.pool_size, "pool_pre_ping": True}
        for attempts_left in reversed(range(_OPENINGS)):
            try:
                backend = RDBStorage(self._url, engine_kwargs=dict(options))
                break
            except Exception as error:  # noqa: BLE001
                # Of workers that find an empty database at once, one makes the tables, the others fail meanwhile.
                if attempts_left and "already exists" in str(error):
                    time.sleep(0.5)
                    continue
                raise self._refused(error) from None
        locked = self._url.startswith("postgresql")
        lock = (lambda: _advisory_lock(backend)) if locked else nullcontext
        return Storage(
            backend,
            lock,
            locked=locked,
            local=False,
            described=hide_password(self._url),
            workers=Path(directory) / "workers",
            lost=database_lost,
            disconnect=backend.engine.dispose,
        )


@contextmanager
def _advisory_lock(backend: Any) -> Generator[None, None, None]:
    """PostgreSQL's own lock, held by the connection: it is free again as soon as its holder is gone."""
    from sqlalchemy import text

    with backend.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT pg_advisory_lock(748116)"))
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(748116)"))


class ProxyStorage:
    """A server in front of a storage, for thousands of workers: Optuna's gRPC proxy (``pip install grpcio``).

    Args:
        host: Where the server runs.
        port: Its port.
        timeout_s: How long to wait for its first answer.
    """

    def __init__(self, host: str = "localhost", port: int = 13000, timeout_s: float = 30.0) -> None:
        self.host = host
        self.port = port
        self.timeout_s = timeout_s

    def check(self) -> None:
        """Wait for the server's answer.

        Raises:
            OSError: It does not answer, or ``grpcio`` is missing.
        """
        self._connect().close()

    def open(self, directory: Path) -> Storage:
        """Connect to the server.

        Raises:
            OSError: As of `check`.
        """
        backend = self._connect()
        return Storage(
            backend,
            nullcontext,
            locked=False,
            local=False,
            described=self._described,
            workers=Path(directory) / "workers",
            lost=server_lost,
        )

    @property
    def _described(self) -> str:
        return f"grpc://{self.host}:{self.port}"

    def _connect(self) -> Any:
        from optuna.exceptions import ExperimentalWarning
        from optuna.storages import GrpcStorageProxy

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                backend = GrpcStorageProxy(host=self.host, port=self.port)
            backend.wait_server_ready(timeout=self.timeout_s)
        except ImportError as error:
            raise OSError(f"storage: {self._described} needs grpcio; pip install 'hwnas[grpc]'") from error
        except ConnectionError as error:
            raise OSError(
                f"storage: no server answers at {self._described}; start one as docs/how-to/storages.md says"
            ) from error
        return backend
