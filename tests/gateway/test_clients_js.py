"""The JavaScript clients of OpenAI and Anthropic, installed from npm and run for real against a gateway.

The packages are installed once into a folder for temporary files, at the versions of `clients/package.json`.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.scripted import JSON, Die, Recorded, Script, ScriptedUpstream, Status, chunked

CLIENTS = Path(__file__).parent / "clients"
RESPONSE = "Hello, world."
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
INSTALL_SECONDS = 240
RUN_SECONDS = 60

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS)


def output(response: str) -> list[str]:
    """A whole output, in chunks."""
    return chunked(f"Here is my thought process:\nSECRET plan.\nHere is my response:\n{response}", 4)


def script(recorded: Recorded) -> Script:
    """What the engine answers, by what the user said last."""
    said = str(recorded.body["messages"][-1]["content"])
    match said.rsplit("User query: ")[-1]:
        case "call":
            return Script(output(CALL))
        case "json":
            return Script(output('{"city": "Rome"}'))
        case "busy":
            return Script([Status(429, {"error": {"message": "too many requests"}})])
        case "garbled":
            return Script(["SECRET without a marker"])
        case "middle":
            return Script([*output(RESPONSE), Die()])
        case "slow":
            return Script(output("word " * 2000), delay=0.01)
        case _:
            return Script(output(RESPONSE))


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder that npm installed the clients into."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}, which is not on the PATH")
    package = (CLIENTS / "package.json").read_bytes()
    folder = Path(tempfile.gettempdir()) / f"thinkserve-clients-{sha256(package).hexdigest()[:12]}"
    if not (folder / "node_modules").is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            Path(made, "package.json").write_bytes(package)
            command = ["npm", "install", "--prefix", made, "--ignore-scripts", "--no-audit", "--no-fund"]
            command.append("--no-package-lock")
            run = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=INSTALL_SECONDS
            )
            if run.returncode:
                reason = (run.stderr.strip() or "no reason given").splitlines()[0]
                pytest.skip(f"npm cannot install openai and @anthropic-ai/sdk: {reason[:200]}")
            folder.mkdir(exist_ok=True)
            Path(made, "node_modules").rename(folder / "node_modules")
    return folder / "node_modules"


async def run(name: str, url: str, node_modules: Path, folder: Path) -> dict[str, Any]:
    """Run a script of `clients` against a gateway; return what it prints."""
    # Node looks for packages beside the script.
    shutil.copy(CLIENTS / name, folder)
    (folder / "node_modules").symlink_to(node_modules)
    process = await asyncio.create_subprocess_exec(
        "node", str(folder / name), url, "sk-client", stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(RUN_SECONDS):
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert b"SECRET" not in out
    results: dict[str, Any] = msgspec.json.decode(out)
    return results


async def left(upstream: ScriptedUpstream) -> None:
    """Wait until the engine works for nobody; what the clients left would go on for 25 seconds."""
    async with asyncio.timeout(10):
        while upstream.running:  # noqa: ASYNC110 - the engine of these tests has no event for it
            await asyncio.sleep(0.01)


async def test_the_openai_client_works(
    start_gateway: StartGateway, node_modules: Path, tmp_path: Path
) -> None:
    """Every endpoint of OpenAI's, streams and whole answers, tools, errors by their class, and leaving."""
    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, keys={"sk-client": "client"})
        results = await run("openai.mjs", running.url, node_modules, tmp_path)
        await left(upstream)
    usage: JSON = results["chat"].pop("usage")
    assert usage["completion_tokens"] == len(output(RESPONSE)) and usage["prompt_tokens"] == 7
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]
    assert results["chatStream"].pop("usage") == usage
    said = {"content": RESPONSE, "finish": "stop"}
    assert results["chat"] == results["chatStream"] == results["streamHelper"] == said
    assert results["models"] == ["thinker"]
    assert results["tools"] == {"name": "weather", "arguments": {"city": "Rome"}, "finish": "tool_calls"}
    assert results["runTools"] == {"content": RESPONSE, "cities": ["Rome"]}
    assert results["parsed"] == {"city": "Rome"}
    assert results["completion"] == {"text": RESPONSE, "finish": "stop"}
    assert results["response"] == {
        "text": RESPONSE,
        "status": "completed",
        "types": ["reasoning", "message"],
    }
    assert results["responseStream"]["text"] == results["responseStream"]["final"] == RESPONSE
    kinds = results["responseStream"]["kinds"]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    errors = results["errors"]
    assert {name: (error["class"], error.get("status")) for name, error in errors.items()} == {
        "key": ("AuthenticationError", 401),
        "model": ("NotFoundError", 404),
        "field": ("BadRequestError", 400),
        "busy": ("RateLimitError", 429),
        "garbled": ("InternalServerError", 502),
        "busyStream": ("RateLimitError", 429),
        "middle": ("APIError", None),
    }
    assert errors["model"]["code"] == "model_not_found" and errors["field"]["param"] == "logit_bias"
    assert errors["middle"]["code"] == "engine_unavailable"
    assert results["abort"] == {"chunks": 3, "aborted": True}


async def test_the_anthropic_client_works(
    start_gateway: StartGateway, node_modules: Path, tmp_path: Path
) -> None:
    """Messages and streams, tools and their results, errors by their class, and leaving."""
    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, keys={"sk-client": "client"})
        results = await run("anthropic.mjs", running.url, node_modules, tmp_path)
        await left(upstream)
    message = {
        "content": [{"type": "text", "text": RESPONSE}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "output_tokens": len(output(RESPONSE)),
    }
    assert results["message"] == message
    assert results["stream"] == {**message, "text": RESPONSE}
    stopped = results["stopped"]
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "world")
    assert stopped["content"] == [{"type": "text", "text": "Hello, "}]
    call, answer = results["tools"]
    assert call["content"] == [{"type": "tool_use", "name": "weather", "input": {"city": "Rome"}}]
    assert call["stop_reason"] == "tool_use" and answer == message
    errors = results["errors"]
    assert {name: (error["class"], error.get("status"), error["type"]) for name, error in errors.items()} == {
        "key": ("AuthenticationError", 401, "authentication_error"),
        "model": ("NotFoundError", 404, "not_found_error"),
        "field": ("BadRequestError", 400, "invalid_request_error"),
        "busy": ("RateLimitError", 429, "rate_limit_error"),
        "garbled": ("InternalServerError", 502, "api_error"),
        "middle": ("APIError", None, "overloaded_error"),
    }
    abort = results["abort"]
    assert (abort["class"], abort["chunks"]) == ("APIUserAbortError", 3)
