"""Follow storages in a background thread, and hold the newest state of every study for the pages to draw."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.dashboard.studies import Study, StudyFacts, is_recent, read_context
from nas.dashboard.trials import TrialRow, Trials
from nas.engine.limits import Objectives
from nas.engine.locks import is_held
from nas.engine.storage import JournalStorage, OpensStorage, Storage, hide_password
from nas.reports.data import Report
from nas.reports.report import DATA_NAME

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.storages import BaseStorage
    from optuna.study._frozen import FrozenStudy

# After so long without a request, nothing is read any more until the next one: watching must not disturb measurements.
IDLE_S = 30.0
METRIC_NAMES = "study:metric_names"


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


class StudyReader:
    """Grows the columns of one study: a finished trial is read once.

    Args:
        study: As the storage describes it.
        opened: The storage.
        directory: Its run folder, or None.
    """

    def __init__(self, study: FrozenStudy, opened: Storage, directory: Path | None) -> None:
        self.facts = _facts(study, opened, directory)
        self._opened = opened
        self._id = study._study_id
        self._rows: list[TrialRow] = []
        self._open: set[int] = set()
        self._files = FileMemory()
        self._study: Study | None = None

    def read(self, frozen: FrozenStudy) -> Study:
        """The study now; the very same object where nothing changed."""
        if not self.facts.context:  # It is written a moment after the study is begun.
            facts = _facts(frozen, self._opened, self.facts.directory)
            if facts != self.facts:
                self.facts, self._rows, self._study = facts, [], None
        trials = self._opened.backend.get_all_trials(self._id, deepcopy=False)
        goals, changed = tuple(self.facts.objectives.goals), False
        for index in [*sorted(i for i in self._open if i < len(self._rows)), *range(len(self._rows), len(trials))]:
            row = TrialRow.from_trial(trials[index], goals)
            if index < len(self._rows):
                changed |= row != self._rows[index]
                self._rows[index] = row
            else:
                changed = True
                self._rows.append(row)
            (self._open.discard if row.outcome else self._open.add)(index)
        report, problem, fresh = self._files.report(self.facts.directory)
        planned = frozen.user_attrs.get("num_trials")
        planned = planned if isinstance(planned, int) else None
        alive = any(self._works(self._rows[index]) for index in self._open)
        old = self._study
        if old is None or changed or fresh or old.planned != planned or old.alive != alive:
            columns = Trials(self._rows, self.facts.objectives) if old is None or changed else old.trials
            self._study = Study(self.facts, columns, planned, alive, report, problem)
        assert self._study is not None
        return self._study

    def _works(self, row: TrialRow) -> bool:
        """Whether a running trial's worker lives: by its lock on this machine, by its age elsewhere."""
        if row.state != "RUNNING":
            return False
        directory, name = self.facts.directory, row.worker.get("name", "")
        if name and "/" not in name:
            folders = [self._opened.workers, *([directory / "workers"] if directory else [])]
            locks = [folder / f"{name}.lock" for folder in folders]
            if there := [lock for lock in locks if lock.exists()]:
                return is_held(there[0])
        return is_recent(row.started)


class FileMemory:
    """Reads a study's report again only where the file changed."""

    def __init__(self) -> None:
        self._stamp: tuple[int, int] | None = None
        self._report: Report | None = None
        self._problem = ""

    def report(self, directory: Path | None) -> tuple[Report | None, str, bool]:
        """The report or None, why it cannot be read, and whether that is news."""
        try:
            stat = (directory / DATA_NAME).stat() if directory else None
        except OSError:
            stat = None
        stamp = None if stat is None else (stat.st_mtime_ns, stat.st_size)
        if stamp == self._stamp:
            return self._report, self._problem, False
        self._stamp, self._report, self._problem = stamp, None, ""
        if stamp is not None and directory is not None:
            try:
                self._report = Report.load(directory / DATA_NAME)
            except (ValueError, OSError) as error:
                self._problem = str(error)
        return self._report, self._problem, True


def _folder(name: str, source: Source) -> Path | None:
    """A study's run folder: the folder of its name below the root, or where its journal lies."""
    plain = name == Path(name).name and not name.startswith(".")
    folder = source.root / name
    if plain and folder.is_dir() and folder.resolve().parent == source.root.resolve():
        return folder
    return source.directory if source.directory != source.root else None


def _facts(study: FrozenStudy, opened: Storage, directory: Path | None) -> StudyFacts:
    context = read_context(study.user_attrs.get("context"))
    return StudyFacts(
        name=study.study_name,
        key=study.study_name,
        storage=opened.described,
        directory=directory,
        objectives=_objectives(study, context),
        context=context,
    )


def _objectives(study: FrozenStudy, context: Mapping[str, Any]) -> Objectives:
    """The goals: as the search wrote them, else what Optuna knows."""
    directions = ["maximize" if d.name == "MAXIMIZE" else "minimize" for d in study.directions]
    names: Sequence[str] = study.system_attrs.get(METRIC_NAMES) or []
    if len(names) != len(directions):
        # The context's goals are sorted by name, so that they tell the order only where the directions do.
        goals = context.get("goals")
        known = list(goals) if isinstance(goals, dict) and list(goals.values()) == directions else []
        names = known or [f"value {index}" for index in range(len(directions))]
    return Objectives({str(name): direction for name, direction in zip(names, directions, strict=False)})


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
