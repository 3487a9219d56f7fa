"""The routes of the gateway, and what every answer has in common: keys, errors in OpenAI's form, draining."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any

from aiohttp import web

from thinkserve.gateway.chat import ChatRoute
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.errors import INTERNAL, ApiError, shutting_down
from thinkserve.gateway.keys import Caller, Keys
from thinkserve.gateway.metrics import Metrics
from thinkserve.gateway.tokens import TokenTexts
from thinkserve.gateway.upstream import Pool
from thinkserve.gateway.wire import encode

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
JSON = {"Content-Type": "application/json"}


def _json(data: object, status: int = 200) -> web.Response:
    return web.Response(body=encode(data), status=status, headers=JSON)


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "thinkserve"}


class Gateway:
    """One gateway: configuration, engines, keys, and the aiohttp application over them.

    Args:
        config: what the operator decided.
        pool: the engines; opened and closed with the application.
        keys: who may call.
        skip_special_tokens: False where a marker is a special token of the checkpoint, which engines would leave out.
        engine_restarts: tells how often engines were started again, for the metrics.
    """

    def __init__(
        self,
        config: GatewayConfig,
        pool: Pool,
        keys: Keys,
        *,
        skip_special_tokens: bool = True,
        engine_restarts: Callable[[], int] = lambda: 0,
    ) -> None:
        self.config = config
        self.pool = pool
        self.metrics = Metrics()
        self.draining = False
        self.running = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self.idle = asyncio.Event()
        self.idle.set()
        self._keys = keys
        self._chat = ChatRoute(
            config,
            pool,
            self.metrics,
            TokenTexts(config.tokenizer, skip_special_tokens=skip_special_tokens),
            skip_special_tokens=skip_special_tokens,
        )
        self._restarts = engine_restarts
        self._routes: dict[str, tuple[str, Handler]] = {
            "/v1/chat/completions": ("POST", self._chat_completions),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/ready": ("GET", self._ready),
            "/metrics": ("GET", self._metrics),
            "/version": ("GET", self._version),
        }

    def application(self) -> web.Application:
        """The aiohttp application; its start opens the connections to the engines."""
        app = web.Application(client_max_size=self.config.max_body_bytes)
        for path, (method, handler) in self._routes.items():
            app.router.add_route(method, path, _with_errors(handler, self.metrics))
            if method == "GET":
                app.router.add_route("HEAD", path, _with_errors(handler, self.metrics))
        app.router.add_get("/v1/models/{model:.+}", _with_errors(self._one_model, self.metrics))
        app.router.add_route("*", "/{path:.*}", _with_errors(self._unknown, self.metrics))
        app.cleanup_ctx.append(self._lifetime)
        return app

    async def _lifetime(self, app: web.Application) -> AsyncIterator[None]:
        await self.pool.open()
        yield
        await self.pool.close()
        self._chat.close()

    def cut(self) -> None:
        """End all that still runs, with an error that says so: never a silent cut."""
        self._chat.cut = True
        for task in self._tasks:
            task.cancel()

    def _caller(self, http: web.Request) -> Caller:
        return self._keys.caller(http.headers.get("Authorization"))

    async def _chat_completions(self, http: web.Request) -> web.StreamResponse:
        caller = self._caller(http)
        if self.draining:
            raise shutting_down()
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.running += 1
        self.idle.clear()
        self.metrics.running.inc()
        try:
            return await self._chat.handle(http, caller)
        finally:
            self._tasks.discard(task)
            self.running -= 1
            if not self.running:
                self.idle.set()
            self.metrics.running.dec()

    @property
    def _model_names(self) -> list[str]:
        if self.config.model_name:
            return [self.config.model_name]
        return sorted({upstream.model for upstream in self.pool.upstreams if upstream.model})

    async def _models(self, http: web.Request) -> web.Response:
        self._caller(http)
        return _json({"object": "list", "data": [_model(name) for name in self._model_names]})

    async def _one_model(self, http: web.Request) -> web.Response:
        self._caller(http)
        name = http.match_info["model"]
        if name not in self._model_names:
            raise ApiError(
                404,
                f"the model {name[:100]!r} does not exist; this server has {', '.join(self._model_names)}",
                param="model",
                code="model_not_found",
            )
        return _json(_model(name))

    async def _health(self, http: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _ready(self, http: web.Request) -> web.Response:
        if self.draining:
            return _json({"status": "draining"}, 503)
        ready = await self.pool.probe()
        return _json({"status": "ready" if ready else "the engine does not answer"}, 200 if ready else 503)

    async def _metrics(self, http: web.Request) -> web.Response:
        self.metrics.engine_restarts.set(self._restarts())
        return web.Response(
            body=self.metrics.exposition(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _version(self, http: web.Request) -> web.Response:
        return _json({"version": version("thinkserve")})

    async def _unknown(self, http: web.Request) -> web.Response:
        served = ", ".join(f"{method} {path}" for path, (method, _) in self._routes.items())
        known = self._routes.get(http.path)
        if known is not None:
            raise ApiError(
                405,
                f"{http.path} takes {known[0]}, not {http.method}",
                code="method_not_allowed",
                headers={"Allow": "GET, HEAD" if known[0] == "GET" else known[0]},
            )
        raise ApiError(
            404, f"{http.method} {http.path[:200]} is not served; what is: {served}", code="unknown_url"
        )


def _with_errors(handler: Handler, metrics: Metrics) -> Handler:
    """Wrap a handler so that whatever goes wrong reaches the client as an OpenAI error, and the metrics."""

    async def handle(http: web.Request) -> web.StreamResponse:
        try:
            answer = await handler(http)
        except ApiError as error:
            answer = web.Response(body=error.body(), status=error.status, headers={**JSON, **error.headers})
        except (ConnectionError, web.HTTPException):
            raise
        except Exception:
            # The traceback is the operator's; it names code, and no request's or output's text.
            logger.exception("unexpected error in %s %s", http.method, http.path)
            answer = web.Response(body=INTERNAL.body(), status=500, headers=JSON)
        metrics.requests.labels(str(answer.status)).inc()
        return answer

    return handle
