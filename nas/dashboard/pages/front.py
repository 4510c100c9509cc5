"""Front: quality against cost for one study or several; two candidates side by side."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from nas.dashboard.app import Ask, Shown
from nas.dashboard.candidates import ShownCandidate, compare, find, of_trial
from nas.dashboard.figures import Axes, front_figure
from nas.dashboard.studies import Study
from nas.engine.pareto import spread
from nas.reports.drawing import draw_subnet
from nas.reports.tables import describe
from search_spaces.subnet import SubnetConfig

MOST_ROWS = 25


def show(ask: Ask) -> Shown:
    """The front of the chosen studies."""
    view, studies = ask.view, ask.studies
    names = tuple(dict.fromkeys(name for study in studies for name in study.trials.quantities))
    first = studies[0].trials
    axes = Axes(
        x=view.chosen("x", names, first.cost),
        y=view.chosen("y", names, first.quality),
        log=tuple(name for name in ("x", "y") if name in view.all("log")),
    )
    pinned = [found for pin in view.pins if (found := find(pin, ask.snapshot.studies)) is not None]
    some = any(len(study.trials) for study in studies)
    return Shown(
        {
            "axes": axes,
            "names": names,
            "rows": [row for study in studies for row in _rows(study)],
            "many": len(studies) > 1,
            "goals": tuple(dict.fromkeys((axes.y, axes.x, *first.objectives.goals))),
            "pinned": [(candidate, drawing(candidate.subnet, _teacher(candidate, ask))) for candidate in pinned],
            "compared": compare(pinned),
            "explained": [explain(study) for study in studies],
            "describe": describe,
            "pin_link": view.pin,
            "unpin_link": view.unpin,
        },
        {"front": front_figure(studies, axes) if some else None},
    )


def _rows(study: Study) -> list[tuple[Study, ShownCandidate]]:
    """The front's members, at most so many, spread along it."""
    front = study.trials.front
    chosen = front[spread(study.trials.losses[front], MOST_ROWS)] if front.size > MOST_ROWS else front
    order = np.argsort(study.trials.column(study.trials.cost)[chosen], kind="stable")
    return [(study, of_trial(study, int(index))) for index in chosen[order]]


def explain(study: Study) -> str:
    """What a study without a front lacks, in a sentence; empty where it has one."""
    trials = study.trials
    if trials.front.size:
        return ""
    if not len(trials):
        return f"{study.key} has no trial yet; the first one appears here by itself."
    if not trials.finished.any():
        return f"{study.key} is evaluating its first trials."
    if trials.feasible.any():
        return f"{study.key} has no complete trial with all of its objectives."
    limits = ", ".join(study.facts.constraints) or "its constraints"
    return f"Nothing that {study.key} tried keeps to {limits}: loosen a limit, or give the space smaller choices."


def _teacher(candidate: ShownCandidate, ask: Ask) -> SubnetConfig | None:
    study = ask.snapshot.studies.get(candidate.pin.study)
    return study.teacher if study else None


def drawing(subnet: SubnetConfig | None, teacher: SubnetConfig | None, label: str = "Architecture") -> Markup | None:
    """The picture of an architecture beside its teacher's outline, or None where it cannot be drawn."""
    if subnet is None or teacher is None or len(subnet.blocks) != len(teacher.blocks):
        return None
    return Markup(draw_subnet(subnet, teacher, label))  # noqa: S704 - it escapes the label, and holds only numbers else
