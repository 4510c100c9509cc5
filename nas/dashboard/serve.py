"""Start the dashboard: bind, watch, serve until Ctrl-C."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.middleware import Middleware

from nas.dashboard.access import Access, is_local
from nas.dashboard.app import Dashboard, make_app
from nas.dashboard.watch import Watch


@dataclass(frozen=True)
class ServeSettings:
    """Where the dashboard listens. The constructor is the schema of ``conf/dashboard.yaml``.

    Args:
        host: 127.0.0.1 for this machine only; anything else needs a token.
        port: 0 takes a free one.
        optuna: Whether Optuna's own dashboard stands beside the pages.
        refresh_s: Seconds between two readings of the storage.
        token_from: Environment variable with the token; where it is empty and one is needed, one is made.

    Raises:
        ValueError: A number is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8090
    optuna: bool = False
    refresh_s: float = 2.0
    token_from: str = "NAS_DASHBOARD_TOKEN"  # noqa: S105 - the variable's name

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError("`host` must be an address, such as 127.0.0.1, or 0.0.0.0 for all networks, but got ''.")
        if not 0 <= self.port < 65536:
            raise ValueError(f"`port` must be in 0-65535, but got {self.port}.")
        if self.refresh_s < 0.1:
            raise ValueError(f"`refresh_s` must be at least 0.1, but got {self.refresh_s}.")

    def token(self) -> str | None:
        """The token to ask for; None where only this machine can connect and nobody set one.

        Raises:
            ValueError: It is too short to be safe.
        """
        given = os.environ.get(self.token_from, "")
        if given and len(given) < 16:
            raise ValueError(f"{self.token_from} must have at least 16 characters, but has {len(given)}.")
        return given or (None if is_local(self.host) else secrets.token_urlsafe(24))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ValueError: The port is taken, or the host is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"dashboard: cannot listen on {host}:{port} ({error.strerror or error}); choose another with "
            f"`dashboard.port=0` (a free one) or `dashboard.host=127.0.0.1`."
        ) from error


def serve(watch: Watch, settings: ServeSettings, say: Callable[[str], Any]) -> None:
    """Serve until Ctrl-C.

    Args:
        watch: Knows the studies; started and stopped here.
        settings: Where to listen.
        say: Takes the lines for the user.
    """
    import uvicorn

    token = settings.token()
    listener = bind(settings.host, settings.port)
    port = listener.getsockname()[1]
    fallback = None
    if settings.optuna:
        from nas.dashboard.optuna_view import optuna_app

        fallback = optuna_app(watch)
    access = Middleware(Access, token=token, port=port)
    app = make_app(Dashboard(watch, optuna=settings.optuna), fallback, [access])
    watch.start()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    say(f"Dashboard: http://{host}:{port}/" + (f"?token={token}" if token else ""))
    say(f"It shows the studies below {watch.root.resolve()}, live; Ctrl-C ends it.")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none"))
    try:
        server.run(sockets=[listener])
    finally:
        watch.stop()
        listener.close()
