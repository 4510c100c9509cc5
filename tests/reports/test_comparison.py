"""Reports from the storage: of a study that has none yet, and of several studies together."""

from __future__ import annotations

import csv
import html.parser
from dataclasses import replace

import numpy as np
import optuna
import pytest

from latency_models.trust import CurvePoint, Trust
from nas.__main__ import run
from nas.dashboard.search_figures import importances
from nas.dashboard.trials import Trials
from nas.dashboard.watch import Watch
from nas.engine.storage import DatabaseStorage, JournalStorage
from nas.redrawing import report_found
from nas.reports.comparison import write_comparison
from nas.reports.data import Report
from nas.reports.page import render_page
from nas.reports.report import write_report
from nas.reports.stored import stored_report
from nas.reports.study_parts import study_parts
from tests.dashboard.synthetic import search
from tests.reports.sample import make_report, make_subnet

FAST = ["progress=quiet", "hydra.run.dir={root}/logs/run"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    search(folder, "first", 24)
    search(folder, "second", 18, seed=3)
    write_report(make_report(study="second"), folder / "second")
    return folder


@pytest.fixture(scope="module")
def studies(root):
    return list(Watch(root).read().studies.values())


def test_a_report_from_the_storage_alone(studies):
    report = stored_report(studies[0])
    trials = studies[0].trials
    assert [row.name for row in report.models] == [f"trial {trials.rows[i].number}" for i in trials.front][:10]
    assert len(report.explored) == sum(row.state == "COMPLETE" for row in trials.rows)
    assert report.budget_ms == pytest.approx(studies[0].facts.bounds["latency_ms"][1])
    assert all(row.predicted_ms.low <= row.latency_ms <= row.predicted_ms.high for row in report.models)
    again = stored_report(studies[0])
    assert render_page(report) == render_page(again)


def test_a_finished_search_keeps_its_own_report(studies):
    assert stored_report(studies[1]) is studies[1].report


def test_a_foreign_study_is_refused_with_a_reason(tmp_path):
    url = f"sqlite:///{tmp_path}/all.db"
    study = optuna.create_study(storage=url, study_name="theirs")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    (found,) = Watch(tmp_path, DatabaseStorage(url)).read().studies.values()
    with pytest.raises(ValueError, match="which space it searches"):
        stored_report(found)


def test_several_studies_in_one_file_the_same_each_time(studies, tmp_path):
    files = write_comparison(studies, tmp_path / "a")
    again = write_comparison(studies, tmp_path / "b")
    for one, other in ((files.html, again.html), (files.markdown, again.markdown), (files.csv, again.csv)):
        assert one.read_bytes() == other.read_bytes()
    text = files.html.read_text()
    assert "first: front, predicted" in text
    assert "second: measured int8" in text
    html.parser.HTMLParser().feed(text)
    rows = list(csv.DictReader(files.csv.read_text().splitlines()))
    assert {row["study"] for row in rows} == {"first", "second"}
    assert "| first |" in files.markdown.read_text()


def make_trust(rows=20):
    rng = np.random.default_rng(0)
    measured = rng.uniform(5, 30, rows)
    predicted = measured * rng.normal(1, 0.03, rows)
    return Trust(
        subnets=tuple(make_subnet(seed) for seed in range(rows)), measured=measured, predicted=predicted,
        lower=predicted * 0.95, upper=predicted * 1.05, confidence=0.9, coverage=((0.5, 0.6), (0.9, 0.95)),
        learning=(CurvePoint(8, 5.0, 4.0, 6.0), CurvePoint(16, 3.0, 2.0, 4.0)), reference_drift=np.full(rows, 0.01),
        drift=None, folds=5,
    )  # fmt: skip


def test_a_report_has_the_figures_of_the_pages(studies, root, tmp_path):
    watch = Watch(root)
    watch.read()
    importances_of = importances(watch.load(studies[0]), 0)
    trust = make_trust()
    parts = study_parts(studies[0], {"cosine": importances_of}, trust)
    files = write_report(stored_report(studies[0]), tmp_path, parts)
    page = files.html.read_text()
    for name in (
        "front",
        "agreement",
        "hypervolume",
        "outcomes",
        "importance-0",
        "errors",
        "coverage",
        "learning",
        "drift",
    ):
        assert f'data-figure="{name}"' in page, name
        assert parts.figures.get(name, parts.front), name
    assert "## The search" in files.markdown.read_text()
    rows = list(csv.DictReader(files.trials.read_text().splitlines()))
    assert len(rows) == len(studies[0].trials)
    again = study_parts(studies[0], {"cosine": importances_of}, trust)
    assert render_page(stored_report(studies[0]), again) == page


def test_a_search_is_reported_even_without_its_storage(tmp_path, capsys):
    (tmp_path / "lost").mkdir()
    report_found(make_report(study="lost"), tmp_path / "lost", tmp_path, JournalStorage(), "quiet")
    assert (tmp_path / "lost" / "report.html").is_file()
    assert Report.load(tmp_path / "lost" / "report.json").study == "lost"
    assert "report.html" in capsys.readouterr().out


def test_failures_and_rungs_stand_in_the_report_as_text(studies, tmp_path):
    rows = list(studies[0].trials.rows)
    able = next(row for row in rows if row.feasible)
    rows.append(replace(able, steps=50, number=100))
    rows.append(replace(able, state="FAIL", outcome="failed", feasible=False, reason="<img src=x> | out", number=101))
    study = replace(studies[0], trials=Trials(rows, studies[0].trials.objectives))
    files = write_report(stored_report(study), tmp_path, study_parts(study))
    page, text = files.html.read_text(), files.markdown.read_text()
    assert "&lt;img src=x&gt; | out" in page
    assert "<img" not in page
    assert 'data-figure="promotions"' in page
    assert "### Rungs" in text
    assert "### Failures" in text


def test_the_command_reports_one_or_several(root, capsys):
    fast = [text.format(root=root) for text in FAST]
    assert run(["report", f"root={root}", "study=first", *fast]) == 0
    assert "report.html" in capsys.readouterr().out
    assert not (root / "first" / "report.json").exists(), "the storage knows more, later"
    before = {name: (root / "first" / name).read_bytes() for name in ("report.html", "report.md", "trials.csv")}
    assert run(["report", f"root={root}", "study=first", *fast]) == 0
    assert before == {name: (root / "first" / name).read_bytes() for name in before}
    assert run(["report", f"root={root}", "study=[first,second]", *fast]) == 0
    assert (root / "reports" / "first+second" / "comparison.html").is_file()
    assert run(["report", f"root={root}", "study=[first,missing]", *fast]) == 2
    assert "one of first, second" in capsys.readouterr().err
