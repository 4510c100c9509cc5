"""Reports from the storage: of a study that has none yet, and of several studies together."""

from __future__ import annotations

import csv
import html.parser

import optuna
import pytest

from nas.__main__ import run
from nas.dashboard.watch import Watch
from nas.engine.storage import DatabaseStorage
from nas.reports.comparison import write_comparison
from nas.reports.page import render_page
from nas.reports.report import write_report
from nas.reports.stored import stored_report
from tests.dashboard.synthetic import search
from tests.reports.sample import make_report

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


def test_the_command_reports_one_or_several(root, capsys):
    fast = [text.format(root=root) for text in FAST]
    assert run(["report", f"root={root}", "study=first", *fast]) == 0
    assert "report.html" in capsys.readouterr().out
    assert not (root / "first" / "report.json").exists(), "the storage knows more, later"
    assert run(["report", f"root={root}", "study=[first,second]", *fast]) == 0
    assert (root / "reports" / "first+second" / "comparison.html").is_file()
    assert run(["report", f"root={root}", "study=[first,missing]", *fast]) == 2
    assert "one of first, second" in capsys.readouterr().err
