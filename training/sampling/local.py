"""Sampling with transformers in this process: for small models, and where vLLM is not installed.

The batches hang on all asks of a stage and on nothing else, and each output draws from a source of its own; so what is
sampled again after a kill comes out the same on the same device with as many threads.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from thinkserve.engines.transformers_server.decoder import Decoder
from thinkserve.errors import EngineError, UsageError
from thinkserve.training.records import Sampled, SampleRecord
from thinkserve.training.sampling.batch import Batch, Decoded, Job
from thinkserve.training.sampling.cache import RowCache
from thinkserve.training.sampling.generator import Ask, Sampling

# Tokens of the prompt that are decoded with an output: some tokenizers drop a space at the start of a text.
PROMPT_TAIL = 6


class LocalGenerator:
    """Keeps the `Generator` protocol in this process; also `Batching`.

    Args:
        model: a causal language model of transformers.
        tokenizer: its fast tokenizer, with a chat template.
        rows: outputs at once in a batch.
        markers: thought markers; one that is a special token stays in the text.

    Raises:
        EngineError: the model keeps no attention cache that can be batched.
        UsageError: the tokenizer has no chat template.
    """

    def __init__(self, model: Any, tokenizer: Any, *, rows: int, markers: Sequence[str] = ()) -> None:
        if not tokenizer.chat_template:
            raise UsageError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template; set `chat_template: FILE` (a Jinja file) "
                "in the recipe"
            )
        self.rows = rows
        self._decoder, self._tokenizer = Decoder(model), tokenizer
        self._decoder.self_check()
        self._cache = RowCache()
        self._fast = tokenizer.backend_tokenizer
        self._eos_ids = _end_tokens(model, tokenizer)
        added = self._fast.get_added_tokens_decoder()
        self._left_out = frozenset(
            id for id, token in added.items() if token.special and token.content not in markers
        )
        self._prompts: dict[str, tuple[int, ...]] = {}
        """Token ids by message; of the stage's asks, which are looked at twice."""
        self._prompt_tokens = self._output_tokens = self._no_room = 0
        self._seconds = 0.0

    @classmethod
    def load(
        cls,
        model: str,
        *,
        rows: int,
        markers: Sequence[str] = (),
        chat_template: str | None = None,
        revision: str | None = None,
    ) -> LocalGenerator:
        """Load a checkpoint: on a GPU in its own dtype, else on the CPU in float32.

        Args:
            model: a folder, or a name on the Hub.
            rows: outputs at once in a batch.
            markers: thought markers; one that is a special token stays in the text.
            chat_template: a Jinja file in place of the tokenizer's own.
            revision: on the Hub.

        Raises:
            EngineError: the model keeps no attention cache that can be batched.
            UsageError: there is no chat template.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "auto" if device == "cuda" else torch.float32
        options = {} if Path(model).is_dir() else {"revision": revision}
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **options).to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(model, **options)
        if chat_template is not None:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        return cls(loaded, tokenizer, rows=rows, markers=markers)

    @property
    def name(self) -> str:
        """`transformers VERSION`."""
        return f"transformers {metadata.version('transformers')}"

    @property
    def numbers(self) -> Mapping[str, Any]:
        """What was counted so far."""
        return {
            "prompt_tokens": self._prompt_tokens,
            "output_tokens": self._output_tokens,
            "prompts_too_long": self._no_room,
            "seconds": self._seconds,
        }

    def batches(self, asks: Sequence[Ask], sampling: Sampling) -> list[list[Ask]]:
        """As many asks as fill the rows, those with prompts of a similar length together, the longest first."""
        self._read_prompts(asks)
        ordered = sorted(asks, key=lambda ask: -len(self._prompts[ask.message]))
        size = max(1, self.rows // _distinct(sampling))
        return [ordered[at : at + size] for at in range(0, len(ordered), size)]

    async def generate(self, asks: Sequence[Ask], sampling: Sampling) -> AsyncIterator[SampleRecord]:
        """Sample all asks, a batch at a time.

        A prompt that leaves no room for an output has empty ones that ran into the limit.

        Raises:
            EngineError: the device has not even memory for one output.
            UsageError: the chat template refuses a message.
        """
        stop = threading.Event()
        try:
            for batch in self.batches(asks, sampling):
                began = time.monotonic()
                found = await asyncio.to_thread(self._sample, batch, sampling, stop)
                self._seconds += time.monotonic() - began
                for record in found:
                    yield record
        finally:
            stop.set()

    def _read_prompts(self, asks: Sequence[Ask]) -> None:
        messages = list(dict.fromkeys(ask.message for ask in asks))
        if self._prompts.keys() >= set(messages):
            return
        conversations = [[{"role": "user", "content": message}] for message in messages]
        try:
            texts = self._tokenizer.apply_chat_template(
                conversations, tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError) as exc:
            raise UsageError(
                f"{self._tokenizer.name_or_path}: its chat template refused a message: {exc}"
            ) from exc
        encoded = self._fast.encode_batch(texts, add_special_tokens=False)
        self._prompts = {message: tuple(found.ids) for message, found in zip(messages, encoded, strict=True)}

    def _sample(self, batch: Sequence[Ask], sampling: Sampling, stop: threading.Event) -> list[SampleRecord]:
        distinct = _distinct(sampling)
        fitting = [ask for ask in batch if len(self._prompts[ask.message]) < self._decoder.max_model_len]
        jobs = [Job(self._prompts[ask.message], ask.seed, 0, distinct) for ask in fitting]
        decoded = self._decode(jobs, sampling, stop)
        self._prompt_tokens += sum(len(job.prompt) for job in jobs)
        self._output_tokens += sum(len(output.tokens) for output in decoded)
        self._no_room += len(batch) - len(fitting)
        found: dict[str, tuple[Sampled, ...]] = {}
        for place, (ask, job) in enumerate(zip(fitting, jobs, strict=True)):
            outputs = decoded[place * distinct : (place + 1) * distinct]
            found[ask.id] = self._texts(job.prompt, outputs) * (sampling.k // distinct)
        nothing = (Sampled("", "length", 0),) * sampling.k
        return [SampleRecord(ask.id, found.get(ask.id, nothing)) for ask in batch]

    def _decode(self, jobs: list[Job], sampling: Sampling, stop: threading.Event) -> list[Decoded]:
        """Decode all jobs at once, or in halves where the device has no memory for that."""
        if not jobs:
            return []
        try:
            return Batch(self._decoder, self._cache, jobs, sampling, self._eos_ids).run(stop)
        except torch.OutOfMemoryError as exc:
            halves = _halves(jobs)
            if halves is None:
                raise EngineError(
                    f"{self._decoder.device} has no memory for one output of {sampling.max_tokens} tokens; lower "
                    "sample.max_tokens, or sample with vLLM"
                ) from exc
        self._cache = RowCache()
        torch.cuda.empty_cache()
        return [output for half in halves for output in self._decode(half, sampling, stop)]

    def _texts(self, prompt: tuple[int, ...], outputs: Sequence[Decoded]) -> tuple[Sampled, ...]:
        tail = list(prompt[-PROMPT_TAIL:])
        # As with vLLM: the token that ends an output is counted, and is no text.
        shown = [output.tokens[:-1] if output.ended else output.tokens for output in outputs]
        kept = [tail + [id for id in tokens if id not in self._left_out] for tokens in shown]
        before, *texts = self._fast.decode_batch([tail, *kept], skip_special_tokens=False)
        return tuple(
            Sampled(text[len(before) :], "stop" if output.ended else "length", len(output.tokens))
            for text, output in zip(texts, outputs, strict=True)
        )


def _distinct(sampling: Sampling) -> int:
    """Outputs that differ: all greedy ones are the same."""
    return sampling.k if sampling.temperature else 1


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    named = model.generation_config.eos_token_id
    more = [named] if isinstance(named, int) else named or []
    return frozenset(each for each in (tokenizer.eos_token_id, *more) if each is not None)


def _halves(jobs: list[Job]) -> tuple[list[Job], list[Job]] | None:
    """Two halves of the work; None if it is a single output."""
    if len(jobs) > 1:
        return jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]
    (job,) = jobs
    if job.count == 1:
        return None
    less = job.count // 2
    return (
        [Job(job.prompt, job.seed, job.first, less)],
        [Job(job.prompt, job.seed, job.first + less, job.count - less)],
    )
