"""Who may look: this machine without more ado, others by token; nobody may change anything."""

from __future__ import annotations

import socket
import threading

import pytest
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from nas.dashboard.access import Access, is_local
from nas.dashboard.app import Dashboard, make_app
from nas.dashboard.serve import ServeSettings, bind

TOKEN = "a-token-that-is-long-enough"


def client_of(watch, token=None, **options):
    app = make_app(Dashboard(watch), middleware=[Middleware(Access, token=token, port=8090)])
    return TestClient(app, base_url=options.pop("base_url", "http://127.0.0.1:8090"), follow_redirects=False, **options)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8090", "localhost:9", "[::1]:8090"])
def test_this_machines_names_are_answered(watch, host):
    assert client_of(watch).get("/sweeps", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::2]", "0.0.0.0:8090"])
def test_other_names_are_not(watch, host):
    assert client_of(watch).get("/sweeps", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch", "options"])
def test_nothing_but_reading(watch, method):
    assert getattr(client_of(watch), method)("/sweeps").status_code == 405


def test_answers_forbid_what_pages_do_not_need(watch):
    headers = client_of(watch).get("/sweeps").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe-eval" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a_token_comes_once_and_stays_as_a_cookie(watch):
    client = client_of(watch, TOKEN, base_url="http://box.example:8090")
    assert client.get("/sweeps").status_code == 401
    assert client.get("/assets/dashboard.js").status_code == 401
    assert client.get(f"/sweeps?token={TOKEN}x").status_code == 401
    answer = client.get(f"/front?study=first&token={TOKEN}&log=x")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/front?study=first&log=x"
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert client.get("/front?study=first").status_code == 200
    assert TOKEN not in client.get("/sweeps").text


def test_the_token_never_sends_to_another_host(watch):
    answer = client_of(watch, TOKEN).get(f"http://127.0.0.1:8090//evil.example/x?token={TOKEN}")
    assert answer.headers["location"] == "/evil.example/x"


def test_scripts_may_bring_the_token_as_a_header(watch):
    client = client_of(watch, TOKEN)
    assert client.get("/front.csv", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/front.csv", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/front.csv", headers={"Cookie": b"hwnas_8090=\xe4; ="}).status_code == 401


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)]
)
def test_which_hosts_are_local(host, local):
    assert is_local(host) == local


def test_other_hosts_get_a_token_and_a_short_one_is_refused(monkeypatch):
    monkeypatch.delenv("NAS_DASHBOARD_TOKEN", raising=False)
    assert ServeSettings().token() is None
    assert len(ServeSettings(host="0.0.0.0").token()) >= 24
    monkeypatch.setenv("NAS_DASHBOARD_TOKEN", TOKEN)
    assert ServeSettings().token() == TOKEN
    monkeypatch.setenv("NAS_DASHBOARD_TOKEN", "short")
    with pytest.raises(ValueError, match="at least 16 characters"):
        ServeSettings(host="0.0.0.0").token()


def test_settings_and_ports_are_checked():
    with pytest.raises(ValueError, match="port"):
        ServeSettings(port=70000)
    with pytest.raises(ValueError, match="refresh_s"):
        ServeSettings(refresh_s=0)
    taken = bind("127.0.0.1", 0)
    try:
        with pytest.raises(ValueError, match="cannot listen"):
            bind("127.0.0.1", taken.getsockname()[1])
    finally:
        taken.close()


def test_serving_starts_watches_and_ends(root):
    import urllib.request

    import uvicorn

    from nas.dashboard import serve as module
    from nas.dashboard.watch import Watch

    said: list[str] = []
    servers: list[uvicorn.Server] = []
    original = uvicorn.Server.run

    def run(self, sockets=None):
        servers.append(self)
        original(self, sockets)

    uvicorn.Server.run = run
    try:
        thread = threading.Thread(
            target=module.serve, args=(Watch(root, every_s=0.1), ServeSettings(port=0), said.append), daemon=True
        )
        thread.start()
        for _ in range(200):
            if servers and servers[0].started:
                break
            threading.Event().wait(0.05)
        address = said[0].split()[-1]
        text = urllib.request.urlopen(address, timeout=10).read().decode()
        assert "Sweeps" in text
    finally:
        uvicorn.Server.run = original
        servers[0].should_exit = True
        thread.join(10)
    assert not thread.is_alive()
    port = int(address.rstrip("/").rpartition(":")[2])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
