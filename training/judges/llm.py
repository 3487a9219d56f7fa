"""An LLM behind an OpenAI endpoint as a judge of samples, with a file of all that it said.

How it is asked and read is a protocol's (`pairwise.py`, `pointwise.py`); the calls, retries and the file are eval's. A
question is a response and what it is shown beside, in that order; its key hangs on their texts alone, so the same
question is never paid for twice, whichever sample it comes from.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.answer import Answer
from thinkserve.eval.answering.spec import EndpointSpec, parse_judge
from thinkserve.eval.bench import JudgeProtocol
from thinkserve.eval.config import Keys, key_from
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.judge import ApiJudge, Decision
from thinkserve.eval.judging.stage import judgment_of
from thinkserve.eval.judging.store import JudgmentStore
from thinkserve.eval.judgment import Judgment, key_of
from thinkserve.eval.match import Game
from thinkserve.thoughts import Response
from thinkserve.training.recipe import JudgeRecipe

logger = logging.getLogger(__name__)

# A question says itself which response is shown first.
GAME = Game(0, model_first=True)
_OVERLOADED = ("http 429", "http 502", "http 503", "http 504", "http 529")
_NOBODY_BEHIND = (502, 503, 504)
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a judge that is down is waited for."""

    seconds: float = 600.0
    back_off: float = 1.0
    """Seconds before the first retry, doubled for each further one."""


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to ask."""

    instruction: Instruction
    response: Response
    beside: Response
    """Shown second; empty where a response is judged alone."""


class LlmJudge:
    """What asks, and keeps what was said.

    Args:
        client: asks the LLM.
        protocol: how it is asked and read.
        store: what it said.
        patience: as the client has it.
    """

    def __init__(
        self, client: ChatClient, protocol: JudgeProtocol, store: JudgmentStore, patience: Patience
    ) -> None:
        self._judge, self._store, self._patience = ApiJudge(client, protocol), store, patience
        self._url = client.base_url
        self._reached = False
        self._reaching = asyncio.Lock()
        self._answered_at = float("-inf")
        self._without_verdict: dict[str, Judgment] = {}
        """Asked in vain by this process, so not to be asked by it again."""
        self.name = client.model
        self.concurrency = client.concurrency

    @property
    def configuration(self) -> Mapping[str, Any]:
        """All that a verdict hangs on beside what is judged."""
        return self._judge.configuration

    def key(self, question: Question) -> str:
        """The key of its verdict."""
        prompt = sha256(question.instruction.text.encode("utf-8", "surrogatepass")).hexdigest()
        id = question.instruction.id
        answer, beside = Answer(id, question.response), Answer(id, question.beside)
        return key_of("train", self.configuration, prompt, answer, beside, GAME)

    def find(self, key: str) -> Judgment | None:
        """What is known of it; None: it is to be asked."""
        return self._store.find(key) or self._without_verdict.get(key)

    async def ask(self, key: str, question: Question) -> Judgment:
        """Ask, and keep what was said.

        Raises:
            ThinkserveError: the server is down, or refuses all that is asked; what was said before is kept.
        """
        if not self._reached:
            await self._reach()
        began = time.monotonic()
        decision = await self._judge.decide(question.instruction, GAME, question.response, question.beside)
        if decision.raw is not None:
            self._answered_at = time.monotonic()
        if decision.verdict is None and await self._is_down(decision, began):
            raise ThinkserveError(
                f"{self._url}: the judge gave no answer for {time.monotonic() - began:,.0f} s ({decision.failures[-1]}); "
                "run again when it is up: what was judged is kept"
            )
        judgment = judgment_of(
            decision,
            key=key,
            id=question.instruction.id,
            game=GAME,
            model=_short(question.response),
            baseline=_short(question.beside),
            judge=self.name,
        )
        self._store.append(judgment)
        if judgment.verdict is None:
            self._without_verdict[key] = judgment
        return judgment

    async def _reach(self) -> None:
        """Wait for the server before the first call: it may still be loading its model, or be restarted."""
        async with self._reaching:
            began, pause = time.monotonic(), self._patience.back_off
            while not self._reached and not await _responds(self._url):
                left = self._patience.seconds - (time.monotonic() - began)
                if left <= 0:
                    raise ThinkserveError(
                        f"{self._url}: cannot be reached for {self._patience.seconds:,.0f} s: is the judge running, and "
                        "is this its address? Run again then: what was judged is kept"
                    )
                logger.warning("%s: cannot be reached yet; waiting for %.0f s more at most", self._url, left)
                await asyncio.sleep(min(pause, left, _LONGEST_PAUSE))
                pause *= 2
            self._reached = True

    async def _is_down(self, decision: Decision, began: float) -> bool:
        """Whether a call that failed to its end is the server's fault, and not that of one question."""
        kind = decision.failures[-1] if decision.failures else ""
        # Not since it began: others were answered just before the server went down.
        now = time.monotonic()
        if self._answered_at > now - (now - began) / 2:
            return False
        return kind in _OVERLOADED or (kind == "connection" and not await _responds(self._url))


@asynccontextmanager
async def open_llm(
    recipe: JudgeRecipe, protocol: JudgeProtocol, *, cache: Path, seed: int, patience: Patience
) -> AsyncIterator[LlmJudge]:
    """Open the LLM of a recipe.

    Args:
        recipe: of the judge.
        protocol: how it is asked and read.
        cache: a folder for what it said.
        seed: of the waiting between retries.
        patience: with a server that is down.

    Raises:
        UsageError: `judge.model` names no LLM, or the file of judgments is damaged or in use.
    """
    endpoint = _endpoint(recipe)
    keys = Keys(
        judge=key_from(os.environ, "THINKSERVE_JUDGE_API_KEY"), openai=key_from(os.environ, "OPENAI_API_KEY")
    )
    client = ChatClient(
        f"{endpoint.url}/v1",
        endpoint.model or "",
        keys.of(endpoint.url, "judge"),
        concurrency=recipe.concurrency,
        retries=1_000_000,  # bounded by time alone: a judge that is restarted may take minutes
        max_retry_seconds=patience.seconds,
        seed=seed,
        back_off=patience.back_off,
    )
    async with client:
        with JudgmentStore(cache / f"{recipe.kind}.jsonl") as store:
            yield LlmJudge(client, protocol, store, patience)


def _endpoint(recipe: JudgeRecipe) -> EndpointSpec:
    wanted = f"a {recipe.kind} judge is a server's model, URL#MODEL"
    if not (recipe.model or "").lower().startswith(("http://", "https://")):
        raise UsageError(f"judge.model {recipe.model!r}: {wanted}")
    found = parse_judge(recipe.model or "")
    if not isinstance(found, EndpointSpec) or found.model is None:
        raise UsageError(f"judge.model {recipe.model!r}: names no model behind a #; {wanted}")
    return found


async def _responds(url: str) -> bool:
    """Whether anything answers there, be it a refusal; a proxy with nobody behind it does not count."""
    timeout = aiohttp.ClientTimeout(total=10)
    try:
        async with (
            aiohttp.ClientSession(trust_env=True, timeout=timeout) as session,
            session.get(f"{url}/models") as response,
        ):
            return response.status not in _NOBODY_BEHIND
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


def _short(response: Response) -> str:
    """What a response is called in the file, so that its judgments can be found there."""
    return sha256(response.encode("utf-8", "surrogatepass")).hexdigest()[:16] if response else ""
