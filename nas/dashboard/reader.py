"""Read one study of an opened storage, again and again: only what is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.dashboard.studies import Study, StudyFacts, is_recent, read_context
from nas.dashboard.trials import TrialRow, Trials
from nas.engine.limits import Objectives
from nas.engine.locks import is_held
from nas.engine.storage import Storage
from nas.reports.data import Report
from nas.reports.report import DATA_NAME

if TYPE_CHECKING:
    from optuna.study._frozen import FrozenStudy

METRIC_NAMES = "study:metric_names"


class StudyReader:
    """Grows the columns of one study: a finished trial is read once.

    Args:
        study: As the storage describes it.
        opened: The storage.
        directory: Its run folder, or None.
    """

    def __init__(self, study: FrozenStudy, opened: Storage, directory: Path | None) -> None:
        self.facts = facts_of(study, opened, directory)
        self._opened = opened
        self._id = study._study_id
        self._rows: list[TrialRow] = []
        self._open: set[int] = set()
        self._files = FileMemory()
        self._study: Study | None = None

    def read(self, frozen: FrozenStudy) -> Study:
        """The study now; the very same object where nothing changed."""
        if not self.facts.context:  # It is written a moment after the study is begun.
            facts = facts_of(frozen, self._opened, self.facts.directory)
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


def facts_of(study: FrozenStudy, opened: Storage, directory: Path | None) -> StudyFacts:
    """What a storage says of a study beside its trials."""
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
