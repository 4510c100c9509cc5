"""Who may look: this machine only, or whoever has the token; and what a browser may do with what it is given."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_REFUSED = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>hwnas: token needed</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,"><h1>A token is needed</h1><p>Open the whole address that <code>nas dashboard</code>
printed where it was started; it ends in <code>?token=...</code>. A browser remembers it until
it is closed.</p></html>"""


def is_local(host: str) -> bool:
    """Whether a server that listens there is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """Refuses requests that may not be answered, and adds security headers to all answers.

    Without a token, the request must name this machine as its host, so that no page of the internet whose name was
    pointed here (DNS rebinding) reads the studies. With a token, it must bring it: as ``?token=`` once, then as a
    cookie.

    Args:
        app: What answers the others.
        token: The token, or None where only this machine can connect.
        port: Part of the cookie's name, so that several dashboards of one machine do not share it.
        hosts: Further host names that may be used without a token.
    """

    def __init__(self, app: ASGIApp, token: str | None, port: int, hosts: Iterable[str] = ()) -> None:
        self.app = app
        self.token = token
        self.cookie = f"hwnas_{port}"
        self.hosts = {*LOCAL_NAMES, *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", POLICY)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
                headers.setdefault("X-Frame-Options", "DENY")
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = self._refusal(scope)
        await (refused or self.app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("The dashboard only shows; it changes nothing.", 405, {"Allow": "GET, HEAD"})
        if self.token is None:
            name = headers.get("host", "")
            host = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
            if host.lower() not in self.hosts:
                return PlainTextResponse("Open the dashboard by the address that it printed.", 403)
            return None
        return self._without_token(scope, headers)

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        options = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in options if name == "token"]
        if given:
            if not self._right(given[-1]):
                return HTMLResponse(_REFUSED, 401)
            rest = urlencode([(name, value) for name, value in options if name != "token"])
            # A path that begins with two slashes would lead to another host.
            path = "/" + scope["path"].lstrip("/")
            answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(self.cookie, given[-1], httponly=True, samesite="strict")
            return answer
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            cookie = None
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if (cookie is not None and self._right(cookie.value)) or self._right(bearer):
            return None
        return HTMLResponse(_REFUSED, 401)

    def _right(self, given: str) -> bool:
        assert self.token is not None
        return secrets.compare_digest(given.encode(), self.token.encode())
