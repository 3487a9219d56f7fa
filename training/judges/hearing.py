"""Many groups before one LLM judge: as many questions at once as it bears, and each group as soon as it is complete.

Questions of all groups stand in one line, so the judge is never idle while one group waits for its last verdict.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from thinkserve.eval.judging.stage import WORKERS_PER_CALL
from thinkserve.eval.judgment import Judgment
from thinkserve.training.judges.judge import Group
from thinkserve.training.judges.llm import LlmJudge, Question


@dataclass(frozen=True, slots=True)
class Case:
    """A group, and what is asked about it."""

    group: Group
    questions: Sequence[Question]


@dataclass(slots=True)
class Heard:
    """A case with its judgments, in the order of its questions."""

    case: Case
    judgments: list[Judgment]


@dataclass(slots=True)
class Tally:
    """What was counted; a judgment that was in the file already counts with the calls that it took then."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    judgments: int = 0
    unreadable: int = 0
    """Judgments without a verdict although the judge replied."""
    failed: int = 0
    """Judgments without a reply."""
    from_file: int = 0
    """Judgments that were in the file."""
    _keys: set[str] = field(default_factory=set)

    def add(self, judgment: Judgment, *, from_file: bool) -> None:
        """Count a judgment, once."""
        if judgment.key in self._keys:
            return
        self._keys.add(judgment.key)
        self.calls += judgment.attempts
        self.prompt_tokens += judgment.prompt_tokens or 0
        self.completion_tokens += judgment.completion_tokens or 0
        self.judgments += 1
        self.unreadable += judgment.verdict is None and judgment.raw is not None
        self.failed += judgment.verdict is None and judgment.raw is None
        self.from_file += from_file

    @property
    def numbers(self) -> Mapping[str, int]:
        """All of it, by name."""
        names = (
            "calls",
            "prompt_tokens",
            "completion_tokens",
            "judgments",
            "unreadable",
            "failed",
            "from_file",
        )
        return {name: getattr(self, name) for name in names}


async def hear(llm: LlmJudge, cases: Iterable[Case], tally: Tally) -> AsyncGenerator[Heard, None]:
    """Hear all cases; each is given as soon as its last judgment is there, so in no certain order.

    Args:
        llm: is asked.
        cases: taken as they are needed.
        tally: is added to.

    Raises:
        ThinkserveError: nothing can be judged. What was complete by then was given before.
    """
    hearing = _Hearing(llm, cases, tally)
    working = asyncio.create_task(hearing.work())
    try:
        while (heard := await hearing.complete.get()) is not None:
            yield heard
        await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


@dataclass(slots=True)
class _Open:
    """A case that waits for judgments."""

    case: Case
    judgments: list[Judgment | None]

    @property
    def heard(self) -> Heard | None:
        found = [judgment for judgment in self.judgments if judgment is not None]
        return Heard(self.case, found) if len(found) == len(self.judgments) else None


class _Hearing:
    def __init__(self, llm: LlmJudge, cases: Iterable[Case], tally: Tally) -> None:
        self._llm, self._tally = llm, tally
        self._waiting: dict[str, list[tuple[_Open, int]]] = {}
        """By key: who waits for a judgment that is being asked for."""
        self._pending = self._questions(cases)
        self.complete: asyncio.Queue[Heard | None] = asyncio.Queue()
        """Ends with None."""

    async def work(self) -> None:
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(WORKERS_PER_CALL * self._llm.concurrency):
                    workers.create_task(self._work())
        except BaseExceptionGroup as group:
            # What one worker could not go on from ended the others, and is the one thing to say.
            raise group.exceptions[0] from None
        finally:
            self.complete.put_nowait(None)

    async def _work(self) -> None:
        for key, question in self._pending:
            judgment = await self._llm.ask(key, question)
            self._tally.add(judgment, from_file=False)
            for case, position in self._waiting.pop(key):
                case.judgments[position] = judgment
                self._give(case)

    def _questions(self, cases: Iterable[Case]) -> Iterator[tuple[str, Question]]:
        """What is to be asked, case by case; judgments that are there go to their place."""
        for case in cases:
            opened = _Open(case, [None] * len(case.questions))
            to_ask: list[tuple[str, Question]] = []
            for position, question in enumerate(case.questions):
                key = self._llm.key(question)
                if (found := self._llm.find(key)) is not None:
                    self._tally.add(found, from_file=True)
                    opened.judgments[position] = found
                elif key in self._waiting:
                    self._waiting[key].append((opened, position))
                else:
                    self._waiting[key] = [(opened, position)]
                    to_ask.append((key, question))
            self._give(opened)
            yield from to_ask

    def _give(self, case: _Open) -> None:
        if (heard := case.heard) is not None:
            self.complete.put_nowait(heard)
