"""Every game is judged once: through all failures, after any kill, and about as fast as the judge allows."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import aiohttp
import msgspec
import pytest

from tests.eval.judge_until_killed import CONCURRENCY, judge
from tests.eval.scripted_judge import (
    FAILURES,
    Action,
    Asked,
    Die,
    Hang,
    NoChoices,
    Say,
    ScriptedJudge,
    Status,
    Truncated,
    fair,
    hostile,
    judge_process,
    scripted_judge,
)
from tests.eval.two_games import BASELINE, MODEL, TwoGames, pairs
from thinkserve.errors import ThinkserveError
from thinkserve.eval.answer import Answer
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.health import health_of
from thinkserve.eval.judging.judge import ApiJudge, ByRule
from thinkserve.eval.judging.stage import Judged, Pair, judge_matches, with_all_judges
from thinkserve.eval.judging.store import JudgmentStore
from thinkserve.eval.match import Verdict
from thinkserve.thoughts import Response

ROOT = Path(__file__).parents[2]


async def judged(
    url: str,
    path: Path,
    some: list[Pair],
    *,
    concurrency: int = 16,
    protocol: TwoGames | None = None,
    patience: float = 0.5,
) -> Judged:
    """One run of the stage."""
    protocol = protocol or TwoGames()
    async with ChatClient(
        url, "m", concurrency=concurrency, timeout=patience, retries=3, back_off=0.01
    ) as client:
        with JudgmentStore(path) as store:
            return await judge_matches("bench", some, ApiJudge(client, protocol), protocol, store)


def verdicts(found: Judged) -> list[list[Verdict | None]]:
    return [[game.verdict for game in match.games] for match in found.matches]


KINDS: dict[Action, str] = {
    Status(429, retry_after="0.05"): "http 429",
    Status(500): "http 500",
    Hang(): "timeout",
    Truncated(): "bad json",
    NoChoices(): "empty",
    Die(): "connection",
}
UNREADABLE = {"": "empty", "I cannot decide.": "no verdict", "[[A]] or maybe [[B]]": "two verdicts"}


def kind_of(action: Action) -> str | None:
    """What the failure of a first request is called; None for a verdict."""
    if isinstance(action, Say):
        return UNREADABLE.get(action.text or "")
    return KINDS[action]


async def test_a_judge_that_fails_in_every_way_costs_no_verdict_and_each_failure_is_counted(
    tmp_path: Path,
) -> None:
    async with scripted_judge(hostile) as server:
        # Longer than a busy machine stands still: each failure is counted, and no other may come of that.
        found = await judged(server.url, tmp_path / "j.jsonl", pairs(100), patience=4.0)
    first = [hostile(asked) for asked in server.requests if not asked.nth]
    expected = Counter(kind for action in first if (kind := kind_of(action)))
    assert all(action in first for action in FAILURES)
    health = health_of(found.matches, found.judgments)
    assert health["failures"] == dict(expected)
    assert (health["games"], health["judged"], health["unscored"]) == (200, 200, 0)
    assert health["attempts"] == len(server.requests) == 200 + expected.total()
    labels = Counter(verdict.label for games in verdicts(found) for verdict in games if verdict)
    assert labels["A>>B"] == first.count(Say("[[A>> B]]"))
    for judgment in found.judgments:
        assert (judgment.attempts, judgment.failure) == (1 + len(judgment.failures), None)


def stubborn(asked: Asked) -> Action:
    """Never a verdict for some games, and no answer for others."""
    failing: dict[int, Action] = {0: Say("Hm."), 1: Status(500)}
    return failing.get(asked.die // 2 % 8, fair(asked))


async def test_games_without_a_verdict_are_unscored_and_asked_again_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    async with scripted_judge(stubborn) as server:
        found = await judged(server.url, path, pairs(40))
        health = health_of(found.matches, found.judgments)
        missing = health["unreadable"]
        assert set(missing) == {"no verdict", "http 500"}
        assert sum(missing.values()) == health["unscored"] == 80 - health["judged"]
        # Two replies, or four attempts, for each game that got none.
        assert len(server.requests) == 80 + missing["no verdict"] + 3 * missing["http 500"]
        server.behaviour, before = fair, len(server.requests)
        mended = await judged(server.url, path, pairs(40))
        assert len(server.requests) - before == health["unscored"]
        uninterrupted = await judged(server.url, tmp_path / "other.jsonl", pairs(40))
    assert verdicts(mended) == verdicts(uninterrupted)
    assert health_of(mended.matches, mended.judgments)["unscored"] == 0


async def test_a_verdict_is_paid_for_once_and_a_changed_answer_is_judged_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    some = pairs(10)
    async with scripted_judge(fair) as server:
        first = await judged(server.url, path, some)
        assert len(server.requests) == 20
        again = await judged(server.url, path, list(reversed(some)))
        assert len(server.requests) == 20
        assert verdicts(again) == verdicts(first)[::-1]
        some[3] = replace(some[3], answer=Answer("3", Response("Four.")))
        some[5] = replace(some[5], instruction=Instruction("5", "Another question"))
        await judged(server.url, path, some)
        assert len(server.requests) == 24
        settings = TwoGames(settings={"temperature": 1})
        await judged(server.url, path, some, protocol=settings)
        assert len(server.requests) == 44


async def test_the_same_game_twice_is_played_once(tmp_path: Path) -> None:
    one = pairs(1)[0]
    same = replace(
        one, instruction=replace(one.instruction, id="copy"), answer=replace(one.answer, id="copy")
    )
    async with scripted_judge(fair) as server:
        found = await judged(server.url, tmp_path / "j.jsonl", [one, same])
    assert len(server.requests) == 2
    assert verdicts(found)[0] == verdicts(found)[1]
    assert [match.instruction.id for match in found.matches] == ["0", "copy"]


async def test_an_answer_that_never_came_is_a_loss_without_a_call(tmp_path: Path) -> None:
    some = pairs(3, unanswered=[0, 2])
    some[1] = replace(some[1], baseline=replace(some[1].baseline, complete=False))
    some[2] = replace(some[2], baseline=replace(some[2].baseline, complete=False))
    async with scripted_judge(fair) as server:
        found = await judged(server.url, tmp_path / "j.jsonl", some)
    assert server.requests == []
    assert [[verdict.preference for verdict in games if verdict] for games in verdicts(found)] == [
        [0.0, 0.0],
        [1.0, 1.0],
        [0.5, 0.5],
    ]
    assert found.judgments == []
    assert (tmp_path / "j.jsonl").read_bytes() == b""


async def test_a_judgment_says_who_was_judged_by_whom_and_what_it_took(tmp_path: Path) -> None:
    async with scripted_judge(Say("[[B]]"), latency=0.01) as server:
        await judged(server.url, tmp_path / "j.jsonl", pairs(1), concurrency=1)
    first, second = map(msgspec.json.decode, (tmp_path / "j.jsonl").read_bytes().splitlines())
    assert first["verdict"] == {"label": "B", "preference": 0.0, "weight": 1}
    assert second["verdict"] == {"label": "B", "preference": 1.0, "weight": 1}
    assert (first["model"], first["baseline"], first["judge"]) == (MODEL, BASELINE, "m")
    assert [(each["game"], each["model_first"]) for each in (first, second)] == [(0, True), (1, False)]
    assert (first["raw"], first["prompt_tokens"], first["completion_tokens"]) == ("[[B]]", 100, 10)
    assert 0.01 <= first["seconds"] < 1
    assert abs(first["created"] - time.time()) < 60
    assert first["key"] != second["key"]
    assert not {"failure", "failures", "top_logprobs"} & set(first)


async def test_a_refused_key_ends_the_run_with_one_line_and_few_calls(tmp_path: Path) -> None:
    async with scripted_judge(Status(401)) as server:
        with pytest.raises(ThinkserveError, match="wants an API key"):
            await judged(server.url, tmp_path / "j.jsonl", pairs(200), concurrency=4)
    assert len(server.requests) <= 4


class Counting:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.done = self.failed = 0
        self.thirty = asyncio.Event()

    def begin(self, total: int, kept: int) -> None:
        """Remember it."""
        self.told.append((total, kept))

    def advance(self, *, failed: bool = False) -> None:
        """Count it."""
        self.done += 1
        self.failed += failed
        if self.done == 30:
            self.thirty.set()


async def test_a_run_that_is_cancelled_has_kept_all_that_came(tmp_path: Path) -> None:
    path, protocol, progress = tmp_path / "j.jsonl", TwoGames(), Counting()
    async with scripted_judge(fair, latency=0.01) as server:
        async with ChatClient(server.url, "m", concurrency=4) as client:
            with JudgmentStore(path) as store:
                playing = asyncio.create_task(
                    judge_matches(
                        "bench", pairs(100), ApiJudge(client, protocol), protocol, store, progress=progress
                    )
                )
                await progress.thirty.wait()
                playing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await playing
        assert progress.told == [(200, 0)]
        assert 30 <= progress.done == path.read_bytes().count(b"\n") < 200
        before = len(server.requests)
        assert before - progress.done <= 4
        found = await judged(server.url, path, pairs(100))
        assert len(server.requests) - before == 200 - progress.done
    assert all(verdict for games in verdicts(found) for verdict in games)


async def test_progress_is_told_of_failures_and_of_what_was_there(tmp_path: Path) -> None:
    path, protocol, progress = tmp_path / "j.jsonl", TwoGames(), Counting()
    async with scripted_judge(fair) as server:
        await judged(server.url, path, pairs(5))
        server.behaviour = Say("Hm.")
        async with ChatClient(server.url, "m", concurrency=4) as client:
            with JudgmentStore(path) as store:
                await judge_matches(
                    "bench", pairs(8), ApiJudge(client, protocol), protocol, store, progress=progress
                )
    assert progress.told == [(16, 10)]
    assert (progress.done, progress.failed) == (6, 6)


async def test_a_rule_judges_like_any_other(tmp_path: Path) -> None:
    protocol = TwoGames()
    same = [replace(pair, baseline=pair.answer) for pair in pairs(3)]
    with JudgmentStore(tmp_path / "j.jsonl") as store:
        found = await judge_matches("bench", same, ByRule(protocol, "rule"), protocol, store)
        assert store.verdicts == 6
    assert verdicts(found) == [[Verdict("A=B", 0.5)] * 2] * 3


async def test_the_games_of_several_judges_are_put_together(tmp_path: Path) -> None:
    async with scripted_judge(fair) as server:
        one = await judged(server.url, tmp_path / "1.jsonl", pairs(3))
        other = await judged(server.url, tmp_path / "2.jsonl", pairs(3))
    both = with_all_judges([one.matches, other.matches])
    assert [match.games for match in both] == [
        first.games + second.games for first, second in zip(one.matches, other.matches, strict=True)
    ]


def _kept(path: Path) -> set[tuple[str, int]]:
    """The games with a verdict in whole lines of the file."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = map(msgspec.json.decode, lines)
    return {(each["id"], each["game"]) for each in found if each.get("verdict")}


def _game_of(asked: Asked) -> tuple[str, int]:
    """Which game a request is about: the model's answers are longer than the baseline's, and first in game 0."""
    question, _, rest = asked.text.partition("\n<A>\n")
    return question.split()[3], 0 if rest.startswith("It is") else 1


def _program(url: str, path: Path, count: int) -> tuple[str, ...]:
    return sys.executable, "-m", "tests.eval.judge_until_killed", url, str(path), str(count)


async def _run_and_kill(server: ScriptedJudge, path: Path, count: int, after: int, seconds: float) -> None:
    """Run the program, and kill it some time after so many requests."""
    enough, goal = asyncio.Event(), len(server.requests) + after

    def until_enough(asked: Asked) -> Action:
        if asked.number >= goal:
            enough.set()
        return fair(asked)

    server.behaviour = until_enough
    process = await asyncio.create_subprocess_exec(*_program(server.url, path, count), cwd=ROOT)
    await enough.wait()
    await asyncio.sleep(seconds)
    process.kill()
    assert await process.wait() == -9


@pytest.mark.slow
async def test_a_run_killed_three_times_ends_as_an_uninterrupted_one_and_pays_for_nothing_twice(
    tmp_path: Path,
) -> None:
    count, path, random = 60, tmp_path / "killed.jsonl", Random(2)
    async with scripted_judge(fair, latency=0.01) as server:
        for _ in range(3):
            kept, before = _kept(path), len(server.requests)
            await _run_and_kill(server, path, count, random.randint(5, 30), random.uniform(0, 0.02))
            assert not kept & {_game_of(asked) for asked in server.requests[before:]}
        kept, before = _kept(path), len(server.requests)
        assert 0 < len(kept) < 2 * count
        process = await asyncio.create_subprocess_exec(*_program(server.url, path, count), cwd=ROOT)
        assert await process.wait() == 0
        assert {_game_of(asked) for asked in server.requests[before:]} == {
            (str(number), game) for number in range(count) for game in (0, 1)
        } - kept
        assert len(server.requests) <= 2 * count + 3 * CONCURRENCY
        whole = await judge(server.url, tmp_path / "whole.jsonl", count)
        requests = len(server.requests)
        resumed = await judge(server.url, path, count)
        assert len(server.requests) == requests
    assert verdicts(resumed) == verdicts(whole)
    with JudgmentStore(path) as killed, JudgmentStore(tmp_path / "whole.jsonl") as other:
        assert killed.verdicts == other.verdicts == 2 * count
        for judgment in whole.judgments:
            same = killed.find(judgment.key)
            assert same is not None
            assert (same.verdict, same.raw, same.request_sha256) == (
                judgment.verdict,
                judgment.raw,
                judgment.request_sha256,
            )


def _idle() -> tuple[int, int]:
    """Idle time of all cores, and all their time; (1, 1) where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 1, 1
    spent = [int(ticks) for ticks in stat.read_text().splitlines()[0].split()[1:]]
    return spent[3], sum(spent)


async def bare_calls(url: str, calls: int, at_once: int) -> None:
    """As many calls that do nothing but ask and read."""
    turn = asyncio.Semaphore(at_once)
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 1000}]}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=at_once)) as http:

        async def ask() -> None:
            async with turn, http.post(f"{url}/chat/completions", json=body) as answer:
                await answer.read()

        await asyncio.gather(*(ask() for _ in range(calls)))


@pytest.mark.slow
def test_a_thousand_games_take_little_more_than_the_judge_itself(tmp_path: Path) -> None:
    """1000 calls of 50 ms, 64 at once: 0.78 s at best; two cores are idle for over a third of that time, unless others
    use them. The best of some runs in CPU time always, and in seconds if there was a run with cores to spare.
    """
    allowed = 1.5 * 2 * 500 * 0.05 / 64
    seconds, cpu = [], []
    with judge_process("fair", latency=0.05) as url:
        began = time.process_time()
        asyncio.run(bare_calls(url, 1000, 64))
        bare = time.process_time() - began
        for attempt in range(6):
            some = pairs(500)
            began, cpu_began, (idle, total) = time.perf_counter(), time.process_time(), _idle()
            found = asyncio.run(judged(url, tmp_path / f"{attempt}.jsonl", some, concurrency=64))
            taken, (idle_then, total_then) = time.perf_counter() - began, _idle()
            cpu.append(time.process_time() - cpu_began)
            assert sum(verdict is not None for games in verdicts(found) for verdict in games) == 1000
            if taken <= allowed or total_then == total or (idle_then - idle) / (total_then - total) > 0.25:
                seconds.append(taken)
            if taken <= allowed:
                break
    in_time = bool(seconds) and min(seconds) <= allowed
    # It takes three times the CPU time of bare calls; where that is nearly all the time there is, it cannot be in time.
    if not in_time and 0.7 * allowed < min(cpu) <= 4 * bare:
        pytest.skip(
            f"the cores are slow now: bare calls take {bare:.2f} s of CPU, so its seconds say nothing"
        )
    assert min(cpu) <= allowed
    if not seconds:
        pytest.skip("all cores were busy with something else, so its seconds say nothing")
    assert min(seconds) <= allowed
