"""A request's way through the gateway, the same for every endpoint that generates: read, generated, streamed or gathered."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from aiohttp import web

from thinkserve.gateway.access_log import AccessRecord
from thinkserve.gateway.choice import Choice
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.endpoint import Endpoint, Head, Writer
from thinkserve.gateway.errors import INTERNAL, ApiError, shutting_down
from thinkserve.gateway.fields import read_object
from thinkserve.gateway.generation import Watchers, generate
from thinkserve.gateway.intake import Services, make_job
from thinkserve.gateway.job import Job
from thinkserve.gateway.keys import Caller
from thinkserve.gateway.limits import Charge
from thinkserve.gateway.sinks import Gathered, Streamed
from thinkserve.gateway.tracing import RequestSpan
from thinkserve.gateway.wire import Usage, encode

logger = logging.getLogger(__name__)

# From here on a body is read in a thread.
LARGE_BODY = 128 * 1024


class Route:
    """The handler of one endpoint."""

    def __init__(self, endpoint: Endpoint, services: Services) -> None:
        self.endpoint = endpoint
        self._services = services
        self._config = services.config
        self._metrics = services.metrics

    async def handle(self, http: web.Request, caller: Caller, record: AccessRecord) -> web.StreamResponse:
        """Answer one request.

        Args:
            http: the request.
            caller: who sent it.
            record: takes what the access log tells of it.

        Raises:
            ApiError: nothing was sent yet, and this is what the client is told.
        """
        services = self._services
        id = record.id = self.endpoint.new_id()
        try:
            body = await read_body(http, self._config)
            request = self.endpoint.read(read_object(body))
            record.model, record.stream, record.n = request.model, request.stream, request.choices
            expected = services.pool.expect(len(body), request.max_completion_tokens, request.choices)
            charge = services.limits.take(caller, expected)
            try:
                # What takes long for a large body must not stop the streams of others.
                make = partial(make_job, services, id, request, caller, http.headers, len(body))
                job = make() if len(body) < LARGE_BODY else await asyncio.to_thread(make)
            except BaseException:
                charge.cancel()
                raise
            return await self._run(http, job, caller, charge, record)
        except ApiError as error:
            error.headers = {"X-Request-Id": id, **services.limits.headers(caller), **error.headers}
            raise

    async def _run(
        self, http: web.Request, job: Job, caller: Caller, charge: Charge, record: AccessRecord
    ) -> web.StreamResponse:
        """Answer a request that was read and charged."""
        request = job.request
        span = self._services.tracing.request(
            "chat",
            job.model_name,
            route=self.endpoint.path,
            caller=caller.id,
            traceparent=http.headers.get("traceparent"),
            n=request.choices,
            max_tokens=request.max_completion_tokens,
            stream=request.stream,
        )
        record.status = 499  # unless it gets further: the client left
        try:
            answer = await self._answer(http, job, caller, span)
            record.status = 499 if job.client_lost else answer.status
            self._metrics.seconds.observe(time.monotonic() - job.started)
            return answer
        except ApiError as error:
            if not job.outputs:  # it never got a turn
                charge.cancel()
            record.status, job.error = error.status, error.code or error.type
            raise
        except Exception:
            record.status, job.error = 500, INTERNAL.type
            raise
        finally:
            charge.settle(job.used_tokens)
            self._tell(job, record)
            span.end(
                record.status,
                error=record.error,
                response_id=job.id,
                finish_reasons=tuple(record.finish_reasons),
                prompt_tokens=record.prompt_tokens,
                thought_tokens=record.thought_tokens,
                response_tokens=record.response_tokens,
            )

    async def _answer(
        self, http: web.Request, job: Job, caller: Caller, span: RequestSpan
    ) -> web.StreamResponse:
        request, services = job.request, self._services
        seal = partial(self._seal, caller) if request.seal else None
        writer = self.endpoint.writer(
            Head(job.id, int(time.time()), job.model_name, request, job.reveal, seal)
        )
        headers = {"X-Request-Id": job.id, **services.limits.headers(caller)}
        watchers = Watchers(services.metrics, services.thought_log, span)
        if request.stream:
            return await self._stream(http, job, writer, headers, watchers)
        return await self._gather(job, writer, headers, watchers)

    def _tell(self, job: Job, record: AccessRecord) -> None:
        """Fill in the record of a request that is over."""
        choices = [output for output in job.outputs if output.finish_reason is not None]
        record.prompt_tokens = sum(job.prompt_tokens.values())
        record.thought_tokens = sum(choice.reasoning_tokens for choice in choices)
        record.response_tokens = sum(choice.response_tokens for choice in choices)
        record.finish_reasons = [choice.finish_reason or "" for choice in choices]
        record.upstream, record.retries, record.failovers = job.upstream, job.retries, job.failovers
        record.error = job.error
        metrics = self._metrics
        metrics.prompt_tokens.inc(record.prompt_tokens)
        if job.shown:
            record.first_response_seconds = min(job.shown.values()) - job.started
            metrics.first_response.observe(record.first_response_seconds)
        if record.status == 499:
            metrics.clients_lost.labels(job.client_lost or "disconnected").inc()

    def _seal(self, caller: Caller, thought: str, response: str) -> str | None:
        assert self._services.sealer is not None
        try:
            sealed = self._services.sealer.seal(thought, client=caller.id, response=response)
        except ValueError as exc:  # too long
            logger.warning("%s: %s", response, exc)
            return None
        self._metrics.sealed.labels("sealed").inc()
        return sealed

    async def _gather(
        self, job: Job, writer: Writer, headers: dict[str, str], watchers: Watchers
    ) -> web.Response:
        sink = Gathered(job.request.choices)
        choices = await self._generate_all(job, sink, watchers)
        body = writer.whole(sink.answers, _usage(job, choices))
        return web.Response(body=encode(body), headers={"Content-Type": "application/json", **headers})

    async def _stream(
        self, http: web.Request, job: Job, writer: Writer, headers: dict[str, str], watchers: Watchers
    ) -> web.StreamResponse:
        sink = Streamed(http, writer, job.request.choices, headers, self._config)
        try:
            choices = await self._generate_all(job, sink, watchers)
            sink.end(_usage(job, choices))
        except ApiError as error:
            if not sink.begun:
                raise
            self._broke_off(job, error)
            sink.fail(error)
        except ConnectionError:
            if not sink.begun:
                raise
            # There is nobody to tell, so this is no error; and what has begun is all that there is to return.
            job.client_lost = "stalled" if sink.stalled else "disconnected"
            return sink.response
        except Exception:
            if not sink.begun:
                raise
            # Raised further, it would be answered with a second HTTP head in the middle of the stream.
            logger.exception("%s: unexpected error in a stream", job.id)
            self._broke_off(job, INTERNAL)
            try:
                sink.fail(INTERNAL)
            except Exception:  # noqa: BLE001 - not even the error can be written
                # A client that heard nothing more would wait for ever.
                sink.abort()
                return sink.response
        finally:
            sink.stop_beating()
        return await sink.close()

    def _broke_off(self, job: Job, error: ApiError) -> None:
        """A stream that had begun ends with an error."""
        job.error = error.code or error.type
        self._metrics.requests.labels(self.endpoint.path, "stream_error").inc()

    async def _generate_all(self, job: Job, sink: Gathered | Streamed, watchers: Watchers) -> list[Choice]:
        """Generate all choices when it is their turn, unless the gateway cannot wait for them any longer."""
        try:
            async with self._services.concurrency:
                return await self._side_by_side(job, sink, watchers)
        except asyncio.CancelledError:
            if not self._services.cut:  # the client left
                raise
            raise shutting_down() from None

    async def _side_by_side(self, job: Job, sink: Gathered | Streamed, watchers: Watchers) -> list[Choice]:
        """Generate the choices side by side; the first that fails for good ends them all."""
        count = job.request.choices
        if count == 1:
            return [await self._generate(job, 0, sink, watchers)]
        tasks = [asyncio.ensure_future(self._generate(job, index, sink, watchers)) for index in range(count)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _generate(self, job: Job, index: int, sink: Gathered | Streamed, watchers: Watchers) -> Choice:
        choice = await generate(job, index, self._services.pool, sink, watchers)
        sink.end_choice(index, choice)
        if job.request.choices > 1:
            await sink.flush()
        metrics = self._metrics
        metrics.finished.labels(choice.finish_reason).inc()
        if choice.lost_to:
            metrics.lost.labels(choice.lost_to).inc()
        metrics.thought_tokens.observe(choice.reasoning_tokens)
        metrics.response_tokens.observe(choice.response_tokens)
        if choice.calls:
            metrics.tool_calls.inc(choice.calls)
        if choice.echoes:
            metrics.echo_repeats.inc(choice.echoes)
        if (share := choice.echo_share) is not None:
            metrics.echo_share.observe(share)
        if index in job.shown:
            metrics.thought_seconds.observe(job.shown[index] - job.started)
        return choice


def _usage(job: Job, choices: list[Choice]) -> Usage:
    return Usage(
        sum(job.prompt_tokens.values()),
        sum(choice.completion_tokens for choice in choices),
        sum(choice.reasoning_tokens for choice in choices),
    )


async def read_body(http: web.Request, config: GatewayConfig) -> bytes:
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
