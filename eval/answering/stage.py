"""The first stage of a run: every instruction is answered once, and what was answered before is not asked again.

An answer is kept as it comes, in one line that says what it is the answer to: the hash of the instruction's text, the
mode, and the hash of all that was asked of the model. A line that says otherwise is not this run's and is asked anew;
the new line takes its place. Its length is written before it, so an answer that is there has a length, and a length
without an answer is replaced when the answer comes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Protocol

import msgspec

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.answer import Answer, Answers, OutputLength
from thinkserve.eval.folder import RunFolder, answer_json
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.records import RecordLog, read_records
from thinkserve.thoughts import Response

logger = logging.getLogger(__name__)

# So many failures, and no answer among them: the server is not up to it, and asking on would only cost time.
HOPELESS = 10
# Failures that are told of one by one.
TOLD = 3


class AnswerFailedError(ThinkserveError):
    """One instruction could not be answered, by the server's fault; others may be."""


class AnswerStoppedError(ThinkserveError):
    """The stage ended without all of its answers; those that came are kept."""


class AsksModel(Protocol):
    """What answers instructions: `Answerer`."""

    @property
    def mode(self) -> str:
        """`thought` or `direct`."""

    @property
    def configuration(self) -> Mapping[str, Any]:
        """All that an answer hangs on beside the instruction, as can be written as JSON."""

    async def answer(self, instruction: Instruction) -> tuple[Answer, OutputLength]:
        """Answer one instruction.

        Raises:
            AnswerFailedError: this one failed.
            ThinkserveError: all would fail.
        """


class AnswerProgress(Protocol):
    """Who shows how far the stage is: `judging.progress.Progress`."""

    def begin(self, total: int, kept: int) -> None:
        """It begins: so many instructions, so many of them answered by an earlier run."""

    def advance(self, *, failed: bool = False) -> None:
        """One more is answered; `failed`: has no answer, and will get none in this run."""


@dataclass(frozen=True, slots=True)
class _Origin:
    """What an answer is the answer to."""

    prompt_sha256: str
    mode: str
    configuration_sha256: str


def _origins(instructions: Sequence[Instruction], answerer: AsksModel) -> dict[str, _Origin]:
    configuration = sha256(msgspec.json.encode(answerer.configuration, order="deterministic")).hexdigest()
    found = {}
    for instruction in instructions:
        text = sha256(instruction.text.encode("utf-8", "surrogatepass")).hexdigest()
        found[instruction.id] = _Origin(text, answerer.mode, configuration)
    if len(found) != len(instructions):
        raise UsageError(f"{len(instructions) - len(found)} of the instructions have the id of another")
    return found


async def answer_instructions(
    instructions: Sequence[Instruction],
    answerer: AsksModel,
    folder: RunFolder,
    model: str,
    *,
    concurrency: int = 16,
    progress: AnswerProgress | None = None,
) -> Answers:
    """Have a model answer instructions, beginning where an earlier run ended.

    Args:
        instructions: what is asked; no id twice.
        answerer: asks the model.
        folder: of the run; gets a line an answer as it comes.
        model: its name in the run.
        concurrency: how many are asked at a time.
        progress: is told of every answer.

    Raises:
        AnswerStoppedError: some failed for good; the message says how many and why the first one did.
        UsageError: two instructions have one id, or the file of answers is malformed.
    """
    origins = _origins(instructions, answerer)
    kept = _kept(folder, model, origins)
    if progress is not None:
        progress.begin(len(instructions), len(kept))
    missing = [instruction for instruction in instructions if instruction.id not in kept]
    logger.info("%s: %d answers are there, %d to come", model, len(kept), len(missing))
    if missing:
        with RecordLog(folder.lengths(model)) as lengths, RecordLog(folder.answers(model)) as answers:
            stage = _Stage(answerer, model, origins, lengths, answers, progress)
            await stage.run(missing, concurrency)
        stage.raise_failures(len(instructions), folder)
        kept |= stage.answers
    return Answers(model, {instruction.id: kept[instruction.id] for instruction in instructions})


def kept_answers(
    instructions: Sequence[Instruction], answerer: AsksModel, folder: RunFolder, model: str
) -> Answers | None:
    """What `answer_instructions` would return without asking anything; None if it would have to ask.

    Raises:
        UsageError: two instructions have one id, or the file of answers is malformed.
    """
    kept = _kept(folder, model, _origins(instructions, answerer))
    if len(kept) < len(instructions):
        return None
    return Answers(model, {instruction.id: kept[instruction.id] for instruction in instructions})


def _kept(folder: RunFolder, model: str, origins: Mapping[str, _Origin]) -> dict[str, Answer]:
    """The answers of an earlier run that are answers to what is asked now."""
    path = folder.answers(model)
    if not path.exists():
        return {}
    RecordLog(path).close()  # a line that a kill cut short is dropped
    found: dict[str, Answer | None] = {}
    for record in read_records(path) if path.stat().st_size else ():
        id = record.text("id")
        # Where a file has several lines of one instruction, the last one counts, for every reader of it.
        if origins.get(id) == _Origin(
            record.get("prompt_sha256"), record.get("mode"), record.get("configuration_sha256")
        ):
            found[id] = Answer(id, Response(record.text("response")), record.get("complete") is not False)
        else:
            found[id] = None
    return {id: answer for id, answer in found.items() if answer is not None}


class _Stage:
    """The instructions that are still to be answered, while they are."""

    def __init__(
        self,
        answerer: AsksModel,
        model: str,
        origins: Mapping[str, _Origin],
        lengths: RecordLog,
        answers: RecordLog,
        progress: AnswerProgress | None,
    ) -> None:
        self._answerer, self._model, self._origins = answerer, model, origins
        self._lengths, self._log, self._progress = lengths, answers, progress
        self.answers: dict[str, Answer] = {}
        self._failures: dict[str, str] = {}
        self._hopeless = False

    async def run(self, instructions: Sequence[Instruction], concurrency: int) -> None:
        """Ask them all, so many at a time."""
        waiting = iter(instructions)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(concurrency, len(instructions))):
                    workers.create_task(self._work(waiting))
        except ExceptionGroup as group:
            # Whatever one worker could not go on from ended the others, and is the one thing to say.
            raise group.exceptions[0] from None

    async def _work(self, waiting: Iterator[Instruction]) -> None:
        for instruction in waiting:
            if self._hopeless:
                return
            try:
                answer, length = await self._answerer.answer(instruction)
            except AnswerFailedError as exc:
                self._fail(instruction, str(exc))
            else:
                self._keep(answer, length)

    def _keep(self, answer: Answer, length: OutputLength) -> None:
        self._lengths.append(asdict(length))
        self._log.append(answer_json(answer, self._model) | asdict(self._origins[answer.id]))
        self.answers[answer.id] = answer
        if self._progress is not None:
            self._progress.advance()

    def _fail(self, instruction: Instruction, reason: str) -> None:
        self._failures[instruction.id] = reason
        if len(self._failures) <= TOLD:  # the last line of the run has how many there are
            logger.warning("%s: instruction %s has no answer: %s", self._model, instruction.id, reason)
        self._hopeless = not self.answers and len(self._failures) >= HOPELESS
        if self._progress is not None:
            self._progress.advance(failed=True)

    def raise_failures(self, total: int, folder: RunFolder) -> None:
        """Raise the one error that stands for all failures, if there are any."""
        if not self._failures:
            return
        id, reason = next(iter(self._failures.items()))
        given_up = "; given up, since none was answered" if self._hopeless else ""
        raise AnswerStoppedError(
            f"{self._model}: {len(self._failures)} of {total} instructions have no answer{given_up}; the first, {id}: "
            f"{reason}; all other answers are kept in {folder.answers(self._model)}, and the same command asks only "
            "for what is missing"
        )
