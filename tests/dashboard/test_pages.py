"""The pages without a browser: all of them, with any options, escaped, and changed only where something changed."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import shutil
from dataclasses import replace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from nas.dashboard.app import Dashboard, make_app
from nas.dashboard.figures import Axes, blocks_in_words, front_figure
from nas.dashboard.formats import format_breakable
from nas.dashboard.jobs import Jobs
from nas.dashboard.search_figures import failures, rungs
from nas.dashboard.view import PAGES, Pin, View
from nas.dashboard.watch import Watch
from nas.engine.storage import DatabaseStorage
from nas.evaluation.card import ReportCard
from nas.reports.report import write_report
from nas.reports.tables import describe
from tests.dashboard.synthetic import search
from tests.reports.sample import make_report

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>@&study=b"


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.handlers = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("query", ["", "?study=second", "?study=first&study=second"])
def test_every_page_shows(client, page, query):
    answer = client.get(f"/{page}{query}")
    assert answer.status_code == 200
    assert f'aria-current="page">{PAGES[page]}' in answer.text


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("state", ["nothing", "just begun", "infeasible", "foreign"])
def test_every_page_says_what_is_missing(tmp_path, page, state):
    if state == "just begun":
        search(tmp_path, "begun", 1)
        study = optuna.load_study(study_name="begun", storage=Watch(tmp_path).storage.open(tmp_path / "begun").backend)
        assert len(study.trials) == 1
    if state == "infeasible":
        search(tmp_path, "hard", 6)
        text = (tmp_path / "hard" / "journal.log").read_text().splitlines()
        lines = [json.loads(line) for line in text]
        for line in lines:
            if "constraints:latency_ms" in line.get("system_attr", {}):
                line["system_attr"]["constraints:latency_ms"] = 1.0
        (tmp_path / "hard" / "journal.log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state == "foreign":
        url = f"sqlite:///{tmp_path}/all.db"
        study = optuna.create_study(storage=url, study_name="theirs", directions=["minimize"])
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=20)
        watch = Watch(tmp_path, DatabaseStorage(url))
    else:
        watch = Watch(tmp_path)
    watch.read()
    answer = TestClient(make_app(Dashboard(watch))).get(f"/{page}")
    assert answer.status_code == 200
    expected = {"nothing": "No study yet", "infeasible": "hard", "just begun": "begun", "foreign": "theirs"}[state]
    assert expected in answer.text
    if state == "infeasible" and page == "front":
        assert "keeps to latency_ms" in answer.text


def test_names_stay_text_on_every_page(tmp_path):
    folder = search(tmp_path, "evil", 12)
    text = (folder / "journal.log").read_text().replace('"study_name":"evil"', f'"study_name":{json.dumps(EVIL)}')
    (folder / "journal.log").write_text(text.replace("onnxruntime_cpu", "</td><script>alert(3)</script>"))
    watch = Watch(tmp_path)
    assert list(watch.read().studies) == [EVIL]
    client = TestClient(make_app(Dashboard(watch)))
    for page in PAGES:
        for address in (f"/{page}", View(page, (("study", EVIL), ("pin", f"t3@{EVIL}"), ("q", EVIL))).link()):
            answer = client.get(address)
            assert answer.status_code == 200
            tags = Tags(answer.text)
            assert tags.found.count("script") == 4
            assert not tags.handlers
            assert "alert(1)</script>" not in answer.text
    link = next(part for part in client.get("/front").text.split('"') if part.startswith("/front.csv?"))
    rows = list(csv.reader(io.StringIO(client.get(link.replace("&amp;", "&")).text)))
    assert len(rows) == 13
    assert {row[0] for row in rows[1:]} == {EVIL}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["study", "pin", "x", "y", "log", "sort", "order", "q", "goal", "have"]),
            st.text(max_size=12),
        ),
        max_size=6,
    ),
    st.sampled_from(sorted(PAGES)),
)
@settings(max_examples=40, deadline=None)
def test_any_url_is_answered(client, options, page):
    view = View(page, tuple(options))
    assert client.get(view.link()).status_code == 200
    assert client.get("/live" + view.link()).status_code in (200, 204)


def test_live_sends_only_what_changed(client, dashboard):
    whole = client.get("/live/front?study=first").json()
    assert set(whole["pieces"]) == {"html", "figure:front"}
    assert client.get(f"/live/front?study=first&version={dashboard.version()}").status_code == 204
    have = ".".join(whole["hashes"].values())
    assert client.get(f"/live/front?study=first&have={have}").json()["pieces"] == {}
    pinned = client.get(f"/live/front?study=first&have={have}&pin=t3@first").json()
    assert set(pinned["pieces"]) == {"html"}
    assert "trial 3" in pinned["pieces"]["html"]


def test_front_overlays_studies_limits_models_and_teachers(client):
    figure = client.get("/live/front?study=first&study=second&log=x").json()["pieces"]["figure:front"]
    names = [trace["name"] for trace in figure["data"]]
    assert "first: front, predicted" in names
    assert "second: measured int8" in names
    assert "second: teacher fp32" in names
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert figure["layout"]["shapes"]
    front = next(trace for trace in figure["data"] if trace["name"] == "first: front, predicted")
    assert len(front["error_x"]["array"]) == len(front["x"]) == len(front["customdata"])


def test_a_hover_tells_the_architecture_block_by_block(client, watch):
    figure = client.get("/live/front?study=first").json()["pieces"]["figure:front"]
    front = next(trace for trace in figure["data"] if trace["name"] == "front, predicted")
    study = watch.look().studies["first"]
    subnet = study.subnet(int(study.trials.front[0]))
    heads = " ".join(str(block.heads or "-") for block in subnet.blocks)
    assert front["text"][0].startswith(
        f"<b>trial {study.trials.rows[study.trials.front[0]].number}</b><br>heads: {heads}<br>"
    )
    assert blocks_in_words("no subnet") == ""
    deep = replace(subnet, blocks=subnet.blocks * 20)
    assert blocks_in_words(deep.to_json()) == f"<br>{describe(deep)}"


def test_the_card_shows_report_cards_and_says_where_there_are_none(tmp_path):
    folder = search(tmp_path, "judged", 6)
    write_report(make_report(study="judged"), folder)
    client = TestClient(make_app(Dashboard(watch := Watch(tmp_path))))
    watch.read()
    assert "finalists.cards=true" in client.get("/card?study=judged&model=s1").text

    def interval(value):
        return {"value": value, "low": value - 0.02, "high": value + 0.02}

    entry = {"value": interval(0.9), "teacher": interval(0.95), "retention": interval(0.947)}
    task = {"kind": "text_classification", "data": "d", "split": "test", "samples": 100, "measure": "accuracy"}
    for name in ("s1", "s1-model_int8", "s12"):
        model = {"path": "p", "kind": "onnx", "teacher": EVIL}
        card = ReportCard(name, model, task, {}, {"metrics": {f"accuracy{EVIL}": entry}})
        (folder / "cards" / name).mkdir(parents=True)
        card.save(folder / "cards" / name / "metrics.json")
    (folder / "cards" / "s1-model_old").mkdir()
    (folder / "cards" / "s1-model_old" / "metrics.json").write_text('{"format": "hwnas report card", "version": 0}')
    text = client.get("/card?study=judged&model=s1").text
    assert text.count("<h2>Report card, ") == 2
    assert "Report card, int8" in text
    assert "94.7 %" in text
    assert "img" not in Tags(text).found


def test_a_limit_says_whose_it_is_where_studies_differ(watch):
    studies = watch.read().studies
    first, second = studies["first"], studies["second"]

    def limited(study, key, bound):
        context = {**study.facts.context, "constraints": {"latency_ms": f"latency_ms <= {bound}"}}
        return replace(study, facts=replace(study.facts, key=key, context=context))

    def notes(*studies):
        found = front_figure(studies, Axes("latency_ms", "cosine"))["layout"]["annotations"]
        return [note["text"] for note in found if note["text"].startswith("≤")]

    tight, loose = limited(first, "<b>", 3.25), limited(second, "second", 7.5)
    assert notes(tight) == ["≤ 3.25"]
    assert notes(tight, loose) == ["≤ 3.25 (&lt;b&gt;)", "≤ 7.50 (second)"]
    assert notes(tight, limited(second, "second", 3.25)) == ["≤ 3.25"]


def test_two_pins_stand_side_by_side_and_a_third_replaces_the_older(client):
    view = View("front", (("study", "second"), ("pin", "t1@second"), ("pin", "m2@second")))
    text = client.get(view.link()).text
    assert "A: trial 1" in text
    assert "B: s1" in text
    assert "B / A" in text
    assert View("front", tuple(pair.split("=") for pair in ["study=second"])).pins == ()
    third = view.pin(Pin("second", 5))
    assert "t1%40second" not in third
    assert third.endswith("pin=m2%40second&pin=t5%40second")


@pytest.mark.parametrize("text", ["", "t", "x1@a", "t-1@a", "t1", "t²@a", "m1@", "@a"])
def test_what_is_no_pin_is_none(text):
    assert Pin.read(text) is None


def test_sorting_and_filtering(client):
    def names(query):
        text = client.get(f"/sweeps{query}").text
        return [part.split('"')[0] for part in text.split('data-key="row-')[1:]]

    assert names("?sort=study&order=up") == ["first", "second"]
    assert names("?sort=study&order=down") == ["second", "first"]
    assert names("?sort=trials&order=down") == ["first", "second"]
    assert names("?q=SEC") == ["second"]
    assert names("?q=nothing+like+it") == []
    assert "No study matches" in client.get("/sweeps?q=zzz").text


def test_csv_holds_every_trial_with_bounds(client):
    rows = list(csv.DictReader(io.StringIO(client.get("/front.csv?study=first").text)))
    assert len(rows) == 24
    complete = [row for row in rows if row["state"] == "COMPLETE"]
    assert all(float(r["latency_ms_lower"]) < float(r["latency_ms"]) < float(r["latency_ms_upper"]) for r in complete)
    assert any(row["on_front"] == "True" for row in rows)
    assert json.loads(complete[0]["subnet"])["hidden_size"]


def test_importances_come_from_the_background(tmp_path):
    search(tmp_path, "many", 60)
    watch = Watch(tmp_path)
    watch.read()
    dashboard = Dashboard(watch)
    client = TestClient(make_app(dashboard))
    assert client.get("/search?study=many").status_code == 200
    dashboard.jobs.wait()
    figure = client.get("/live/search?study=many").json()["pieces"]["figure:importance"]
    total = sum(value for row in figure["data"][0]["z"] for value in row)
    assert total == pytest.approx(1.0, abs=1e-6)


def test_a_job_that_fails_tells_why():
    jobs = Jobs()
    assert not jobs.get("a", lambda: 1 / 0).done
    jobs.wait()
    assert "division" in jobs.get("a", lambda: 1).problem


def test_rungs_and_failures(watch):
    from dataclasses import replace

    from nas.dashboard.trials import Trials

    trials = watch.look().studies["first"].trials
    able = [row for row in trials.rows if row.feasible][:3]
    lifted = replace(able[0], steps=50, number=100)
    broken = [
        replace(able[1], state="FAIL", outcome="failed", feasible=False, reason="out of memory", number=n)
        for n in (7, 8)
    ]
    mixed = Trials([*able, lifted, *broken], trials.objectives)
    assert [(rung.steps, rung.trials, rung.promoted) for rung in rungs(mixed)] == [(0, 3, 1), (50, 1, 0)]
    (failure,) = failures(mixed)
    assert (failure.reason, failure.count, failure.examples) == ("out of memory", 2, (7, 8))


def test_assets_are_served_and_nothing_else(client):
    for name in ("plotly.js", "plots.js", "page.css", "dashboard.js", "dashboard.css", "icon.svg"):
        assert client.get(f"/assets/{name}").status_code == 200
    for path in (
        "/assets/../app.py",
        "/assets/%2e%2e/app.py",
        "/nothing",
        "/assets/",
        "/report.json",
        "/first/journal.log",
    ):
        answer = client.get(path)
        assert answer.status_code == 404, path
    assert client.get("/", follow_redirects=False).headers["location"] == "/sweeps"


def test_an_error_of_a_page_is_told_as_text(dashboard, monkeypatch):
    def broken(view):
        raise KeyError(EVIL)

    client = TestClient(make_app(dashboard), raise_server_exceptions=False)
    monkeypatch.setattr(dashboard, "draw", broken)
    answer = client.get("/front?study=first")
    assert answer.status_code == 500
    assert "cannot be drawn" in answer.text
    assert "KeyError" in answer.text
    assert not {"img", "script"} & set(Tags(answer.text).found)


def test_names_may_be_broken_and_stay_text():
    assert str(format_breakable("a_b-<i>")) == "a_<wbr>b-<wbr>&lt;i&gt;"


def test_optunas_dashboard_reads_every_study_and_changes_none(root):
    pytest.importorskip("optuna_dashboard")
    from nas.dashboard.optuna_view import ReadOnlyStorage, optuna_app

    watch = Watch(root)
    watch.read()
    client = TestClient(make_app(Dashboard(watch, optuna=True), optuna_app(watch)))
    studies = client.get("/api/studies").json()["study_summaries"]
    assert {study["study_name"] for study in studies} == {"first", "second"}
    number = next(study["study_id"] for study in studies if study["study_name"] == "second")
    assert len(client.get(f"/api/studies/{number}").json()["trials"]) == 18
    assert 'href="/dashboard"' in client.get("/sweeps").text
    storage = ReadOnlyStorage(watch)
    assert storage.get_study_name_from_id(storage.get_study_id_from_name("first")) == "first"
    with pytest.raises(RuntimeError, match="does not change"):
        storage.delete_study(0)
    with pytest.raises(KeyError):
        storage.get_study_directions(99)
    loaded = optuna.load_study(study_name="first", storage=storage)
    assert len(loaded.trials) == 24


def test_studies_that_vanish_leave_the_pages(tmp_path):
    url = f"sqlite:///{tmp_path}/all.db"
    optuna.create_study(storage=url, study_name="gone")
    watch = Watch(tmp_path, DatabaseStorage(url))
    watch.read()
    optuna.delete_study(storage=url, study_name="gone")
    assert not watch.read().studies
    shutil.rmtree(tmp_path)
    assert TestClient(make_app(Dashboard(watch))).get("/front?study=gone").status_code == 200
