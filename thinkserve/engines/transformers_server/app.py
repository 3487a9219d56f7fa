"""The HTTP side: routes, streams, errors. Everything here runs on the event loop.

A handler is cancelled when its client goes away (`handler_cancellation`), and leaving a handler in whatever way
releases its generation, so that the batch drops its rows at the next step.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from thinkserve.engines.transformers_server import wire
from thinkserve.engines.transformers_server.generation import Delta, Generation, GenerationFailed
from thinkserve.engines.transformers_server.prompt import TextTokenizer
from thinkserve.engines.transformers_server.request import ApiError, ChatRequest
from thinkserve.engines.transformers_server.worker import DecodeThread, QueueFull

logger = logging.getLogger(__name__)

MAX_BODY = 32 * 2**20  # bytes
# Longer prompts (characters) are tokenized in a helper thread: about 10 ms of work, in which no stream could go on.
LONG_PROMPT = 20_000

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ChatServer:
    """The endpoints of one served model."""

    def __init__(
        self,
        model: str,
        tokenizer: TextTokenizer,
        worker: DecodeThread,
        *,
        max_model_len: int,
        defaults: Mapping[str, Any],
    ) -> None:
        self.draining = False
        self._model = model
        self._tokenizer = tokenizer
        self._worker = worker
        self._max_model_len = max_model_len
        self._defaults = defaults
        self._created = int(time.time())
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def app(self) -> web.Application:
        """The aiohttp application; run it with `handler_cancellation=True`."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors_as_json])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def drained(self) -> None:
        """Wait until no request runs; with `draining` set, no new one starts."""
        await self._idle.wait()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._worker.alive else 503)

    async def _models(self, _: web.Request) -> web.Response:
        return _json(wire.models_body(self._model, self._created, self._max_model_len))

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=f"thinkserve_engine_requests {self._active}\n")

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        if self.draining:
            raise ApiError("the server is shutting down", status=503)
        self._active += 1
        self._idle.clear()
        try:
            return await self._answer(http)
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def _answer(self, http: web.Request) -> web.StreamResponse:
        generation = await self._accept(await http.read())
        reply = wire.ChatReply(generation, self._model, self._tokenizer)
        if not self._worker.alive:
            raise ApiError("the engine has failed", status=503)
        try:
            self._worker.submit(generation)
        except QueueFull:
            raise ApiError("the server is at capacity; please retry later", status=503) from None
        try:
            if generation.request.stream:
                return await self._stream(http, generation, reply)
            return await self._whole(generation, reply)
        finally:
            self._worker.release(generation)

    async def _accept(self, body: bytes) -> Generation:
        try:
            decoded = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise ApiError(f"the request body is not JSON: {exc}") from exc
        request = ChatRequest.from_body(decoded, self._defaults)
        if request.model not in (None, self._model):
            raise ApiError(f"The model `{request.model}` does not exist.", "model", status=404)
        if len(body) > LONG_PROMPT:
            prompt_ids = await asyncio.to_thread(self._tokenizer.encode_chat, request, self._max_model_len)
        else:
            prompt_ids = self._tokenizer.encode_chat(request, self._max_model_len)
        room = self._max_model_len - len(prompt_ids)
        return Generation(request, prompt_ids, min(room, request.max_tokens or room))

    async def _stream(
        self, http: web.Request, generation: Generation, reply: wire.ChatReply
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(http)
        try:
            await response.write(reply.first_chunks())
            async for deltas in generation.deltas():
                # `write` waits while the client's buffer is full; meanwhile deltas merge in the generation.
                if data := reply.chunks(deltas):
                    await response.write(data)
            await response.write(reply.last_chunks())
        except GenerationFailed as exc:
            await response.write(wire.error_event(str(exc)))
        except ConnectionError:
            logger.debug("the client of a stream went away")
        return response

    async def _whole(self, generation: Generation, reply: wire.ChatReply) -> web.Response:
        steps: list[dict[int, Delta]] = []
        try:
            async for deltas in generation.deltas():
                steps.append(deltas)
        except GenerationFailed as exc:
            raise ApiError(str(exc), status=500) from exc
        return _json(reply.whole(wire.merged(steps)))


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as exc:
        return _json(wire.error_body(str(exc), exc.status, exc.param), exc.status)
    except web.HTTPException as exc:
        return _json(wire.error_body(exc.reason, exc.status), exc.status)
    except ConnectionError:
        raise
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        return _json(wire.error_body("internal error", 500), 500)


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")
