"""Search: how a search goes: its volume, what matters, its rungs, its failures, its pace."""

from __future__ import annotations

import numpy as np

from nas.dashboard.app import Ask, Shown
from nas.dashboard.figures import lines_figure
from nas.dashboard.jobs import Result
from nas.dashboard.pages.front import explain
from nas.dashboard.search_figures import (
    MIN_TRIALS,
    failures,
    importance_figure,
    importances,
    outcomes,
    outcomes_figure,
    pace,
    promotions_figure,
    rungs,
)
from nas.dashboard.studies import Study


def show(ask: Ask) -> Shown:
    """The searches' curves, and the first one's details."""
    study, studies = ask.studies[0], ask.studies
    trials = study.trials
    goal = ask.view.chosen("goal", trials.objectives.goals, trials.quality)
    importance = _importance(ask, study, goal)
    curves = [(s.key, *s.history) for s in studies]
    return Shown(
        {
            "study": study,
            "goal": goal,
            "outcomes": outcomes(trials),
            "running": sum(row.state == "RUNNING" for row in trials.rows),
            "failures": failures(trials),
            "rungs": rungs(trials),
            "importance": importance,
            "too_few": int(trials.feasible.sum()) < MIN_TRIALS,
            "pace": pace(trials),
            "explained": [text for s in studies if (text := explain(s))],
            "many": len(studies) > 1,
        },
        {
            "hypervolume": lines_figure(curves, "trials", "hypervolume", step=True),
            "outcomes": outcomes_figure(trials),
            "importance": importance_figure(importance.value) if importance.value else None,
            "promotions": promotions_figure(trials),
        },
    )


def _importance(ask: Ask, study: Study, goal: str) -> Result:
    """Importances, computed anew whenever a fifth more trials are there."""
    able = int(study.trials.finished.sum())
    if int(study.trials.feasible.sum()) < MIN_TRIALS:
        return Result(done=True)
    level = int(np.log(able) / np.log(1.2))
    column = list(study.trials.objectives.goals).index(goal)
    return ask.jobs.get(("importance", study.key, goal, level), lambda: importances(ask.watch.load(study), column))
