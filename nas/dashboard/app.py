"""The pages as a web application: a page is a function of its URL and of the studies, drawn anew when these change."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from nas.dashboard import formats
from nas.dashboard.jobs import Jobs
from nas.dashboard.spreadsheet import trials_csv
from nas.dashboard.studies import Study
from nas.dashboard.view import PAGES, View
from nas.dashboard.watch import Snapshot, Watch
from nas.reports.document import page_resource, plotly_source, script_json
from nas.reports.drawing import HATCH
from nas.reports.figure_parts import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Ask:
    """What a page is asked for.

    Args:
        view: The page and its options.
        snapshot: All studies.
        studies: Those that the view names.
        jobs: Takes work that is too long for an answer.
        watch: Loads what the snapshot does not hold.
    """

    view: View
    snapshot: Snapshot
    studies: list[Study]
    jobs: Jobs
    watch: Watch


@dataclass(frozen=True)
class Shown:
    """What a page shows: values for its template, and figures by name."""

    values: Mapping[str, Any]
    figures: Mapping[str, Figure | None] = field(default_factory=dict)


class Page(Protocol):
    """A module of `nas.dashboard.pages`."""

    def show(self, ask: Ask) -> Shown:
        """Everything that the page's template needs."""


class Dashboard:
    """Draws pages.

    Args:
        watch: Knows the studies.
        optuna: Whether Optuna's own dashboard stands beside the pages.
    """

    def __init__(self, watch: Watch, *, optuna: bool = False) -> None:
        self.watch = watch
        self.optuna = optuna
        self.jobs = Jobs()
        self.templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters |= formats.FILTERS
        self.templates.globals |= {"pages": PAGES, "release": version("hwnas"), "with_optuna": optuna}

    def version(self) -> str:
        """Changes whenever any page might."""
        return f"{self.watch.look().version}.{self.jobs.version}"

    def draw(self, view: View) -> tuple[str, dict[str, Figure]]:
        """The page's own HTML, without the frame around it, and its figures."""
        snapshot = self.watch.look()
        ask = Ask(view, snapshot, view.studies(snapshot.studies), self.jobs, self.watch)
        common = {"view": view, "snapshot": snapshot, "studies": ask.studies}
        if view.page != "sweeps" and not ask.studies:
            return self.templates.get_template("nothing.html").render(common), {}
        page: Page = import_module(f"nas.dashboard.pages.{view.page}")
        shown = page.show(ask)
        figures = {name: figure for name, figure in shown.figures.items() if figure is not None}
        values = {**common, "drawn": {name: f["layout"]["height"] for name, f in figures.items()}, **shown.values}
        return self.templates.get_template(f"{view.page}.html").render(values), figures

    def page(self, request: Request) -> Response:
        """A whole page."""
        view = _view(request)
        now = self.version()
        body, figures = self.draw(view)
        text = self.templates.get_template("base.html").render(
            view=view,
            title=PAGES[view.page],
            body=Markup(body),  # noqa: S704 - rendered by an escaping template
            hatch=Markup(HATCH),  # noqa: S704
            figures=Markup(script_json({"figures": figures, "version": now})),  # noqa: S704
            assets=_assets_version(),
        )
        return HTMLResponse(text)

    def live(self, request: Request) -> Response:
        """What of a page has changed since the versions that the request names; 204 where nothing has."""
        view = _view(request)
        now = self.version()
        if view.get("version") == now:
            return Response(status_code=204)
        have = set(view.get("have").split("."))
        view = View(view.page, tuple(option for option in view.options if option[0] not in ("version", "have")))
        body, figures = self.draw(view)
        pieces: dict[str, Any] = {"html": body, **{f"figure:{name}": figure for name, figure in figures.items()}}
        hashes = {name: _digest(piece) for name, piece in pieces.items()}
        return JSONResponse(
            {
                "version": now,
                "hashes": hashes,
                "pieces": {name: piece for name, piece in pieces.items() if hashes[name] not in have},
            }
        )

    def csv(self, request: Request) -> Response:
        """All trials of the chosen studies as CSV."""
        snapshot = self.watch.look()
        view = View("front", tuple(request.query_params.multi_items()))
        text = trials_csv(view.studies(snapshot.studies))
        return PlainTextResponse(
            text, media_type="text/csv", headers={"Content-Disposition": 'attachment; filename="trials.csv"'}
        )


def make_app(dashboard: Dashboard, fallback: ASGIApp | None = None, middleware: Sequence[Middleware] = ()) -> Starlette:
    """The web application.

    Args:
        dashboard: Draws the pages.
        fallback: Answers what is not ours: Optuna's own dashboard.
        middleware: Outermost first; `access.Access` belongs here.
    """
    names = "|".join(PAGES)
    routes: list[Route | Mount] = [
        Route("/", lambda _: RedirectResponse("/sweeps", 303)),
        Route("/front.csv", dashboard.csv),
        Route("/assets/plotly.js", _plotly),
        Route("/assets/page.css", lambda _: Response(page_resource("theme.css"), media_type="text/css")),
        Route("/assets/plots.js", lambda _: Response(page_resource("plots.js"), media_type="text/javascript")),
        Mount("/assets", StaticFiles(directory=HERE / "static")),
        *(Route(f"/{name}", dashboard.page) for name in names.split("|")),
        *(Route(f"/live/{name}", dashboard.live) for name in names.split("|")),
    ]
    if fallback is not None:
        routes.append(Mount("/", fallback))
    return Starlette(
        routes=routes,
        middleware=[*middleware, Middleware(GZipMiddleware, minimum_size=2000, compresslevel=5)],
        exception_handlers={404: _not_found, 500: _broken},
    )


def _view(request: Request) -> View:
    return View(request.url.path.rpartition("/")[2], tuple(request.query_params.multi_items()))


def _digest(piece: Any) -> str:
    text = piece if isinstance(piece, str) else json.dumps(piece, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@cache
def _plotly_gzip() -> bytes:
    return gzip.compress(plotly_source().encode(), 6, mtime=0)


def _plotly(request: Request) -> Response:
    """Plotly from the installed package; browsers keep it."""
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        packed = {**headers, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return Response(_plotly_gzip(), media_type="text/javascript", headers=packed)
    return Response(plotly_source(), media_type="text/javascript", headers=headers)


@cache
def _assets_version() -> str:
    """Changes with every file that a page loads, so that browsers may keep them."""
    digest = hashlib.blake2b(digest_size=6)
    for name in ("theme.css", "plots.js"):
        digest.update(page_resource(name).encode())
    for path in sorted((HERE / "static").iterdir()):
        digest.update(path.read_bytes())
    digest.update(version("plotly").encode())
    return digest.hexdigest()


def _not_found(_request: Request, _error: Exception) -> Response:
    return _told("There is no such page", "", 404)


def _broken(request: Request, error: Exception) -> Response:
    """The error's whole story stands in the terminal: uvicorn writes it there."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    text = f"{request.url.path} met an error of its own: {reason[:300]}. The terminal of nas dashboard tells more."
    return _told("This page cannot be drawn", text, 500)


def _told(title: str, text: str, status: int) -> Response:
    """A page that says what is wrong, and leads back."""
    return HTMLResponse(
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>hwnas: {escape(title)}</title><h1>{escape(title)}</h1><p>{escape(text)}</p>"
        '<p><a href="/sweeps">All studies</a></p></html>',
        status,
    )


__all__ = ["Ask", "Dashboard", "Page", "Shown", "make_app"]
