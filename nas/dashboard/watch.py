"""Follow storages in a background thread, and hold the newest state of every study for the pages to draw."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nas.dashboard.reader import StudyReader
from nas.dashboard.studies import Study
from nas.engine.storage import JournalStorage, OpensStorage, Storage, hide_password

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.storages import BaseStorage

# After so long without a request, nothing is read any more until the next one: watching must not disturb measurements.
IDLE_S = 30.0


@dataclass(frozen=True)
class Snapshot:
    """All studies at one moment.

    Args:
        studies: Key -> study, in the order of their names.
        problems: What could not be read, in words.
        version: Grows whenever anything changed.
        reading: Whether the first reading is still under way.
    """

    studies: Mapping[str, Study] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    version: int = 0
    reading: bool = True


class Watch:
    """Reads the studies below a root folder, and those of a shared storage, again and again.

    Args:
        root: Folder that holds one folder per study.
        storage: How studies are kept; journals are looked for in every folder below the root.
        every_s: Seconds between two readings.
        only: Names of the folders whose journals are read; all by default.
    """

    def __init__(
        self,
        root: Path | str,
        storage: OpensStorage | None = None,
        every_s: float = 2.0,
        only: Collection[str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.storage = storage or JournalStorage()
        self.every_s = every_s
        self.only = only
        self.snapshot = Snapshot()
        self._sources: dict[str, Source] = {}
        self._asked = time.monotonic()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End following."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def look(self) -> Snapshot:
        """The newest state; tells the thread that somebody is looking."""
        now = time.monotonic()
        with self._wake:
            idle, self._asked = now - self._asked > IDLE_S, now
            if idle:
                self._wake.notify_all()
        return self.snapshot

    def backends(self) -> list[BaseStorage]:
        """The opened storages of Optuna."""
        return [source.opened.backend for source in self._sources.values()]

    def load(self, study: Study) -> OptunaStudy:
        """A study as Optuna knows it.

        Raises:
            KeyError: Its storage has it no more.
        """
        import optuna

        for source in self._sources.values():
            if source.opened.described == study.facts.storage:
                return optuna.load_study(study_name=study.facts.name, storage=source.opened.backend)
        raise KeyError(study.key)

    def _follow(self) -> None:
        while not self._stopped:
            self.read()
            with self._wake:
                self._wake.wait(self.every_s)
                while not self._stopped and time.monotonic() - self._asked > IDLE_S:
                    self._wake.wait()

    def read(self) -> Snapshot:
        """Read everything once; what cannot be read is told, and what was known of it stays."""
        problems: list[str] = []
        for name, directory in self._places().items():
            if name not in self._sources:
                try:
                    self._sources[name] = Source(self.storage.open(directory), self.root, directory)
                except Exception as error:  # noqa: BLE001 - a driver may raise anything; the other studies stay visible
                    problems.append(_problem(name, error))
        for name, source in self._sources.items():
            try:
                source.read()
            except Exception as error:  # noqa: BLE001
                problems.append(_problem(name, error))
            if self.snapshot.reading:
                self._show(problems, reading=True)
        self._show(problems, reading=False)
        return self.snapshot

    def _show(self, problems: Sequence[str], *, reading: bool) -> None:
        """Make what is known now what pages see, if it is news."""
        found = _with_keys([study for source in self._sources.values() for study in source.studies.values()])
        old = self.snapshot
        if old.reading != reading or tuple(problems) != old.problems or dict(old.studies) != found:
            self.snapshot = Snapshot(found, tuple(problems), old.version + 1, reading)

    def _places(self) -> dict[str, Path]:
        """What to open: the folders that hold a journal, or the root for a storage that all studies share."""
        if not isinstance(self.storage, JournalStorage):
            return {"storage": self.root}
        places: dict[str, Path] = {}
        folders = sorted(path for path in self.root.iterdir() if path.is_dir()) if self.root.is_dir() else []
        for folder in [*folders, self.root]:
            if self.only is not None and folder.name not in self.only:
                continue
            journal = folder / self.storage.path
            if journal.is_file():
                places.setdefault(str(journal.resolve()), folder)
        return places


class Source:
    """One opened storage and the studies in it.

    Args:
        opened: The storage.
        root: Folder that holds the studies' folders.
        directory: The folder for which it was opened.
    """

    def __init__(self, opened: Storage, root: Path, directory: Path) -> None:
        self.opened = opened
        self.root = root
        self.directory = directory
        self.studies: dict[int, Study] = {}
        self._readers: dict[int, StudyReader] = {}

    def read(self) -> None:
        """Read what is new."""
        frozen = {study._study_id: study for study in self.opened.backend.get_all_studies()}
        for study_id, study in frozen.items():
            if study_id not in self._readers:
                self._readers[study_id] = StudyReader(study, self.opened, _folder(study.study_name, self))
            self.studies[study_id] = self._readers[study_id].read(study)
        for gone in set(self.studies) - set(frozen):
            del self.studies[gone], self._readers[gone]


def _folder(name: str, source: Source) -> Path | None:
    """A study's run folder: the folder of its name below the root, or where its journal lies."""
    plain = name == Path(name).name and not name.startswith(".")
    folder = source.root / name
    if plain and folder.is_dir() and folder.resolve().parent == source.root.resolve():
        return folder
    return source.directory if source.directory != source.root else None


def _with_keys(studies: list[Study]) -> dict[str, Study]:
    """By key; a name that several storages have gets the storage behind it."""
    count = Counter(study.facts.name for study in studies)
    keyed = {}
    for study in sorted(studies, key=lambda s: (s.facts.name, s.facts.storage)):
        name = study.facts.name
        key = name if count[name] == 1 else f"{name} ({study.facts.storage})"
        keyed[key] = study if key == study.key else replace(study, facts=replace(study.facts, key=key))
    return keyed


def _problem(name: str, error: Exception) -> str:
    return hide_password(f"{name} cannot be read: {' '.join(str(error).split()) or type(error).__name__}")
