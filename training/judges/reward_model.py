"""A reward model as a judge: any sequence classifier that gives one number for a conversation, ArmoRM too.

Conversations are rendered by the model's own chat template, sorted by length, and batched by tokens. Batches hang on the
block of responses they are in and on nothing else, neither on the number of devices nor on what was scored before: a
batch's shape changes the last digits of a score.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from thinkserve.errors import UsageError
from thinkserve.training.judges.collect import REASONS, blocks
from thinkserve.training.judges.judge import Group, GroupScores
from thinkserve.training.judges.reward_pool import RewardPool, open_pool
from thinkserve.training.judges.reward_worker import RewardModelSpec
from thinkserve.training.recipe import JudgeRecipe

# Responses that are sorted and batched together: about forty batches of the default size, so that little is padding,
# and what a kill costs is a minute of an 8B model.
BLOCK = 1024
# For each worker one batch that it works on, and one that waits for it.
BATCHES_PER_WORKER = 2


@dataclass(slots=True)
class _Open:
    """A group whose scores are not all there."""

    group: Group
    scores: list[float | None]
    missing: int
    reasons: dict[int, str] = field(default_factory=dict)
    """By position."""
    cut: int = 0

    def closed(self) -> GroupScores:
        details: dict[str, Any] = {"cut": self.cut} if self.cut else {}
        if self.reasons:
            details[REASONS] = [reason for _, reason in sorted(self.reasons.items())]
        return GroupScores(self.group.id, tuple(self.scores), details)


@dataclass(frozen=True, slots=True)
class _Conversation:
    """One response, as the model gets it."""

    tokens: list[int]
    group: _Open
    position: int


class RewardModelJudge:
    """Scores responses by a reward model.

    Args:
        recipe: what to do.
        tokenizer: the model's.
        limit: a conversation's tokens.
        pool: who has the model.
    """

    block = BLOCK
    """Responses whose scores are made together: a log is resumed at the start of such a block."""

    def __init__(
        self, recipe: JudgeRecipe, tokenizer: PreTrainedTokenizerBase, limit: int, pool: RewardPool
    ) -> None:
        self._recipe, self._tokenizer, self._limit, self._pool = recipe, tokenizer, limit, pool
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._numbers = dict.fromkeys(
            ("responses", "tokens", "padded_tokens", "batches", "cut", "not_finite"), 0
        )

    @property
    def name(self) -> str:
        """For reports."""
        return f"reward model {self._recipe.model}"

    @property
    def configuration(self) -> Mapping[str, Any]:
        """All that a score hangs on."""
        recipe = self._recipe
        return {
            "kind": "reward-model",
            "model": recipe.model,
            "revision": recipe.revision,
            "dtype": recipe.dtype,
            "max_length": self._limit,
            "batch_tokens": recipe.batch_tokens,
        }

    @property
    def numbers(self) -> Mapping[str, Any]:
        """Counts so far; `tokens` are those of conversations, `padded_tokens` those that the model was given."""
        return {**self._numbers, "workers": len(self._pool.workers)}

    async def score(self, groups: Sequence[Group]) -> AsyncIterator[GroupScores]:
        """Score all groups, block by block.

        Raises:
            ThinkserveError: a device has too little memory, or a worker died.
        """
        waiting = blocks(groups, self.block)
        running: dict[asyncio.Task[list[float | None]], list[_Conversation]] = {}
        most = BATCHES_PER_WORKER * len(self._pool.workers)
        exhausted = False
        try:
            while True:
                # The next block is begun before the last one is done, so that no device waits for another's end.
                while len(running) < most and not exhausted:
                    block = next(waiting, None)
                    if block is None:
                        exhausted = True
                        break
                    opened, conversations = await asyncio.to_thread(self._tokenize, block)
                    for batch in batches(conversations, self._recipe.batch_tokens):
                        running[self._start(batch)] = batch
                    for one in opened:
                        if not one.missing:
                            yield one.closed()
                if not running:
                    return
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    for one in self._enter(running.pop(task), task.result()):
                        yield one.closed()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _start(self, batch: Sequence[_Conversation]) -> asyncio.Task[list[float | None]]:
        lengths = [len(conversation.tokens) for conversation in batch]
        self._numbers["responses"] += len(batch)
        self._numbers["batches"] += 1
        self._numbers["tokens"] += sum(lengths)
        self._numbers["padded_tokens"] += max(lengths) * len(batch)
        return asyncio.create_task(self._pool.score([conversation.tokens for conversation in batch]))

    def _enter(self, batch: Sequence[_Conversation], scores: Sequence[float | None]) -> Iterator[_Open]:
        """Enter the scores of a batch into their groups; the groups that are finished by it."""
        for conversation, score in zip(batch, scores, strict=True):
            group = conversation.group
            group.scores[conversation.position] = score
            if score is None:
                self._numbers["not_finite"] += 1
                group.reasons[conversation.position] = f"{self.name} gave NaN or an infinite number"
            group.missing -= 1
            if not group.missing:
                yield group

    def _tokenize(self, block: Sequence[Group]) -> tuple[list[_Open], list[_Conversation]]:
        opened = [_Open(group, [None] * len(group.responses), 0) for group in block]
        places = [(one, at) for one in opened for at in range(len(one.group.responses))]
        texts = [self._render(one.group.instruction, one.group.responses[at]) for one, at in places]
        conversations = []
        for (one, at), tokens in zip(places, self._tokens(texts), strict=True):
            if len(tokens) > self._limit:
                one.cut += 1
                self._numbers["cut"] += 1
                tokens = self._cut(one.group.instruction, one.group.responses[at], tokens)
            if tokens:
                one.missing += 1
                conversations.append(_Conversation(tokens, one, at))
            else:
                one.reasons[at] = (
                    f"the instruction alone is longer than judge.max_length = {self._limit} tokens"
                )
        return opened, conversations

    def _render(self, instruction: str, response: str) -> str:
        messages = [
            {"role": "user", "content": self._harmless(instruction)},
            {"role": "assistant", "content": self._harmless(response)},
        ]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False))

    def _harmless(self, text: str) -> str:
        """Judged text with a space in all that would become a special token.

        Else a response could end its turn, and go on as a user who praises it (`prompt.py` has the same for LLMs).
        """
        return self._special.sub(lambda found: f"{found[0][:1]} {found[0][1:]}", text)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        # The template has written the special tokens already.
        found: list[list[int]] = (
            self._tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        )
        return found

    def _cut(self, instruction: str, response: str, tokens: list[int]) -> list[int]:
        """Drop the response's end until the conversation fits; what the template writes after it stays.

        Models read the score there. Nothing is left if the instruction alone is too long.
        """
        (kept,) = self._tokens([response])
        while kept and len(tokens) > self._limit:
            kept = kept[: max(0, len(kept) - (len(tokens) - self._limit))]
            (tokens,) = self._tokens([self._render(instruction, self._tokenizer.decode(kept))])
        return tokens if kept else []


def batches(conversations: Sequence[_Conversation], tokens: int) -> Iterator[list[_Conversation]]:
    """Batch conversations by length, the longest first, so that too little memory shows at once.

    Args:
        conversations: in any order; equal lengths keep it.
        tokens: of a batch, padding included; a longer conversation has a batch to itself.
    """
    batch: list[_Conversation] = []
    for conversation in sorted(conversations, key=lambda one: -len(one.tokens)):
        if batch and (len(batch) + 1) * len(batch[0].tokens) > tokens:
            yield batch
            batch = []
        batch.append(conversation)
    if batch:
        yield batch


def find_devices(wanted: int | None) -> list[str]:
    """The devices that a recipe asks for, as torch names them: GPUs, or the CPU where there is none.

    Raises:
        UsageError: there are fewer GPUs.
    """
    there = torch.cuda.device_count()
    if not there:
        return ["cpu"]
    if wanted is not None and not 1 <= wanted <= there:
        raise UsageError(f"judge.devices: {wanted}: there are {there} GPUs; set it from 1 to {there}")
    return [f"cuda:{number}" for number in range(wanted or there)]


@asynccontextmanager
async def open_reward_model(
    recipe: JudgeRecipe, devices: Sequence[str] | None = None
) -> AsyncIterator[RewardModelJudge]:
    """Load a reward model.

    Args:
        recipe: which one, and how.
        devices: None: as the recipe says.

    Raises:
        UsageError: it cannot be loaded, is no reward model, or has no chat template.
    """
    if not recipe.model:
        raise UsageError("judge.model: names no reward model; give its folder or its name on the Hub")
    where = {"revision": recipe.revision, "trust_remote_code": recipe.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(recipe.model, **where)
        tokenizer = AutoTokenizer.from_pretrained(recipe.model, **where)
    except (OSError, ValueError, ImportError) as exc:
        raise UsageError(
            f"judge.model: {recipe.model} cannot be loaded: {str(exc).strip().splitlines()[0]}"
        ) from exc
    brings_code = "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})
    if brings_code and not recipe.trust_remote_code:
        raise UsageError(
            f"judge.model: {recipe.model} brings code of its own; read it, and set judge.trust_remote_code: true to run it"
        )
    if not tokenizer.chat_template:
        raise UsageError(
            f"judge.model: {recipe.model} has no chat template, so how it reads a conversation is not known; copy the model "
            "and put the template that it was trained with into its folder as chat_template.jinja"
        )
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    limit = min(recipe.max_length, context or recipe.max_length)
    spec = RewardModelSpec(recipe.model, recipe.revision, recipe.dtype, recipe.trust_remote_code)
    async with open_pool(spec, find_devices(recipe.devices) if devices is None else devices) as pool:
        yield RewardModelJudge(recipe, tokenizer, limit, pool)
