"""No code path of an evaluation hands a judge a thought.

By types: whatever is given a response is given a `Response`, and what is known of thoughts is out of reach of judges and
scores. When it runs: a secret in every place where a thought can be comes out nowhere, over real sockets.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import pkgutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

import pytest
from aiohttp import web

import thinkserve.eval
from tests.eval.scripted_judge import Say, scripted_judge
from tests.eval.scripted_model import JSON, Refused, Said, ScriptedModel, instruction_of
from tests.gateway.scripted import Script, ScriptedUpstream
from thinkserve.engines.engine import Endpoint
from thinkserve.errors import ThinkserveError
from thinkserve.eval.answer import Answer, Answers
from thinkserve.eval.answering.answerer import Asking, Mode
from thinkserve.eval.answering.opening import open_answerer
from thinkserve.eval.answering.server import ModelServer
from thinkserve.eval.answering.stage import answer_instructions
from thinkserve.eval.bench import JudgeProtocol
from thinkserve.eval.folder import RunFolder, read_answers, read_lengths
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.judge import ApiJudge, ByRule
from thinkserve.eval.judging.stage import Pair, judge_matches
from thinkserve.eval.judging.store import JudgmentStore
from thinkserve.eval.match import Game
from thinkserve.gateway.app import Gateway
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.keys import Keys
from thinkserve.gateway.pool import Pool
from thinkserve.gateway.upstream import Upstream
from thinkserve.thoughts import Response, get_format

ROOT = Path(__file__).parents[2]
# What judges are given passes through these; nothing in them may know more of an output than its response.
BLIND = ("judging", "alpaca", "arena", "benches")
PROTOCOL = ("configuration", "games", "request", "read", "follow_up", "forfeit")


# --- by types ---------------------------------------------------------------------------------------------------------


def modules() -> Iterator[Any]:
    """Every module of the evaluation, and the pocket bench's."""
    for found in pkgutil.walk_packages(thinkserve.eval.__path__, "thinkserve.eval."):
        yield importlib.import_module(found.name)
    yield importlib.import_module("thinkserve.training.pocket.bench")


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function and method that is defined there, with its full name."""
    for module in modules():
        for owner in (module, *(member for _, member in inspect.getmembers(module, inspect.isclass))):
            for _, member in inspect.getmembers(owner, inspect.isfunction):
                if member.__module__ == module.__name__:
                    yield f"{module.__name__}.{member.__qualname__}", member


def protocols() -> set[type]:
    """Every class that does what a `JudgeProtocol` does."""
    return {
        member
        for module in modules()
        for _, member in inspect.getmembers(module, inspect.isclass)
        if all(hasattr(member, name) for name in PROTOCOL) and member is not JudgeProtocol
    }


def test_every_protocol_of_a_bench_is_given_responses_by_type() -> None:
    found = protocols()
    assert {one.__name__ for one in found} >= {"AlpacaProtocol", "ArenaProtocol", "RuleJudge"}
    for protocol in (*found, JudgeProtocol):
        hints = get_type_hints(protocol.request)  # type: ignore[attr-defined]
        assert hints["response"] is Response and hints["baseline"] is Response, protocol
        taken = [name for name in inspect.signature(protocol.request).parameters if name != "self"]  # type: ignore[attr-defined]
        assert taken == ["instruction", "game", "response", "baseline"], protocol


def test_whatever_takes_a_response_takes_it_by_type() -> None:
    takers = {name: taker.__annotations__["response"] for name, taker in functions() if _takes(taker)}
    assert len(takers) >= 8
    assert {name: given for name, given in takers.items() if given not in (Response, "Response")} == {}


def _takes(function: Callable[..., Any]) -> bool:
    return "response" in function.__annotations__


def sources(*folders: str) -> Iterator[tuple[str, ast.AST]]:
    """The modules of these folders of `eval/` (or of all), parsed, by their path in it."""
    for path in sorted((ROOT / "eval").rglob("*.py")):
        name = path.relative_to(ROOT / "eval").as_posix()
        if not folders or name.split("/")[0] in folders:
            yield name, ast.parse(path.read_text())


def test_what_a_thought_says_is_read_in_two_places_only() -> None:
    """Where the body is read its reasoning is counted, and where a whole output is cut its thought is."""
    readers: dict[str, set[str]] = {}
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("thought", "reasoning", "reasoning_content"):
                readers.setdefault(node.attr, set()).add(name)
    assert readers == {
        "thought": {"answering/answerer.py"},
        "reasoning": {"judging/completion.py"},
        "reasoning_content": {"judging/completion.py"},
    }
    kept = {
        ast.unparse(node)
        for name, tree in sources("answering", "judging")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "reasoning" in ast.unparse(node) and "len" in ast.unparse(node.func)
    }
    assert kept == {"len(reasoning)"}


def test_judges_and_scores_cannot_reach_the_lengths_of_thoughts() -> None:
    for name, tree in sources(*BLIND):
        for node in ast.walk(tree):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            assert not {"OutputLength", "read_lengths", "ThoughtSplitter", "Output"} & set(imported), name


def test_no_judge_makes_a_response_of_its_own() -> None:
    calls = [
        name
        for name, tree in sources("judging")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Response")
    ]
    assert calls == []


# --- by values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hello", "", None, b"hello"])
def test_an_answer_holds_nothing_but_a_response(text: Any) -> None:
    with pytest.raises(TypeError, match="not a Response"):
        Answer("1", text)


async def test_judges_refuse_what_is_no_response() -> None:
    instruction, game = Instruction("1", "hi"), Game(0, True)

    class Never:
        configuration: Mapping[str, Any] = MappingProxyType({})

        def request(self, *_: Any) -> Any:
            raise AssertionError("it was let through")

    async with ChatClient("http://127.0.0.1:9/v1", "m") as client:
        for judge in (ApiJudge(client, Never()), ByRule(Never(), "rule")):  # type: ignore[arg-type]
            for pair in (("text", Response("x")), (Response("x"), "text")):
                with pytest.raises(TypeError, match="may only see a Response"):
                    await judge.decide(instruction, game, *pair)


# --- when it runs -----------------------------------------------------------------------------------------------------

SECRET = "zebra-417"
INSTRUCTIONS = [Instruction(str(at), f"question {at}", {"category": "hard_prompt"}) for at in range(4)]


@asynccontextmanager
async def showing(
    script: Callable[[JSON], Said | Refused], format: str | None = None, *, operator: bool = False
) -> AsyncIterator[ModelServer]:
    """A server with a thought in what it sends."""
    async with ScriptedModel(script) as model:
        yield ModelServer(
            model.url,
            "scripted",
            operator_key="op" if operator else None,
            raw_format=None if format is None else get_format(format),
        )


def answer_to(body: JSON) -> str:
    text = instruction_of(body)
    return f"answer to {text[text.rindex('question') :]}"


def beside(field: str) -> Callable[[JSON], Said]:
    return lambda body: Said(answer_to(body), reasoning=SECRET, reasoning_field=field)


def within(before: str, after: str) -> Callable[[JSON], Said]:
    return lambda body: Said(f"{before}{SECRET}{after}{answer_to(body)}")


def unending(content: str) -> Callable[[JSON], Said]:
    return lambda body: Said(content, reasoning=None if content else SECRET, finish_reason="length")


def malformed(body: JSON) -> Refused:
    return Refused(502, f"malformed: {SECRET}", code="malformed_output")


@asynccontextmanager
async def gateway(raw: str, *, reason: str = "stop") -> AsyncIterator[ModelServer]:
    """Our own gateway, asked by its operator, so that thoughts are on the wire."""
    async with ScriptedUpstream(Script([*raw])) as upstream:
        config = GatewayConfig(get_format("tpo-generic"), "thinker", format_retries=0)
        pool = Pool([Upstream(Endpoint(upstream.url), name="engine", idle_seconds=5)])
        application = Gateway(config, pool, Keys({"op": "operator"}), skip_special_tokens=True).application()
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield ModelServer(url, "thinker", operator_key="op")
        finally:
            await runner.cleanup()


GENERIC = f"Here is my thought process:\n{SECRET}\n"
CHANNELS: dict[str, tuple[Callable[[], Any], Mode, bool]] = {
    # name: server, mode, whether there is a response
    "reasoning_content": (lambda: showing(beside("reasoning_content")), "thought", True),
    "reasoning": (lambda: showing(beside("reasoning")), "thought", True),
    "reasoning in direct mode": (lambda: showing(beside("reasoning")), "direct", True),
    "an operator's reasoning_content": (
        lambda: showing(beside("reasoning_content"), operator=True),
        "thought",
        True,
    ),
    "tags": (lambda: showing(within("<think>", "</think>"), "think-tags"), "thought", True),
    "tags opened by the prompt": (
        lambda: showing(within("", "</think>\n"), "think-tags-in-prompt"),
        "thought",
        True,
    ),
    "tags in direct mode": (lambda: showing(within("<think>", "</think>"), "think-tags"), "direct", True),
    "phrases": (lambda: showing(within(GENERIC, "\nHere is my response:\n"), "tpo-generic"), "thought", True),
    "a closing marker alone": (lambda: showing(within("", " <R> "), "tpo-specific"), "thought", True),
    "an unclosed tag": (lambda: showing(unending(f"<think>{SECRET}"), "think-tags"), "thought", False),
    "no tag at all": (lambda: showing(unending(SECRET), "think-tags"), "thought", False),
    "a direct answer that was a thought": (
        lambda: showing(within("", "</think>"), "think-tags"),
        "direct",
        False,
    ),
    "reasoning without an end": (lambda: showing(unending("")), "thought", False),
    "an error message": (lambda: showing(malformed), "thought", False),
    "our gateway": (lambda: gateway(f"{GENERIC}Here is my response:\nyes"), "thought", True),
    "our gateway, never closed": (lambda: gateway(GENERIC), "thought", False),
    "our gateway, direct": (lambda: gateway(f"{GENERIC}Here is my response:\nyes"), "direct", True),
}


async def answered(server: ModelServer, mode: Mode, folder: RunFolder) -> Answers:
    async with open_answerer(server, Asking(mode), retries=0) as answerer:
        return await answer_instructions(INSTRUCTIONS, answerer, folder, "m")


async def judged_by(protocol: JudgeProtocol, answers: Answers, folder: RunFolder) -> Sequence[str]:
    """Judge the answers; returns what the judge was sent."""
    pairs = [
        Pair(one, "m", answers.by_id[one.id], "b", Answer(one.id, Response("no"))) for one in INSTRUCTIONS
    ]
    async with (
        scripted_judge(Say("My final verdict is [[A>B]], so m")) as judge,
        ChatClient(judge.url, "judge", retries=0) as client,
    ):
        with JudgmentStore(folder.judgments("judge", "m")) as store:
            await judge_matches("bench", pairs, ApiJudge(client, protocol), protocol, store)
        return [str(asked.body) for asked in judge.requests]


def text_of(folder: RunFolder) -> dict[str, str]:
    """All that is in the files of a run, and their names."""
    return {str(path): path.read_text() for path in folder.path.rglob("*") if path.is_file()}


def bench_protocols() -> list[JudgeProtocol]:
    from thinkserve.eval.alpaca.protocol import AlpacaProtocol
    from thinkserve.eval.arena.protocol import ArenaProtocol

    return [ArenaProtocol("v2.0"), AlpacaProtocol("text")]


@pytest.mark.parametrize("channel", CHANNELS)
async def test_a_secret_of_a_thought_reaches_no_judge_and_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, channel: str
) -> None:
    open_channel, mode, has_response = CHANNELS[channel]
    folder = RunFolder(tmp_path)
    caplog.set_level(logging.DEBUG)
    async with open_channel() as server:
        answers = await answered(server, mode, folder)
    assert [answer.complete for answer in answers.by_id.values()] == [has_response] * len(INSTRUCTIONS)
    sent: list[str] = []
    for at, protocol in enumerate(bench_protocols()):
        sent += await judged_by(protocol, answers, RunFolder(tmp_path / str(at)))
    written = text_of(folder)
    # The judges did see the responses, and were not asked where there is none.
    assert len(sent) == (3 * len(INSTRUCTIONS) if has_response else 0)
    shown = str(answers.by_id["0"].response)
    assert not has_response or (shown and any(shown in body for body in sent))
    assert len(written) >= 2
    for text in (*sent, *written, *written.values(), caplog.text):
        assert SECRET not in text
    # It was there: its length is known, and that is all.
    lengths = read_lengths(folder.lengths("m")).values()
    if channel not in ("an error message", "our gateway, never closed"):
        assert all((length.thought_characters or 0) >= len(SECRET) for length in lengths) or (
            channel == "a direct answer that was a thought"
        )


async def test_a_thought_that_can_be_seen_ends_the_run_before_anything_of_it_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    async with showing(within("<think>", "</think>")) as server:
        with pytest.raises(ThinkserveError) as error:
            await answered(server, "thought", folder)
    assert "--thought-format" in str(error.value) and SECRET not in str(error.value)
    assert not any(SECRET in text for text in text_of(folder).values())


async def test_the_secret_would_be_found_if_it_got_through(tmp_path: Path) -> None:
    """The test of the test: put into a response, the secret is in a judge's request and in the files."""
    async with showing(lambda body: Said(f"{answer_to(body)} {SECRET}")) as server:
        answers = await answered(server, "thought", RunFolder(tmp_path))
    for at, protocol in enumerate(bench_protocols()):
        sent = await judged_by(protocol, answers, RunFolder(tmp_path / str(at)))
        assert all(SECRET in body for body in sent) and sent
    assert any(SECRET in text for text in text_of(RunFolder(tmp_path)).values())
    path = RunFolder(tmp_path).answers("m")
    assert SECRET in replace(read_answers(path, "m").by_id["0"]).response
