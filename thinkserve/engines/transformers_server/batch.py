"""Continuous batching: one decode step for all running sequences, which join and leave between steps.

A step is: drop what was cancelled, run one piece of prefill if sequences wait and there is room, then decode one token
for every row. Memory is bounded by rows and by the cache's rectangle (rows x longest row); a sequence that no longer
fits goes back to the head of the queue, newest first, and is prefilled again, output included, when there is room.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

import torch

from thinkserve.engines.transformers_server.cache import COLUMN_STEP, BatchCache
from thinkserve.engines.transformers_server.decoder import Decoder
from thinkserve.engines.transformers_server.generation import Delta, Generation
from thinkserve.engines.transformers_server.sampling import Sampler, logprobs
from thinkserve.engines.transformers_server.sequence import Sequence

logger = logging.getLogger(__name__)

# Prefill writes a logit for each different prompt length in each row of a group; this bounds that block.
LOGITS_LIMIT = 1 << 24

Event = tuple[Generation, int, Delta]  # delta of a choice
Failure = tuple[Generation, str]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much runs at once.

    Attributes:
        rows: sequences.
        tokens: rows x longest row, at most; at least one sequence of full length must fit.
        prefill_tokens: tokens of one piece of prefill, with padding: how long others wait for a long prompt.
    """

    rows: int
    tokens: int
    prefill_tokens: int


class Prefill:
    """A group of prompts on its way into the batch, in a cache of its own.

    Either several short prompts that take one pass, or a single one, chunk by chunk. `groups` holds for each prompt
    the sequences that share it: the choices of one request.
    """

    def __init__(self, groups: list[list[Sequence]]) -> None:
        self.groups = groups
        self.token_ids = [group[0].token_ids() for group in groups]
        self.cache = BatchCache(max_tokens=len(groups) * max(map(len, self.token_ids)))
        self._done = 0
        self.cache.reserve(len(groups), max(map(len, self.token_ids)))

    def advance(self, decoder: Decoder, tokens: int) -> torch.Tensor | None:
        """Run one pass; after the last one, the logits after each prompt (prompts, vocab)."""
        if len(self.token_ids) > 1:
            return decoder.prefill(self.cache, self.token_ids)
        start, self._done = self._done, self._done + tokens
        logits = decoder.prefill(self.cache, [self.token_ids[0][start : self._done]], start)
        return logits if self._done >= len(self.token_ids[0]) else None


class ContinuousBatch:
    """The running sequences and the queue before them. Everything here runs on the decode thread."""

    def __init__(self, decoder: Decoder, limits: BatchLimits) -> None:
        self.waiting: deque[Sequence] = deque()
        self._decoder = decoder
        self._limits = limits
        self._rows: list[Sequence] = []  # row i of the cache; from oldest to newest only until one leaves
        self._joined: dict[Sequence, int] = {}  # when each row joined, to find the newest
        self._joins = 0
        self._cache = BatchCache(limits.tokens)
        self._prefill: Prefill | None = None
        self._changed = True
        self._sampler: Sampler | None = None
        self._row_index = self._tokens = self._positions = torch.empty(0)

    @property
    def busy(self) -> bool:
        """Whether a step would have something to do."""
        return bool(self._rows or self.waiting or self._prefill)

    @property
    def running(self) -> int:
        """Sequences that hold a row."""
        return len(self._rows)

    def step(self) -> tuple[list[Event], list[Failure]]:
        """Advance everything by one token; what was gained, and which generations could not be prefilled."""
        events: list[Event] = []
        failures: list[Failure] = []
        with torch.inference_mode():
            self._drop_cancelled()
            if self._prefill is None:
                self._prefill = self._next_prefill()
            if self._prefill is not None:
                try:
                    logits = self._prefill.advance(self._decoder, self._limits.prefill_tokens)
                except (RuntimeError, MemoryError) as exc:
                    failures = self._fail_prefill(self._prefill, exc)
                else:
                    if logits is not None:
                        self._finish_prefill(self._prefill, logits, events)
            if self._rows:
                self._decode(events)
        return events, failures

    def _drop_cancelled(self) -> None:
        for row in reversed(range(len(self._rows))):
            if self._rows[row].generation.cancelled:
                self._remove(row)
        if any(sequence.generation.cancelled for sequence in self.waiting):
            self.waiting = deque(each for each in self.waiting if not each.generation.cancelled)
        if self._prefill is not None and all(group[0].generation.cancelled for group in self._prefill.groups):
            self._prefill = None

    def _next_prefill(self) -> Prefill | None:
        """The sequences at the head of the queue that fit, in order; none overtakes another."""
        groups: list[list[Sequence]] = []
        lengths: list[int] = []
        count = len(self._rows)
        longest = max((row.length for row in self._rows), default=0)
        while self.waiting:
            sequence = self.waiting[0]
            new_longest = max(longest, sequence.length)
            # The extra step is room to grow, so that what joins is not thrown out again at once.
            columns = min(new_longest + COLUMN_STEP, self._decoder.max_model_len)
            if count and (count >= self._limits.rows or (count + 1) * columns > self._limits.tokens):
                break
            if groups and _share_prompt(groups[-1][0], sequence):
                groups[-1].append(self.waiting.popleft())
            elif groups and not self._one_pass([*lengths, sequence.length]):
                break
            else:
                groups.append([self.waiting.popleft()])
                lengths.append(sequence.length)
            count, longest = count + 1, new_longest
        return Prefill(groups) if groups else None

    def _one_pass(self, lengths: list[int]) -> bool:
        padded = len(lengths) * max(lengths)
        logits = len(lengths) * len(set(lengths)) * self._decoder.vocab_size
        return padded <= self._limits.prefill_tokens and logits <= LOGITS_LIMIT

    def _finish_prefill(self, prefill: Prefill, logits: torch.Tensor, events: list[Event]) -> None:
        """Give each sequence its first token, and a row if it goes on."""
        self._prefill = None
        sequences = [each for group in prefill.groups for each in group]
        source = [row for row, group in enumerate(prefill.groups) for _ in group]
        logits = logits[torch.tensor(source, device=logits.device)]
        tokens = Sampler(sequences, self._decoder.vocab_size, logits.device).sample(logits)
        finished = self._accept(sequences, logits, tokens, events)
        for row, (sequence, source_row) in enumerate(zip(sequences, source, strict=True)):
            if row not in finished and not sequence.generation.cancelled:
                self._join(sequence, prefill.cache, source_row)

    def _fail_prefill(self, prefill: Prefill, exc: Exception) -> list[Failure]:
        """Give up on the prompts in prefill alone (most likely out of memory), if the model still works.

        Raises:
            EngineError: it does not, so neither will any other request.
        """
        logger.error("prefill failed: %s", exc)
        self._prefill = None
        self._decoder.self_check()
        message = "the prompt could not be processed: out of memory?"
        return [(group[0].generation, message) for group in prefill.groups]

    def _join(self, sequence: Sequence, source: BatchCache, source_row: int) -> None:
        row = len(self._rows)
        columns = max([sequence.length, *(each.length for each in self._rows)])
        if not self._cache.reserve(row + 1, columns):
            self.waiting.appendleft(sequence)
            return
        self._cache.copy_row(row, source, source_row, sequence.length - 1)
        self._rows.append(sequence)
        self._joins += 1
        self._joined[sequence] = self._joins
        self._changed = True

    def _remove(self, row: int) -> None:
        """Take a row out; the last one moves to its place."""
        last = self._rows.pop()
        removed = last if row == len(self._rows) else self._rows[row]
        if removed is not last:
            self._cache.copy_row(row, self._cache, len(self._rows), last.length - 1)
            self._rows[row] = last
        del self._joined[removed]
        self._changed = True

    def _make_room(self) -> int:
        """The columns that the next decode step needs, after sending back what does not fit."""
        while True:
            columns = max(row.length for row in self._rows)
            if self._cache.reserve(len(self._rows), columns):
                return columns
            newest = max(range(len(self._rows)), key=lambda row: self._joined[self._rows[row]])
            self.waiting.appendleft(self._rows[newest])
            self._remove(newest)

    def _decode(self, events: list[Event]) -> None:
        columns = self._make_room()
        if self._changed:
            self._prepare()
        assert self._sampler is not None
        logits = self._decoder.decode(self._cache, self._row_index, self._tokens, self._positions, columns)
        tokens = self._sampler.sample(logits)
        finished = self._accept(self._rows, logits, tokens, events)
        for row in reversed(finished):
            self._remove(row)
        self._tokens = tokens
        self._positions = self._positions + 1

    def _prepare(self) -> None:
        device = self._decoder.device
        self._sampler = Sampler(list(self._rows), self._decoder.vocab_size, device)
        self._row_index = torch.arange(len(self._rows), device=device)
        self._tokens = torch.tensor([row.output_ids[-1] for row in self._rows], device=device)
        self._positions = torch.tensor([row.length - 1 for row in self._rows], device=device)
        self._changed = False

    def _accept(
        self, rows: list[Sequence], logits: torch.Tensor, tokens: torch.Tensor, events: list[Event]
    ) -> list[int]:
        """Hand each row its token; the rows that have finished, in order."""
        asked = [row for row, sequence in enumerate(rows) if sequence.top_logprobs is not None]
        scores = {}
        if asked:
            most = max(rows[row].top_logprobs or 0 for row in asked)
            index = torch.tensor(asked, device=logits.device)
            scores = dict(zip(asked, logprobs(logits[index], tokens[index], most), strict=True))
        finished = []
        for row, (sequence, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            score = scores.get(row)
            detail = None if score is None else (token, score[0], score[1][: sequence.top_logprobs])
            delta = sequence.accept(token, detail)
            events.append((sequence.generation, sequence.index, delta))
            if delta.finish_reason is not None:
                finished.append(row)
        return finished


def _share_prompt(first: Sequence, second: Sequence) -> bool:
    return first.generation is second.generation and not first.output_ids and not second.output_ids
