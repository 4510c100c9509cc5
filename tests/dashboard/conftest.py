import pytest
from starlette.testclient import TestClient

from nas.dashboard.app import Dashboard, make_app
from nas.dashboard.watch import Watch
from nas.reports.report import write_report
from tests.dashboard.synthetic import search
from tests.reports.sample import make_report


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Two searched studies, one with a report, and a folder that is none."""
    folder = tmp_path_factory.mktemp("runs")
    search(folder, "first", 24)
    search(folder, "second", 18, seed=3)
    write_report(make_report(study="second"), folder / "second")
    (folder / "logs").mkdir()
    return folder


@pytest.fixture(scope="session")
def watch(root):
    watch = Watch(root)
    watch.read()
    return watch


@pytest.fixture(scope="session")
def dashboard(watch):
    return Dashboard(watch)


@pytest.fixture(scope="session")
def client(dashboard):
    return TestClient(make_app(dashboard), base_url="http://127.0.0.1")
