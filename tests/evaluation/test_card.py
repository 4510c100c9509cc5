"""Report cards: what is written is read back, pages are what the hub reads, tables show what the card says."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from nas.evaluation.card import FORMAT, VERSION, ReportCard, figures
from nas.evaluation.model_card import render_model_card, write_card
from nas.reports.compare import comparison_csv, comparison_markdown, print_card, print_comparison, side_by_side
from tests.evaluation.judged import ASPECTS, world

EFFICIENCY: dict[str, Any] = {
    "latency_ms": {"p50": 12.5, "p90": 13.0, "p99": 15.0, "min": 12.1, "n": 60},
    "speedup": {"value": 2.0, "low": 1.9, "high": 2.1},
    "throughput": 80.0,
    "peak_memory_mb": 310.0,
    "size_mb": 45.2,
    "parameters": 11_300_000,
    "macs": 700_000_000,
    "energy": {"millijoules": 250.0, "runs": 100, "source": "rapl"},
    "device": {"cpu": "Some <b>CPU</b>", "threads": "1"},
    "workload": {"batch_size": 1, "sequence_length": 128, "phase": "encode"},
    "reference": "teacher",
}


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ReportCard:
    small = world(tmp_path_factory.mktemp("world"))
    judge = small.judge()
    model = judge.run(lambda batch: small.task.outputs(small.student, batch))
    return ReportCard(
        name="my <script> student",
        model={"path": "runs/x/student", "kind": "transformers", "teacher": "acme/teacher"},
        task={
            "kind": small.task.kind,
            "data": "/home/me/data.csv",
            "split": "test",
            "samples": 120,
            "measure": "accuracy",
        },
        settings=asdict(ASPECTS),
        quality=judge.quality_section(model),
        calibration=judge.calibration_section(model),
        fairness=judge.fairness_section(model),
        robustness=judge.robustness_section(model),
        efficiency=EFFICIENCY,
        versions={"torch": "2.13"},
    )


def test_what_is_written_is_read_back(card: ReportCard, tmp_path: Path) -> None:
    metrics, page = write_card(card, tmp_path / "folder")
    assert ReportCard.load(metrics).to_dict() == card.to_dict()
    data = json.loads(metrics.read_text())
    assert (data["format"], data["version"]) == (FORMAT, VERSION)
    assert render_model_card(ReportCard.load(metrics)) == page.read_text()


def test_the_page_is_what_the_hub_reads(card: ReportCard, tmp_path: Path) -> None:
    _, page = write_card(card, tmp_path)
    read = ModelCard.load(page)
    assert read.data.pipeline_tag == "text-classification"
    assert read.data.base_model == "acme/teacher"
    results = {result.metric_name: result for result in read.data.eval_results or []}
    assert set(results) == set(card.quality["metrics"])
    assert results["accuracy"].metric_value == pytest.approx(
        card.quality["metrics"]["accuracy"]["value"]["value"], abs=1e-6
    )
    assert results["macro_f1"].metric_type == "f1"
    assert results["accuracy"].dataset_split == "test"
    text = read.text
    for heading in ("Model details", "Uses", "Bias, risks and limitations", "Evaluation", "Technical specifications"):
        assert f"## {heading}" in text
    assert "worst accuracy by group" in text.replace("\\", "")
    assert "2.00 times its speed" in text
    assert "| mean confidence | right | decisions |" in text
    # No path of anybody's disk, and no markup of others.
    assert "/home/me" not in text
    assert "<script>" not in text
    assert "<b>" not in text


def test_a_local_teacher_is_no_hub_model(card: ReportCard) -> None:
    local = replace(card, model={**card.model, "teacher": "/somewhere/private/teacher"})
    page = render_model_card(local)
    assert "/somewhere" not in page
    assert ModelCard(page).data.base_model is None


def test_a_folder_that_looks_like_a_hubs_name_is_none(
    card: ReportCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own/teacher", "teacher"):
        (tmp_path / name).mkdir(parents=True)
        page = render_model_card(replace(card, model={**card.model, "teacher": name}))
        assert ModelCard(page).data.base_model is None
        assert "own/" not in page


def test_every_section_has_its_figures(card: ReportCard) -> None:
    found = {(figure.section, figure.name): figure for figure in figures(card)}
    accuracy = found["quality", "accuracy"]
    entry = card.quality["metrics"]["accuracy"]
    assert accuracy.value == entry["value"]["value"]
    assert accuracy.retention == tuple(entry["retention"].values())
    assert found["quality", "McNemar p"].value == card.quality["mcnemar"]["p_value"]
    assert "few" in found["fairness", "worst accuracy by group"].note
    assert found["efficiency", "speed-up"].interval == (1.9, 2.1)
    assert "rapl" in found["efficiency", "energy mJ"].note
    assert {section for section, _ in found} == {"quality", "calibration", "fairness", "robustness", "efficiency"}


def test_groups_are_told_one_by_one_and_small_ones_are_marked(card: ReportCard) -> None:
    found = {figure.name: figure for figure in figures(card) if figure.section == "fairness"}
    groups = {name: found[f"accuracy of group {name}"] for name in ("even", "few", "odd")}
    assert {name: "too few for a claim" in figure.note for name, figure in groups.items()} == {
        "even": False,
        "few": True,
        "odd": False,
    }
    assert groups["even"].teacher is not None
    assert found["worst accuracy by group"].value == min(groups["even"].value, groups["odd"].value)
    # Of rates, the groups are in the file alone.
    assert not any(name.startswith("false_positive_rate of group ") for name in found)


def test_a_table_lists_the_largest_of_many_groups(card: ReportCard) -> None:
    assert card.fairness is not None
    column = card.fairness["columns"][0]
    many = [{**column["groups"][0], "name": f"g{index}", "samples": index} for index in range(2, 40)]
    found = figures(replace(card, fairness={"columns": [{**column, "groups": many}]}))
    shown = [f.name for f in found if f.name.startswith("accuracy of group g")]
    assert shown == [f"accuracy of group g{index}" for index in range(20, 40)]


def test_groups_that_cannot_be_judged_are_marked_wherever_a_card_is_shown(card: ReportCard) -> None:
    assert card.fairness is not None
    column = card.fairness["columns"][0]
    nothing = {"score": None, "too_small": True}
    groups = [{"name": "absent", "samples": 0, **nothing}, {"name": "lone", "samples": 1, **nothing}]
    none = {"value": None, "low": None, "high": None}
    unknown = {"worst_group": None, "worst": none, "gap": none, "ratio": none}
    empty = {**column, **unknown, "groups": groups, "teacher": {"worst": none, "gap": none, "ratio": none}}
    marked = replace(card, fairness={"min_samples": 10, "columns": [empty]})
    found = {figure.name: (figure.value, figure.note) for figure in figures(marked) if figure.section == "fairness"}
    assert found == {
        "accuracy of group absent": (None, "no samples, too few for a claim"),
        "accuracy of group lone": (None, "1 sample, too few for a claim"),
        "worst accuracy by group": (
            None,
            "nothing is claimed: fewer than two groups are large enough; left out, too small for a claim: absent, lone",
        ),
    }
    _, rows = side_by_side([marked, marked])
    assert [row[2:] for row in rows if row[1] == "accuracy of group lone"] == [
        ["-", "-", "1 sample, too few for a claim"]
    ]
    line = next(row for row in csv.DictReader(io.StringIO(comparison_csv([marked]))) if "lone" in row["figure"])
    assert (line["value"], line["low"], line["note"]) == ("", "", "1 sample, too few for a claim")
    page = render_model_card(marked)
    assert "no samples, too few for a claim" in page
    assert "Groups of people were not looked at" not in page
    assert "nan" not in json.dumps(marked.to_dict()).lower()


def test_what_was_counted_is_named(card: ReportCard) -> None:
    pairs = replace(card, task={**card.task, "samples": 60, "unit": "pairs"})
    assert "60 pairs of the split test" in render_model_card(pairs)
    notes = {figure.name: figure.note for figure in figures(pairs)}
    assert notes["accuracy"] == "of 120 texts"


def test_side_by_side(card: ReportCard) -> None:
    other = replace(card, name="=cmd()", fairness=None, efficiency=None)
    header, rows = side_by_side([card, other])
    assert header[2:] == [card.name, "=cmd()", "note"]
    notes = {row[1]: row[4] for row in rows}
    assert notes["accuracy of group few"].endswith("too few for a claim")
    by_name = {row[1]: row[2:] for row in rows}
    assert by_name["accuracy"][0] == by_name["accuracy"][1] != "-"
    assert re.fullmatch(r"[\d.]+, [\d.]+ % \[[\d.]+, [\d.]+\] kept", by_name["accuracy"][0])
    assert by_name["speed-up"][1] == "-"
    assert by_name["parameters"][0] == "11.3 M"
    assert "accuracy" in comparison_markdown([card, other])
    lines = list(csv.DictReader(io.StringIO(comparison_csv([card, other]))))
    assert {line["model"] for line in lines} == {card.name, "'=cmd()"}
    assert float(next(line for line in lines if line["figure"] == "accuracy")["value"]) == by_name_value(card)


def by_name_value(card: ReportCard) -> float:
    return float(card.quality["metrics"]["accuracy"]["value"]["value"])


def test_tables_in_the_terminal(card: ReportCard) -> None:
    stream = io.StringIO()
    print_card(card, stream)
    print_comparison([card, card], stream)
    text = stream.getvalue()
    assert "my <script> student" in text
    assert text.count("worst accuracy by group") == 2
    assert "energy mJ" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "must be 'hwnas report card' version 1, but is 'hwnas report card' version 99"),
        ({"format": "other"}, "but is 'other' version 1"),
        ({"extra": 1}, "key 'extra' is unknown"),
        ({"quality": None}, "`quality` must be an object, but is None"),
        ({"fairness": [1]}, "`fairness` must be an object"),
    ],
)
def test_other_files_are_refused(card: ReportCard, tmp_path: Path, change: Any, message: str) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({**card.to_dict(), **change}))
    with pytest.raises(ValueError, match=message):
        ReportCard.load(tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "must hold a JSON object, but holds a list"), ("{", "not valid JSON")]
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ReportCard.load(tmp_path / "metrics.json")


def test_a_card_without_the_rest(card: ReportCard) -> None:
    bare = replace(card, calibration=None, fairness=None, robustness=None, efficiency=None)
    page = render_model_card(bare)
    assert "Groups of people were not looked at" in page
    assert ReportCard.from_dict(bare.to_dict()) is not None


def test_every_key_is_documented(card: ReportCard) -> None:
    page = (Path(__file__).parents[2] / "docs" / "report-card.md").read_text()
    names = set(card.quality["metrics"]) | set(card.settings["fairness"]["terms"]) | {"device", "workload"}

    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set().union(
                *(
                    ({key} - names) | (set() if key in names - {"accuracy"} else keys(item))
                    for key, item in value.items()
                )
            )
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    undocumented = {key for key in keys(card.to_dict()) if not re.search(rf"[`.]{key}[`.]", page)}
    assert undocumented <= {"torch", "batch_size", "sequence_length", "phase"}
