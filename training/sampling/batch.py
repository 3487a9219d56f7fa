"""Decoding one batch: all its rows a token at a time, until each has ended.

The outputs of one prompt share its prefill. Rows that have ended make room for the last ones, so that the batch gets
smaller as it goes; no new rows join, since what a row's floats are rounded to hangs on its neighbours, and a batch
must come out the same whatever ran before it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import torch

from thinkserve.engines.transformers_server.cache import BatchCache
from thinkserve.engines.transformers_server.decoder import Decoder
from thinkserve.engines.transformers_server.sampling import Sampler, SamplingParams
from thinkserve.training.sampling.cache import RowCache
from thinkserve.training.sampling.generator import Sampling

# Of one pass through prompts: tokens with padding, and logits (one for each different length in each row).
PREFILL_TOKENS = 8192
LOGITS = 1 << 24
# Rows are moved when so large a share has ended: moving costs less than decoding them on, but not nothing.
ENDED_SHARE = 1 / 16


class Stopped(Exception):
    """Nobody wants the rest of the batch."""


@dataclass(frozen=True, slots=True)
class Job:
    """Outputs that begin with one prompt."""

    prompt: tuple[int, ...]
    seed: int
    first: int
    """The number of the first output; on it and the seed hangs what is drawn."""
    count: int


@dataclass(slots=True)
class Row:
    """One output, as the `Sampler` wants to see it. Its uniform numbers are its own, whoever is in the batch."""

    params: SamplingParams
    random: Random
    prompt_ids: list[int] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)
    min_tokens: int = 0
    eos_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Decoded:
    """One output: its tokens, the one that ended it included."""

    tokens: list[int]
    ended: bool
    """By itself; else it ran into a limit."""


class Batch:
    """One batch on its way through the model.

    Args:
        decoder: the model.
        cache: is overwritten; what other batches left in it is never seen.
        jobs: what is decoded.
        sampling: how tokens are drawn.
        eos_ids: tokens that end an output.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: RowCache,
        jobs: Sequence[Job],
        sampling: Sampling,
        eos_ids: Collection[int],
    ) -> None:
        self._decoder, self._cache, self._jobs, self._device = decoder, cache, jobs, decoder.device
        self._eos = torch.tensor(sorted(eos_ids), device=self._device)
        rows = [(job, job.first + each) for job in jobs for each in range(job.count)]
        self._rows = [_row(job.seed, number, sampling) for job, number in rows]
        room = [min(sampling.max_tokens, decoder.max_model_len - len(job.prompt)) for job, _ in rows]
        self._limits = torch.tensor(room, device=self._device)
        self._tokens = torch.zeros((len(rows), max(room)), dtype=torch.int32, device=self._device)
        """(outputs, steps): what was drawn."""
        self._lengths = torch.zeros(len(rows), dtype=torch.int64, device=self._device)
        self._ended = torch.zeros(len(rows), dtype=torch.bool, device=self._device)
        # Of each row of the cache: which output it is, whether that goes on, and where its next token goes.
        self._output = torch.arange(len(rows), device=self._device)
        self._live = torch.ones(len(rows), dtype=torch.bool, device=self._device)
        self._positions = torch.tensor([len(job.prompt) for job, _ in rows], device=self._device)
        self._going = len(rows)
        self._sampler = Sampler(self._rows, decoder.vocab_size, self._device)

    def run(self, stop: threading.Event) -> list[Decoded]:
        """Decode all rows; in the order of the jobs.

        Raises:
            Stopped: `stop` was set meanwhile.
            torch.OutOfMemoryError: the batch is too large for the device.
        """
        with torch.inference_mode():
            logits = self._prefill()
            for step in range(self._tokens.shape[1]):
                if stop.is_set():
                    raise Stopped
                tokens = self._take(self._sampler.sample(logits), step)
                if not self._going:
                    break
                logits = self._decode(tokens)
        lengths, ends = self._lengths.tolist(), self._ended.tolist()
        return [
            Decoded(tokens[:length], ended)
            for tokens, length, ended in zip(self._tokens.tolist(), lengths, ends, strict=True)
        ]

    def _take(self, tokens: torch.Tensor, step: int) -> torch.Tensor:
        """Give each output its token; the tokens of the rows that are left."""
        self._tokens[self._output, step] = tokens.int()
        ended = torch.isin(tokens, self._eos)
        over = self._live & (ended | (step + 1 >= self._limits[self._output]))
        if not bool(over.any()):
            return tokens
        outputs = self._output[over]
        self._lengths[outputs], self._ended[outputs] = step + 1, ended[over]
        self._live = self._live & ~over
        self._going = int(self._live.sum())
        if not self._going or len(tokens) - self._going < len(tokens) * ENDED_SHARE:
            return tokens
        return tokens[self._close_up()]

    def _decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits after one more token of each row, (rows, vocab)."""
        columns = int(self._positions.max()) + 1
        self._cache.reserve(len(tokens), columns)
        rows = torch.arange(len(tokens), device=self._device)
        logits = self._decoder.decode(self._cache, rows, tokens, self._positions, columns)
        self._positions = self._positions + self._live  # an ended row stays within the model's context
        return logits

    def _prefill(self) -> torch.Tensor:
        """Read all prompts into the cache; the logits for each row's first token, (rows, vocab)."""
        prompts = [job.prompt for job in self._jobs]
        self._cache.reserve(len(self._rows), max(map(len, prompts)) + 1)
        logits, row = [], 0
        for first, last in pairwise(self._passes(prompts)):
            part = prompts[first:last]
            columns = max(map(len, part))
            read = BatchCache(max_tokens=len(part) * columns)
            found = self._decoder.prefill(read, part)
            counts = torch.tensor([job.count for job in self._jobs[first:last]], device=self._device)
            places = torch.arange(len(part), device=self._device).repeat_interleave(counts)
            self._cache.spread(read, places, row, columns)
            logits.append(found[places])
            row += len(places)
        return torch.cat(logits)

    def _passes(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Where each pass begins, and the end: as many prompts at once as the bounds allow."""
        bounds, longest = [0], 0
        lengths: set[int] = set()
        for place, prompt in enumerate(prompts):
            longest, lengths = max(longest, len(prompt)), lengths | {len(prompt)}
            size = place - bounds[-1] + 1
            logits = size * len(lengths) * self._decoder.vocab_size
            if size > 1 and (size * longest > PREFILL_TOKENS or logits > LOGITS):
                bounds.append(place)
                longest, lengths = len(prompt), {len(prompt)}
        return [*bounds, len(prompts)]

    def _close_up(self) -> torch.Tensor:
        """Move the last live rows into the places of ended ones; the old row of each row that is left, (going,)."""
        holes = torch.nonzero(~self._live[: self._going])[:, 0]
        movers = torch.nonzero(self._live[self._going :])[:, 0] + self._going
        self._cache.move(movers, holes, int(self._positions.max()))
        kept = torch.arange(self._going, device=self._device)
        kept[holes] = movers
        self._output, self._live = self._output[kept], self._live[kept]
        self._positions = self._positions[kept]
        rows = [self._rows[output] for output in self._output.tolist()]
        self._sampler = Sampler(rows, self._decoder.vocab_size, self._device)
        return kept


def _row(seed: int, number: int, sampling: Sampling) -> Row:
    params = SamplingParams(sampling.temperature, sampling.top_p, seed=seed)
    return Row(params, params.generator(number))
