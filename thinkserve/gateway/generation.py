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
from typing import Any, Protocol

import msgspec

from thinkserve.gateway.choice import Choice, Visible
from thinkserve.gateway.errors import (
    ApiError,
    FormatBroken,
    UpstreamFailed,
    engine_unavailable,
    format_broken,
)
from thinkserve.gateway.job import Job
from thinkserve.gateway.metrics import Metrics
from thinkserve.gateway.pool import Pool
from thinkserve.gateway.sse import DONE
from thinkserve.gateway.thought_log import ThoughtLog, ThoughtRecord
from thinkserve.gateway.tracing import NO_SPAN, RequestSpan
from thinkserve.gateway.upstream import Upstream, UpstreamStream
from thinkserve.gateway.wire import Chunk, ChunkChoice, decode_chunk
from thinkserve.thoughts.markers import QUOTES

logger = logging.getLogger(__name__)

FINISH_REASONS = {"stop": "stop", "length": "length", "content_filter": "content_filter"}


class Sink(Protocol):
    """Where the visible parts of the choices go."""

    def sent(self, index: int) -> bool:
        """Whether the client may have seen a part of this choice."""

    async def opened(self) -> None:
        """An engine has taken the request."""

    def begin(self, index: int, choice: Choice) -> None:
        """The thought of a choice is over: what comes next is its response, or its end."""

    def write(self, index: int, visible: Visible) -> None:
        """Take a visible stretch; sent by `flush`."""

    def reveal(self, index: int, thought: str) -> None:
        """Take a stretch of a thought, for an operator who may see it."""

    def restart(self, index: int) -> None:
        """Forget what was taken of this choice: it is generated anew."""

    def end_choice(self, index: int, choice: Choice) -> None:
        """The choice is over."""

    def send_now(self) -> bool:
        """Send what was taken, if that takes no waiting; return whether it was sent."""

    async def flush(self) -> None:
        """Send what was taken since the last flush."""


class Watchers(msgspec.Struct, frozen=True):
    """Who is told of what happens to the outputs of a request."""

    metrics: Metrics
    log: ThoughtLog | None = None
    span: RequestSpan = NO_SPAN


async def generate(job: Job, index: int, pool: Pool, sink: Sink, watchers: Watchers) -> Choice:
    """Generate one choice to its end, through retries and other engines where nothing was shown yet.

    Raises:
        ApiError: what the client is told: a refusal of the engine, 502 for broken formats, 503 for lost engines.
    """
    metrics = watchers.metrics
    broken = 0
    tried: set[Upstream] = set()

    def pick() -> Upstream | None:
        return pool.pick(tried, prefix=job.prefix, needs_structural_tags=job.bind)

    while True:
        upstream = pick()
        if upstream is None:
            raise engine_unavailable("it did not answer" if tried else "there is none")
        job.upstream = upstream.name
        choice = job.new_choice(upstream)
        job.outputs.append(choice)
        attempt = watchers.span.attempt(upstream.name, choice=index, attempt=len(tried) + broken)
        try:
            with upstream.taking(pool.expect(job.prompt_bytes, job.request.max_completion_tokens)):
                await _run(job, index, choice, upstream, sink, broken, attempt.headers())
        except FormatBroken as exc:
            broken += 1
            attempt.end(error=exc.kind)
            metrics.malformed.labels(exc.kind).inc()
            logger.warning("%s: choice %d of upstream %s: %s", job.id, index, upstream.name, exc.kind)
            last = sink.sent(index) or broken > job.config.format_retries
            _keep_thought(
                job, index, choice, watchers, attempt=broken - 1, retried=not last, malformed=exc.kind
            )
            if last:
                raise format_broken(exc.kind, broken) from exc
            metrics.retries.inc()
            job.retries += 1
            watchers.span.event("retry")
        except ApiError as exc:
            attempt.end(error=exc.code or exc.type)
            tried.add(upstream)
            # An engine that is busy need not be the only one.
            if exc.status != 429 or sink.sent(index) or pick() is None:
                raise
        except UpstreamFailed as exc:
            attempt.end(error="upstream_failed")
            tried.add(upstream)
            logger.warning("%s: engine %s: %s", job.id, upstream.name, exc)
            if sink.sent(index):
                raise engine_unavailable("it ended in the middle of the response") from exc
            if pick() is not None:
                metrics.failovers.inc()
                job.failovers += 1
                watchers.span.event("failover")
        else:
            pool.learn(choice.completion_tokens)
            _keep_thought(job, index, choice, watchers, attempt=broken)
            attempt.end()
            return choice
        sink.restart(index)
        job.shown.pop(index, None)


def _keep_thought(
    job: Job,
    index: int,
    choice: Choice,
    watchers: Watchers,
    *,
    attempt: int,
    retried: bool = False,
    malformed: str | None = None,
) -> None:
    """Write an output to the operators' log, if there is one."""
    if watchers.log is None:
        return
    shown = job.shown.get(index)
    watchers.log.append(
        ThoughtRecord(
            id=job.id,
            created=int(time.time()),
            model=job.model_name,
            choice=index,
            attempt=attempt,
            retried=retried,
            malformed=malformed,
            caller=job.caller,
            upstream=job.upstream,
            seconds=None if shown is None else round(shown - job.started, 3),
            finish_reason=choice.finish_reason,
            thought_tokens=choice.reasoning_tokens,
            response_tokens=choice.response_tokens,
            thought=choice.thought,
        )
    )


async def _run(
    job: Job,
    index: int,
    choice: Choice,
    upstream: Upstream,
    sink: Sink,
    attempt: int,
    headers: Mapping[str, str],
) -> None:
    """Feed one output of one upstream to a choice, to the end."""
    body = job.body(index, attempt, upstream)
    stream = await upstream.stream(body, job.id, headers, unseen=lambda: not sink.sent(index))
    complete = False
    try:
        await sink.opened()
        complete = await _pump(job, index, choice, stream, sink)
        if choice.finish_reason is None:  # the thought is over its budget
            stream.close()
            stream = await _ask_to_answer(job, choice, upstream, body, stream, headers)
            if choice.finish_reason is None:
                complete = await _pump(job, index, choice, stream, sink)
            if choice.finish_reason is None:  # it thinks again: there will be no response
                choice.finish("length")
    finally:
        stream.close(complete=complete)
    if index not in job.shown:
        sink.begin(index, choice)


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
        "_ids",
        "_index",
        "_job",
        "_joined",
        "_joins",
        "_reason",
        "_sink",
        "complete",
        "over",
    )

    def __init__(self, job: Job, index: int, choice: Choice, sink: Sink) -> None:
        self._job, self._index, self._choice, self._sink = job, index, choice, sink
        self._reason: str | None = None
        # Of a thought that was cut, where the engine goes on from there.
        self._before = choice.completion_tokens
        self._counted = 0  # by the engine
        # What the events of one read add is fed at once where that comes to the same: nobody waits for the parts of an
        # answer that is sent whole, nor for those of a thought, unless it is to be cut at a token. An echo guard is to see
        # a thought that comes behind a part of the response no sooner than that part.
        self._joins = (
            not job.request.logprobs and job.thought_budget is None and job.config.echo_guard == "off"
        )
        self._joined: list[str] = []  # the texts of tokens that are not fed yet
        self._ids: list[int] = []
        self._has_ids = False
        self.over = False
        self.complete = False

    def take(self, payloads: list[bytes]) -> bool:
        """Take some events; return whether there is something to send, or nothing more to read."""
        visible = False
        joining = (
            self._joins and len(payloads) > 1 and (not self._job.request.stream or self._choice.thinking)
        )
        for payload in payloads:
            if payload == DONE:
                self._feed_joined()
                self.complete = True
                if self.over:
                    return True
                # A stream that ends in good order has ended, though some servers do not say why.
                self._finish(self._reason or "stop")
                return True
            try:
                chunk = decode_chunk(payload)
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                self._feed_joined()
                if self.over:  # what comes behind the end of a response does not matter
                    return True
                raise UpstreamFailed("it sent an event that is no chunk") from exc
            for part in chunk.choices:
                visible = self._take_part(part, joining=joining) or visible
                if self.over:
                    return True
            if chunk.error is not None:
                self._feed_joined()
                if self.over:
                    return True
            if chunk.usage is not None or chunk.prompt_token_ids or chunk.error is not None:
                self._take_rest(chunk)
        visible = self._feed_joined() or visible
        if self.over:
            return True
        return visible and not self._sink.send_now()

    def end(self) -> None:
        """The stream has ended without `[DONE]`."""
        if self._reason is None:
            raise UpstreamFailed("the stream ended in the middle of an output")
        self._finish(self._reason)

    def _take_part(self, part: ChunkChoice, *, joining: bool) -> bool:
        """Take what a chunk has of the choice; return whether anything of it is visible (so far, if it is joined)."""
        if part.index:  # one choice was asked for
            return False
        text = (part.delta.content if part.delta is not None else None) or ""
        ids = part.token_ids
        logprobs = part.logprobs.content if part.logprobs is not None else None
        if ids is not None:
            self._has_ids = True
            tokens = len(ids)
        else:
            tokens = len(logprobs) if logprobs else 1 if text else 0
        if joining and tokens == 1 and part.finish_reason is None:
            self._joined.append(text)
            if ids is not None:
                self._ids += ids
            return False
        shown = self._feed_joined()
        if (text or tokens) and not self.over:
            shown = self._fed(self._choice.feed(text, tokens, ids, logprobs)) or shown
            # Looked at with every chunk, so that the cut does not hang on how the bytes came.
            if self._choice.over_thought_budget and part.finish_reason is None:
                self.over = True
        if part.finish_reason is not None and not self.over:
            if part.finish_reason in ("error", "abort"):
                raise UpstreamFailed("it gave up the output")
            self._reason = FINISH_REASONS.get(part.finish_reason, "stop")
        return shown

    def _feed_joined(self) -> bool:
        """Feed what was joined; return whether anything of it is visible."""
        if not self._joined:
            return False
        texts, ids = self._joined, self._ids
        self._joined, self._ids = [], []
        lengths = list(map(len, texts))
        return self._fed(self._choice.feed("".join(texts), len(texts), ids or None, lengths=lengths))

    def _fed(self, visible: Visible | None) -> bool:
        """Go on from what the choice was fed; return whether anything of it is visible."""
        self.over = self._choice.finish_reason is not None
        return self._show(visible) if visible is not None or self._job.reveal else False

    def _take_rest(self, chunk: Chunk) -> None:
        """Take what a chunk tells beside the choice."""
        if chunk.error is not None:
            raise _reported(chunk.error, nothing_generated=self._choice.completion_tokens == 0)
        if chunk.usage is not None:
            self._counted = chunk.usage.completion_tokens
        if not self._before:
            prompt_tokens = len(chunk.prompt_token_ids or ()) or (chunk.usage and chunk.usage.prompt_tokens)
            if prompt_tokens:
                self._job.prompt_tokens[self._job.request.conversation(self._index)] = prompt_tokens

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
        if visible is None or not (visible.text or visible.behind):
            return bool(thought)
        if self._index not in job.shown:
            job.shown[self._index] = time.monotonic()
            sink.begin(self._index, self._choice)
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
    job: Job,
    choice: Choice,
    upstream: Upstream,
    body: dict[str, Any],
    stream: UpstreamStream,
    headers: Mapping[str, str],
) -> UpstreamStream:
    """The thought has used up its budget: close it in the model's stead, and have the model go on with the response.

    The engine is given its own output so far, with the closing marker behind it, as the beginning of the answer. One
    that cannot go on from there leaves the response empty, with `finish_reason` "length".
    """
    format = job.config.format
    opening = format.opening[0] + "\n" if format.opening_in_prompt else ""
    thought = choice.raw
    newline = "\n" if format.line_start else ""
    # A quotation sign on both sides would make a mention of it.
    apart = "\n" if newline or thought[-1:] in QUOTES else ""
    closing = f"{apart}{format.closing[0]}{newline}"
    answer = {"role": "assistant", "content": opening + thought + closing}
    body = body | {
        "messages": [*body["messages"], answer],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    body.pop("thinking_token_budget", None)
    if job.bind:
        # The thought is over: a grammar with a thought in it would let free text into the response.
        body["structured_outputs"] = job.constraint(True)
    if job.request.max_completion_tokens is not None:
        body["max_tokens"] = max(1, job.request.max_completion_tokens - choice.completion_tokens)
    try:
        stream = await upstream.stream(body, job.id, headers, unseen=lambda: not choice.shown)
    except ApiError as exc:
        logger.warning(
            "%s: engine %s cannot go on from a cut thought (%s)", job.id, upstream.name, exc.status
        )
        choice.finish("length")
        return stream
    choice.cut_thought(closing, watched=not job.request.closed)
    return stream
