"""A bundle measured on another machine over ssh: copied once, run there, every result brought home as it is taken.

The system's own ``ssh`` is used, so that hosts, ports, keys and jumps are those of the user's ``~/.ssh/config``.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO

from latency_models.device import Device
from latency_models.results import RESULTS, RUNNER, SUMS

# The host answers in a minute or is not there; a connection that dies is noticed within two.
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=30", "ServerAliveInterval=20", "ServerAliveCountMax=6")
_LOST = 255


class RemoteError(RuntimeError):
    """The other machine cannot be reached or cannot measure; the message says what it said."""


@dataclass(frozen=True)
class RemoteBundle:
    """A bundle's folder here, and its place on a device.

    Args:
        device: One whose transport is ssh.
        directory: The bundle here; its results are kept in it.
        identity: The bundle's id, of which its place on the device is named.
    """

    device: Device
    directory: Path
    identity: str

    @property
    def place(self) -> str:
        """The folder on the device, from the user's home."""
        return f".cache/hwnas/bundle-{self.identity}"

    def measure(self, say: Callable[[str], None]) -> Path:
        """Copy what is not there, run, and bring home the results; again after a failure, it continues.

        Args:
            say: Told of every line of progress.

        Returns:
            The results' file.

        Raises:
            RemoteError: The host cannot be reached or disappears, or the runner fails there.
        """
        self._check_python()
        self._copy(say)
        return self._run(say)

    def _check_python(self) -> None:
        code = "import sys, numpy, onnxruntime; sys.exit(sys.version_info < (3, 10))"
        done = self._ssh(f"{shlex.quote(self.device.python)} -c {shlex.quote(code)}")
        if done.returncode == _LOST:
            raise RemoteError(f"{self._name}: cannot be reached: {_last(done.stderr)}.")
        if done.returncode:
            reason = _last(done.stderr) or "Python is older than 3.10"
            raise RemoteError(
                f"{self._name}: {self.device.python} must be Python >= 3.10 with numpy and onnxruntime ({reason}); "
                "install them there or name another one with device.python=PATH."
            )

    def _copy(self, say: Callable[[str], None]) -> None:
        """The files, as one archive, unless the same are there already."""
        place = shlex.quote(self.place)
        sums = (self.directory / SUMS).read_text(encoding="utf-8")
        if self._ssh(f"cat {place}/{SUMS}").stdout == sums:
            say(f"The bundle is on {self.device.host} already.")
            return
        megabytes = sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file()) / 1e6
        say(f"Copying {megabytes:.0f} MB to {self.device.host} ...")
        command = f"rm -rf {place} && mkdir -p {place} && tar -xf - -C {place}"
        with self._start(command) as process:
            assert process.stdin is not None
            try:
                with tarfile.open(fileobj=process.stdin, mode="w|") as archive:
                    for path in sorted(self.directory.iterdir()):
                        if path.name != RESULTS:
                            archive.add(path, path.name)
            except BrokenPipeError:
                pass  # What the host says of it is the better reason.
            finally:
                _close(process.stdin)
            reason = _read(process.stderr)
            if process.wait():
                raise RemoteError(
                    f"{self._name}: the bundle cannot be copied: {_last(reason) or 'the connection broke'}."
                )

    def _run(self, say: Callable[[str], None]) -> Path:
        """Run there; standard output brings the whole results, those of earlier runs first."""
        results = self.directory / RESULTS
        aside = results.with_suffix(".coming")
        command = f"cd {shlex.quote(self.place)} && exec {shlex.quote(self.device.python)} {RUNNER} --stream"
        lines: list[str] = []
        with self._start(command) as process, aside.open("w", encoding="utf-8") as file:
            assert process.stdin is not None
            _close(process.stdin)
            listener = Thread(target=_listen, args=(process.stderr, lines, say), daemon=True)
            listener.start()
            assert process.stdout is not None
            for line in iter(process.stdout.readline, b""):
                file.write(line.decode(errors="replace"))
                file.flush()
            code = process.wait()
            listener.join(timeout=10)
        if aside.stat().st_size >= (results.stat().st_size if results.is_file() else 0):
            aside.replace(results)
        aside.unlink(missing_ok=True)
        if code == _LOST:
            raise RemoteError(f"{self._name}: the connection was lost; what was measured is kept. Run it again.")
        if code:
            raise RemoteError(f"{self._name}: {lines[-1] if lines else f'the runner ended with code {code}'}")
        return results

    @property
    def _name(self) -> str:
        return f"device {self.device.name!r} at {self.device.host}"

    def _ssh(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._arguments(command), capture_output=True, text=True, check=False)  # noqa: S603

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen(self._arguments(command), stdin=pipe, stdout=pipe, stderr=pipe)  # noqa: S603

    def _arguments(self, command: str) -> list[str]:
        program = shutil.which("ssh")
        if program is None:
            raise RemoteError(f"{self._name}: there is no `ssh` on this machine; install OpenSSH's client.")
        options = [part for option in _OPTIONS for part in ("-o", option)]
        return [program, *options, "--", self.device.host, command]


def _listen(stream: IO[bytes] | None, lines: list[str], say: Callable[[str], None]) -> None:
    """Hand on what the runner says while it runs."""
    for line in _lines(stream):
        lines.append(re.sub(r"^error: ", "", line))
        say(line)


def _lines(stream: IO[bytes] | None) -> Iterator[str]:
    assert stream is not None
    for line in iter(stream.readline, b""):
        yield line.decode(errors="replace").rstrip()


def _read(stream: IO[bytes] | None) -> str:
    assert stream is not None
    return stream.read().decode(errors="replace")


def _close(stream: IO[bytes]) -> None:
    with suppress(BrokenPipeError):
        stream.close()


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""
