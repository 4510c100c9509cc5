"""A real headless Chromium and a real server, for tests and for the documentation's screenshots."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.middleware import Middleware

from nas.dashboard.access import Access
from nas.dashboard.app import Dashboard, make_app
from nas.dashboard.serve import bind
from nas.dashboard.watch import Watch

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The path of an installed Chromium."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator:
    """A running browser, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    assert path is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving(root: Path, every_s: float = 0.2, token: str | None = None) -> Iterator[str]:
    """A dashboard over the studies of a folder; gives its address."""
    watch = Watch(root, every_s=every_s)
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    app = make_app(Dashboard(watch), middleware=[Middleware(Access, token=token, port=port)])
    watch.start()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while (not server.started or watch.snapshot.reading) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        watch.stop()
        listener.close()


def until(page, expression: str, tries: int = 300) -> None:
    """Wait for something in the page; Playwright's own way needs `eval`, which the page's policy forbids.

    Between two documents there is none to ask, so what cannot be evaluated has not come true yet; where it never can
    be, the failure tells the page's own reason.
    """
    from playwright.sync_api import Error

    reason = ""
    for _ in range(tries):
        try:
            if page.evaluate(expression):
                return
            reason = ""
        except Error as error:
            reason = f", because {error.message}"
        page.wait_for_timeout(100)
    pytest.fail(f"{expression} never came true{reason}; the page says: {page.complaints}")
