"""Sampling from a server that speaks OpenAI's chat completions: vLLM in a process of its own, or one at a URL.

An instruction is one request for all its outputs (`n`) with one seed, from which vLLM gives its outputs seeds of their
own (seed, seed + 1 ...). So a prompt is read once, and a stage that is resumed asks for the same as it would have asked;
seeds take nothing of the throughput (`benchmarks/training_sampling.py`). Retries, the adaptive limit and what is said
about failures are those of the judges' client.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thinkserve.errors import EngineError, UsageError
from thinkserve.eval.bench import JudgeRequest
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.completion import Completion, CompletionFailed
from thinkserve.training.records import Sampled, SampleRecord
from thinkserve.training.sampling.generator import Ask, Sampling

# One request may wait behind thousands of outputs, so a hanging server is told from a busy one late. A vLLM of ours
# that dies is known at once.
REQUEST_SECONDS = 7200.0
# With the client's growing pauses that is five to ten minutes, in which a large model is loaded again.
RETRIES = 12
WATCH_SECONDS = 0.5
# What servers say of a prompt that leaves no room for `max_tokens`, or for anything.
_NO_ROOM = re.compile(
    r"context.?length|context window|maximum context|too long|too many tokens", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is known of the server's model."""

    name: str
    """For the report."""
    extensions: bool = False
    """Whether it knows vLLM's fields beside OpenAI's: `top_k`, `return_token_ids` ..."""
    context: int | None = None
    """Tokens of prompt and output at most."""
    left_out: re.Pattern[str] | None = None
    """Special tokens that must go while a marker, which is one too, must stay; None: the server leaves all out."""


class ServerGenerator:
    """Keeps the `Generator` protocol over a server.

    Args:
        chat: a client of it; its concurrency counts requests.
        model: what it serves.
        engine_failed: why the engine is gone for good; None while it is not.
    """

    def __init__(
        self,
        chat: ChatClient,
        model: ServedModel,
        engine_failed: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._chat, self._model, self._engine_failed = chat, model, engine_failed
        self._prompt_tokens = self._output_tokens = self._no_room = 0
        self._seconds = 0.0

    @property
    def name(self) -> str:
        """`vllm VERSION`, or the URL."""
        return self._model.name

    @property
    def numbers(self) -> Mapping[str, Any]:
        """What was counted so far."""
        return {
            "prompt_tokens": self._prompt_tokens,
            "output_tokens": self._output_tokens,
            "prompts_too_long": self._no_room,
            "seconds": self._seconds,
        }

    async def generate(self, asks: Sequence[Ask], sampling: Sampling) -> AsyncIterator[SampleRecord]:
        """Sample all asks, each as soon as it is finished.

        A prompt that leaves no room for an output has empty ones that ran into the limit.

        Raises:
            EngineError: the engine is gone, or some asks failed with all their retries; the others have been given.
            ThinkserveError: no request can succeed; the message says what to do.
        """
        waiting = iter(asks)
        done: asyncio.Queue[SampleRecord | Exception] = asyncio.Queue()
        workers = min(self._chat.concurrency, len(asks))
        tasks = [asyncio.create_task(self._work(waiting, sampling, done)) for _ in range(workers)]
        tasks.append(asyncio.create_task(self._watch(done)))
        failures: list[Exception] = []
        began = time.monotonic()
        try:
            for _ in asks:
                found = await done.get()
                if isinstance(found, SampleRecord):
                    yield found
                elif isinstance(found, CompletionFailed):
                    failures.append(found)
                else:
                    raise found
        finally:
            self._seconds += time.monotonic() - began
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if failures:
            raise EngineError(
                f"{len(failures)} of {len(asks)} instructions could not be sampled; run again: what was sampled is kept. "
                f"The last one: {failures[-1]}"
            )

    async def _work(
        self, waiting: Iterator[Ask], sampling: Sampling, done: asyncio.Queue[SampleRecord | Exception]
    ) -> None:
        for ask in waiting:
            try:
                done.put_nowait(await self._sample(ask, sampling))
            except Exception as exc:  # noqa: BLE001 - raised by `generate`, which would wait for ever
                done.put_nowait(exc)

    async def _watch(self, done: asyncio.Queue[SampleRecord | Exception]) -> None:
        while (why := self._engine_failed()) is None:  # noqa: ASYNC110 - the engine has no event for it
            await asyncio.sleep(WATCH_SECONDS)
        done.put_nowait(EngineError(f"the engine is gone for good: {why}"))

    async def _sample(self, ask: Ask, sampling: Sampling) -> SampleRecord:
        # All greedy outputs are the same, and vLLM refuses more than one.
        distinct = sampling.k if sampling.temperature else 1
        outputs: list[Sampled] = []
        while len(outputs) < distinct:  # some servers give one output, however many are asked for
            completion = await self._complete(ask, sampling, distinct - len(outputs), len(outputs))
            if completion is None:
                self._no_room += 1
                return SampleRecord(ask.id, (Sampled("", "length", 0),) * sampling.k)
            outputs += self._outputs(completion)
        return SampleRecord(ask.id, tuple(outputs[:distinct]) * (sampling.k // distinct))

    async def _complete(self, ask: Ask, sampling: Sampling, n: int, sampled: int) -> Completion | None:
        """One request; None if the prompt leaves no room for an output."""
        settings: dict[str, Any] = {
            "n": n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": ask.seed + sampled,
        }
        if self._model.extensions:
            # Else vLLM takes what it is not told from the checkpoint's generation_config.json.
            settings |= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
            settings["skip_special_tokens"] = self._model.left_out is None
        context = self._model.context
        tries = [settings, {name: value for name, value in settings.items() if name != "max_tokens"}]
        if context is not None and sampling.max_tokens >= context:
            del tries[0]
        for tried in tries:  # without `max_tokens`, the output may fill what the prompt leaves of the context
            try:
                return await self._chat.complete(
                    JudgeRequest(({"role": "user", "content": ask.message},), tried)
                )
            except CompletionFailed as exc:
                if not (exc.failures[-1].startswith("http 4") and _NO_ROOM.search(str(exc))):
                    raise
        return None

    def _outputs(self, completion: Completion) -> list[Sampled]:
        if completion.reasoning_characters:
            raise UsageError(
                f"{self._model.name} keeps thoughts apart from its text, and training needs whole outputs; start it without "
                "a reasoning parser"
            )
        counts = token_counts(completion)
        self._prompt_tokens += completion.prompt_tokens or 0
        self._output_tokens += sum(counts)
        left_out = self._model.left_out
        return [
            Sampled(
                choice.text if left_out is None else left_out.sub("", choice.text),
                "length" if choice.finish_reason == "length" else "stop",
                tokens,
            )
            for choice, tokens in zip(completion.choices, counts, strict=True)
        ]


def token_counts(completion: Completion) -> list[int]:
    """The tokens of each output, the one that ends it included.

    Where a server does not tell them one by one, their sum is shared out by characters.
    """
    choices, total = completion.choices, completion.completion_tokens or 0
    if all(choice.tokens is not None for choice in choices):
        return [choice.tokens or 0 for choice in choices]
    counts: list[int] = []
    characters = [len(choice.text) + 1 for choice in choices]
    for place in range(len(choices)):
        counts.append(round(total * sum(characters[: place + 1]) / sum(characters)) - sum(counts))
    return counts
