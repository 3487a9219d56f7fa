"""From logits to tokens, for all rows of the batch at once.

What is asked for is turned into tensors when the batch changes, not at every token. The order is vLLM's: logprobs
from the raw logits, penalties, temperature, min_p, top_k, top_p, draw. Each row draws one uniform number a token from
a generator of its own, so a seed gives the same choice of numbers in any batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

# Rows with top_p but no top_k look at this many best tokens first: sorting a vocabulary of 150,000 is far slower, and
# the nucleus is nearly always smaller.
NUCLEUS = 1024


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw a token. Ranges are checked in `request.py`; top_k 0 means all tokens."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken. The limit is vLLM's: below it logits / temperature overflow."""
        return self.temperature < 1e-5 or self.top_k == 1

    @property
    def penalised(self) -> bool:
        """Whether the tokens so far change the next one's logits."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    def generator(self, index: int) -> random.Random:
        """The source of a choice's uniform numbers; `index` tells the choices of one request apart."""
        return random.Random() if self.seed is None else random.Random(f"{self.seed}/{index}")


class SamplingRow(Protocol):
    """What the sampler needs to know of a sequence."""

    params: SamplingParams
    random: random.Random
    prompt_ids: list[int]
    output_ids: list[int]
    min_tokens: int
    eos_ids: frozenset[int]


class Sampler:
    """Draws the next token of a fixed list of rows; made anew when the list changes."""

    def __init__(self, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> None:
        self._rows = rows
        self._device = device
        params = [row.params for row in rows]
        self._drawn = [None if row.params.greedy else row.random for row in rows]
        self._all_greedy = all(each is None for each in self._drawn)
        self._any_greedy = any(each is None for each in self._drawn)
        self._greedy = torch.tensor([p.greedy for p in params], device=device)
        self._not_yet_over = any(row.min_tokens > len(row.output_ids) for row in rows)
        self._eos_ids = [[each for each in row.eos_ids if each < vocab_size] for row in rows]
        self._penalties = _Penalties(rows, vocab_size, device) if any(p.penalised for p in params) else None
        self._temperature = _column([1.0 if p.greedy else p.temperature for p in params], device)
        self._log_min_p = None
        if any(p.min_p > 0 for p in params):
            self._log_min_p = _column([p.min_p for p in params], device).log_()
        self._top: _TopFilter | None = None
        if any((0 < p.top_k < vocab_size or p.top_p < 1) and not p.greedy for p in params):
            self._top = _TopFilter(params, vocab_size, device)

    def sample(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw one token a row from raw logits (rows, vocab), which are left as they are.

        Returns:
            (rows,), int64, on the logits' device.
        """
        if self._penalties is not None:
            logits = self._penalties.apply(logits)
        if self._not_yet_over:
            logits = self._without_eos(logits)
        tokens = logits.argmax(-1) if self._any_greedy else None
        if not self._all_greedy:
            drawn = self._draw(logits / self._temperature)
            tokens = drawn if tokens is None else torch.where(self._greedy, tokens, drawn)
        assert tokens is not None
        if self._penalties is not None:
            self._penalties.count(tokens)
        return tokens

    def _without_eos(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        for row, sequence in enumerate(self._rows):
            if len(sequence.output_ids) < sequence.min_tokens:
                logits[row, self._eos_ids[row]] = -torch.inf
        return logits

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        if self._log_min_p is not None:
            least = logits.amax(-1, keepdim=True) + self._log_min_p
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self._top is not None:
            logits = logits.masked_fill(logits < self._top.least(logits), -torch.inf)
        mass = torch.softmax(logits, -1).cumsum_(-1)
        # 24 bits: the largest number below 1 that float32 can hold, so that number * mass stays below the mass and
        # the search never ends past the last possible token.
        numbers = [0.0 if each is None else each.getrandbits(24) / (1 << 24) for each in self._drawn]
        point = _column(numbers, self._device) * mass[:, -1:]
        return torch.searchsorted(mass, point, right=True)[:, 0]


class _TopFilter:
    """The smallest logit that top_k and top_p leave in, row by row."""

    def __init__(self, params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> None:
        top_k = [p.top_k if 0 < p.top_k < vocab_size and not p.greedy else 0 for p in params]
        open_ended = [p.top_p < 1 and not k and not p.greedy for p, k in zip(params, top_k, strict=True)]
        self._vocab_size = vocab_size
        self._some_open = any(open_ended)
        self._open = torch.tensor(open_ended, device=device)[:, None]
        self._has_k = torch.tensor([k > 0 for k in top_k], device=device)[:, None]
        self._unfiltered = ~(self._open | self._has_k)
        self._top_k = torch.tensor([k or vocab_size for k in top_k], device=device)[:, None]
        self._top_p = _column([p.top_p for p in params], device)
        self._width = min(vocab_size, max(NUCLEUS if self._some_open else 0, *top_k))

    def least(self, logits: torch.Tensor) -> torch.Tensor:
        """(rows, 1): a token with a smaller logit is out; -inf where all are in."""
        total = torch.logsumexp(logits, -1, keepdim=True)
        width = self._width
        while True:
            best = logits.topk(width, -1).values
            best = best.masked_fill(torch.arange(width, device=best.device) >= self._top_k, -torch.inf)
            # top_p is a share of what top_k left in, hence its own total.
            share = torch.exp(best - torch.where(self._has_k, torch.logsumexp(best, -1, keepdim=True), total))
            before = share.cumsum(-1) - share
            inside = before < self._top_p
            short = self._open & inside[:, -1:] & (width < self._vocab_size)
            if not self._some_open or width == self._vocab_size or not bool(short.any()):
                break
            width = self._vocab_size
        least = best.masked_fill(~inside | best.isneginf(), torch.inf).amin(-1, keepdim=True)
        return least.masked_fill(self._unfiltered, -torch.inf)


class _Penalties:
    """Counts of the tokens so far. OpenAI's two see the output, the repetition penalty also the prompt."""

    def __init__(self, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> None:
        self._presence = _column([row.params.presence_penalty for row in rows], device)
        self._frequency = _column([row.params.frequency_penalty for row in rows], device)
        self._repetition = _column([row.params.repetition_penalty for row in rows], device)
        self._index = torch.arange(len(rows), device=device)
        self._counts = torch.zeros((len(rows), vocab_size), device=device)
        self._seen = torch.zeros((len(rows), vocab_size), dtype=torch.bool, device=device)
        for index, row in enumerate(rows):
            if row.params.penalised:
                prompt, output = (
                    torch.tensor(ids, dtype=torch.long, device=device)
                    for ids in (row.prompt_ids, row.output_ids)
                )
                self._counts[index] = torch.bincount(output, minlength=vocab_size)
                self._seen[index, prompt] = True
        self._seen |= self._counts > 0

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        repeated = torch.where(logits > 0, logits / self._repetition, logits * self._repetition)
        logits = torch.where(self._seen, repeated, logits)
        return logits - self._frequency * self._counts - self._presence * (self._counts > 0)

    def count(self, tokens: torch.Tensor) -> None:
        self._counts[self._index, tokens] += 1
        self._seen[self._index, tokens] = True


def logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, count: int
) -> list[tuple[float, list[tuple[int, float]]]]:
    """For each row: the drawn token's log-probability and the `count` likeliest tokens with theirs.

    They are the log-softmax of the raw logits, as vLLM reports them: before penalties and temperature.
    """
    scores = torch.log_softmax(logits, -1)
    drawn = scores.gather(-1, tokens[:, None])[:, 0].tolist()
    if count == 0:
        return [(score, []) for score in drawn]
    best = scores.topk(min(count, scores.shape[-1]), -1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        (score, list(zip(ids, values, strict=True)))
        for score, (ids, values) in zip(drawn, pairs, strict=True)
    ]


def _column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]
