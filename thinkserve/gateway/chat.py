"""`POST /v1/chat/completions`: the same generation, relayed as a stream or gathered into one answer."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any

from aiohttp import web

from thinkserve.gateway.choice import Choice
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.errors import INTERNAL, ApiError, shutting_down
from thinkserve.gateway.generation import Job, generate
from thinkserve.gateway.keys import Caller
from thinkserve.gateway.messages import upstream_messages
from thinkserve.gateway.metrics import Metrics
from thinkserve.gateway.policy import read_request
from thinkserve.gateway.sinks import Gathered, Streamed
from thinkserve.gateway.thought_log import ThoughtLog
from thinkserve.gateway.tokens import TokenTexts
from thinkserve.gateway.upstream import Pool
from thinkserve.gateway.wire import encode, usage_json

logger = logging.getLogger(__name__)


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
