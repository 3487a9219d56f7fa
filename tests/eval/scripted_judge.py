"""The fake judge of the tests: an OpenAI-compatible server on a real loopback socket that answers by a script.

    async with scripted_judge(Say("[[A]]"), latency=0.05) as judge:      # always the same
    async with scripted_judge([Status(429, retry_after="1"), Say()]) as judge:   # one a request; the last one stays
    async with scripted_judge(lambda asked: Say() if asked.nth else Truncated()) as judge:   # by what was asked
        ...  # judge.url (with /v1), judge.requests, judge.running, judge.most_running

What was asked (`Asked`) is the request's body, its number, and how often the same messages were asked before (`nth`), so
a script that goes by content and `nth` does the same in any order of arrival. `fair` and `hostile` are such scripts.

    with judge_process("fair", latency=0.05) as url:   # in a process of its own, where time is measured
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web


@dataclass(frozen=True, slots=True)
class Say:
    """A chat completion."""

    text: str | None = "My final verdict is: [[A]]"
    finish_reason: str = "stop"
    logprobs: Mapping[str, float] | None = None
    """Top log probabilities of the first token; sent only if they were asked for."""
    reasoning: str | None = None
    """Sent as `reasoning_content`."""
    usage: Mapping[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    )
    latency: float | None = None
    """Seconds, instead of the judge's own."""


@dataclass(frozen=True, slots=True)
class Status:
    """An HTTP error."""

    code: int
    message: str = "scripted"
    retry_after: str | None = None
    param: str | None = None
    error_code: str | None = None


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer at all."""


@dataclass(frozen=True, slots=True)
class Truncated:
    """The body of a `Say`, cut in the middle of its JSON."""


@dataclass(frozen=True, slots=True)
class NoChoices:
    """A completion whose `choices` are empty."""


@dataclass(frozen=True, slots=True)
class Die:
    """The connection is cut."""


Action = Say | Status | Hang | Truncated | NoChoices | Die


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to the judge."""

    number: int
    """From 0."""
    nth: int
    """How often these messages were asked before."""
    body: Mapping[str, Any]
    headers: Mapping[str, str]

    @property
    def text(self) -> str:
        """The content of its messages."""
        return "\n".join(message["content"] for message in self.body["messages"])

    @property
    def die(self) -> int:
        """A number that hangs on the text alone: from 0 to 2**32 - 1."""
        return int.from_bytes(sha256(self.text.encode()).digest()[:4], "big")


Script = Callable[[Asked], Action]
Behaviour = Action | Sequence[Action] | Script


def fair(asked: Asked) -> Action:
    """A verdict that hangs on the text alone: A for half of the games."""
    return Say("My final verdict is: " + ("[[A]]" if asked.die % 2 else "[[B]]"))


FAILURES: tuple[Action, ...] = (
    Status(429, retry_after="0.05"),
    Status(500),
    Hang(),
    Truncated(),
    NoChoices(),
    Say(""),
    Die(),
    Say("I cannot decide."),
    Say("[[A]] or maybe [[B]]"),
    Say("[[A>> B]]"),
)


def hostile(asked: Asked) -> Action:
    """Fails once in each way of `FAILURES`, each for a tenth of the games, before it is fair.

    `[[A>> B]]` and whatever else is said stay if the same is asked again only where `nth` says so: all of them once.
    """
    return fair(asked) if asked.nth else FAILURES[asked.die // 2 % len(FAILURES)]


SCRIPTS: dict[str, Script] = {"fair": fair, "hostile": hostile}


class ScriptedJudge:
    """A scripted judge; see the module."""

    def __init__(self, behaviour: Behaviour, latency: float) -> None:
        self.behaviour = behaviour
        self.latency = latency
        self.requests: list[Asked] = []
        self.running = 0
        self.most_running = 0
        self.url = ""
        self._seen: Counter[bytes] = Counter()

    def app(self) -> web.Application:
        """Its application."""
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        messages = msgspec.json.encode(body["messages"])
        asked = Asked(len(self.requests), self._seen[messages], body, request.headers)
        self._seen[messages] += 1
        self.requests.append(asked)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._play(self._action(asked), asked, request)
        finally:
            self.running -= 1

    def _action(self, asked: Asked) -> Action:
        if isinstance(self.behaviour, Sequence):
            return self.behaviour[min(asked.number, len(self.behaviour) - 1)]
        return self.behaviour(asked) if callable(self.behaviour) else self.behaviour

    async def _play(self, action: Action, asked: Asked, request: web.Request) -> web.StreamResponse:
        latency = action.latency if isinstance(action, Say) else None
        await asyncio.sleep(self.latency if latency is None else latency)
        match action:
            case Say():
                return _json(200, _completion(asked, action))
            case Status():
                return _error(action)
            case Truncated():
                whole = msgspec.json.encode(_completion(asked, Say()))
                return web.Response(body=whole[: len(whole) // 2], content_type="application/json")
            case NoChoices():
                return _json(200, _completion(asked, Say()) | {"choices": []})
            case Die():
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case Hang():
                await asyncio.sleep(3600)
                return web.Response()


def _json(status: int, body: object, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/json", headers=headers
    )


def _error(status: Status) -> web.Response:
    headers = {} if status.retry_after is None else {"Retry-After": status.retry_after}
    error = {"message": status.message, "type": "scripted", "param": status.param, "code": status.error_code}
    return _json(status.code, {"error": error}, headers)


def _completion(asked: Asked, say: Say) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": say.text}
    if say.reasoning is not None:
        message["reasoning_content"] = say.reasoning
    logprobs = None
    if say.logprobs is not None and asked.body.get("logprobs"):
        top = [{"token": token, "logprob": value, "bytes": None} for token, value in say.logprobs.items()]
        logprobs = {"content": [{**top[0], "top_logprobs": top}]}
    choice = {"index": 0, "message": message, "finish_reason": say.finish_reason, "logprobs": logprobs}
    return {
        "id": f"chatcmpl-{asked.number}",
        "object": "chat.completion",
        "created": 0,
        "model": asked.body["model"],
        "choices": [choice],
        "usage": say.usage,
    }


@asynccontextmanager
async def scripted_judge(
    behaviour: Behaviour = fair, *, latency: float = 0.0, port: int = 0
) -> AsyncIterator[ScriptedJudge]:
    """Run a scripted judge on a free port of 127.0.0.1 (or on `port`) while the context is open.

    Args:
        behaviour: one action for all requests, a list of them (the last one stays), or a function of what is asked.
        latency: seconds before each reply.
        port: 0 for a free one.
    """
    judge = ScriptedJudge(behaviour, latency)
    # A hanging reply ends with its client, and none keeps the test waiting.
    runner = web.AppRunner(judge.app(), handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True, backlog=1024).start()
        judge.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield judge
    finally:
        await runner.cleanup()


@contextmanager
def judge_process(script: str = "fair", *, latency: float = 0.0) -> Iterator[str]:
    """Run a scripted judge in a process of its own and yield its URL, so that it takes no time of the client's."""
    command = [sys.executable, "-m", "tests.eval.scripted_judge", script, "--latency", str(latency)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


async def _serve(script: str, latency: float) -> None:
    async with scripted_judge(SCRIPTS[script], latency=latency) as judge:
        print(judge.url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the other side is gone


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("--latency", type=float, default=0.0)
    given = parser.parse_args()
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(given.script, given.latency))
    else:
        uvloop.run(_serve(given.script, given.latency))


if __name__ == "__main__":
    _main()
