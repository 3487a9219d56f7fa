"""The engine of the gateway benchmark: streams scripted outputs as fast, or as evenly, as it is told.

    python benchmarks/scripted_upstream.py [--port PORT]        prints the port it listens on

A raw asyncio protocol that writes bytes encoded beforehand, so that it is not what is measured. On the wire it is vLLM
without a reasoning parser: SSE chunks with `token_ids`, a usage chunk, `[DONE]`, in HTTP chunks. What it generates is
in the prompt (`Plan.prompt`), which every gateway passes on. Each event of a response holds one `~` and each event of
a thought one `^`: that is how the load generator counts, and sees that nothing hidden came through.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Self, cast

import uvloop

OPENING = "Here is my thought process:\n"
CLOSING = "\nHere is my response:\n"
_PROMPT = re.compile(rb"bench thought=(\d+) response=(\d+) pad=(\d+) delay=(\d+)us")
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one request generates.

    `thought` and `response` are counts of events, `pad` the characters added to the text of each response event, and
    `delay_us` the time between events. Without a delay everything goes out in one write. With one, the opening marker
    goes out at once, and what follows one event a write; a response that follows a `short` thought has the whole thought
    and its own first event in the first write, so that the time to it is not the time of the thought.
    """

    thought: int
    response: int
    pad: int = 0
    delay_us: int = 0

    @property
    def short(self) -> bool:
        """Whether the thought is sent at once."""
        return self.thought <= 16

    @property
    def prompt(self) -> str:
        """The user's message that asks for this plan."""
        return f"bench thought={self.thought} response={self.response} pad={self.pad} delay={self.delay_us}us"

    @classmethod
    def asked_in(cls, body: bytes) -> Self:
        """The plan that a request asks for."""
        found = _PROMPT.search(body)
        if found is None:
            raise ValueError("the request holds no plan")
        return cls(*map(int, found.groups()))


def _http(status: str, content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _in_http_chunk(payload: str) -> bytes:
    event = f"data: {payload}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def _texts(plan: Plan) -> list[tuple[str, bool]]:
    """The text of every event, and whether it is the response's."""
    thought = [(f" t{at % 1000}^", False) for at in range(plan.thought)]
    response = [(f" w{at % 1000}~" + "x" * plan.pad, True) for at in range(plan.response)]
    return [(OPENING, False), *thought, (CLOSING, False), *response]


_HEAD = {"id": "chatcmpl-8f1c2a9be2f64d77", "object": "chat.completion.chunk", "created": 1763000000}
_DUMPS = json.JSONEncoder(separators=(",", ":")).encode


@cache
def writes_of(plan: Plan) -> list[bytes]:
    """What is written for a plan when it is streamed, one write an element."""

    def event(delta: dict[str, str], finish: str | None = None, ids: list[int] | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": ids}
        return _in_http_chunk(_DUMPS({**_HEAD, "model": "scripted", "choices": [choice]}))

    texts = _texts(plan)
    events = [event({"content": text}, None, [1000 + at % 1000]) for at, (text, _) in enumerate(texts)]
    usage = {"prompt_tokens": 12, "completion_tokens": len(texts), "total_tokens": 12 + len(texts)}
    end = event({"content": ""}, "stop", [])
    end += _in_http_chunk(_DUMPS({**_HEAD, "model": "scripted", "choices": [], "usage": usage}))
    end += _in_http_chunk("[DONE]") + b"0\r\n\r\n"
    start = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    start += b"transfer-encoding: chunked\r\n\r\n" + event({"role": "assistant", "content": ""})
    if not plan.delay_us:
        return [start + b"".join(events) + end]
    at_once = plan.thought + 3 if plan.short else 1
    return [start + b"".join(events[:at_once]), *events[at_once:], end]


@cache
def whole(plan: Plan) -> bytes:
    """The reply when the plan is not streamed: the response alone, as a gateway that hides would give it."""
    text = "".join(text for text, visible in _texts(plan) if visible)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 12, "completion_tokens": plan.response, "total_tokens": 12 + plan.response}
    head = {**_HEAD, "object": "chat.completion", "model": "scripted"}
    return _http("200 OK", "application/json", _DUMPS({**head, "choices": [choice], "usage": usage}).encode())


_MODELS = _http(
    "200 OK",
    "application/json",
    _DUMPS({"object": "list", "data": [{"id": "scripted", "object": "model", "owned_by": "vllm"}]}).encode(),
)


class Engine(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._timer: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # uvloop sets TCP_NODELAY
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        length = _LENGTH.search(self._buffer, 0, end)
        end += int(length[1]) if length else 0
        if len(self._buffer) >= end:
            request, self._buffer = self._buffer[:end], self._buffer[end:]
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"GET /v1/models"):
            self._transport.write(_MODELS)
        elif request.startswith(b"GET /health"):
            self._transport.write(_http("200 OK", "text/plain", b""))
        elif not request.startswith(b"POST /v1/chat/completions"):
            self._transport.write(_http("404 Not Found", "text/plain", b"no such route"))
        else:
            plan = Plan.asked_in(request)
            if _STREAM.search(request):
                self._write(writes_of(plan), 0, plan.delay_us / 1e6)
            else:
                self._transport.write(whole(plan))

    def _write(self, writes: list[bytes], at: int, delay: float) -> None:
        self._transport.write(writes[at])
        if at + 1 < len(writes):
            self._timer = self._loop.call_later(delay, self._write, writes, at + 1, delay)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    uvloop.run(_serve(parser.parse_args().port))
