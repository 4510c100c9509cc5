"""A PostgreSQL server and Optuna's gRPC proxy, started by the tests on the loopback address."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def postgresql_programs() -> Path | None:
    """Folder with `initdb` and `pg_ctl`, Debian's included, which is on no path."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    return folders[-1] if folders else None


@dataclass
class PostgreSQL:
    """One server with its data in a folder; refuses to run as root, so it runs as somebody else then."""

    programs: Path
    directory: Path
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.user = "postgres"
        self.account = None
        if os.geteuid() == 0:
            name = next(name for name in ("postgres", "nobody") if _account(name))
            self.account = _account(name)
            assert self.account is not None
            self.directory.mkdir(parents=True)
            os.chown(self.directory, self.account.pw_uid, self.account.pw_gid)
            for parent in self.directory.parents:  # Folders of pytest are its user's alone.
                if parent.stat().st_uid == 0 and parent.stat().st_mode & 0o077 == 0:
                    parent.chmod(parent.stat().st_mode | 0o011)

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{self.user}:s3cr3t@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        password = self.directory.parent / "password"
        password.write_text("s3cr3t\n")
        password.chmod(0o644)
        data = self.directory / "data"
        self._run("initdb", "-D", data, "-U", self.user, "-A", "scram-sha-256", f"--pwfile={password}", "--no-sync")

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        log = self.directory / "log"
        self._run("pg_ctl", "-D", self.directory / "data", "-l", log, "-w", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", self.directory / "data", "-m", mode, "-w", "stop")

    def _run(self, program: str, *arguments: object) -> None:
        account = self.account
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        subprocess.run(
            [str(self.programs / program), *map(str, arguments)],
            check=True,
            cwd=self.directory if self.directory.is_dir() else None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
            **identity,
        )


def _account(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


PROXY = """
import sys
from optuna.storages import JournalStorage, run_grpc_proxy_server
from nas.engine.journal import JournalFile
storage = JournalStorage(JournalFile(sys.argv[1]))
run_grpc_proxy_server(storage, host="127.0.0.1", port=int(sys.argv[2]))
"""


def start_proxy(journal: Path, port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROXY, str(journal), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(300):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.1)
    process.kill()
    raise TimeoutError("the proxy does not answer")
