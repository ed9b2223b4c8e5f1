"""HTTP: /metrics for Prometheus, /healthz and /readyz for the orchestrator, /status for commands, / for people.

With a token, all but /healthz ask for it."""

import dataclasses
import hmac
import json
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.metrics import registry
from daemon.page import HEADERS, HTML, Page
from daemon.settings import HttpConfig
from daemon.totals import Snapshot
from schemas.errors import SettingsError

OPEN = "/healthz"
"""For an orchestrator's probe, which often can send no token."""


class _Guard:
    """Lets through who sends the token, and whoever asks for OPEN."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == OPEN or self._knows(scope):
            await self._app(scope, receive, send)
            return
        asked = {"WWW-Authenticate": 'Bearer realm="afresh"'}
        answer = Response("a bearer token is needed: see http.token_file\n", 401, asked)
        await answer(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = sent[0].partition(b" ") if len(sent) == 1 else (b"", b"", b"")
        return hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"


class Http:
    """Serves what the app knows. `health` and `ready` return what is wrong; nothing is well."""

    def __init__(
        self,
        config: HttpConfig,
        snapshot: Callable[[], Snapshot],
        health: Callable[[], list[str]],
        ready: Callable[[], list[str]],
        page: Page | None = None,
    ) -> None:
        found = registry(snapshot)

        def metrics(_: Request) -> Response:
            return Response(generate_latest(found), media_type=CONTENT_TYPE_LATEST)

        def healthz(_: Request) -> Response:
            return _answer(health())

        def readyz(_: Request) -> Response:
            return _answer(ready())

        def status(_: Request) -> Response:
            body = {"health": health(), "ready": ready(), **as_json(snapshot())}
            return Response(json.dumps(body), media_type="application/json")

        routes = [
            Route("/metrics", metrics),
            Route(OPEN, healthz),
            Route("/readyz", readyz),
            Route("/status", status),
        ]
        if page is not None:
            routes += _of_page(page, lambda: page.told(snapshot(), health(), ready()))
        app: ASGIApp = Starlette(routes=routes)
        token = config.token()
        if token is not None:
            app = _Guard(app, token)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                config.host,
                config.port,
                log_level="warning",
                access_log=False,
                ws="none",
                server_header=False,
            )
        )
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)
        self._config = config

    def start(self, timeout_s: float = 10.0) -> str:
        """Returns the address. Raises SettingsError where the port cannot be had."""
        self._thread.start()
        until = time.monotonic() + timeout_s
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise SettingsError(
                    f"http.host {self._config.host}, http.port {self._config.port}: the address cannot be "
                    "had, perhaps another daemon has it. Change http.port, or set 0 for a free one."
                )
            self._thread.join(0.02)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        return f"http://{host}:{port}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(5)


def _of_page(page: Page, told: Callable[[], dict[str, Any]]) -> list[Route]:
    def html(_: Request) -> Response:
        return Response(HTML, media_type="text/html", headers=HEADERS)

    def page_json(_: Request) -> Response:
        return JSONResponse(as_json(told()), headers=HEADERS)

    def map_json(_: Request) -> Response:
        return JSONResponse(as_json(page.map()), headers=HEADERS)

    return [Route("/", html), Route("/page.json", page_json), Route("/map.json", map_json)]


def _answer(wrong: list[str]) -> JSONResponse:
    return JSONResponse({"ok": not wrong, "reasons": wrong}, 503 if wrong else 200)


def as_json(value: Any) -> Any:
    """Plain data of dataclasses; what is not a finite number is null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): as_json(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
