"""Is everything here that a search needs? Each check says what it found and, where that is too little, its mend."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "note", "problem"]
# Those whose versions a report of a problem must name.
TOLD = ("torch", "transformers", "optuna", "onnxruntime", "scikit-learn")
LEAST_FREE_GB, LEAST_MEMORY_GB = 5.0, 4.0


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Args:
        name: What was checked.
        state: ``ok``; ``note`` where something could be better; ``problem`` where a command would fail.
        found: What was found.
        mend: What to do about it, or empty.
    """

    name: str
    state: State
    found: str
    mend: str = ""


def examine(root: Path, storage: Any, check_seconds: float = 0.2) -> Iterator[Check]:
    """All checks, in the order in which they are told.

    Args:
        root: Folder for studies and caches.
        storage: What opens the study storage; see `nas.engine.storage`.
        check_seconds: How long each device runs a small product.
    """
    groups: tuple[Callable[[], Iterator[Check]], ...] = (
        check_python,
        check_packages,
        lambda: check_root(root),
        lambda: check_storage(root, storage),
        check_machine,
        lambda: check_devices(check_seconds),
    )
    for group in groups:
        try:
            yield from group()
        except Exception as error:  # noqa: BLE001 - a check that cannot be made is a finding, too
            yield Check("check", "problem", f"{type(error).__name__}: {' '.join(str(error).split())}", "report this")


def check_python() -> Iterator[Check]:
    """The interpreter and the operating system."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    old = sys.version_info < (3, 11)
    yield Check("python", "problem" if old else "ok", found, "install Python 3.11 or newer" if old else "")
    virtual = sys.prefix != sys.base_prefix
    mend = "" if virtual else "python -m venv .venv keeps its packages apart from the system's"
    yield Check("environment", "ok" if virtual else "note", sys.prefix, mend)


def check_packages(name: str = "hwnas") -> Iterator[Check]:
    """Every package that hwnas needs, and the optional ones, against the versions that it asks for."""
    from packaging.requirements import Requirement

    missing: list[str] = []
    old: list[str] = []
    optional: list[str] = []
    needed = [Requirement(text) for text in requires(name) or []]
    for requirement in needed:
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            (missing if wanted else optional).append(requirement.name)
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            old.append(f"{requirement.name} {found} ({requirement.specifier})")
    count = len(needed) - len(optional)
    wrong = [*(f"{one} is missing" for one in missing), *old]
    if wrong:
        yield Check("packages", "problem", ", ".join(wrong), "pip install --upgrade hwnas")
    else:
        told = ", ".join(f"{one} {version(one)}" for one in (name, *TOLD))
        yield Check("packages", "ok", f"{told}; all {count} fit")
    for extra, package in (("openvino", "openvino"), ("tensorrt", "tensorrt"), ("dashboard", "optuna-dashboard")):
        if package in optional:
            yield Check(f"extra {extra}", "note", "not installed", f"pip install 'hwnas[{extra}]' where it is wanted")


def check_root(root: Path) -> Iterator[Check]:
    """Whether studies can be written, and whether there is room for them."""
    place = next(path for path in (root.resolve(), *root.resolve().parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".nas-doctor-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            writable = ""
    except OSError as error:
        writable = error.strerror or str(error)
    mend = "" if not writable else f"make {place} writable, or choose another folder with root=FOLDER"
    yield Check("root", "problem" if writable else "ok", f"{root.resolve()} {writable or 'can be written'}", mend)
    free = shutil.disk_usage(place).free / 1e9
    mend = "" if free >= LEAST_FREE_GB else "make room, or choose another disk with root=FOLDER; a search takes 1-3 GB"
    yield Check("disk", "ok" if not mend else "note", f"{free:.0f} GB free", mend)


def check_storage(root: Path, storage: Any) -> Iterator[Check]:
    """Whether the storage of studies opens."""
    from nas.engine.storage import JournalStorage

    if isinstance(storage, JournalStorage):
        studies = len(list(root.glob(f"*/{storage.path}")))
        yield from _check_locks()
        yield Check("storage", "ok", f"journal files, {studies} studies below {root}")
        return
    try:
        opened = storage.open(root)
        studies = len(opened.backend.get_all_studies())
        yield Check("storage", "ok", f"{opened.described}, {studies} studies")
    except Exception as error:  # noqa: BLE001 - drivers raise anything
        mend = "start the server, or check its address, user and password"
        yield Check("storage", "problem", " ".join(str(error).split()), mend)


def _check_locks() -> Iterator[Check]:
    """Several workers of one machine need file locks that hold."""
    from nas.engine.locks import FileLock, is_held

    with tempfile.TemporaryDirectory(prefix="nas-doctor-") as folder:
        path = Path(folder) / "lock"
        with FileLock(path):
            holds = is_held(path)
    mend = (
        "" if holds else "this file system has no locks (network mounts often do not): put root=FOLDER on a local disk"
    )
    yield Check("locks", "ok" if holds else "problem", "hold" if holds else "do not hold", mend)


def check_machine() -> Iterator[Check]:
    """Memory, and what makes latencies unsteady."""
    import psutil

    memory = psutil.virtual_memory().available / 1e9
    mend = "" if memory >= LEAST_MEMORY_GB else "close other programs; models of 100 M parameters need about 4 GB"
    yield Check("memory", "ok" if not mend else "note", f"{memory:.1f} GB available", mend)
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    load = psutil.getloadavg()[0]
    busy = load > 0.5 * cores
    mend = "latencies measured now would be noisy: wait until the machine is idle" if busy else ""
    yield Check("load", "note" if busy else "ok", f"{load:.1f} on {cores} cores", mend)
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.is_file():
        mode = governor.read_text(encoding="ascii").strip()
        slow = mode in ("powersave", "conservative")
        mend = "sudo cpupower frequency-set -g performance gives steadier latencies" if slow else ""
        yield Check("frequency", "note" if slow else "ok", mode, mend)


def check_devices(check_seconds: float) -> Iterator[Check]:
    """Every device that the runtimes offer here, each running a small product."""
    from latency_models.discovery import find_devices

    found = find_devices(check_seconds=check_seconds)
    for one in found:
        if one.problem is None:
            took = "" if one.check_ms is None else f", {one.check_ms:.3f} ms"
            yield Check(f"device {one.device.name}", "ok", f"ready{took}")
        else:
            yield Check(f"device {one.device.name}", "note", one.problem)
    if not any(one.problem is None for one in found):
        yield Check("devices", "problem", "none works", "pip install --upgrade onnxruntime")


def count_states(checks: list[Check]) -> Mapping[str, int]:
    """How many checks ended how."""
    return {state: sum(check.state == state for check in checks) for state in ("ok", "note", "problem")}
