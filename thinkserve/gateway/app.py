"""The routes of the gateway, and what every answer has in common: keys, errors in OpenAI's form, draining."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aiohttp import web

from thinkserve.errors import UsageError
from thinkserve.gateway.access_log import AccessLog, AccessRecord, client_request_id
from thinkserve.gateway.api import endpoints
from thinkserve.gateway.buckets import OwnBuckets, SharedBuckets
from thinkserve.gateway.concurrency import Concurrency
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.errors import INTERNAL, ApiError, invalid, shutting_down
from thinkserve.gateway.fields import DROP, REWRITE, Field, Fields, one_of, read_fields, read_object, string
from thinkserve.gateway.intake import Services
from thinkserve.gateway.keys import Caller, Keys
from thinkserve.gateway.limits import Limits
from thinkserve.gateway.metrics import CONTENT_TYPE, Metrics
from thinkserve.gateway.openapi import document
from thinkserve.gateway.playground import add_playground
from thinkserve.gateway.pool import Pool
from thinkserve.gateway.route import Route, read_body
from thinkserve.gateway.sealing import read_seal_keys
from thinkserve.gateway.thought_log import ThoughtLog
from thinkserve.gateway.tokens import TokenTexts
from thinkserve.gateway.tracing import NO_TRACING, Tracing
from thinkserve.gateway.wire import encode

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request, AccessRecord], Awaitable[web.StreamResponse]]
JSON = {"Content-Type": "application/json"}
MOST_CHARACTERS = 256 * 1024
TOKENIZE: Fields = {
    "model": Field(DROP, "", string),
    "prompt": Field(REWRITE, "the text", string),
    "add_special_tokens": Field(DROP, "never added", one_of(False)),
}


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
        limits_file: where the processes of one gateway share what callers have used of their limits.
        tracing: where spans go.

    Raises:
        UsageError: a log, or the seal keys, cannot be opened.
    """

    def __init__(
        self,
        config: GatewayConfig,
        pool: Pool,
        keys: Keys,
        *,
        skip_special_tokens: bool = True,
        engine_restarts: Callable[[], int] = lambda: 0,
        limits_file: Path | None = None,
        tracing: Tracing = NO_TRACING,
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
        self._access_log = AccessLog(config.access_log) if config.access_log is not None else None
        self._buckets = OwnBuckets() if limits_file is None else SharedBuckets(limits_file)
        self._services = Services(
            config=config,
            pool=pool,
            metrics=self.metrics,
            texts=TokenTexts(config.tokenizer, skip_special_tokens=skip_special_tokens),
            skip_special_tokens=skip_special_tokens,
            limits=Limits(self.metrics, self._buckets),
            concurrency=Concurrency(config.max_concurrency, config.max_queue, self.metrics),
            tracing=tracing,
            thought_log=ThoughtLog(config.thought_log) if config.thought_log is not None else None,
        )
        self._read_seal_keys()
        pool.on_eject = lambda upstream: self.metrics.ejections.labels(upstream.name).inc()
        self._endpoints = endpoints(config)
        self._restarts = engine_restarts
        self._routes: dict[str, tuple[str, Handler]] = {
            **{one.path: ("POST", self._generates(Route(one, self._services))) for one in self._endpoints},
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/ready": ("GET", self._ready),
            "/metrics": ("GET", self._metrics),
            "/version": ("GET", self._version),
            "/openapi.json": ("GET", self._openapi),
        }
        if config.tokenize:
            self._routes["/tokenize"] = ("POST", self._tokenize)

    def application(self) -> web.Application:
        """The aiohttp application; its start opens the connections to the engines."""
        app = web.Application(client_max_size=self.config.max_body_bytes)
        for path, (method, handler) in self._routes.items():
            app.router.add_route(method, path, self._answering(path, handler))
            if method == "GET":
                app.router.add_route("HEAD", path, self._answering(path, handler))
        app.router.add_get(
            r"/v1/models/{model:[\s\S]+}", self._answering("/v1/models/{model}", self._one_model)
        )
        if self.config.playground:
            add_playground(app)
        app.router.add_route("*", r"/{path:[\s\S]*}", self._answering("other", self._unknown))
        app.cleanup_ctx.append(self._lifetime)
        return app

    async def _lifetime(self, app: web.Application) -> AsyncIterator[None]:
        await self.pool.open()
        yield
        await self.pool.close()
        for log in (self._services.thought_log, self._access_log):
            if log is not None:
                log.close()
        self._buckets.close()
        await asyncio.to_thread(self._services.tracing.close)

    def reload(self) -> None:
        """Read keys again and open logs again, as SIGHUP asks; what is wrong is told, and left as it was."""
        logs = (log for log in (self._services.thought_log, self._access_log) if log is not None)
        for renew in (self._keys.reload, self._read_seal_keys, *(log.reopen for log in logs)):
            try:
                renew()
            except UsageError as exc:
                logger.error("left as it was: %s", exc)
        logger.info("read again: %d keys are known", len(self._keys))

    def _read_seal_keys(self) -> None:
        path = self.config.seal_keys
        self._services.sealer = None if path is None else read_seal_keys(path)

    def cut(self) -> None:
        """End all that still runs, with an error that says so: never a silent cut."""
        self._services.cut = True
        for task in self._tasks:
            task.cancel()

    def _caller(self, http: web.Request) -> Caller:
        return self._keys.caller(http.headers.get("Authorization"), http.headers.get("X-Api-Key"))

    def _generates(self, route: Route) -> Handler:
        """The handler of an endpoint that generates; what is wrong is told in the form of its API."""

        async def handle(http: web.Request, record: AccessRecord) -> web.StreamResponse:
            try:
                caller = self._caller(http)
                record.caller = caller.id
                if self.draining:
                    raise shutting_down()
                with self._counted():
                    return await route.handle(http, caller, record)
            except ApiError as error:
                record.error = error.code or error.type
                return web.Response(
                    body=route.endpoint.error(error), status=error.status, headers={**JSON, **error.headers}
                )
            except (ConnectionError, web.HTTPException):
                raise
            except Exception:  # noqa: BLE001 - it is logged there
                return self._internal(http, record, route.endpoint.error(INTERNAL))

        return handle

    def _internal(self, http: web.Request, record: AccessRecord, body: bytes) -> web.Response:
        """What nobody thought of. The traceback is the operator's; it names code, and no request's or output's text."""
        logger.exception("unexpected error in %s %s", http.method, http.path)
        record.error = INTERNAL.type
        return web.Response(body=body, status=500, headers=JSON)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """One more request is being answered, in this task."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.running += 1
        self.idle.clear()
        self.metrics.running.inc()
        try:
            yield
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

    def _model_names_of(self, caller: Caller) -> list[str]:
        """The models that a caller may use."""
        return [name for name in self._model_names if caller.models is None or name in caller.models]

    async def _models(self, http: web.Request, record: AccessRecord) -> web.Response:
        caller = self._caller(http)
        record.caller = caller.id
        names = self._model_names_of(caller)
        return _json({"object": "list", "data": [_model(name) for name in names]})

    async def _one_model(self, http: web.Request, record: AccessRecord) -> web.Response:
        caller = self._caller(http)
        record.caller = caller.id
        names = self._model_names_of(caller)
        name = http.match_info["model"]
        if name not in names:
            raise ApiError(
                404,
                f"the model {name[:100]!r} does not exist; this server has {', '.join(names)}",
                param="model",
                code="model_not_found",
            )
        return _json(_model(name))

    async def _health(self, http: web.Request, record: AccessRecord) -> web.Response:
        return _json({"status": "ok"})

    async def _ready(self, http: web.Request, record: AccessRecord) -> web.Response:
        if self.draining:
            return _json({"status": "draining"}, 503)
        ready = await self.pool.answers()
        return _json({"status": "ready" if ready else "the engine does not answer"}, 200 if ready else 503)

    async def _metrics(self, http: web.Request, record: AccessRecord) -> web.Response:
        metrics = self.metrics
        metrics.engine_restarts.set(self._restarts())
        for upstream in self.pool.upstreams:
            metrics.upstream_healthy.labels(upstream.name).set(upstream.healthy)
            metrics.upstream_running.labels(upstream.name).set(upstream.running)
            metrics.upstream_outstanding.labels(upstream.name).set(upstream.outstanding)
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def _version(self, http: web.Request, record: AccessRecord) -> web.Response:
        return _json({"version": version("thinkserve")})

    @cached_property
    def _document(self) -> bytes:
        allow, keys = self.config.allow_fields, self._keys.required
        return encode(document(self._endpoints, version=version("thinkserve"), allow=allow, keys=keys))

    async def _openapi(self, http: web.Request, record: AccessRecord) -> web.Response:
        return web.Response(body=self._document, headers=JSON)

    async def _tokenize(self, http: web.Request, record: AccessRecord) -> web.Response:
        """The tokens of a client's own text; the prompt that the model gets is not among what it may ask for."""
        caller = self._caller(http)
        record.caller = caller.id
        if self.draining:
            raise shutting_down()
        caller.require_model(self.config.model_name)
        self._services.limits.take(caller, 0)
        prompt = read_fields(read_object(await read_body(http, self.config)), TOKENIZE).rewritten.get(
            "prompt"
        )
        if prompt is None or len(prompt) > MOST_CHARACTERS:
            raise invalid("prompt", f"prompt must be a string of at most {MOST_CHARACTERS} characters")
        ids = await asyncio.to_thread(self._services.texts.encode, prompt)
        return _json({"count": len(ids), "max_model_len": None, "tokens": ids, "token_strs": None})

    async def _unknown(self, http: web.Request, record: AccessRecord) -> web.Response:
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

    def _answering(
        self, path: str, handler: Handler
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Wrap a handler so that whatever goes wrong reaches the client as an OpenAI error, the metrics and the log."""

        async def handle(http: web.Request) -> web.StreamResponse:
            record = AccessRecord(
                method=http.method, path=path, client_id=client_request_id(http.headers.get("X-Request-Id"))
            )
            began = time.monotonic()
            try:
                answer = await self._answer(http, handler, record)
                # A stream whose client left has a good status, and the route knows better.
                record.status = record.status or answer.status
                self.metrics.requests.labels(path, str(answer.status)).inc()
                return answer
            finally:
                record.status = record.status or 499  # there was no answer: the client left
                record.seconds = time.monotonic() - began
                if self._access_log is not None:
                    self._access_log.append(record)

        return handle

    async def _answer(self, http: web.Request, handler: Handler, record: AccessRecord) -> web.StreamResponse:
        try:
            return await handler(http, record)
        except ApiError as error:
            record.error = error.code or error.type
            return web.Response(body=error.body(), status=error.status, headers={**JSON, **error.headers})
        except (ConnectionError, web.HTTPException):
            raise
        except Exception:  # noqa: BLE001 - it is logged there
            return self._internal(http, record, INTERNAL.body())
