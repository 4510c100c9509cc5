"""What a search was asked for stands in every table, with its direction, its limits, and a mark where one is broken."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import pytest

from nas.engine.limits import Limit, Objectives
from nas.finished import goals_of
from nas.reports.data import Goal, Report
from nas.reports.page import render_page
from nas.reports.raw import models_csv
from nas.reports.report import render_markdown
from nas.reports.tables import BROKEN_NOTE, model_columns, print_table
from tests.reports.sample import make_models, make_report

ASKED = {"cosine": "maximize", "latency_ms": "minimize", "worst_group_accuracy": "maximize", "energy_mj": "minimize"}
LIMITS = (
    Limit("brier", 0.2, upper=True, predicted=False),
    Limit("latency_ms", 20.0, upper=True, predicted=True),
    Limit("throughput", 45.0, upper=False, predicted=True),
)


def asked_report() -> Report:
    rows = []
    for index, row in enumerate(make_models()):
        metrics = {**row.metrics, "worst_group_accuracy": 0.7, "brier": 0.1 + 0.05 * index}
        costs = {"throughput": 1e3 / row.latency_ms} if row.latency_ms else {}
        rows.append(dataclasses.replace(row, metrics=metrics, costs=costs))
    return make_report(models=tuple(rows), goals=goals_of(Objectives(ASKED), LIMITS))


def cells(report: Report, title: str) -> list[str]:
    (column,) = (column for column in model_columns(report) if column.title == title)
    return [column.cell(row) for row in report.models]


def test_goals_and_constraints_are_put_together_by_name() -> None:
    assert [str(goal) for goal in goals_of(Objectives(ASKED), LIMITS)] == [
        "cosine max", "latency_ms min, <= 20", "worst_group_accuracy max", "energy_mj min", "brier <= 0.2",
        "throughput >= 45",
    ]  # fmt: skip


def test_everything_that_was_asked_for_has_a_column_with_its_direction_and_limit() -> None:
    titles = [column.title for column in model_columns(asked_report())]
    for title in (
        "cosine, max", "worst_group_accuracy, max", "brier, <= 0.2", "throughput, >= 45", "energy_mj, min",
        "measured ms [min, p90], min, <= 20",
    ):  # fmt: skip
        assert title in titles
    assert "predicted ms" in titles


def test_only_found_models_that_break_a_limit_are_marked() -> None:
    report = asked_report()
    for title, name in (("brier, <= 0.2", "brier"), ("measured ms [min, p90], min, <= 20", "latency_ms")):
        goal = next(goal for goal in report.goals if goal.name == name)
        marked = [cell.endswith(" (!)") for cell in cells(report, title)]
        assert marked == [row.role == "front" and goal.broken_by(row) for row in report.models]
        assert any(marked)
        assert not all(marked[2:])
    # What nobody could measure is told as unknown, not left out.
    assert set(cells(report, "energy_mj, min")) == {"-"}


def test_the_table_the_page_and_the_files_show_them() -> None:
    report, stream = asked_report(), io.StringIO()
    print_table(report, stream)
    texts = [stream.getvalue(), render_markdown(report).replace("\\", ""), render_page(report)]
    for text in texts:
        assert "worst_group_accuracy" in text
        assert "brier, <= 0.2" in text.replace("&lt;", "<")
        assert BROKEN_NOTE.split(",")[0] in text
    assert "cosine max; latency_ms min, <= 20" in texts[1]
    rows = list(csv.DictReader(io.StringIO(models_csv(report))))
    assert rows[2]["metric_worst_group_accuracy"] == "0.7"
    assert float(rows[2]["cost_throughput"]) == pytest.approx(1e3 / report.models[2].latency_ms)  # type: ignore[operator]
    assert rows[2]["wanted_brier"] == "<= 0.2"
    assert "brier" in rows[-2]["breaks"].split()


def test_they_survive_the_round_trip_and_older_reports_have_none(tmp_path: Path) -> None:
    report = asked_report()
    report.save(tmp_path / "r.json")
    assert Report.load(tmp_path / "r.json") == report
    old = report.to_dict()
    del old["goals"]
    for row in old["models"]:
        del row["costs"]
    assert Report.from_dict(old).goals == ()
    assert BROKEN_NOTE not in render_page(Report.from_dict(old))


def test_a_measured_value_goes_before_a_predicted_one() -> None:
    row = make_models()[2]
    assert row.value_of("latency_ms") == row.measured.p50_ms  # type: ignore[union-attr]
    assert dataclasses.replace(row, measured=None).value_of("latency_ms") == row.predicted_ms.value  # type: ignore[union-attr]
    assert row.value_of("cosine") == row.metrics["cosine"]
    assert row.value_of("unheard_of") is None
    assert not Goal("unheard_of", limits=(("<=", 0.0),)).broken_by(row)
