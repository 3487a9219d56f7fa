"""What tests of sampling share: asks of the pocket world, a checkpoint whose marker is a special token, a scripted server."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from thinkserve.pocket import CHECKPOINT
from thinkserve.training.pocket.tokenizer import FORMAT
from thinkserve.training.pocket.world import draw_distinct
from thinkserve.training.records import SampleRecord
from thinkserve.training.sampling.generator import Ask, Generator, Sampling


def asks_of(count: int) -> list[Ask]:
    """Asks of the pocket world, in all lengths, with the thought prompt."""
    texts = [task.instruction for task in draw_distinct(5, count)]
    return [Ask(f"i{place}", FORMAT.thought_prompt(text), 1000 * place) for place, text in enumerate(texts)]


async def sample(generator: Generator, asks: Sequence[Ask], sampling: Sampling) -> dict[str, SampleRecord]:
    """Records by id."""
    return {record.id: record async for record in generator.generate(asks, sampling)}


def with_special_marker(folder: Path) -> Path:
    """A copy of the pocket checkpoint whose `<R>` is a special token, which engines leave out unless told."""
    shutil.copytree(CHECKPOINT, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    (marker,) = (token for token in tokenizer["added_tokens"] if token["content"] == "<R>")
    marker["special"] = True
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


Reply = dict[str, Any] | tuple[int, str]
"""A body, or a status with an error's message."""


def completion(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What vLLM answers: `n` outputs, each naming its seed, with its token ids."""
    choices: list[dict[str, Any]] = [
        {
            "index": place,
            "message": {"content": f"hm<R>{body['seed'] + place}"},
            "finish_reason": "stop",
            "token_ids": [7] * (place + 1),
        }
        for place in range(body.get("n", 1))
    ]
    total = sum(len(choice["token_ids"]) for choice in choices)
    usage = {"prompt_tokens": 5, "completion_tokens": total}
    return {"choices": choices, "usage": usage, **changes}


class ScriptedServer:
    """A server of chat completions that does as told, and keeps what it was asked."""

    def __init__(self, answer: Callable[[dict[str, Any]], Reply], card: dict[str, Any]) -> None:
        self.answer, self.card = answer, card
        self.asked: list[dict[str, Any]] = []
        self.running = self.most_running = 0
        self.url = ""

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.002)
        self.running -= 1
        found = self.answer(body)
        if isinstance(found, tuple):
            return web.json_response({"error": {"message": found[1]}}, status=found[0])
        return web.json_response(found)

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self.card]})


@asynccontextmanager
async def scripted_server(
    answer: Callable[[dict[str, Any]], Reply] = completion, *, uds: Path | None = None, **card: Any
) -> AsyncIterator[ScriptedServer]:
    """Run it on a free port of 127.0.0.1, or on a Unix socket."""
    server = ScriptedServer(answer, {"id": "m", "owned_by": "vllm", **card})
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_get("/v1/models", server.models)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        if uds is None:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        else:
            await web.UnixSite(runner, str(uds)).start()
            server.url = "http://localhost/v1"
        yield server
    finally:
        await runner.cleanup()
