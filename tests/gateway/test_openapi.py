"""`openapi.json`: it is valid, it says what the tables say, and schemathesis finds the gateway to be as it says."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.scripted import JSON, Finish, Recorded, Script, ScriptedUpstream, Step
from thinkserve.gateway.api import endpoints
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.fields import REFUSE
from thinkserve.gateway.openapi import document
from thinkserve.gateway.openapi_schemas import ANSWERS, INSIDE
from thinkserve.thoughts import get_format

# A format without a thought prompt, so that a conversation needs no user message.
CONFIG = GatewayConfig(format=get_format("think-tags"), model_name="")
REQUIRED = {
    "/v1/chat/completions": ["messages"],
    "/v1/completions": ["prompt"],
    "/v1/responses": ["input"],
    "/v1/messages": ["messages", "max_tokens"],
}
ENDPOINTS = {endpoint.path: endpoint for endpoint in endpoints(CONFIG)}
PATHS = sorted(ENDPOINTS)
OTHERS = ("/v1/models", "/v1/models/{model}", "/health", "/ready", "/metrics", "/version", "/openapi.json")
EXPLORE = Path(__file__).parent / "clients" / "explore.py"
EXAMPLES = 20
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
# What the engine answers, in turn: a response, a call (where there is such a tool), nothing but a thought, and what is
# no answer.
OUTPUTS: tuple[list[Step], ...] = (
    ["<think>SECRET</think>", "Hello, ", "world."],
    ["<think>SECRET</think>Look:", CALL],
    ["<think>SECRET ", "SECRET", Finish("length")],
    ["SECRET without a marker"],
)
TOOL: JSON = {"name": "weather", "parameters": {"type": "object"}}
# The least that each endpoint takes.
LEAST: dict[str, JSON] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100},
}
# And what makes its answers richer.
RICH: dict[str, list[JSON]] = {
    "/v1/chat/completions": [
        {"logprobs": True, "top_logprobs": 2, "n": 2},
        {"tools": [{"type": "function", "function": TOOL}]},
    ],
    "/v1/completions": [{"logprobs": 2, "echo": True, "n": 2}],
    "/v1/responses": [{"tools": [{"type": "function", **TOOL}]}],
    "/v1/messages": [
        {"tools": [{"name": "weather", "input_schema": {"type": "object"}}]},
        {"stop_sequences": ["world"]},
    ],
}


def described(**more: Any) -> JSON:
    """The document of a gateway, as JSON brings it."""
    text = msgspec.json.encode(document(list(ENDPOINTS.values()), version="1.2.3", **more))
    read: JSON = msgspec.json.decode(text)
    return read


def request_schema(path: str, **more: Any) -> JSON:
    """The schema of the body that an endpoint takes."""
    schema: JSON = described(**more)["components"]["schemas"][f"{type(ENDPOINTS[path]).__name__}Request"]
    return schema


def test_the_document_is_openapi_3_1() -> None:
    """By the validator of its own schema, with and without keys."""
    validator = pytest.importorskip("openapi_spec_validator", reason="needs openapi-spec-validator")
    for keys in (True, False):
        validator.validate(described(keys=keys), cls=validator.OpenAPIV31SpecValidator)
    assert described(keys=False)["security"] == []
    assert described()["security"] == [{"bearer": []}, {"x-api-key": []}]
    assert described()["info"]["version"] == "1.2.3"


@pytest.mark.parametrize("path", PATHS)
def test_a_request_is_described_as_its_table_reads_it(path: str) -> None:
    """All fields that are taken and no others; null only where a field may be left out."""
    schema = request_schema(path)
    table = ENDPOINTS[path].fields
    taken = {name for name, field in table.items() if field.action != REFUSE}
    assert set(schema["properties"]) == taken and schema["additionalProperties"] is False
    assert schema["required"] == REQUIRED[path]
    for name in taken - set(REQUIRED[path]):
        value = schema["properties"][name]
        branches = value.get("anyOf", [value])
        assert not set(value) - {"description"} or any(
            "null" in branch.get("type", ()) or None in branch.get("enum", ()) for branch in branches
        ), name
    let_by = request_schema(path, allow={"new_field", "logit_bias"})["properties"]
    assert set(let_by) == taken | {"new_field", "logit_bias"}


def test_what_is_said_beyond_the_tables_is_about_fields_that_they_take() -> None:
    """A field or an endpoint that goes must go here too, and a new endpoint must say what it answers."""
    assert set(ANSWERS) == set(REQUIRED) == set(ENDPOINTS)
    for path, name in [*INSIDE, *((path, name) for path, names in REQUIRED.items() for name in names)]:
        assert ENDPOINTS[path].fields[name].action != REFUSE


@pytest.mark.parametrize("path", PATHS)
async def test_a_field_that_is_said_to_be_required_is(path: str, start_gateway: StartGateway) -> None:
    """And one that is not may be left out."""
    async with ScriptedUpstream(Script(OUTPUTS[0])) as upstream:
        running = await start_gateway(upstream.url, format="think-tags")
        async with running.http.post(f"{running.url}{path}", json=LEAST[path]) as response:
            assert response.status == 200 and set(LEAST[path]) == set(REQUIRED[path])
        for name in REQUIRED[path]:
            for body in (
                {**LEAST[path], name: None},
                {key: LEAST[path][key] for key in LEAST[path] if key != name},
            ):
                async with running.http.post(f"{running.url}{path}", json=body) as response:
                    assert response.status == 400 and name in await response.text()


async def test_all_routes_are_described_and_all_that_is_described_is_served(
    start_gateway: StartGateway,
) -> None:
    """But the playground, which is for people."""
    async with ScriptedUpstream(Script(OUTPUTS[0])) as upstream:
        running = await start_gateway(upstream.url, playground=False)
        served = {
            (resource.canonical, route.method.lower())
            for resource in running.gateway.application().router.resources()
            for route in resource
            if route.method not in ("HEAD", "*")
        }
    assert served == {(path, method) for path, item in described()["paths"].items() for method in item}


async def test_the_document_is_served(start_gateway: StartGateway) -> None:
    """Without a key, for it tells no more than the docs."""
    async with ScriptedUpstream(Script(OUTPUTS[0])) as upstream:
        running = await start_gateway(
            upstream.url, keys={"sk-client": "client"}, allow_fields=frozenset({"bad_words"})
        )
        async with running.http.get(f"{running.url}/openapi.json") as response:
            assert (response.status, response.content_type) == (200, "application/json")
            told = msgspec.json.decode(await response.read())
    assert set(told["paths"]) == set(described()["paths"]) and told["security"]
    assert "bad_words" in told["components"]["schemas"]["ChatCompletionsRequest"]["properties"]


async def test_an_odd_path_gets_an_error_in_json(start_gateway: StartGateway) -> None:
    """A line end in it too, which a route's pattern may not reach beyond."""
    async with ScriptedUpstream(Script(OUTPUTS[0])) as upstream:
        running = await start_gateway(upstream.url)
        for path in ("/v1/models/%0A", "/v1/models/a%0Ab", "/%0A", "/v1/models/", "/v1/models/%00"):
            async with running.http.get(f"{running.url}{path}") as response:
                assert (response.status, response.content_type) == (404, "application/json"), path


@pytest.mark.parametrize("path", PATHS)
async def test_answers_are_as_they_are_described(path: str, start_gateway: StartGateway) -> None:
    """With calls, logprobs, a thought that took it all, and the thought for an operator."""
    validators = pytest.importorskip("jsonschema", reason="needs jsonschema")
    validator = validators.Draft202012Validator(ANSWERS[path])
    headers = {"Authorization": "Bearer sk-operator", "thinkserve-reveal": "1"}
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url, format="think-tags", keys={"sk-operator": "operator"})
        for output in OUTPUTS[:3]:
            upstream.script = Script(output)
            for more in ({}, *RICH[path]):
                for reveal in ({}, headers):
                    async with running.http.post(
                        f"{running.url}{path}",
                        json=LEAST[path] | more,
                        headers={**headers, "thinkserve-reveal": "0", **reveal},
                    ) as response:
                        answer = msgspec.json.decode(await response.read())
                    assert response.status == 200
                    assert not [error.message for error in validator.iter_errors(answer)], answer


def in_turn() -> Iterator[Script]:
    """A script a request, for ever."""
    return (Script(output) for output in cycle(OUTPUTS))


async def test_schemathesis_finds_no_difference_between_document_and_gateway(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """What fits the document is often answered, what does not is refused, and all answers are as described."""
    if find_spec("schemathesis") is None:
        pytest.skip("needs the package schemathesis")
    scripts = in_turn()

    def script(recorded: Recorded) -> Script:
        return next(scripts)

    (tmp_path / "openapi.json").write_bytes(msgspec.json.encode(described(keys=False)))
    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", model_name="", format_retries=0)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, EXPLORE, running.url, tmp_path / "openapi.json", str(EXAMPLES)),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        try:
            async with asyncio.timeout(100):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    found = msgspec.json.decode(out)
    assert {name: told["failures"] for name, told in found.items() if told["failures"]} == {}
    for name, told in found.items():
        statuses = {int(status): count for status, count in told["statuses"].items()}
        mode, path = name.split()
        if mode == "negative":
            assert set(statuses) == {400}, name
        elif path in ENDPOINTS:
            assert statuses[200] >= 3 and set(statuses) <= {200, 400, 502}, name
        else:
            assert set(statuses) == ({404} if "{" in path else {200}), name
    assert len(found) == 2 * len(ENDPOINTS) + len(OTHERS)
