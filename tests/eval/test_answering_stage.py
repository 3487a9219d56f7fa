"""The stage of answers: what is kept, what is asked again, and what a kill leaves behind."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.answer import Answer, OutputLength
from thinkserve.eval.answering.stage import (
    HOPELESS,
    AnswerFailedError,
    AnswerStoppedError,
    answer_instructions,
    kept_answers,
)
from thinkserve.eval.folder import RunFolder, read_answers, read_lengths
from thinkserve.eval.instruction import Instruction
from thinkserve.thoughts import Response


def instructions(number: int) -> list[Instruction]:
    return [Instruction(str(at), f"instruction {at}", position=at) for at in range(number)]


class Upper:
    """Answers in capitals; fails or stops where it was told to."""

    def __init__(
        self, *, mode: str = "thought", seed: int = 0, failing: Sequence[str] = (), stop_at: str | None = None
    ) -> None:
        self.mode = mode
        self.configuration: Mapping[str, Any] = {"model": "upper", "seed": seed}
        self.failing, self.stop_at = failing, stop_at
        self.asked: list[str] = []
        self.running = self.most_running = 0

    async def answer(self, instruction: Instruction) -> tuple[Answer, OutputLength]:
        self.asked.append(instruction.id)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.001)
        self.running -= 1
        if instruction.id in self.failing:
            raise AnswerFailedError(f"no answer to {instruction.id}")
        if instruction.id == self.stop_at:
            raise UsageError("it shows its thoughts")
        text = f"{instruction.text.upper()} {self.configuration['seed']}"
        return Answer(instruction.id, Response(text)), OutputLength(
            instruction.id, 7, None, 3, len(text), 0.5
        )


async def test_every_instruction_is_answered_once_and_kept_with_its_length(tmp_path: Path) -> None:
    folder, upper = RunFolder(tmp_path), Upper()
    answers = await answer_instructions(instructions(20), upper, folder, "org/upper", concurrency=4)
    assert list(answers.by_id) == [str(at) for at in range(20)]
    assert answers.by_id["3"] == Answer("3", Response("INSTRUCTION 3 0"))
    assert upper.most_running == 4
    assert read_answers(folder.answers("org/upper"), "org/upper") == answers
    lengths = read_lengths(folder.lengths("org/upper"))
    assert lengths["3"] == OutputLength("3", 7, None, 3, len("INSTRUCTION 3 0"), 0.5)
    assert lengths.keys() == answers.by_id.keys()


async def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = await answer_instructions(instructions(5), Upper(), folder, "m")
    before = folder.answers("m").read_bytes()
    again = Upper()
    assert await answer_instructions(instructions(5), again, folder, "m") == first
    assert again.asked == [] and folder.answers("m").read_bytes() == before
    assert kept_answers(instructions(5), again, folder, "m") == first
    assert kept_answers(instructions(6), again, folder, "m") is None
    more = Upper()
    assert len((await answer_instructions(instructions(8), more, folder, "m")).by_id) == 8
    assert sorted(more.asked) == ["5", "6", "7"]
    assert list((await answer_instructions(instructions(2), more, folder, "m")).by_id) == ["0", "1"]


@pytest.mark.parametrize("change", ["mode", "configuration", "text"])
async def test_answers_to_something_else_are_asked_anew_and_replaced(tmp_path: Path, change: str) -> None:
    folder = RunFolder(tmp_path)
    asked = instructions(3)
    await answer_instructions(asked, Upper(), folder, "m")
    other = Upper(mode="direct" if change == "mode" else "thought", seed=int(change == "configuration"))
    if change == "text":
        asked[1] = replace(asked[1], text="something else")
    answers = await answer_instructions(asked, other, folder, "m")
    assert sorted(other.asked) == (["1"] if change == "text" else ["0", "1", "2"])
    assert read_answers(folder.answers("m"), "m").by_id == answers.by_id
    # Asked as at first, the lines that were replaced do not count any more.
    third = Upper()
    await answer_instructions(instructions(3), third, folder, "m")
    assert sorted(third.asked) == sorted(other.asked)


async def test_a_line_that_does_not_say_what_it_answers_is_not_trusted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.answers("m").parent.mkdir()
    folder.answers("m").write_text('{"id": "0", "response": "by hand"}\n')
    upper = Upper()
    answers = await answer_instructions(instructions(1), upper, folder, "m")
    assert upper.asked == ["0"] and answers.by_id["0"].response == "INSTRUCTION 0 0"


async def test_an_answer_without_a_response_is_an_answer_and_kept(tmp_path: Path) -> None:
    class Endless(Upper):
        async def answer(self, instruction: Instruction) -> tuple[Answer, OutputLength]:
            _, length = await super().answer(instruction)
            return Answer(instruction.id, Response(""), complete=False), length

    folder = RunFolder(tmp_path)
    await answer_instructions(instructions(2), Endless(), folder, "m")
    again = Upper()
    answers = await answer_instructions(instructions(2), again, folder, "m")
    assert again.asked == [] and [answer.complete for answer in answers.by_id.values()] == [False, False]


async def test_failures_end_the_stage_with_their_number_and_are_retried_by_the_next(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(AnswerStoppedError) as error:
        await answer_instructions(instructions(6), Upper(failing=["2", "4"]), folder, "m", concurrency=1)
    message = str(error.value)
    assert message.startswith("m: 2 of 6 instructions have no answer; the first, 2: no answer to 2;")
    assert str(folder.answers("m")) in message and "the same command asks only for what is missing" in message
    again = Upper()
    assert len((await answer_instructions(instructions(6), again, folder, "m")).by_id) == 6
    assert sorted(again.asked) == ["2", "4"]


async def test_a_server_that_answers_nothing_is_given_up_early(tmp_path: Path) -> None:
    upper = Upper(failing=[str(at) for at in range(100)])
    with pytest.raises(AnswerStoppedError, match="given up, since none was answered"):
        await answer_instructions(instructions(100), upper, RunFolder(tmp_path), "m", concurrency=2)
    assert HOPELESS <= len(upper.asked) <= HOPELESS + 2


async def test_an_error_that_concerns_all_ends_the_stage_at_once_as_it_is(tmp_path: Path) -> None:
    folder, upper = RunFolder(tmp_path), Upper(stop_at="5")
    with pytest.raises(UsageError, match="^it shows its thoughts$"):
        await answer_instructions(instructions(100), upper, folder, "m", concurrency=2)
    assert len(upper.asked) < 10
    assert len(read_answers(folder.answers("m"), "m").by_id) >= 4


async def test_two_instructions_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 of the instructions have the id of another"):
        await answer_instructions([*instructions(2), *instructions(1)], Upper(), RunFolder(tmp_path), "m")


async def test_a_malformed_file_is_named_with_its_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.answers("m").parent.mkdir()
    folder.answers("m").write_text('{"id": "0", "response": "x"}\n{"id": 3}\n')
    with pytest.raises(UsageError, match=r"m\.jsonl:2: field 'id' is a number"):
        await answer_instructions(instructions(1), Upper(), folder, "m")
    assert folder.answers("m").read_text().count("\n") == 2


async def test_progress_is_told_of_everything(tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []

    class Progress:
        def begin(self, total: int, kept: int) -> None:
            told.append(("begin", total, kept))

        def advance(self, *, failed: bool = False) -> None:
            told.append(("failed" if failed else "answered",))

    folder = RunFolder(tmp_path)
    await answer_instructions(instructions(1), Upper(), folder, "m", progress=Progress())
    with pytest.raises(ThinkserveError):
        await answer_instructions(instructions(2), Upper(failing=["1"]), folder, "m", progress=Progress())
    assert told == [
        ("begin", 1, 0),
        ("answered",),
        ("begin", 2, 1),
        ("failed",),
    ]


_SLOW = """
import asyncio, sys
from pathlib import Path
from tests.eval.test_answering_stage import Upper, instructions
from thinkserve.eval.answering.stage import answer_instructions
from thinkserve.eval.folder import RunFolder
asyncio.run(answer_instructions(instructions(100000), Upper(), RunFolder(Path(sys.argv[1])), "m", concurrency=3))
"""


def test_a_kill_loses_nothing_but_what_was_being_asked(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", _SLOW, str(tmp_path)], cwd=root)
    try:
        deadline = time.monotonic() + 30
        while not folder.answers("m").exists() or folder.answers("m").stat().st_size < 20_000:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    answered = folder.answers("m").read_bytes().count(b"\n")
    assert answered > 50
    # Cut as a kill in the middle of a write would: half a line in one file, none in the other.
    with folder.answers("m").open("ab") as file:
        file.write(b'{"id": "99')
    with folder.lengths("m").open("ab") as file:
        file.write(json.dumps({"id": str(answered + 5), "thought_tokens": 999}).encode()[:-3])
    wanted = instructions(answered + 10)
    upper = Upper()
    resumed = asyncio.run(answer_instructions(wanted, upper, folder, "m"))
    # Three were asked at a time, in order: all that was answered lies among the first `answered` + 2.
    assert len(upper.asked) == 10
    fresh = RunFolder(tmp_path / "fresh")
    whole = asyncio.run(answer_instructions(wanted, Upper(), fresh, "m"))
    assert resumed == whole
    lengths = read_lengths(folder.lengths("m"))
    assert {id: lengths[id] for id in resumed.by_id} == read_lengths(fresh.lengths("m"))
