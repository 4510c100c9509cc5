"""The Latency page: at once what needs no fit, then the cross-validation, then its curve; all at once where kept."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from nas.dashboard import profiles
from nas.dashboard.app import Dashboard, make_app
from nas.dashboard.pages import latency
from nas.dashboard.profiles import judge, kept_trust
from nas.dashboard.watch import Watch
from tests.dashboard.synthetic import search
from tests.latency_models.test_trust import predictor, profile_of


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """A small profile, and a study that was searched with it."""
    search(tmp_path, "first", 4)
    found = profile_of(tmp_path, 20).path
    monkeypatch.setattr(latency, "find_profile", lambda *_: found)
    monkeypatch.setattr(profiles, "_maker", lambda *_: predictor)
    return found


def page(tmp_path):
    watch = Watch(tmp_path)
    watch.read()
    dashboard = Dashboard(watch)
    return dashboard, TestClient(make_app(dashboard), base_url="http://127.0.0.1")


def shown(client):
    text = client.get("/latency?study=first").text
    return ["mean absolute error" in text, "The learning curve is being" in text, 'data-figure="learning"' in text]


def test_the_curve_comes_after_the_rest_and_all_of_it_is_kept(tmp_path, profile):
    dashboard, client = page(tmp_path)
    text = client.get("/latency?study=first").text
    assert "The cross-validation is being computed" in text
    dashboard.jobs.wait()
    dashboard.jobs.get = lambda key, work, get=dashboard.jobs.get: (
        get(key, work) if key[0] == "trust" else latency.Result()
    )
    assert shown(client) == [True, True, False]
    del dashboard.jobs.get
    client.get("/latency?study=first")
    dashboard.jobs.wait()
    assert shown(client) == [True, False, True]
    dashboard, client = page(tmp_path)
    assert shown(client) == [True, False, True], "kept, so shown at once by a dashboard that was just begun"


def test_what_was_kept_of_another_profile_or_is_broken_is_drawn_again(tmp_path, profile):
    judged = judge(profile, "additive", 0.9)
    assert kept_trust(profile, "additive", 0.9).to_dict() == judged.to_dict()
    assert kept_trust(profile, "auto", 0.9) is None
    assert kept_trust(profile, "additive", 0.8) is None
    kept = profile.with_suffix(".trust.json")
    text = kept.read_text(encoding="utf-8")
    for broken in ("{", "[]", text.replace('"folds"', '"fold"')):
        kept.write_text(broken, encoding="utf-8")
        assert kept_trust(profile, "additive", 0.9) is None
    kept.write_text(text, encoding="utf-8")
    with profile.open("a", encoding="utf-8") as file:
        file.write("\n")
    assert kept_trust(profile, "additive", 0.9) is None
