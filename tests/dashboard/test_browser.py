"""The pages in a real browser: nothing in the console, live updates, pins, exports, names that stay text."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET

import pytest

from nas.dashboard.thinning import MOST_POINTS
from nas.dashboard.view import PAGES
from nas.reports.report import write_report
from tests.dashboard.browser import chromium, find_chromium, serving, until
from tests.dashboard.synthetic import search, write_trials
from tests.dashboard.test_pages import EVIL
from tests.reports.sample import make_report

PlaywrightError = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'hwnas[dev]'"
).Error
pytestmark = [
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium; on Debian: apt-get install chromium"),
    # Playwright's driver is another process, whose pipes the collector may close late.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    search(folder, "first", 24)
    search(folder, "second", 24, seed=3)
    write_report(make_report(study="second"), folder / "second")
    return folder


@pytest.fixture(scope="module")
def address(runs):
    with serving(runs) as found:
        yield found


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.complaints = []
    page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("dialog", lambda dialog: (page.complaints.append(dialog.message), dialog.dismiss()))
    yield page
    context.close()


class Between:
    """A page that is between two documents at first."""

    complaints = ("a complaint",)

    def __init__(self, errors):
        self.errors = list(errors)

    def evaluate(self, _expression):
        if self.errors:
            raise PlaywrightError(self.errors.pop(0))
        return True

    def wait_for_timeout(self, _milliseconds):
        pass


def test_a_page_between_two_documents_has_not_arrived_yet():
    gone = "Execution context was destroyed, most likely because of a navigation"
    until(Between(["Cannot read properties of null (reading 'dataset')", gone]), "document.body.dataset.version")
    with pytest.raises(pytest.fail.Exception, match=r"because no such thing; the page says: .*a complaint"):
        until(Between(["no such thing"] * 9), "document.body.dataset.version", tries=9)


def drawn(page, name):
    page.wait_for_selector(f".plot[data-figure={name}] .main-svg")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_loads_without_a_complaint_and_fits(page, address, name, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{address}/{name}?study=second")
    until(page, "document.body.dataset.version")
    page.wait_for_timeout(150)
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(v) for v in background[4:-1].split(",")) > 382) == (scheme == "light")
    unlabelled = page.evaluate(
        "[...document.querySelectorAll('button, a, input, select')].filter(e => !e.hidden && e.type !== 'hidden' && "
        "!(e.innerText || e.ariaLabel || (e.labels && e.labels.length))).length"
    )
    assert unlabelled == 0


def test_live_updates_arrive_without_a_reload_and_disturb_nobody(browser, page, tmp_path):
    search(tmp_path, "live", 6)
    with serving(tmp_path) as address:
        page.goto(f"{address}/sweeps")
        page.evaluate("window.stays = 'here'")
        page.check("input[name=study]")
        page.fill("input[type=search]", "liv")
        assert page.locator("td[data-label=trials]").inner_text().startswith("6")
        search(tmp_path, "live", 15)
        until(page, "document.querySelector('td[data-label=trials]').innerText.startsWith('15')")
        assert page.evaluate("window.stays") == "here"
        assert page.is_checked("input[name=study]")
        assert page.input_value("input[type=search]") == "liv"
        search(tmp_path, "later-live", 4)
        page.wait_for_selector("text=later-live")
    assert page.complaints == []


def test_figures_grow_live(page, tmp_path):
    search(tmp_path, "grow", 8)
    with serving(tmp_path) as address:
        page.goto(f"{address}/search?study=grow")
        drawn(page, "hypervolume")
        count = "document.querySelector('.plot[data-figure=hypervolume]').data[0].x.length"
        before = page.evaluate(count)
        search(tmp_path, "grow", 30)
        until(page, f"{count} > {before}")
    assert page.complaints == []


def test_a_lost_server_is_told(page, tmp_path):
    search(tmp_path, "lost", 3)
    with serving(tmp_path) as address:
        page.goto(f"{address}/sweeps")
    page.wait_for_selector("#live.lost")
    assert "is nas dashboard running" in page.inner_text("#live")


def test_clicking_points_pins_two_candidates_side_by_side(page, address):
    page.goto(f"{address}/front?study=second")
    drawn(page, "front")
    # Plotly's own event, as a click on a marker raises it: markers are drawn over each other.
    emit = (
        "([name, index]) => { const plot = document.querySelector('.plot[data-figure=front]'); const trace = "
        "plot.data.find(t => t.name.includes(name)); plot.emit('plotly_click', "
        "{points: [{customdata: trace.customdata[index]}]}); }"
    )
    page.evaluate(emit, ["measured fp32", 0])
    page.wait_for_selector("#pins figure")
    page.evaluate(emit, ["front, predicted", 0])
    page.wait_for_selector("#pins figure:nth-of-type(2)")
    assert "B / A" in page.inner_text("#pins")
    assert page.locator("#pins svg.subnet").count() >= 1
    page.reload()
    assert page.locator("#pins figure").count() == 2
    page.click("#pins .close >> nth=0")
    until(page, "document.querySelectorAll('#pins figure').length === 1")
    page.go_back()
    until(page, "document.querySelectorAll('#pins figure').length === 2")
    assert page.complaints == []


def test_a_real_click_on_a_marker_pins_it(page, address):
    page.goto(f"{address}/front?study=second")
    drawn(page, "front")
    where = page.evaluate(
        "() => { const plot = document.querySelector('.plot[data-figure=front]'); "
        "const box = plot.getBoundingClientRect();"
        "const t = plot.data.find(t => t.name.includes('teacher fp32')); const l = plot._fullLayout;"
        "return [box.x + l.xaxis._offset + l.xaxis.d2p(t.x[0]), box.y + l.yaxis._offset + l.yaxis.d2p(t.y[0])]; }"
    )
    page.mouse.move(where[0] - 20, where[1] - 20)
    page.mouse.move(*where, steps=4)
    page.wait_for_selector(".hoverlayer .hovertext")
    assert "teacher" in page.text_content(".hoverlayer")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector("#pins figure")
    assert "teacher" in page.inner_text("#pins")


def test_the_keyboard_reaches_everything(page, address):
    page.goto(f"{address}/front?study=second")
    drawn(page, "front")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("td a.button >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_selector("#pins figure")
    page.focus("input[name=log] >> nth=0")
    page.keyboard.press("Space")
    until(page, "document.querySelector('.plot[data-figure=front]').layout.xaxis.type === 'log'")
    assert "log=x" in page.url


def test_axes_are_chosen_from_what_was_measured(page, address):
    page.goto(f"{address}/front?study=first")
    page.select_option("select[name=x]", "parameters")
    until(page, "document.querySelector('.plot[data-figure=front]').layout.xaxis.title.text === 'parameters'")
    assert page.locator("select[name=y] option").count() > 3


@pytest.mark.parametrize("form", ["png", "svg", "csv"])
def test_exports_download(page, address, form):
    page.goto(f"{address}/front?study=second")
    drawn(page, "front")
    with page.expect_download() as found:
        page.click(f".tools >> text={form.upper()}")
    content = found.value.path().read_bytes()
    if form == "png":
        assert content.startswith(b"\x89PNG")
    elif form == "svg":
        assert ET.fromstring(content).tag.endswith("svg")
    else:
        assert len(list(csv.reader(io.StringIO(content.decode())))) == 25


def test_an_evil_name_stays_text(page, tmp_path):
    folder = search(tmp_path, "evil", 24)
    text = (folder / "journal.log").read_text().replace('"study_name":"evil"', f'"study_name":{json.dumps(EVIL)}')
    (folder / "journal.log").write_text(text)
    with serving(tmp_path) as address:
        page.goto(f"{address}/sweeps")
        assert page.inner_text("td.name") == EVIL
        page.click("td.name a")
        drawn(page, "front")
        assert EVIL in page.inner_text(".picker summary")
        for name in PAGES:
            page.click(f"[data-page-link={name}]")
            until(page, "document.body.dataset.version")
    assert page.complaints == []


def test_ten_thousand_trials_are_drawn_with_few_points_and_grow(page, tmp_path):
    journal = write_trials(tmp_path / "large" / "journal.log", 10_000)
    with serving(tmp_path) as address:
        page.goto(f"{address}/front?study=large")
        drawn(page, "front")
        points = page.evaluate(
            "document.querySelector('.plot[data-figure=front]').data.reduce((n, t) => n + t.x.length, 0)"
        )
        assert 500 < points < 3 * MOST_POINTS
        page.goto(f"{address}/search?study=large")
        drawn(page, "hypervolume")
        page.goto(f"{address}/sweeps")
        assert page.inner_text("td[data-label=trials]").startswith("10000")
        last = journal.read_text().splitlines()[-1]
        with journal.open("a") as file:
            file.write(last + "\n")
        until(page, "document.querySelector('td[data-label=trials]').innerText.startsWith('10001')")
    assert page.complaints == []


def test_a_token_opens_the_pages(page, tmp_path):
    token = "a-token-that-is-long-enough"
    with serving(tmp_path, token=token) as address:
        with page.expect_console_message(lambda message: "401" in message.text):
            assert page.goto(f"{address}/sweeps").status == 401
        page.complaints.clear()
        page.goto(f"{address}/sweeps?token={token}")
        assert "token" not in page.url
        assert "No study yet" in page.inner_text("main")
    assert page.complaints == []
