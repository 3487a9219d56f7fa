"""`POST /v1/chat/completions`: the same generation, relayed as a stream or gathered into one answer."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any

from aiohttp import web

from thinkserve.gateway.choice import Choice, Visible
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.errors import INTERNAL, ApiError, shutting_down
from thinkserve.gateway.generation import Job, generate
from thinkserve.gateway.keys import Caller
from thinkserve.gateway.messages import upstream_messages
from thinkserve.gateway.metrics import Metrics
from thinkserve.gateway.policy import read_request
from thinkserve.gateway.thought_log import ThoughtLog
from thinkserve.gateway.tokens import TokenTexts
from thinkserve.gateway.upstream import Pool
from thinkserve.gateway.wire import ChunkWriter, TokenLogprob, encode, usage_json

logger = logging.getLogger(__name__)

# How long a stream's head waits for the engine to take the request: an engine that refuses it does so at once, and then
# the client gets a plain HTTP error.
HEAD_SECONDS = 0.3
# Transports ask a writer to wait from 64 KiB on.
SEND_NOW_BYTES = 32 * 1024
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # nginx would collect events into a buffer otherwise.
    "X-Accel-Buffering": "no",
}


class Gathered:
    """The sink of an answer that is sent whole."""

    def __init__(self, choices: int) -> None:
        self.texts: list[list[str]] = [[] for _ in range(choices)]
        self.logprobs: list[list[TokenLogprob]] = [[] for _ in range(choices)]
        self.thoughts: list[list[str]] = [[] for _ in range(choices)]

    def sent(self, index: int) -> bool:
        return False

    async def opened(self) -> None:
        pass

    def write(self, index: int, visible: Visible) -> None:
        self.texts[index].append(visible.text)
        self.logprobs[index] += visible.logprobs

    def reveal(self, index: int, thought: str) -> None:
        self.thoughts[index].append(thought)

    def restart(self, index: int) -> None:
        self.texts[index].clear()
        self.logprobs[index].clear()
        self.thoughts[index].clear()

    def send_now(self) -> bool:
        return True  # there is nothing to send before the end

    async def flush(self) -> None:
        pass


class Streamed:
    """The sink of a streamed answer: writes events, and keeps the connection alive while there is nothing to show."""

    def __init__(self, http: web.Request, job: Job) -> None:
        request, config = job.request, job.config
        self._http = http
        self._config = config
        self._response = web.StreamResponse(headers={**STREAM_HEADERS, "X-Request-Id": job.id})
        created = int(time.time())
        self._writers = [
            ChunkWriter(
                id=job.id,
                created=created,
                model=job.model_name,
                index=index,
                usage_field=request.include_usage,
            )
            for index in range(request.n)
        ]
        self._logprobs = request.logprobs
        self._sent = [False] * request.n
        self._out: list[bytes] = []
        self._head: asyncio.Task[None] | None = None
        self._head_sent = False
        self._writing_since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._last_write = self._loop.time()
        self._timer = self._loop.call_later(HEAD_SECONDS, self._beat)
        self._background: asyncio.Task[None] | None = None

    def sent(self, index: int) -> bool:
        return self._sent[index]

    @property
    def begun(self) -> bool:
        """Whether the answer is a stream by now, so that an error can only be its last event."""
        return self._head is not None

    async def opened(self) -> None:
        if not self._head_sent:
            await self._begin()

    async def _begin(self) -> None:
        """Send the head and the role chunks, once, whoever asks first."""
        if self._head is None:
            self._head = asyncio.ensure_future(self._send_head())
        await asyncio.shield(self._head)

    async def _send_head(self) -> None:
        await self._response.prepare(self._http)
        roles = b"".join(writer.delta({"role": "assistant", "content": ""}) for writer in self._writers)
        await self._response.write(roles)
        self._last_write = self._loop.time()
        self._head_sent = True

    def write(self, index: int, visible: Visible) -> None:
        self._sent[index] = True
        writer = self._writers[index]
        if self._logprobs:
            self._out.append(writer.delta({"content": visible.text}, visible.logprobs))
        else:
            self._out.append(writer.content(visible.text))

    def reveal(self, index: int, thought: str) -> None:
        self._out.append(self._writers[index].delta({"reasoning_content": thought}))

    def restart(self, index: int) -> None:
        """Nothing to forget: nothing of the choice was sent."""

    def send_now(self) -> bool:
        transport = self._http.transport
        if not self._head_sent or self._writing_since is not None:
            return False
        if transport is None or transport.get_write_buffer_size():
            return False
        data = b"".join(self._out)
        if len(data) > SEND_NOW_BYTES:
            return False
        # With nothing before it, a write goes out without waiting for anything: run here, in the call in which the
        # engine's event came, it saves waking the task of the request for every event. It must not come to wait: the
        # future it would wait for could not be waited for again by the task.
        writing = self._response.write(data)
        self._out.clear()
        self._last_write = self._loop.time()
        try:
            writing.send(None)
        except StopIteration:
            return True
        raise RuntimeError("a small write to an empty buffer waited")

    async def flush(self) -> None:
        if self._out:
            if not self._head_sent:
                await self._begin()
            data = b"".join(self._out)
            self._out.clear()
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        self._last_write = self._writing_since = self._loop.time()
        try:
            await self._response.write(data)  # waits while the client does not read
        finally:
            self._writing_since = None

    def _beat(self) -> None:
        """From time to time: begin the stream, keep it alive, or give up a client that no longer reads."""
        now = self._loop.time()
        every = self._config.keepalive_seconds
        if self._writing_since is not None:
            if (
                now - self._writing_since > self._config.stalled_client_seconds
                and self._http.transport is not None
            ):
                self._http.transport.abort()
        elif not self._head_sent:
            self._in_background(self._begin())
        elif now - self._last_write >= every * 0.9:
            self._in_background(self._write(b": thinking\n\n"))
        self._timer = self._loop.call_later(every, self._beat)

    def _in_background(self, work: Any) -> None:
        if self._background is None or self._background.done():
            self._background = self._loop.create_task(_ignoring_disconnect(work))
        else:
            work.close()

    def end_choice(self, index: int, choice: Choice) -> None:
        """Take the last chunk of a choice."""
        more: dict[str, Any] = {"incomplete_details": {"reason": choice.lost_to}} if choice.lost_to else {}
        self._out.append(self._writers[index].delta({}, finish=choice.finish_reason, **more))

    def end(self, usage: dict[str, Any] | None) -> None:
        """Take the end of the stream."""
        if usage is not None:
            self._out.append(self._writers[0].usage(usage))
        self._out.append(b"data: [DONE]\n\n")

    def fail(self, error: ApiError) -> None:
        """Take an error as the last event: the stream was good so far, and is not whole."""
        self._out.append(b"data: " + error.body() + b"\n\n")

    def stop_beating(self) -> None:
        """End the timer; the last write may follow."""
        self._timer.cancel()

    async def close(self) -> web.StreamResponse:
        """Send the rest and end the response, in one write."""
        await self.opened()
        try:
            async with asyncio.timeout(self._config.stalled_client_seconds):
                await self._response.write_eof(b"".join(self._out))
        except TimeoutError:
            if self._http.transport is not None:
                self._http.transport.abort()
        self._out.clear()
        return self._response


async def _ignoring_disconnect(work: Any) -> None:
    """A heartbeat to a client that has just gone is nobody's error: its request is cancelled anyway."""
    try:
        await work
    except (ConnectionError, RuntimeError):
        logger.debug("heartbeat to a client that is gone")


class ChatRoute:
    """The handler of chat completions, and what it needs."""

    def __init__(
        self,
        config: GatewayConfig,
        pool: Pool,
        metrics: Metrics,
        texts: TokenTexts,
        *,
        skip_special_tokens: bool,
    ) -> None:
        self._config = config
        self._pool = pool
        self._metrics = metrics
        self._texts = texts
        self._skip_special_tokens = skip_special_tokens
        self.cut = False
        """The time to drain is over: requests that are cancelled are told so."""
        self._log = ThoughtLog(config.thought_log) if config.thought_log is not None else None

    def close(self) -> None:
        """Close the thought log."""
        if self._log is not None:
            self._log.close()

    async def handle(self, http: web.Request, caller: Caller) -> web.StreamResponse:
        """Answer one request.

        Raises:
            ApiError: nothing was sent yet, and this is what the client is told.
        """
        job = self._job(http, await _body(http, self._config), caller)
        answer = await (self._stream(http, job) if job.request.stream else self._gather(job))
        self._metrics.seconds.observe(time.monotonic() - job.started)
        return answer

    def _job(self, http: web.Request, body: bytes, caller: Caller) -> Job:
        reveal = http.headers.get("thinkserve-reveal", "0") not in ("", "0", "false")
        if reveal and caller.role != "operator":
            raise ApiError(
                403,
                "thinkserve-reveal is for operator keys only",
                type="permission_error",
                code="operator_key_required",
            )
        request = read_request(body, self._config)
        if request.schema is not None and not self._pool.structural_tags:
            raise ApiError(
                400,
                "response_format is refused: the engine behind this server cannot bind the response and leave the "
                "thought free; ask for JSON in the prompt, or serve the model on vLLM",
                param="response_format",
                code="unsupported_field",
            )
        direct = request.effort == "none"
        return Job(
            id=f"chatcmpl-{secrets.token_hex(12)}",
            request=request,
            messages=upstream_messages(
                request.messages, self._config.format, direct=direct, allow=self._config.allow_fields
            ),
            config=self._config,
            direct=direct,
            cache_salt=caller.cache_salt,
            reveal=reveal,
            texts=self._texts,
            skip_special_tokens=self._skip_special_tokens,
            started=time.monotonic(),
        )

    async def _gather(self, job: Job) -> web.Response:
        sink = Gathered(job.request.n)
        choices = await self._generate_all(job, sink)
        body = {
            "id": job.id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": job.model_name,
            "choices": [self._choice(job, sink, index, choice) for index, choice in enumerate(choices)],
            "usage": self._usage(job, choices),
        }
        return web.Response(
            body=encode(body), headers={"Content-Type": "application/json", "X-Request-Id": job.id}
        )

    def _choice(self, job: Job, sink: Gathered, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(sink.texts[index]),
            "refusal": None,
        }
        if job.reveal:
            message["reasoning_content"] = "".join(sink.thoughts[index])
        logprobs = {"content": sink.logprobs[index], "refusal": None} if job.request.logprobs else None
        written = {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }
        if choice.lost_to:
            written["incomplete_details"] = {"reason": choice.lost_to}
        return written

    async def _stream(self, http: web.Request, job: Job) -> web.StreamResponse:
        sink = Streamed(http, job)
        try:
            choices = await self._generate_all(job, sink)
            sink.end(self._usage(job, choices) if job.request.include_usage else None)
        except ApiError as error:
            if not sink.begun:
                raise
            self._metrics.requests.labels("stream_error").inc()
            sink.fail(error)
        except ConnectionError:
            raise
        except Exception:
            if not sink.begun:
                raise
            # Raised further, it would be answered with a second HTTP head in the middle of the stream.
            logger.exception("%s: unexpected error in a stream", job.id)
            self._metrics.requests.labels("stream_error").inc()
            sink.fail(INTERNAL)
        finally:
            sink.stop_beating()
        return await sink.close()

    async def _generate_all(self, job: Job, sink: Gathered | Streamed) -> list[Choice]:
        """Generate all choices, unless the gateway cannot wait for them any longer."""
        try:
            return await self._side_by_side(job, sink)
        except asyncio.CancelledError:
            if not self.cut:  # the client left
                raise
            raise shutting_down() from None

    async def _side_by_side(self, job: Job, sink: Gathered | Streamed) -> list[Choice]:
        """Generate the choices side by side; the first that fails for good ends them all."""
        if job.request.n == 1:
            return [await self._generate(job, 0, sink)]
        tasks = [asyncio.ensure_future(self._generate(job, index, sink)) for index in range(job.request.n)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _generate(self, job: Job, index: int, sink: Gathered | Streamed) -> Choice:
        choice = await generate(job, index, self._pool, sink, self._metrics)
        if isinstance(sink, Streamed):
            sink.end_choice(index, choice)
            if job.request.n > 1:
                await sink.flush()
        metrics = self._metrics
        metrics.finished.labels(choice.finish_reason).inc()
        if choice.lost_to:
            metrics.lost.labels(choice.lost_to).inc()
        metrics.thought_tokens.observe(choice.reasoning_tokens)
        metrics.response_tokens.observe(choice.response_tokens)
        if job.first_shown is not None and index == 0:
            metrics.first_response.observe(job.first_shown - job.started)
        if self._log is not None:
            self._log.append(
                {
                    "id": job.id,
                    "created": int(time.time()),
                    "model": job.model_name,
                    "choice": index,
                    "finish_reason": choice.finish_reason,
                    "thought_tokens": choice.reasoning_tokens,
                    "response_tokens": choice.response_tokens,
                    "thought": choice.thought,
                }
            )
        return choice

    def _usage(self, job: Job, choices: list[Choice]) -> dict[str, Any]:
        return usage_json(
            job.prompt_tokens,
            sum(choice.completion_tokens for choice in choices),
            sum(choice.reasoning_tokens for choice in choices),
        )


async def _body(http: web.Request, config: GatewayConfig) -> bytes:
    """The request's body, if it is not too large. What is left of one that is, aiohttp reads and throws away."""
    too_large = ApiError(
        413,
        f"the body is larger than {config.max_body_bytes} bytes; send less, or ask the operator to raise "
        "--max-body-bytes",
        code="body_too_large",
    )
    if (http.content_length or 0) > config.max_body_bytes:
        raise too_large
    try:
        return await http.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except (ValueError, web.HTTPException, web.RequestPayloadError) as exc:
        raise ApiError(400, f"the body cannot be read: {exc}") from exc
