"""`thinkserve chat`, as a user runs it: lines in, responses out, and never a thought."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from tests.gateway.conftest import StartGateway
from tests.gateway.scripted import Recorded, Script, ScriptedUpstream, Status, chunked

OUTPUT = "Here is my thought process:\nSECRET\nHere is my response:\nPublic **answer**."


async def chat(url: str, *lines: str, **env: str) -> tuple[int, str]:
    """Run the command with these lines as its input; return its exit code and all that it wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "thinkserve.cli", "chat", "--url", url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "COLUMNS": "200", **env},
    )
    written, _ = await asyncio.wait_for(process.communicate("\n".join(lines).encode()), 60)
    assert process.returncode is not None
    return process.returncode, written.decode()


async def test_chat_shows_the_response_and_the_size_of_the_thought(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(Script(chunked(OUTPUT, 4))) as upstream:
        running = await start_gateway(upstream.url)
        code, written = await chat(running.url, "hello", "and again", "/new", "a new one", "/quit")
        assert code == 0
        assert written.count("Public answer.") == 3  # rendered: the asterisks are gone
        assert "thought for" in written
        assert "SECRET" not in written
        turns = [[message["role"] for message in request.body["messages"]] for request in upstream.requests]
        assert turns == [["user"], ["user", "assistant", "user"], ["user"]]


async def test_an_error_is_shown_and_the_conversation_goes_on(start_gateway: StartGateway) -> None:
    def refuse_first(request: Recorded) -> Script:
        refused = Status(400, {"error": {"message": "prompt too long by far", "code": 400}})
        return Script([refused] if len(upstream.requests) == 1 else chunked(OUTPUT, 4))

    async with ScriptedUpstream(refuse_first) as upstream:
        running = await start_gateway(upstream.url)
        code, written = await chat(running.url, "hello", "again")
        assert code == 0
        assert "prompt too long by far" in written
        assert written.count("Public answer.") == 1
        assert len(upstream.requests[-1].body["messages"]) == 1  # the turn without an answer is forgotten


async def test_no_server_is_one_line_that_says_how_to_start_one() -> None:
    code, written = await chat("http://127.0.0.1:9", "hello")
    assert code == 1
    assert written.strip().splitlines()[-1].endswith("thinkserve serve")
    assert "Traceback" not in written
