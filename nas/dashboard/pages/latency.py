"""Latency model: how far predictions can be trusted, on subnets that the predictor was not fitted to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nas.dashboard.app import Ask, Shown
from nas.dashboard.jobs import Result
from nas.dashboard.latency_figures import trust_figures
from nas.dashboard.profiles import find_profile, kept_trust, predictor_settings, quick_trust, stamp, whole_trust
from nas.dashboard.studies import Study
from nas.reports.figures import checks_figure, checks_of
from nas.reports.tables import scorecard_table

if TYPE_CHECKING:
    from latency_models.trust import Trust


def show(ask: Ask) -> Shown:
    """The first chosen study's latency model."""
    study = ask.studies[0]
    path = find_profile(ask.watch.root, study.facts)
    trust, learning = _trust(ask, study, path)
    judged: Trust | None = learning.value or trust.value
    report = study.report
    return Shown(
        {
            "study": study,
            "profile": path.name if path else "",
            "trust": trust,
            "curve": learning,
            "judged": judged,
            "drifted": [str(segment) for segment in judged.drift.segments] if judged and judged.drift else [],
            "scorecard": scorecard_table(report.scorecard) if report and report.scorecard else None,
            "device": dict(report.device) if report else study.facts.context.get("device") or {},
        },
        {
            "checks": checks_figure(checks_of(report)) if report else None,
            **(trust_figures(judged) if judged else {}),
        },
    )


def _trust(ask: Ask, study: Study, path: Path | None) -> tuple[Result, Result]:
    """The cross-validation, and the same with its learning curve, which takes several times as long.

    Both as they were kept, else from the background, once for each state of the profile.
    """
    if path is None:
        return Result(done=True), Result(done=True)
    name, confidence = predictor_settings(study)
    key = (stamp(path), name, confidence)
    if (kept := ask.jobs.known(("kept", *key), lambda: kept_trust(path, name, confidence))) is not None:
        return Result(kept, done=True), Result(kept, done=True)
    quick = ask.jobs.get(("trust", *key), lambda: quick_trust(path, name, confidence))
    if quick.value is None:
        return quick, Result(done=quick.done)
    return quick, ask.jobs.get(("learning", *key), lambda: whole_trust(quick.value, path, name))
