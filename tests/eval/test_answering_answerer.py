"""What is taken of a model's output: the response, and of everything else its length. Servers are real, on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.eval.scripted_model import JSON, Refused, Said, Script, ScriptedModel, instruction_of
from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.answer import Answer
from thinkserve.eval.answering.answerer import Answerer, Asking, seed_of
from thinkserve.eval.answering.opening import open_answerer, open_server
from thinkserve.eval.answering.server import ModelServer
from thinkserve.eval.answering.spec import EndpointSpec
from thinkserve.eval.answering.stage import AnswerFailedError, AnswerStoppedError, answer_instructions
from thinkserve.eval.answering.tokens import split_tokens
from thinkserve.eval.folder import RunFolder
from thinkserve.eval.instruction import Instruction
from thinkserve.thoughts import Response, get_format

HELLO = Instruction("h", "say hello")
THOUGHT = Asking()
DIRECT = Asking("direct")


@asynccontextmanager
async def asking(
    script: Script, settings: Asking = THOUGHT, *, format: str | None = None, private: bool = False
) -> AsyncIterator[tuple[Answerer, ScriptedModel]]:
    """An answerer of a scripted server; `private` as if it were our own gateway."""
    async with ScriptedModel(script) as model:
        server = ModelServer(
            model.url,
            "scripted",
            "sk-client",
            "sk-operator" if private else None,
            raw_format=None if format is None else get_format(format),
        )
        async with open_answerer(server, settings, retries=2, back_off=0.01) as answerer:
            yield answerer, model


def always(said: Said | Refused) -> Script:
    return lambda body: said


async def test_the_content_of_a_server_that_hides_thoughts_is_the_response() -> None:
    said = Said("hello", reasoning="12345", completion_tokens=9, reasoning_tokens=7)
    async with asking(always(said)) as (answerer, model):
        answer, length = await answerer.answer(HELLO)
    assert answer == Answer("h", Response("hello"))
    assert (length.thought_tokens, length.response_tokens) == (7, 2)
    assert (length.thought_characters, length.response_characters) == (5, 5)
    assert length.seconds is not None and 0 < length.seconds < 5
    # Nothing but the seed is set: the defaults of the server and its model count.
    assert model.bodies == [
        {
            "model": "scripted",
            "messages": [{"role": "user", "content": "say hello"}],
            "seed": seed_of(0, "say hello"),
        }
    ]


def test_each_instruction_has_a_seed_of_its_own_that_moves_with_the_runs() -> None:
    seeds = [seed_of(0, f"instruction {number}") for number in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(7, "x") == (seed_of(0, "x") + 7) % 2**31


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_is_counted_by_whichever_name_it_comes(field: str) -> None:
    async with asking(always(Said("x", reasoning="1234", reasoning_field=field))) as (answerer, _):
        _, length = await answerer.answer(HELLO)
    assert (length.thought_characters, length.thought_tokens, length.response_tokens) == (4, None, None)


@pytest.mark.parametrize(
    ("completion", "reasoning", "thought", "response"),
    [
        (10, 4, 4, 6),
        (10, 0, 0, 10),
        (10, 10, 10, 0),
        (10, None, None, None),
        (None, 3, None, None),
        (3, 4, None, None),
    ],
)
def test_tokens_are_told_apart_only_where_the_server_does(
    completion: int | None, reasoning: int | None, thought: int | None, response: int | None
) -> None:
    """A count without one of the reasoning has the thought's tokens in it or not, and nobody knows which."""
    assert split_tokens(completion, reasoning) == (thought, response)


async def test_what_was_asked_for_is_sent() -> None:
    settings = Asking("direct", seed=None, temperature=0.0, max_tokens=5)
    async with asking(always(Said("x")), settings) as (answerer, model):
        await answerer.answer(HELLO)
    sent = {key: value for key, value in model.bodies[0].items() if key not in ("model", "messages")}
    assert sent == {"temperature": 0.0, "max_tokens": 5, "reasoning_effort": "none"}


@pytest.mark.parametrize(
    ("said", "complete"),
    [
        (Said("", finish_reason="length", incomplete="max_completion_tokens"), False),
        (Said(None, finish_reason="length"), False),
        (Said(" \n", finish_reason="length"), False),
        (Said(None, reasoning="it goes on"), False),
        (Said("", reasoning_tokens=10), False),
        (Said("cut sho", finish_reason="length"), True),
        (Said(""), True),
    ],
)
async def test_a_thought_that_never_ended_leaves_no_response(said: Said, complete: bool) -> None:
    """With content there was a response; without any and without a thought, the model had nothing to say."""
    async with asking(always(said)) as (answerer, _):
        answer, _ = await answerer.answer(HELLO)
    assert answer == Answer("h", Response((said.content or "") if complete else ""), complete)


async def test_a_closed_thought_with_no_response_behind_it_is_judged() -> None:
    """Our own gateway tells an unclosed thought by the finish reason, so `stop` means that the model ended there."""
    async with asking(always(Said("", reasoning="so?", reasoning_tokens=5)), private=True) as (answerer, _):
        answer, _ = await answerer.answer(HELLO)
    assert answer == Answer("h", Response(""), complete=True)


async def test_an_output_that_keeps_breaking_its_format_is_an_answer_without_a_response() -> None:
    """The gateway has sampled it again by then; more tries than a client gets would make the model look better."""
    malformed = Refused(502, "the model's output was malformed", code="malformed_output")
    async with asking(always(malformed)) as (answerer, model):
        for _ in range(60):  # however many in a row: it is the model's failure, and none of the server
            answer, length = await answerer.answer(HELLO)
            assert answer == Answer("h", Response(""), complete=False)
            assert (length.thought_tokens, length.response_characters) == (None, 0)
    assert len(model.bodies) == 60


async def test_our_own_gateway_is_asked_as_its_operator_and_tells_the_thoughts_length() -> None:
    async with asking(always(Said("x", reasoning="123")), private=True) as (answerer, model):
        _, length = await answerer.answer(HELLO)
    assert length.thought_characters == 3
    assert model.headers[0]["thinkserve-reveal"] == "1"
    assert model.headers[0]["Authorization"] == "Bearer sk-operator"


async def test_no_other_server_is_asked_for_thoughts() -> None:
    async with asking(always(Said("x"))) as (answerer, model):
        await answerer.answer(HELLO)
    assert "thinkserve-reveal" not in {name.lower() for name in model.headers[0]}
    assert model.headers[0]["Authorization"] == "Bearer sk-client"


SEEN = {
    "<think>hm</think>4": "<think>",
    "  <THINK>\nhm": "<think>",
    "hm, four</think>\n\n4": "</think>",
    "<thinking>hm</thinking>4": "<thinking>",
    "[THINK]hm[/THINK]4": "[THINK]",
    "◁think▷hm◁/think▷4": "◁think▷",
    "<|channel|>analysis<|message|>hm<|end|>": "<|channel|>analysis",
    "Here is my thought process:\nhm\nHere is my response:\n4": "Here is my thought process:",
    "**Here's my thought process:**\nhm": "Here is my thought process:",
    "Perhaps 4 <R> 4": "<R>",
    "Perhaps 4\n<R>\n4": "<R>",
}


@pytest.mark.parametrize(("content", "marker"), SEEN.items())
async def test_a_server_that_shows_thoughts_ends_the_run_and_is_named(content: str, marker: str) -> None:
    async with asking(always(Said(content))) as (answerer, model):
        with pytest.raises(UsageError) as error:
            await answerer.answer(HELLO)
    message = str(error.value)
    assert model.url in message and repr(marker) in message and "instruction h" in message
    assert "--thought-format NAME" in message and "hm" not in message and "Perhaps" not in message


@pytest.mark.parametrize(
    "content",
    [
        "Models write `<think>` before they answer.",
        'The tag is "</think>".',
        "Here is my response:\n\nDear Sir",
        "Sure.\nHere is my response: yes",
        "Use `Stream<R>`, as in\n```java\n<R> R accept(Visitor<R> visitor);\n```\nand Map<R> too.",
        "1 < 2 and <b>bold</b>",
    ],
)
async def test_a_response_may_speak_of_markers(content: str) -> None:
    async with asking(always(Said(content))) as (answerer, _):
        answer, _ = await answerer.answer(HELLO)
    assert answer.response == content


async def test_behind_our_own_gateway_a_marker_is_what_the_model_says() -> None:
    async with asking(always(Said("<R> or </think>")), private=True) as (answerer, _):
        answer, _ = await answerer.answer(HELLO)
    assert answer.response == "<R> or </think>"


async def test_with_a_format_whole_outputs_are_cut() -> None:
    async with asking(always(Said("<think>12345</think>\n\n4")), format="think-tags") as (answerer, model):
        answer, length = await answerer.answer(HELLO)
    assert answer == Answer("h", Response("4"))
    assert (length.thought_characters, length.response_characters) == (5, 1)
    # The server counts the output as one, so its tokens are nobody's.
    assert (length.thought_tokens, length.response_tokens) == (None, None)
    assert model.bodies[0]["messages"][0]["content"] == "say hello"


async def test_an_output_that_is_not_complete_has_no_response() -> None:
    for content in ("<think>never ends", "no thought at all", "<think>a</think>b<think>c"):
        async with asking(always(Said(content)), format="think-tags") as (answerer, _):
            answer, length = await answerer.answer(HELLO)
        assert answer == Answer("h", Response(""), complete=False)
        assert length.response_characters == 0


async def test_a_format_with_a_prompt_asks_for_the_thought_and_in_direct_mode_does_not() -> None:
    raw = "Here is my thought process:\nhm\nHere is my response:\nhello"
    async with asking(always(Said(raw)), format="tpo-generic") as (answerer, model):
        answer, _ = await answerer.answer(HELLO)
    assert answer.response == "hello"
    assert instruction_of(model.bodies[0]) == get_format("tpo-generic").thought_prompt("say hello")
    async with asking(always(Said("hello")), DIRECT, format="tpo-generic") as (answerer, model):
        answer, _ = await answerer.answer(HELLO)
    assert answer.response == "hello" and instruction_of(model.bodies[0]) == "say hello"
    assert "reasoning_effort" not in model.bodies[0]


async def test_direct_mode_is_refused_where_a_thought_could_not_be_told_apart() -> None:
    with pytest.raises(UsageError, match=r"--mode direct.*'tpo-specific'"):
        async with asking(always(Said("x")), DIRECT, format="tpo-specific"):
            raise AssertionError


async def test_a_server_that_keeps_thoughts_apart_needs_no_format() -> None:
    async with asking(always(Said("4", reasoning="hm")), format="think-tags") as (answerer, _):
        with pytest.raises(UsageError, match="without --thought-format"):
            await answerer.answer(HELLO)


async def test_a_server_that_knows_no_direct_mode_says_so_by_the_field() -> None:
    refused = Refused(400, "Unrecognized request argument: reasoning_effort", param="reasoning_effort")
    async with asking(always(refused), DIRECT) as (answerer, model):
        with pytest.raises(UsageError, match=r"--mode direct.*reasoning_effort.*is refused.*Unrecognized"):
            await answerer.answer(HELLO)
        assert len(model.bodies) == 1


async def test_a_model_that_thinks_in_direct_mode_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async with asking(always(Said("x", reasoning_tokens=3)), DIRECT) as (answerer, _):
        await answerer.answer(HELLO)
        _, length = await answerer.answer(HELLO)
    assert length.thought_tokens == 3
    assert [
        record.getMessage() for record in caplog.records if "direct mode too" in record.getMessage()
    ] != []
    assert sum("direct mode too" in record.getMessage() for record in caplog.records) == 1


async def test_errors_of_the_server_are_retried_and_then_the_instructions_failure() -> None:
    left = [Refused(500, "oops"), Refused(429, "slow down")]
    async with asking(lambda body: left.pop() if left else Said("hello")) as (answerer, model):
        answer, _ = await answerer.answer(HELLO)
        assert answer.response == "hello" and len(model.bodies) == 3
    async with asking(always(Refused(500, "out of memory"))) as (answerer, model):
        with pytest.raises(AnswerFailedError, match=r"http 500.*out of memory"):
            await answerer.answer(HELLO)
        assert len(model.bodies) == 3


async def test_a_refused_key_ends_the_run() -> None:
    async with asking(always(Refused(401, "no"))) as (answerer, _):
        with pytest.raises(ThinkserveError, match="refused the API key") as error:
            await answerer.answer(HELLO)
    assert not isinstance(error.value, AnswerFailedError) and "sk-client" not in str(error.value)


async def test_the_configuration_names_all_that_an_answer_hangs_on() -> None:
    def configuration(server: ModelServer, settings: Asking) -> Any:
        return Answerer(server, _NEVER, settings).configuration

    server = ModelServer("http://a", "m", "key", identity="weights 1")
    known = [
        configuration(server, THOUGHT),
        configuration(server, DIRECT),
        configuration(server, Asking(seed=1)),
        configuration(server, Asking(max_tokens=5)),
        configuration(ModelServer("http://a", "m", identity="weights 2"), THOUGHT),
        configuration(ModelServer("http://a", "m"), THOUGHT),
        configuration(ModelServer("http://b", "m"), THOUGHT),
        configuration(ModelServer("http://a", "m", raw_format=get_format("think-tags")), THOUGHT),
    ]
    assert all(known.count(one) == 1 for one in known)
    # A checkpoint that is served again has another port and other keys, and is the same.
    again = ModelServer("http://a:81", "m", "other", "operator", identity="weights 1")
    assert configuration(again, THOUGHT) == known[0]
    assert "key" not in str(known)


class _Never:
    async def complete(self, request: Any) -> Any:
        raise AssertionError


_NEVER = _Never()


async def test_a_server_is_asked_for_its_model_where_the_spec_names_none() -> None:
    async with ScriptedModel(always(Said("x")), models=("first", "second")) as model:
        async with open_server(EndpointSpec(model.url, None)) as server:
            assert server == ModelServer(model.url, "first")
        async with open_server(EndpointSpec(model.url, "b"), api_key="k", thought_format="granite") as server:
            assert server == ModelServer(model.url, "b", "k", raw_format=get_format("granite"))
    async with ScriptedModel(always(Said("x")), models=()) as model:
        with pytest.raises(ThinkserveError, match=r"lists no model; name one: http://127.0.0.1:\d+#MODEL"):
            async with open_server(EndpointSpec(model.url, None)):
                raise AssertionError
    with pytest.raises(ThinkserveError, match="no server answers at http://127.0.0.1:9;"):
        async with open_server(EndpointSpec("http://127.0.0.1:9", None)):
            raise AssertionError


async def test_a_whole_stage_over_a_failing_server_resumes_where_it_ended(tmp_path: Path) -> None:
    instructions = [Instruction(str(at), f"question {at}") for at in range(40)]
    broken = {"question 7", "question 30"}

    def script(body: JSON) -> Said | Refused:
        text = instruction_of(body)
        return Refused(500) if text in broken else Said(text.upper(), reasoning_tokens=4, delay=0.005)

    folder = RunFolder(tmp_path)
    async with asking(script) as (answerer, model):
        with pytest.raises(AnswerStoppedError, match=r"2 of 40 instructions have no answer.*http 500"):
            await answer_instructions(instructions, answerer, folder, "m", concurrency=8)
        assert 4 <= model.most_running <= 8
        broken.clear()
        asked = len(model.bodies)
        answers = await answer_instructions(instructions, answerer, folder, "m", concurrency=8)
        assert len(model.bodies) == asked + 2
    assert [answer.response for answer in answers.by_id.values()] == [f"QUESTION {at}" for at in range(40)]
