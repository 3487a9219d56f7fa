"""The judge that is a Python function: how it is found, what it is given, and what becomes of its mistakes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.thoughts import Response
from thinkserve.training.judges.collect import REASONS, score_groups
from thinkserve.training.judges.function import FunctionJudge
from thinkserve.training.judges.judge import Group, GroupScores, Judge
from thinkserve.training.judges.opening import open_judge
from thinkserve.training.recipe import JudgeRecipe

RULES = """
import asyncio, math

number = 7
calls = []
running = most = 0
mended = False

def length(instruction, response):
    calls.append((instruction, response))
    return len(response)

def right(instruction, response):
    return response == "right"

def odd(instruction, response):
    return {"nan": math.nan, "inf": math.inf, "text": "1.0", "none": None}.get(str(response), 2)

def breaks(instruction, response):
    if response == "57.0" and not mended:
        raise RuntimeError("no such file: tests.py")
    calls.append(response)
    return 1.0

async def slow(instruction, response):
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.01)
    running -= 1
    if response == "boom":
        raise KeyError("boom")
    calls.append(response)
    return 1

class Rules:
    async def __call__(self, instruction, response):
        return await slow(instruction, response)

rules = Rules()
"""


@pytest.fixture(autouse=True)
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scoring_rules.py").write_text(RULES)
    (tmp_path / "wrong_rules.py").write_text("import no_such_library")
    (tmp_path / "unreadable_rules.py").write_text("def score(:")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "scoring_rules", raising=False)


def judge(name: str, concurrency: int = 64) -> FunctionJudge:
    return FunctionJudge(
        JudgeRecipe(kind="function", function=f"scoring_rules:{name}", concurrency=concurrency)
    )


def group(id: str, *responses: str) -> Group:
    return Group(id, f"instruction {id}", tuple(Response(text) for text in responses))


async def scores_of(judge: Judge, groups: Sequence[Group]) -> list[GroupScores]:
    return [scores async for scores in judge.score(groups)]


async def test_each_response_is_scored_by_a_call_with_instruction_and_response() -> None:
    recipe = JudgeRecipe(kind="function", function="scoring_rules:length")
    async with open_judge(recipe, cache=Path("unused")) as found:
        assert await scores_of(found, [group("a", "x", "xyz"), group("b")]) == [
            GroupScores("a", (1.0, 3.0)),
            GroupScores("b", ()),
        ]
        assert found.numbers == {"calls": 2, "not_finite": 0}
        assert found.name == "function scoring_rules:length"
    import scoring_rules  # type: ignore[import-not-found]

    assert scoring_rules.calls == [("instruction a", "x"), ("instruction a", "xyz")]
    assert {type(response) for _, response in scoring_rules.calls} == {Response}


async def test_true_and_false_are_numbers() -> None:
    assert await scores_of(judge("right"), [group("a", "right", "left")]) == [GroupScores("a", (1.0, 0.0))]


async def test_what_is_not_finite_is_no_score_and_counted() -> None:
    odd = judge("odd")
    assert await scores_of(odd, [group("a", "nan", "ok", "inf")]) == [
        GroupScores(
            "a", (None, 2.0, None), {REASONS: ["scoring_rules:odd gave nan", "scoring_rules:odd gave inf"]}
        )
    ]
    assert odd.numbers == {"calls": 3, "not_finite": 2}


@pytest.mark.parametrize(("response", "shown"), [("text", "'1.0'"), ("none", "None")])
async def test_what_is_no_number_is_an_error(response: str, shown: str) -> None:
    with pytest.raises(ThinkserveError, match=rf"gave {shown} for a response to instruction a; .* a number"):
        await scores_of(judge("odd"), [group("a", response)])


@pytest.mark.parametrize("name", ["slow", "rules"])
async def test_coroutines_run_at_once_up_to_the_concurrency(name: str) -> None:
    found = await scores_of(judge(name, concurrency=3), [group(str(at), "x", "y") for at in range(10)])
    assert {scores.id for scores in found} == {str(at) for at in range(10)}
    import scoring_rules

    assert scoring_rules.most == 3


async def test_what_was_begun_beside_a_failing_call_is_kept(tmp_path: Path) -> None:
    groups = [group("a", "x"), group("b", "boom"), group("c", "y"), group("d", "never")]
    log = tmp_path / "log.jsonl"
    with pytest.raises(
        ThinkserveError, match=r"scoring_rules:slow failed on .* instruction b: KeyError: 'boom'"
    ):
        await score_groups(judge("slow", concurrency=3), groups, log)
    assert sorted(line.split('"')[3] for line in log.read_text().splitlines()) == ["a", "c"]


async def test_after_a_mistake_is_mended_no_group_is_scored_twice(tmp_path: Path) -> None:
    groups = [group(str(at), f"{at}.0", f"{at}.1") for at in range(80)]
    log = tmp_path / "log.jsonl"
    with pytest.raises(
        ThinkserveError,
        match=r"scoring_rules:breaks failed on a response to instruction 57: RuntimeError: no such file: tests\.py",
    ):
        await score_groups(judge("breaks"), groups, log)
    import scoring_rules

    assert len(scoring_rules.calls) == 2 * 57
    scoring_rules.mended = True
    scores = await score_groups(judge("breaks"), groups, log)
    assert list(scores) == [str(at) for at in range(80)]
    assert scoring_rules.calls == [f"{at}.{k}" for at in range(80) for k in range(2)]


async def test_groups_without_a_score_and_changed_ones_are_scored_again(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    before = [group("a", "ok"), group("b", "nan"), group("c", "ok")]
    await score_groups(judge("odd"), before, log)
    odd = judge("odd")
    after = [group("a", "ok"), group("b", "nan"), group("c", "other")]
    scores = await score_groups(odd, after, log)
    assert odd.numbers["calls"] == 2
    assert [one.scores for one in scores.values()] == [(2.0,), (None,), (2.0,)]


async def test_another_judge_does_not_get_the_scores_of_the_first(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    await score_groups(judge("odd"), [group("a", "ok")], log)
    scores = await score_groups(judge("length"), [group("a", "four")], log)
    assert scores["a"].scores == (4.0,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"None is not of the form module:function, as in `thinkserve"),
        ("scoring_rules", r"'scoring_rules' is not of the form module:function"),
        ("scoring_rules:", r"not of the form"),
        (
            "no_such_rules:score",
            r"there is no module 'no_such_rules' .*PYTHONPATH .*thinkserve\.training\.pocket",
        ),
        (
            "scoring_rules.inner:score",
            r"there is no module 'scoring_rules\.inner'|importing scoring_rules\.inner failed",
        ),
        ("wrong_rules:score", r"importing wrong_rules failed: No module named 'no_such_library'"),
        ("unreadable_rules:score", r"importing unreadable_rules failed: SyntaxError"),
        ("scoring_rules:gone", r"module scoring_rules has no 'gone'; 'scoring_rules:gone' must name"),
        ("scoring_rules:number", r"'scoring_rules:number' is of type int and cannot be called"),
    ],
)
def test_a_name_that_leads_nowhere_says_where_it_ends(value: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=rf"^judge\.function: .*{message}|^judge\.function: {message}"):
        FunctionJudge(JudgeRecipe(kind="function", function=value))


async def test_a_plain_function_can_be_interrupted() -> None:
    async def endless() -> None:
        await scores_of(judge("length"), [group(str(at), "x") for at in range(100_000)])

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(endless(), 0.2)
