"""Reports drawn from what was stored: right after a search, and the same at any later time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_models.profile import DeviceProfile
from nas.cards import load_cards
from nas.dashboard.profiles import find_profile, judge, predictor_settings
from nas.dashboard.search_figures import MIN_TRIALS, importances
from nas.dashboard.studies import Study
from nas.dashboard.watch import Watch
from nas.progress import Mode, Progress
from nas.reports.data import Report
from nas.reports.page import NO_PARTS, StudyParts
from nas.reports.report import DATA_NAME, write_report
from nas.reports.study_parts import study_parts
from nas.reports.tables import print_table

if TYPE_CHECKING:
    from latency_models.trust import Trust


# Of fewer measured subnets, the share inside an interval of 95 % is that of a few rows.
LEAST_ROWS = 20


def find_studies(root: Path, storage: Any, wanted: Sequence[str]) -> tuple[Watch, list[Study]]:
    """Studies by their names, and what has read them.

    Raises:
        FileNotFoundError: One of them is not there, or cannot be read.
    """
    watch = Watch(root, storage, only=wanted)
    snapshot = watch.read()
    if not set(wanted) <= set(snapshot.studies):
        watch = Watch(root, storage)  # A study's folder may have another name.
        snapshot = watch.read()
    for name in wanted:
        if name not in snapshot.studies:
            problem = next((text for text in snapshot.problems if f"/{name}/" in text), "")
            raise FileNotFoundError(problem or no_study(root, name, list(snapshot.studies)))
    return watch, [snapshot.studies[name] for name in wanted]


def no_study(root: Path, name: str, known: Sequence[str]) -> str:
    """That a study is not there, and which are."""
    return f"`study` must be one of {', '.join(known) or '(none yet)'} below {root}, not {name!r}."


def report_found(report: Report, directory: Path, root: Path, storage: Any, mode: Mode) -> None:
    """Report a search that has just ended, as `nas report` does later.

    Args:
        report: What the search found.
        directory: The study's folder.
        root: Folder of the studies.
        storage: How studies are kept.
        mode: How progress is shown.
    """
    report.save(directory / DATA_NAME)
    try:
        watch, studies = find_studies(root, storage, [directory.name])
    except FileNotFoundError:  # Hours of search are reported even where its storage is gone, or names it otherwise.
        _write(report, directory, NO_PARTS, keep=True)
        return
    redraw(report, directory, watch, studies[0], mode)


def redraw(report: Report, directory: Path, watch: Watch, study: Study, mode: Mode = "auto") -> None:
    """Write a report with the figures of its study's trials and profile, and print its table.

    Args:
        report: What the search left, or what the storage tells.
        directory: The study's folder.
        watch: What has read the study.
        study: With its trials.
        mode: How progress is shown.
    """
    goals = study.trials.objectives.goals if int(study.trials.feasible.sum()) >= MIN_TRIALS else {}
    loaded = watch.load(study) if goals else None
    found = {goal: importances(loaded, column) for column, goal in enumerate(goals) if loaded is not None}
    parts = study_parts(study, found, _trust(watch.root, study, mode))
    _write(report, directory, parts, keep=study.report is not None)


def _write(report: Report, directory: Path, parts: StudyParts, *, keep: bool) -> None:
    report = replace(report, cards=tuple(card.to_dict() for card in load_cards(directory)))
    files = write_report(report, directory, parts, keep=keep)
    print_table(report, sys.stdout)
    for command in report.commands:
        print(f"{command.purpose}:\n  {command.text}")
    print(f"Models: {directory / 'models'}\nReport: {files.html}")


def _trust(root: Path, study: Study, mode: Mode) -> Trust | None:
    """The cross-validation of the study's latency predictor; None without a profile, or with too small a one."""
    if (path := find_profile(root, study.facts)) is None:
        return None
    try:
        if len(DeviceProfile.read(path).latest()) < LEAST_ROWS:
            return None
        with Progress("Judging the latency model", mode=mode):
            return judge(path, *predictor_settings(study))
    except ValueError:
        return None
