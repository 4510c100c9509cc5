"""Reports: identical from identical data, nothing from outside runs or breaks the page, numbers stay numbers."""

import csv
import dataclasses
import html.parser
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.evaluation.card import ReportCard
from nas.reports.data import ExploredTrial, Interval, LoadCommand, ModelRow, PredictorScore, Report, StageTiming
from nas.reports.drawing import describe_block, draw_subnet
from nas.reports.figures import front_figure, predicted_vs_measured_figure, reliability_figure, sensitivity_figure
from nas.reports.page import render_page
from nas.reports.raw import models_csv
from nas.reports.report import render_markdown, write_report
from nas.reports.tables import (
    describe,
    escape_markdown,
    format_count,
    format_number,
    model_rows,
    print_table,
    terminal_table,
)
from search_spaces.subnet import BlockConfig, SubnetConfig
from tests.reports.sample import TEACHER, make_models, make_report, make_subnet

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&|`[x](javascript:1)\n=cmd()"


class Reader(html.parser.HTMLParser):
    """Collects the tags, attributes and ids of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def read_page(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def hostile_report() -> Report:
    rows = tuple(
        dataclasses.replace(row, name=HOSTILE + row.name, precision=HOSTILE, directory=HOSTILE, metrics={HOSTILE: 0.5})
        for row in make_models()
    )
    return make_report(
        study=HOSTILE,
        teacher=HOSTILE,
        task=HOSTILE,
        quality=HOSTILE,
        created=HOSTILE,
        device={HOSTILE: HOSTILE, "cpu": HOSTILE},
        models=rows,
        scorecard=(PredictorScore(HOSTILE, 3, {HOSTILE: 1.0}),),
        stages=(StageTiming(HOSTILE, 1.0, note=HOSTILE),),
        commands=(LoadCommand(HOSTILE, HOSTILE),),
        notes=(HOSTILE,),
        sensitivity=dataclasses.replace(make_report().sensitivity, variants=(HOSTILE,) * 6, metric=HOSTILE),
    )


def test_equal_data_give_equal_bytes(tmp_path: Path) -> None:
    first = write_report(make_report(), tmp_path / "a")
    second = write_report(Report.load(first.data), tmp_path / "b")
    for name in ("data", "html", "markdown", "csv", "png"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes(), name


def test_data_round_trip_through_json(tmp_path: Path) -> None:
    report = make_report()
    report.save(tmp_path / "r.json")
    assert Report.load(tmp_path / "r.json") == report


def test_numbers_that_are_none_survive_the_round_trip(tmp_path: Path) -> None:
    row = dataclasses.replace(make_models()[0], metrics={"cosine": math.nan}, measured=None, size_mb=None)
    report = make_report(models=(row,))
    report.save(tmp_path / "r.json")
    loaded = Report.load(tmp_path / "r.json")
    assert math.isnan(loaded.models[0].metrics["cosine"])
    assert loaded.models[0].measured is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[]", "must hold a JSON object"),
        ("{", "not valid JSON"),
        ('{"format": "other"}', "`format` must be"),
        ('{"format": "hwnas report 1"}', "do not fit"),
        (json.dumps({**make_report().to_dict(), "colour": 1}), "do not fit"),
        (json.dumps({**make_report().to_dict(), "models": [3]}), "do not fit"),
    ],
)
def test_foreign_data_are_refused_in_one_line(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=rule) as caught:
        Report.load(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="low <= value <= high"):
        Interval(1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="`role` must be one of"):
        ModelRow("a", "student", TEACHER, 1, 1)  # type: ignore[arg-type]


def test_the_page_needs_no_network_and_has_every_section() -> None:
    page = render_page(make_report())
    reader = read_page(page)
    assert not [value for name, value in reader.attributes if name in {"src", "href"}]
    assert "link" not in reader.tags
    ids = {value for name, value in reader.attributes if name == "id"}
    assert {"front", "models", "architectures", "predictions", "sensitivity", "load", "run"} <= ids
    assert reader.tags.count("svg") == 1 + 1 + 5  # the hatch pattern, the teacher, five front members


def test_hostile_names_stay_text_in_the_page() -> None:
    plain, hostile = read_page(render_page(make_report())), read_page(render_page(hostile_report()))
    assert "img" not in hostile.tags
    assert hostile.tags.count("script") == plain.tags.count("script") == 3
    assert not [name for name, _ in hostile.attributes if name.startswith("on")]


def test_hostile_names_stay_text_in_figures() -> None:
    for make in (front_figure, predicted_vs_measured_figure, sensitivity_figure):
        assert "<img" not in json.dumps(make(hostile_report()))


def test_only_the_pages_own_scripts_may_run() -> None:
    page = render_page(make_report())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/=]{44}'", policy[1])) == 2
    assert "script-src 'unsafe-inline'" not in policy[1]


def test_markdown_and_csv_hold_hostile_names() -> None:
    report = hostile_report()
    lines = render_markdown(report).splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert not [line for line in lines if "<img" in line and "\\<img" not in line and "alert(1)>\"'&|`[x]" not in line]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table[:12]}) == 1
    rows = list(csv.DictReader(io.StringIO(models_csv(report))))
    assert len(rows) == len(report.models)
    assert (
        models_csv(make_report(models=(dataclasses.replace(make_models()[0], name="=1+1"),)))
        .splitlines()[1]
        .startswith("'=1+1,")
    )


@given(st.text(max_size=40))
def test_escaped_markdown_stays_in_its_cell(text: str) -> None:
    escaped = escape_markdown(text)
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", escaped)


@pytest.mark.parametrize("make", [front_figure, predicted_vs_measured_figure, sensitivity_figure])
def test_figures_are_valid_plotly(make: object) -> None:
    figure = make(make_report())  # type: ignore[operator]
    text = re.sub(r"var\(--[a-z0-9-]+\)", "#123456", json.dumps(figure))
    assert go.Figure(json.loads(text)).data


def test_ten_thousand_trials_are_drawn_by_the_gpu_and_none_is_lost() -> None:
    explored = tuple(ExploredTrial(float(i), i / 1e4) for i in range(10_000))
    trace = front_figure(make_report(explored=explored))["data"][0]  # type: ignore[index]
    assert (trace["type"], len(trace["x"])) == ("scattergl", 10_000)


def test_the_line_of_the_front_passes_only_models_that_nothing_beats() -> None:
    rows = [row for row in make_models() if row.role == "front" and row.precision == "fp32"]
    rows[1] = dataclasses.replace(rows[1], metrics={"cosine": 0.5})
    figure = front_figure(make_report(models=tuple(rows)))
    assert figure is not None
    (line,) = (trace for trace in figure["data"] if trace["mode"] == "lines")
    assert line["y"] == sorted(line["y"])
    assert len(line["x"]) == len(rows) - 1


def test_an_empty_study_still_gives_a_report(tmp_path: Path) -> None:
    report = make_report(
        models=(), explored=(), checks=(), scorecard=(), sensitivity=None, stages=(), commands=(), notes=(),
        budget_ms=None, device={},
    )  # fmt: skip
    files = write_report(report, tmp_path)
    assert files.png is None
    text = files.html.read_text()
    assert "No model was kept" in text
    assert len(text) < 50_000  # Without figures there is no need for the plotting library.
    assert files.csv.read_text() == ""


def test_csv_holds_raw_numbers_and_the_subnet() -> None:
    report = make_report()
    rows = list(csv.DictReader(io.StringIO(models_csv(report))))
    assert float(rows[2]["measured_p50_ms"]) == report.models[2].measured.p50_ms  # type: ignore[union-attr]
    assert SubnetConfig.from_json(rows[2]["subnet"]) == report.models[2].subnet
    assert rows[0]["predicted_ms"] == ""


def test_columns_of_which_nobody_knows_anything_are_left_out() -> None:
    rows = tuple(dataclasses.replace(row, measured=None, speedup_fp32=None, speedup_int8=None) for row in make_models())
    header = [str(column.header) for column in terminal_table(make_report(models=rows)).columns]
    assert "vs teacher fp32" not in header
    assert "predicted ms" in header


def test_the_terminal_table_fits_a_log_and_reads_no_markup() -> None:
    stream = io.StringIO()
    rows = tuple(dataclasses.replace(row, name="[red]x") for row in make_models())
    print_table(make_report(models=rows), stream)
    text = stream.getvalue()
    assert "[red]x" in text
    assert "26.6 [25.8, 29.0]" in text
    assert len({len(line.rstrip()) for line in text.splitlines() if line.startswith("│")}) == 1


def test_rows_of_the_page_and_the_data_agree() -> None:
    rows = model_rows(make_report())
    assert rows[2][:4] == ["s1", "fp32", "21.0 M", "1.13 G"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0, "0"), (0.00123, "0.00123"), (12.34, "12.3"), (1234.4, "1234"), (-0.5, "-0.500"), (math.nan, "-")],
        *[(1.7e-24, "< 0.000001"), (-1e-9, "> -0.000001")],
    ],
)
def test_numbers_read_without_powers_of_ten(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(950, "950"), (22_713_216, "22.7 M"), (1.45e9, "1.45 G"), (3e12, "3.00 T")]
)
def test_counts_read_short(value: float, text: str) -> None:
    assert format_count(value) == text


blocks = st.builds(
    lambda heads, ffn, rank: BlockConfig(heads=heads, kv_heads=heads, ffn=ffn, rank_qkv=rank if heads else 0),
    st.integers(0, 12), st.integers(0, 1536), st.sampled_from([0, 96]),
)  # fmt: skip


@settings(max_examples=30)
@given(st.lists(blocks, min_size=6, max_size=6))
def test_every_subnet_can_be_drawn(choice: list[BlockConfig]) -> None:
    subnet = SubnetConfig(blocks=tuple(choice), hidden_size=384)
    drawing = ET.fromstring(draw_subnet(subnet, TEACHER, "<a> & b"))
    columns = drawing.findall("g")
    assert len(columns) == 6
    for column, block in zip(columns, choice, strict=True):
        heights = [float(bar.get("height", "nan")) for bar in column.findall("rect")]
        assert min(heights) >= 0
        assert max(heights) <= 108  # Nothing is drawn beyond the teacher's outline.
        assert ("skip" in [text.text for text in column.findall("text")]) == block.skipped


def test_a_subnet_of_another_teacher_is_refused() -> None:
    small = SubnetConfig(blocks=TEACHER.blocks[:2], hidden_size=384)
    with pytest.raises(ValueError, match="as many blocks"):
        draw_subnet(small, TEACHER, "x")


def test_descriptions_tell_what_differs() -> None:
    assert describe(TEACHER) == "6 blocks, heads 12, FFN 1536"
    assert describe(make_subnet(4, skip=True)).startswith("5 blocks, heads 0-12")
    block = BlockConfig(heads=8, kv_heads=2, ffn=0, rank_qkv=96, precision="int8")
    assert describe_block(3, block) == "block 3: 8/2 heads, no FFN, rank 96 on query, key, value, int8"


def test_report_cards_stand_side_by_side_and_names_stay_text(tmp_path: Path) -> None:
    def interval(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.02, "high": value + 0.02}

    entry = {
        "value": interval(0.9), "teacher": interval(0.95), "retention": interval(0.947), "higher_is_better": True,
        "samples": 100,
    }  # fmt: skip
    task = {"kind": "text_classification", "data": "d", "split": "test", "samples": 100, "measure": "accuracy"}
    calibration = {"metrics": {"ece": entry}, "reliability": [{"confidence": 0.8, "accuracy": 0.7, "samples": 100}]}
    quality = {"metrics": {"accuracy": entry}}
    cards = [
        ReportCard(name, {"path": "p", "kind": "onnx", "teacher": "t"}, task, {}, quality, calibration)
        for name in (HOSTILE, "other")
    ]
    report = dataclasses.replace(make_report(), cards=tuple(card.to_dict() for card in cards))
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json").cards == report.cards
    page = render_page(report)
    reader = read_page(page)
    assert ("id", "cards") in reader.attributes
    assert "94.7 %" in page
    assert "img" not in reader.tags
    assert ("data-figure", "reliability") in reader.attributes
    assert "<th>note</th>" not in page  # Nobody has anything to note.
    figure = reliability_figure(report)
    assert figure is not None
    assert [trace["x"] for trace in figure["data"]] == [[0.8], [0.8]]
    assert "<img" not in json.dumps(figure)
