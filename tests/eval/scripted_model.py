"""A scripted server of a model on a real loopback socket: answers chat completions as a test says, thoughts included.

async with ScriptedModel(lambda body: Said("4", reasoning="two and two")) as server:
    ...  # server.url, server.bodies, server.headers
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: `reasoning` goes into the field that the server calls it by."""

    content: str | None = ""
    reasoning: str | None = None
    reasoning_field: str = "reasoning_content"
    finish_reason: str = "stop"
    incomplete: str | None = None
    completion_tokens: int | None = 10
    reasoning_tokens: int | None = None
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Refused:
    """An error."""

    status: int
    message: str = "no"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


Script = Callable[[JSON], Said | Refused]


def instruction_of(body: JSON) -> str:
    """What the user said in a request."""
    return str(body["messages"][-1]["content"])


class ScriptedModel:
    """The server; runs while its context is open."""

    def __init__(self, script: Script, *, models: tuple[str, ...] = ("scripted",)) -> None:
        self.script = script
        self.models = models
        self.bodies: list[JSON] = []
        self.headers: list[Mapping[str, str]] = []
        self.running = 0
        self.most_running = 0
        self.url = ""
        """Its base URL, without `/v1`."""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _list(self, request: web.Request) -> web.Response:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in self.models]
        return web.json_response({"object": "list", "data": listed})

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        said = self.script(body)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if isinstance(said, Refused):
                error = {"message": said.message, "type": "error", "param": said.param, "code": said.code}
                return web.json_response({"error": error}, status=said.status, headers=said.headers)
            await asyncio.sleep(said.delay)
            return web.json_response(_completion(said, body))
        finally:
            self.running -= 1


def _completion(said: Said, body: JSON) -> JSON:
    message: JSON = {"role": "assistant", "content": said.content}
    if said.reasoning is not None:
        message[said.reasoning_field] = said.reasoning
    choice: JSON = {"index": 0, "message": message, "finish_reason": said.finish_reason, "logprobs": None}
    if said.incomplete is not None:
        choice["incomplete_details"] = {"reason": said.incomplete}
    completion: JSON = {"id": "c", "object": "chat.completion", "created": 0, "model": body["model"]}
    completion["choices"] = [choice]
    if said.completion_tokens is not None:
        usage: JSON = {"prompt_tokens": 5, "completion_tokens": said.completion_tokens}
        usage["total_tokens"] = 5 + said.completion_tokens
        if said.reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": said.reasoning_tokens}
        completion["usage"] = usage
    return completion
