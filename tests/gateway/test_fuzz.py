"""The fuzzer: whatever a model writes, however it comes, whatever a client asks, no byte of a thought reaches a client.

20,000 cases here; `make fuzz` runs a million. A case is made from one number, which a failure names; run it again with

    THINKSERVE_FUZZ_SEED=NUMBER python -m pytest tests/gateway/test_fuzz.py
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from tests.gateway.conftest import Running, StartGateway
from tests.gateway.fuzz_cases import ENDPOINTS, EYE, FORMATS, Case, make_case
from tests.gateway.scripted import Recorded, Script, ScriptedUpstream

CASES = int(os.environ.get("THINKSERVE_FUZZ_CASES", "20000"))
AT_ONCE = 16
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
# As text, escaped in JSON, and as the bytes of a log probability's token.
SIGNS = (EYE.encode(), b"\\ua66e", b"\\uA66E", b"234,153,174", b"234, 153, 174")
STATUSES = {200, 400, 403, 502, 503}
LAST = {
    "chat": rb"data: \[DONE\]",
    "completions": rb"data: \[DONE\]",
    "responses": rb"event: response\.(completed|incomplete|failed)",
    "messages": rb"event: message_stop",
}


class Fuzzed:
    """A scripted engine with a gateway for each format before it."""

    def __init__(self) -> None:
        self.cases: dict[int, Case] = {}
        self.gateways: dict[str, Running] = {}
        self.seen: Counter[str] = Counter()

    def script(self, recorded: Recorded) -> Script:
        """What the engine answers to a case, known by its number in the prompt."""
        messages = recorded.body["messages"]
        numbers = [
            int(found[1])
            for message in messages
            if (found := re.search(r"case (\d+)", str(message["content"]))) is not None
        ]
        case = self.cases[numbers[-1]]
        if recorded.body.get("continue_final_message"):  # its thought was cut, and the response follows
            return Script(["Cut", " short."])
        return case.script

    async def run(self, case: Case) -> None:
        """Ask, and look at every byte of the answer."""
        self.cases[case.seed] = case
        running = self.gateways[case.format.name]
        async with running.http.post(
            running.url + PATHS[case.endpoint], json=case.body, headers=case.headers
        ) as answer:
            raw = await answer.read()
            headers = repr(answer.headers).encode()
        del self.cases[case.seed]
        what = f"THINKSERVE_FUZZ_SEED={case.seed}: {case.body} {case.output!r}"
        for sign in SIGNS:
            # What the client itself wrote comes back to it in error messages.
            assert sign not in headers and (sign not in raw or _own(case, raw)), f"{what}: {raw!r}"
        assert answer.status in STATUSES, f"{what}: {answer.status} {raw!r}"
        self.seen[f"{case.endpoint} {answer.status}"] += 1
        streamed = answer.status == 200 and case.body["stream"]
        if streamed:
            whole = re.search(LAST[case.endpoint], raw) is not None
            assert whole or b'"error"' in raw, f"{what}: {raw!r}"
            self.seen["streams"] += 1
        if case.plain:
            assert answer.status == 200, f"{what}: {raw!r}"
            assert text_of(case.endpoint, raw, streamed=streamed) == case.response, f"{what}: {raw!r}"
            self.seen["plain"] += 1


def _own(case: Case, raw: bytes) -> bool:
    """Whether a refusal quotes what the client wrote in the field that it names."""
    return b'"error"' in raw and b"unknown" in raw and "unknown" in case.body


def text_of(endpoint: str, raw: bytes, *, streamed: bool) -> str:
    """The response of an answer, as a client puts it together."""
    if not streamed:
        return _whole_text(endpoint, msgspec.json.decode(raw))
    events = [msgspec.json.decode(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: {")]
    match endpoint:
        case "chat":
            parts = [c["delta"].get("content") for e in events for c in e["choices"] if c["index"] == 0]
        case "completions":
            parts = [c["text"] for e in events for c in e["choices"] if c["index"] == 0]
        case "responses":
            parts = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
        case _:
            parts = [e["delta"].get("text") for e in events if e["type"] == "content_block_delta"]
    return "".join(part or "" for part in parts)


def _whole_text(endpoint: str, body: Any) -> str:
    match endpoint:
        case "chat":
            return str(body["choices"][0]["message"]["content"])
        case "completions":
            return str(body["choices"][0]["text"])
        case "responses":
            items = [item for item in body["output"] if item["type"] == "message"]
            return "".join(part["text"] for item in items for part in item["content"])
        case _:
            return "".join(block["text"] for block in body["content"] if block["type"] == "text")


@asynccontextmanager
async def fuzzing(start_gateway: StartGateway) -> AsyncIterator[Fuzzed]:
    fuzzed = Fuzzed()
    async with ScriptedUpstream(fuzzed.script) as upstream:
        for format in FORMATS:
            fuzzed.gateways[format] = await start_gateway(upstream.url, format=format, format_retries=0)
        yield fuzzed


@pytest.mark.timeout(0)
async def test_no_byte_of_a_thought_reaches_a_client(start_gateway: StartGateway) -> None:
    """The cases run some at a time, so they are also sequences over endpoints that share an engine and connections."""
    only = os.environ.get("THINKSERVE_FUZZ_SEED")
    # A failure names its number, so a new beginning each time finds more and loses nothing.
    first = int(only) if only else int.from_bytes(os.urandom(6)) * 10**8
    seeds = iter([first] if only else range(first, first + CASES))

    async with fuzzing(start_gateway) as fuzzed:

        async def work() -> None:
            for seed in seeds:
                await fuzzed.run(make_case(seed))

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
    if not only:
        # The fuzzer must have been where it wants to go: every endpoint, good and bad, streamed and whole.
        for endpoint in ENDPOINTS:
            assert fuzzed.seen[f"{endpoint} 200"] > CASES // 20, fuzzed.seen
            assert fuzzed.seen[f"{endpoint} 400"] > CASES // 100, fuzzed.seen
        assert fuzzed.seen["plain"] > CASES // 20 and fuzzed.seen["streams"] > CASES // 10, fuzzed.seen


async def test_the_fuzzer_sees_a_leak(start_gateway: StartGateway) -> None:
    """A gateway that cuts by another format than the model's shows thoughts, and the fuzzer must say so."""
    async with ScriptedUpstream(Script([f"<think>{EYE}</think>Hello"])) as upstream:
        running = await start_gateway(upstream.url, format="think-tags")
        asked = {"messages": [{"role": "user", "content": "x"}]}
        async with running.http.post(running.url + PATHS["chat"], json=asked) as answer:
            assert EYE.encode() not in await answer.read()
        wrong = await start_gateway(upstream.url, format="tpo-generic", format_retries=0)
        asked["reasoning_effort"] = "none"  # type: ignore[assignment]
        async with wrong.http.post(wrong.url + PATHS["chat"], json=asked) as answer:
            assert EYE.encode() in await answer.read()
