"""One choice, generated: an upstream is asked, what it streams goes through a `Choice`, and what is visible to a sink.

While a choice has shown nothing, nothing is lost: an engine that fails is replaced by another, and an output that does
not keep to its format is sampled again, and the client sees only that it took longer. Each choice is a request of its
own to the engine, so one choice can end, fail or be sampled again without the others (the engine's prefix cache makes
their common prompt cheap).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from thinkserve.gateway.choice import Bounds, Choice, Visible
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.errors import (
    ApiError,
    FormatBroken,
    UpstreamFailed,
    engine_unavailable,
    format_broken,
)
from thinkserve.gateway.metrics import Metrics
from thinkserve.gateway.policy import ChatRequest
from thinkserve.gateway.sse import DONE
from thinkserve.gateway.tokens import TokenTexts
from thinkserve.gateway.upstream import Pool, Upstream, UpstreamStream
from thinkserve.gateway.wire import Chunk, ChunkChoice, decode_chunk
from thinkserve.thoughts import ThoughtFormat

logger = logging.getLogger(__name__)

FINISH_REASONS = {"stop": "stop", "length": "length", "content_filter": "content_filter"}
# A retry must not repeat the output that was broken, and the choices of one request use seed, seed + 1 ...
RETRY_SEED_STEP = 1_000_003


class Sink(Protocol):
    """Where the visible parts of the choices go."""

    def sent(self, index: int) -> bool:
        """Whether the client may have seen a part of this choice."""

    async def opened(self) -> None:
        """An engine has taken the request."""

    def write(self, index: int, visible: Visible) -> None:
        """Take a visible stretch; sent by `flush`."""

    def reveal(self, index: int, thought: str) -> None:
        """Take a stretch of a thought, for an operator who may see it."""

    def restart(self, index: int) -> None:
        """Forget what was taken of this choice: it is generated anew."""

    def send_now(self) -> bool:
        """Send what was taken, if that takes no waiting; return whether it was sent."""

    async def flush(self) -> None:
        """Send what was taken since the last flush."""


@dataclass(slots=True)
class Job:
    """One request on its way: what the client asked, and what all its choices share."""

    id: str
    request: ChatRequest
    messages: list[dict[str, Any]]
    config: GatewayConfig
    direct: bool
    cache_salt: str
    reveal: bool
    texts: TokenTexts
    skip_special_tokens: bool
    started: float
    prompt_tokens: int = 0
    first_shown: float | None = None

    @property
    def model_name(self) -> str:
        """What the answer calls the model."""
        return self.config.model_name or self.request.model or ""

    @property
    def thought_budget(self) -> int | None:
        """The bound on the thought, in tokens: the client's effort, and never more than the operator's."""
        bounds = [self.config.max_thought_tokens]
        if self.request.effort not in (None, "none"):
            bounds.append(self.config.effort_budgets.get(self.request.effort or ""))
        return min((bound for bound in bounds if bound is not None), default=None)

    def new_choice(self) -> Choice:
        """The empty state of a choice."""
        request = self.request
        format = self.config.format
        if request.schema is not None:
            # The grammar goes over to the schema at the exact marker, so nothing else may end the thought here.
            format = format.exact
        return Choice(
            format,
            direct=self.direct,
            stops=request.stops,
            bounds=Bounds(request.max_tokens, self.thought_budget, request.max_completion_tokens),
            logprobs=request.logprobs,
            keep_thought=self.reveal
            or self.config.thought_log is not None
            or self.thought_budget is not None,
            texts=self.texts,
        )

    def body(self, index: int, attempt: int) -> dict[str, Any]:
        """What the engine is asked. The model's name is the engine's own, unless clients' names pass through."""
        request = self.request
        body: dict[str, Any] = {
            "messages": self.messages,
            **request.sampling,
            **request.extra,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "cache_salt": self.cache_salt,
        }
        if not self.config.model_name and request.model is not None:
            body["model"] = request.model
        if not self.skip_special_tokens:
            body["skip_special_tokens"] = False
        if request.seed is not None:
            body["seed"] = (request.seed + index + attempt * RETRY_SEED_STEP) % 2**63
        if request.logprobs:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        if request.max_completion_tokens is not None:
            body["max_tokens"] = request.max_completion_tokens
        elif self.direct and request.max_tokens is not None:
            # One more than may be shown: the gateway ends the output itself, and tells a stop from a cut.
            body["max_tokens"] = request.max_tokens + 1
        if request.schema is not None:
            body["structured_outputs"] = response_constraint(request.schema, self.config.format, self.direct)
        return body


def response_constraint(schema: Mapping[str, Any], format: ThoughtFormat, direct: bool) -> dict[str, Any]:
    """The schema as vLLM's structured output: a free thought, its closing marker, then JSON that fits.

    Sent as one grammar that holds the format itself, so that the model thinks freely and the response obeys, in one
    pass. The end of the output is not allowed inside the thought, so a response always follows.
    """
    if direct:
        return {"json": schema}
    end = ("\n" if format.line_start else "") + format.closing[0]
    elements = [
        {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": end},
        {"type": "json_schema", "json_schema": schema},
    ]
    tag = {"type": "structural_tag", "format": {"type": "sequence", "elements": elements}}
    return {"structural_tag": str(msgspec.json.encode(tag), "utf-8")}


async def generate(job: Job, index: int, pool: Pool, sink: Sink, metrics: Metrics) -> Choice:
    """Generate one choice to its end, through retries and other engines where nothing was shown yet.

    Raises:
        ApiError: what the client is told: a refusal of the engine, 502 for broken formats, 503 for lost engines.
    """
    broken = 0
    tried: set[Upstream] = set()
    while True:
        upstream = pool.pick(tried)
        if upstream is None:
            raise engine_unavailable("it did not answer" if tried else "there is none")
        choice = job.new_choice()
        upstream.running += 1
        try:
            await _run(job, index, choice, upstream, sink, broken)
            return choice
        except FormatBroken as exc:
            broken += 1
            metrics.malformed.labels(exc.kind).inc()
            logger.warning("%s: choice %d of upstream %s: %s", job.id, index, upstream.name, exc.kind)
            if sink.sent(index) or broken > job.config.format_retries:
                raise format_broken(exc.kind, broken) from exc
            metrics.retries.inc()
        except ApiError as exc:
            # An engine that is busy need not be the only one.
            if exc.status != 429 or sink.sent(index) or pool.pick(tried | {upstream}) is None:
                raise
            tried.add(upstream)
        except UpstreamFailed as exc:
            tried.add(upstream)
            logger.warning("%s: engine %s: %s", job.id, upstream.name, exc)
            if sink.sent(index):
                raise engine_unavailable("it ended in the middle of the response") from exc
            if pool.pick(tried) is not None:
                metrics.failovers.inc()
        finally:
            upstream.running -= 1
        sink.restart(index)


async def _run(job: Job, index: int, choice: Choice, upstream: Upstream, sink: Sink, attempt: int) -> None:
    """Feed one output of one upstream to a choice, to the end."""
    body = job.body(index, attempt)
    stream = await upstream.stream(body, job.id)
    complete = False
    try:
        await sink.opened()
        complete = await _pump(job, index, choice, stream, sink)
        if choice.finish_reason is None:  # the thought is over its budget
            stream.close()
            stream = await _ask_to_answer(job, choice, upstream, body, stream)
            if choice.finish_reason is None:
                complete = await _pump(job, index, choice, stream, sink)
            if choice.finish_reason is None:  # it thinks again: there will be no response
                choice.finish("length")
    finally:
        stream.close(complete=complete)


async def _pump(job: Job, index: int, choice: Choice, stream: UpstreamStream, sink: Sink) -> bool:
    """Read until the choice is over, or its thought is over budget (then it has no finish reason).

    Returns whether the stream was read to its last event.
    """
    pump = _Pump(job, index, choice, sink)
    while not pump.over:
        await stream.read(pump.take)
        if stream.ended and not pump.over:
            pump.end()
        if not pump.over:  # the last of it goes out with the end of the answer
            await sink.flush()
    return pump.complete


class _Pump:
    """Takes the events of one stream, in the call in which they arrive, and gives them to a choice and its sink."""

    __slots__ = (
        "_before",
        "_choice",
        "_counted",
        "_has_ids",
        "_index",
        "_job",
        "_reason",
        "_sink",
        "complete",
        "over",
    )

    def __init__(self, job: Job, index: int, choice: Choice, sink: Sink) -> None:
        self._job, self._index, self._choice, self._sink = job, index, choice, sink
        self._reason: str | None = None
        self._before = (
            choice.completion_tokens
        )  # of a thought that was cut, when the engine goes on from there
        self._counted = 0  # by the engine
        self._has_ids = False
        self.over = False
        self.complete = False

    def take(self, payloads: list[bytes]) -> bool:
        """Take some events; return whether there is something to send, or nothing more to read."""
        visible = False
        for payload in payloads:
            if payload == DONE:
                self.complete = True
                # A stream that ends in good order has ended, though some servers do not say why.
                self._finish(self._reason or "stop")
                return True
            try:
                chunk = decode_chunk(payload)
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                raise UpstreamFailed("it sent an event that is no chunk") from exc
            for part in chunk.choices:
                visible = self._take_part(part) or visible
                if self.over:
                    return True
            if chunk.usage is not None or chunk.prompt_token_ids or chunk.error is not None:
                self._take_rest(chunk)
        return visible and not self._sink.send_now()

    def end(self) -> None:
        """The stream has ended without `[DONE]`."""
        if self._reason is None:
            raise UpstreamFailed("the stream ended in the middle of an output")
        self._finish(self._reason)

    def _take_part(self, part: ChunkChoice) -> bool:
        """Take what a chunk has of the choice; return whether anything of it is visible."""
        if part.index:  # one choice was asked for
            return False
        choice = self._choice
        text = (part.delta.content if part.delta is not None else None) or ""
        ids = part.token_ids
        logprobs = part.logprobs.content if part.logprobs is not None else None
        if ids is not None:
            self._has_ids = True
            tokens = len(ids)
        else:
            tokens = len(logprobs) if logprobs else 1 if text else 0
        shown = False
        if text or tokens:
            visible = choice.feed(text, tokens, ids, logprobs)
            if visible is not None or self._job.reveal:
                shown = self._show(visible)
            # Looked at with every chunk, so that the cut does not hang on how the bytes came.
            if choice.finish_reason is not None or (
                choice.over_thought_budget and part.finish_reason is None
            ):
                self.over = True
        if part.finish_reason is not None and not self.over:
            if part.finish_reason in ("error", "abort"):
                raise UpstreamFailed("it gave up the output")
            self._reason = FINISH_REASONS.get(part.finish_reason, "stop")
        return shown

    def _take_rest(self, chunk: Chunk) -> None:
        """Take what a chunk tells beside the choice."""
        if chunk.error is not None:
            raise _reported(chunk.error, nothing_generated=self._choice.completion_tokens == 0)
        if chunk.usage is not None:
            self._counted = chunk.usage.completion_tokens
        if not self._before:
            prompt_tokens = len(chunk.prompt_token_ids or ()) or (chunk.usage and chunk.usage.prompt_tokens)
            self._job.prompt_tokens = prompt_tokens or self._job.prompt_tokens

    def _finish(self, reason: str) -> None:
        self.over = True
        visible = self._choice.finish(reason)
        if visible is not None or self._job.reveal:
            self._show(visible)
        if not self._has_ids and self._counted:
            self._choice.count(self._before + self._counted)

    def _show(self, visible: Visible | None) -> bool:
        """Hand on what became visible, and to an operator who asked the thought too."""
        job, sink = self._job, self._sink
        thought = self._choice.take_thought() if job.reveal else ""
        if thought:
            sink.reveal(self._index, thought)
        if visible is None or not visible.text:
            return bool(thought)
        if job.first_shown is None:
            job.first_shown = time.monotonic()
        sink.write(self._index, visible)
        return True


def _reported(error: msgspec.Raw, *, nothing_generated: bool) -> Exception:
    """An error event. vLLM refuses some requests (a bad JSON schema) only when its stream has begun."""
    try:
        told = msgspec.json.decode(error)
        code, message = int(told["code"]), str(told["message"])[:500]
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        code, message = 500, ""
    if nothing_generated and code in (400, 422):
        return ApiError(400, message)
    return UpstreamFailed("it reported an error in its stream")


async def _ask_to_answer(
    job: Job, choice: Choice, upstream: Upstream, body: dict[str, Any], stream: UpstreamStream
) -> UpstreamStream:
    """The thought has used up its budget: close it in the model's stead, and have the model go on with the response.

    The engine is given its own output so far, with the closing marker behind it, as the beginning of the answer. One
    that cannot go on from there leaves the response empty, with `finish_reason` "length".
    """
    format = job.config.format
    opening = format.opening[0] + "\n" if format.opening_in_prompt else ""
    newline = "\n" if format.line_start else ""
    closing = f"{newline}{format.closing[0]}{newline}"
    thought = choice.raw
    answer = {"role": "assistant", "content": opening + thought + closing}
    body = body | {
        "messages": [*job.messages, answer],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    if job.request.schema is not None:
        # The thought is over: a grammar with a thought in it would let free text into the response.
        body["structured_outputs"] = response_constraint(job.request.schema, format, True)
    if job.request.max_completion_tokens is not None:
        body["max_tokens"] = max(1, job.request.max_completion_tokens - choice.completion_tokens)
    try:
        stream = await upstream.stream(body, job.id)
    except ApiError as exc:
        logger.warning(
            "%s: engine %s cannot go on from a cut thought (%s)", job.id, upstream.name, exc.status
        )
        choice.finish("length")
        return stream
    choice.feed(closing, 0)
    return stream
