"""What goes wrong: engines that die, stall or talk nonsense, clients that leave or do not read, load, and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
from tokenizers import Tokenizer, models

from tests.gateway.conftest import Connect, Running, StartGateway, content, gathered, streamed
from tests.gateway.scripted import (
    JSON,
    Delta,
    Die,
    End,
    ErrorEvent,
    Finish,
    Raw,
    Script,
    ScriptedUpstream,
    Stall,
    Status,
    Step,
    Wait,
    chunked,
)
from thinkserve.gateway.pool import LOOK_SECONDS

ASK: Any = [{"role": "user", "content": "Hi"}]
BODY: JSON = {"messages": ASK}
THINKING = ["Here is my thought process:\n", "SECRET ", "SECRET\n"]
ANSWERING = [*THINKING, "Here is my response:\n", "Hel", "lo"]
# More thought than the gateway waits for, in small steps, so that a test sees it running.
ENDLESS = Script([*THINKING, *[Delta("SECRET ", delay=0.02)] * 5000])


async def until(condition: Callable[[], bool], seconds: float = 1.0) -> None:
    """Wait until something is so, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        await asyncio.sleep(0.005)


async def metric(running: Running, name: str) -> str:
    """The line of one metric."""
    async with running.http.get(f"{running.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return next(line for line in lines if line.startswith(name))


def error_of(events: list[JSON | str]) -> JSON:
    """The error that a stream ends with, which must be its last event."""
    last = events[-1]
    assert isinstance(last, dict) and "error" in last, last
    error: JSON = last["error"]
    return error


Answerer = Callable[[bytes, asyncio.StreamWriter], Awaitable[bool]]


def answered(body: bytes, status: str = "200 OK") -> bytes:
    """An HTTP answer."""
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@contextlib.asynccontextmanager
async def raw_engine(answer: Answerer) -> AsyncIterator[str]:
    """An engine whose every byte the test writes: `answer(body, writer)` for each completion asked for.

    The connection is kept if it returns True, and closed otherwise. The list of models is answered here.
    """
    writers: list[asyncio.StreamWriter] = []
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        kept = True
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            while kept:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                if head.startswith(b"get"):
                    writer.write(answered(b'{"data":[{"id":"raw","owned_by":"vllm"}]}'))
                else:
                    kept = await answer(body, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


# Engines

EVENTS = b"data: %s\n\ndata: [DONE]\n\n" % msgspec.json.encode(
    {"choices": [{"index": 0, "delta": {"content": "".join(ANSWERING)}, "finish_reason": "stop"}]}
)
HALF = EVENTS[:90]


def in_chunks(body: bytes, size: int, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    """A body in HTTP's chunked coding."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    coded = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    return coded + b"0\r\n" + trailer + b"\r\n"


OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CODED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE: dict[str, bytes] = {
    "with its length": answered(EVENTS),
    "in chunks": CODED + in_chunks(EVENTS, 9),
    "in chunks with extensions and trailers": CODED + in_chunks(EVENTS, 40, b";a=b", b"X-Trailer: x\r\n"),
    "until the connection closes": OK + b"Connection: close\r\n\r\n" + EVENTS,
    "as HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + EVENTS,
    "behind an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n" + answered(EVENTS),
    "with odd headers": b"HTTP/1.1 200 \r\ncontent-length:%d\r\nX:\r\n\r\n" % len(EVENTS) + EVENTS,
    "with large headers": b"HTTP/1.1 200 OK\r\nX: %s\r\n" % (b"x" * 7000) + answered(EVENTS)[17:],
}


@pytest.mark.parametrize("form", WHOLE)
@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_an_engines_answer_is_read_in_every_form_that_http_allows(
    form: str, size: int, start_gateway: StartGateway
) -> None:
    """However it is torn, and again on the same connection where it stays open."""

    async def answer(body: bytes, writer: asyncio.StreamWriter) -> bool:
        for part in chunked(WHOLE[form].decode("latin-1"), size):
            writer.write(part.encode("latin-1"))
            await asyncio.sleep(0)
        return not ("closes" in form or "1.0" in form)

    async with raw_engine(answer) as url:
        running = await start_gateway(url)
        for _ in range(2):
            _, whole = await running.post(BODY)
            assert whole["choices"][0]["message"]["content"] == "Hello"
            events = await running.stream(BODY)
            assert content(events) == "Hello" and events[-1] == "data: [DONE]"


BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "no HTTP": b"SECRET\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "no body": OK + b"\r\n",
    "a page": answered(b"<html>SECRET</html>"),
    "an empty answer": answered(b""),
    "half of its length": answered(EVENTS)[: -len(EVENTS) // 2],
    "a chunk without a length": CODED + b"ZZ\r\nSECRET",
    "a bad chunk behind a good one": CODED + b"%x\r\n%s\r\nSECRET\r\n" % (len(HALF), HALF),
    "a redirection": answered(b"", "302 Found\r\nLocation: http://127.0.0.1:9/"),
    "an endless error": b"HTTP/1.1 500 Oops\r\n\r\n" + b"SECRET" * 400_000,
}


@pytest.mark.parametrize("form", BROKEN)
async def test_an_engines_answer_that_is_none_is_a_503_and_nothing_of_it_is_shown(
    form: str, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """Streamed and gathered; and the next engine is asked."""
    caplog.set_level("DEBUG")

    async def answer(body: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(BROKEN[form])
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        return False

    async with raw_engine(answer) as url, ScriptedUpstream(Script(ANSWERING)) as good:
        running = await start_gateway(url, idle_seconds=2)
        status, body = await running.post(BODY)
        assert (status, body["error"]["code"]) == (503, "engine_unavailable")
        status, raw = await ask_for_stream(running)
        assert b"engine_unavailable" in raw and b"SECRET" not in raw and b"[DONE]" not in raw
        assert status == 503 or raw.startswith(b"data: ")
        running = await start_gateway(url, good.url, idle_seconds=2)
        assert content(await running.stream(BODY)) == "Hello"
    assert "SECRET" not in caplog.text


async def ask_for_stream(running: Running) -> tuple[int, bytes]:
    """Ask for a stream; return the status and all of the body, whatever it is."""
    body = {**BODY, "stream": True}
    async with running.http.post(f"{running.url}/v1/chat/completions", json=body) as response:
        return response.status, await response.read()


async def test_what_an_engine_says_unasked_is_nobodys_answer(start_gateway: StartGateway) -> None:
    """A second answer on an idle connection must not be taken for that of the next request."""
    other = EVENTS.replace(b"Hello", b"WRONG")
    count = 0

    async def answer(body: bytes, writer: asyncio.StreamWriter) -> bool:
        nonlocal count
        count += 1
        writer.write(answered(EVENTS))
        await asyncio.sleep(0.02)
        writer.write(answered(other) + answered(other)[:60])
        return True

    async with raw_engine(answer) as url:
        running = await start_gateway(url)
        for _ in range(4):
            _, whole = await running.post(BODY)
            assert whole["choices"][0]["message"]["content"] == "Hello"
            await asyncio.sleep(0.05)
        assert count == 4


ENDS: dict[str, list[Step]] = {
    "dies": [Die()],
    "ends in good order": [End()],
    "reports an error": [ErrorEvent({"message": "SECRET", "type": "x", "code": 500})],
    "reports an error as text": [Raw(b'data: {"error": "SECRET"}\n\n')],
    "sends no JSON": [Raw(b"data: SECRET\n\n")],
    "sends JSON of another shape": [Raw(b'data: {"choices": {"SECRET": 1}}\n\n')],
    "sends no UTF-8": [Raw(b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n')],
    "sends half an event": [Raw(b'data: {"choices": [{"del'), Die()],
    "gives the output up": [Finish("abort")],
    "is silent": [Stall(30)],
}


@pytest.mark.parametrize("end", ENDS)
async def test_an_engine_that_fails_in_the_thought_is_a_503_without_the_thought(
    end: str, start_gateway: StartGateway
) -> None:
    """Streamed: an error event, the last one; nothing of the thought in either."""
    async with ScriptedUpstream(Script([*THINKING, *ENDS[end]])) as upstream:
        running = await start_gateway(upstream.url, idle_seconds=0.2)
        async with running.http.post(f"{running.url}/v1/chat/completions", json=BODY) as response:
            raw = await response.read()
            assert response.status == 503 and response.headers["Retry-After"]
            error = msgspec.json.decode(raw)["error"]
            assert error["code"] == "engine_unavailable" and b"SECRET" not in raw
        events = await running.stream(BODY)
        assert error_of(events)["code"] == "engine_unavailable"
        assert content(events) == "" and "SECRET" not in str(events)
        await until(lambda: upstream.running == 0)


@pytest.mark.parametrize("end", ENDS)
async def test_another_engine_takes_over_what_was_only_thought_so_far(
    end: str, start_gateway: StartGateway
) -> None:
    """The client sees only that it took longer; the tokens of the lost output are not counted."""
    lost, good = Script([*THINKING, *ENDS[end]]), Script(ANSWERING)
    async with ScriptedUpstream(lost) as first, ScriptedUpstream(good) as second:
        running = await start_gateway(first.url, second.url, idle_seconds=0.2)
        _, whole = await running.post(BODY)
        assert whole["choices"][0]["message"]["content"] == "Hello"
        assert whole["usage"]["completion_tokens"] == len(ANSWERING)
        events = await running.stream(BODY)
        assert content(events) == "Hello" and events[-1] == "data: [DONE]"
        assert len(first.requests) == len(second.requests) == 2
        assert (await metric(running, "thinkserve_failovers_total")).endswith(" 2.0")


@pytest.mark.parametrize("end", ENDS)
async def test_an_engine_that_fails_in_the_response_ends_the_stream_with_an_error(
    end: str, start_gateway: StartGateway, connect: Connect
) -> None:
    """Never a silent cut: the official client raises. Gathered, nothing was sent: another engine, or a 503."""
    async with (
        ScriptedUpstream(Script([*ANSWERING, *ENDS[end]])) as first,
        ScriptedUpstream(Script(ANSWERING)) as second,
    ):
        alone = await start_gateway(first.url, idle_seconds=0.2)
        events = await alone.stream(BODY)
        assert content(events) == "Hello" and error_of(events)["code"] == "engine_unavailable"
        assert "data: [DONE]" not in events and "SECRET" not in str(events)
        with pytest.raises(openai.APIError, match="engine is not available"):
            await streamed(connect(alone), messages=ASK)
        assert (await alone.post(BODY))[0] == 503
        both = await start_gateway(first.url, second.url, idle_seconds=0.2)
        events = await both.stream(BODY)
        assert content(events) == "Hello" and error_of(events)["code"] == "engine_unavailable"
        first.requests.clear()
        status, whole = await both.post(BODY)
        assert status == 200 and whole["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": {"message": "top_k is wrong"}}, (400, None, "top_k is wrong")),
        (
            400,
            {"error": {"message": "maximum context length is 10 tokens"}},
            (400, "context_length_exceeded", ""),
        ),
        (400, {"message": "an older form"}, (400, None, "an older form")),
        (400, {"error": {"message": "x" * 5000}}, (400, None, "xxx")),
        (422, {"error": {"message": "bad"}}, (400, None, "bad")),
        (400, "no JSON", (503, "engine_unavailable", "")),
        (400, {"error": "text"}, (503, "engine_unavailable", "")),
        (404, {"error": {"message": "no such model"}}, (503, "engine_unavailable", "")),
        (401, {"error": {"message": "key sk-123"}}, (503, "engine_unavailable", "")),
        (429, {"error": {"message": "busy"}}, (429, "engine_busy", "busy")),
        (500, {"error": {"message": "Traceback: x"}}, (503, "engine_unavailable", "")),
        (503, "", (503, "engine_unavailable", "")),
        (204, "", (503, "engine_unavailable", "")),
    ],
)
async def test_a_refusal_of_the_engine_is_an_http_error_streamed_and_gathered(
    status: int, body: Any, expected: tuple[int, str | None, str], start_gateway: StartGateway
) -> None:
    """Its words are passed on where it refused what the client asked, and are its own affair elsewhere."""
    async with ScriptedUpstream(Script([Status(status, body)])) as upstream:
        running = await start_gateway(upstream.url)
        for stream in (False, True):
            seen, answer = await running.post({**BODY, "stream": stream})
            error = answer["error"]
            assert (seen, error["code"]) == expected[:2] and expected[2] in error["message"]
            assert "sk-123" not in str(answer) and "Traceback" not in str(answer)
            assert len(error["message"]) <= 500


async def test_an_engine_that_answers_with_an_error_is_passed_over_for_one_that_does_not(
    start_gateway: StartGateway,
) -> None:
    """HTTP 500, and an engine that hangs up at once."""
    for step in (Status(500), Status(404), Die()):
        async with (
            ScriptedUpstream(Script([step])) as bad,
            ScriptedUpstream(Script(ANSWERING)) as good,
        ):
            running = await start_gateway(bad.url, good.url)
            assert (await running.post(BODY))[0] == 200
            assert content(await running.stream(BODY)) == "Hello"


async def test_an_engine_that_is_down_is_a_503_and_serves_again_when_it_is_up(
    start_gateway: StartGateway,
) -> None:
    """Live all the time, ready only while an engine answers, as far as it has looked."""

    async def status(path: str) -> int:
        async with running.http.get(running.url + path) as response:
            return response.status

    async with ScriptedUpstream(Script(ANSWERING)) as upstream:
        running = await start_gateway(upstream.url)
        assert (await running.post(BODY))[0] == 200 and await status("/ready") == 200
        await upstream.stop()
        code, body = await running.post(BODY)
        assert (code, body["error"]["code"]) == (503, "engine_unavailable")
        code, body = await running.post({**BODY, "stream": True})
        assert (code, body["error"]["code"]) == (503, "engine_unavailable")
        await asyncio.sleep(LOOK_SECONDS)
        assert await status("/ready") == 503 and await status("/health") == 200
        await upstream.start()
        await asyncio.sleep(LOOK_SECONDS)
        assert (await running.post(BODY))[0] == 200 and await status("/ready") == 200


async def test_a_gateway_starts_before_its_engine_does(start_gateway: StartGateway) -> None:
    """And serves when it is there, with the name that the engine gives its model."""
    async with ScriptedUpstream(Script(ANSWERING), model="late") as upstream:
        await upstream.stop()
        running = await start_gateway(upstream.url)
        assert (await running.post(BODY))[0] == 503
        await upstream.start()
        await running.gateway.pool.probe()
        assert (await running.post(BODY))[0] == 200
        assert upstream.requests[-1].body["model"] == "late"


async def test_connections_that_an_engine_closed_meanwhile_are_nobodys_error(
    start_gateway: StartGateway,
) -> None:
    """The engine is started again on the same port between requests, with many idle connections open to it."""
    async with ScriptedUpstream(Script([*ANSWERING[:-1], Delta("lo", delay=0.02)])) as upstream:
        running = await start_gateway(upstream.url)
        for _ in range(4):
            answers = await asyncio.gather(*(running.post(BODY) for _ in range(8)))
            assert [status for status, _ in answers] == [200] * 8
            await upstream.stop()
            await upstream.start()


async def test_an_engine_that_closes_an_idle_connection_as_it_is_used_is_asked_again(
    start_gateway: StartGateway,
) -> None:
    """As uvicorn does after some seconds, when a request is on its way already."""
    used: set[asyncio.StreamWriter] = set()
    posts = 0

    async def answer(body: bytes, writer: asyncio.StreamWriter) -> bool:
        nonlocal posts
        posts += 1
        again = writer in used
        used.add(writer)
        writer.write(b"" if again else answered(EVENTS))
        return not again

    async with raw_engine(answer) as url:
        running = await start_gateway(url)
        for _ in range(3):
            status, whole = await running.post(BODY)
            assert status == 200 and whole["choices"][0]["message"]["content"] == "Hello"
        assert posts == 5, "the second and the third were sent twice"


async def test_the_least_busy_engine_is_asked(start_gateway: StartGateway) -> None:
    """Ten running requests are shared out evenly, and one engine that is down gets none."""
    async with ScriptedUpstream(ENDLESS) as first, ScriptedUpstream(ENDLESS) as second:
        running = await start_gateway(first.url, second.url)
        tasks = [asyncio.ensure_future(running.stream(BODY)) for _ in range(10)]
        await until(lambda: first.running + second.running == 10)
        assert first.running == second.running == 5
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: first.running + second.running == 0)


async def test_an_engine_that_never_answers_is_given_up(start_gateway: StartGateway) -> None:
    """Gathered: 503. Streamed: the client gets its role chunk soon all the same, and then an error event."""

    async def mute(body: bytes, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(60)
        return False

    async with raw_engine(mute) as url, ScriptedUpstream(Script(ANSWERING)) as good:
        running = await start_gateway(url, idle_seconds=0.6)
        assert (await running.post(BODY))[0] == 503
        events = await running.stream(BODY)
        assert isinstance(events[0], dict) and events[0]["choices"][0]["delta"]["role"] == "assistant"
        assert error_of(events)["code"] == "engine_unavailable"
        running = await start_gateway(url, good.url, idle_seconds=0.3)
        assert (await running.post(BODY))[0] == 200


async def test_an_engine_that_says_it_is_done_and_not_why_is_taken_at_its_word(
    start_gateway: StartGateway,
) -> None:
    """Some servers give no finish reason. In the thought that is an output without a response."""
    done = Raw(b"data: [DONE]\n\n")
    async with ScriptedUpstream(Script([*ANSWERING, done])) as upstream:
        running = await start_gateway(upstream.url)
        _, whole = await running.post(BODY)
        assert whole["choices"][0]["finish_reason"] == "stop"
        assert content(await running.stream(BODY)) == "Hello"
        upstream.script = Script([*THINKING, done])
        assert (await running.post(BODY))[0] == 502
        assert error_of(await running.stream(BODY))["code"] == "malformed_output"


async def test_token_ids_that_no_tokenizer_has_are_no_error(
    tmp_path: Path, start_gateway: StartGateway
) -> None:
    """The counts at a marker are estimated then."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url, tokenizer=tmp_path / "tokenizer.json")
        for ids in ([-1, 2], [2**40, 1], [7, 8, 9]):
            upstream.script = Script([Delta("".join(ANSWERING), token_ids=ids)])
            status, whole = await running.post(BODY)
            assert status == 200 and whole["choices"][0]["message"]["content"] == "Hello"
            assert whole["usage"]["completion_tokens"] == len(ids)
            assert content(await running.stream(BODY)) == "Hello"


# Waiting clients


async def test_a_stream_begins_at_once_and_is_kept_alive_while_the_model_thinks(
    start_gateway: StartGateway,
) -> None:
    """The role chunk, then comments and nothing else until the response begins."""
    release = asyncio.Event()
    script = Script([*THINKING, Wait(release), *ANSWERING[len(THINKING) :]])
    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, keepalive_seconds=0.1)
        began = time.monotonic()
        async with running.http.post(
            f"{running.url}/v1/chat/completions", json={**BODY, "stream": True}
        ) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            first = await response.content.readuntil(b"\n\n")
            assert b'"role":"assistant"' in first and time.monotonic() - began < 1
            for _ in range(3):
                assert await response.content.readuntil(b"\n\n") == b": thinking\n\n"
            assert 0.2 < time.monotonic() - began < 3
            release.set()
            rest = await response.content.read()
            assert b"Hel" in rest and b"SECRET" not in rest and rest.endswith(b"data: [DONE]\n\n")


async def test_the_official_client_takes_the_comments(start_gateway: StartGateway, connect: Connect) -> None:
    """They are none of its events."""
    script = Script([*THINKING, Stall(0.35), *ANSWERING[len(THINKING) :]])
    async with ScriptedUpstream(script) as upstream:
        client = connect(await start_gateway(upstream.url, keepalive_seconds=0.05))
        assert (await streamed(client, messages=ASK))[0].content == "Hello"
        assert (await gathered(client, messages=ASK))[0].content == "Hello"


# Clients that leave, or do not read


SOCKETS: list[socket.socket] = []


@pytest.fixture(autouse=True)
def sockets_closed() -> Iterator[None]:
    """Close the sockets of a test, also of one that fails before it does."""
    yield
    while SOCKETS:
        SOCKETS.pop().close()


async def send(running: Running, data: bytes, *, receive_buffer: int | None = None) -> socket.socket:
    """Open a connection of our own and write to it; nothing is read unless the test does."""
    loop = asyncio.get_running_loop()
    connection = socket.socket()
    SOCKETS.append(connection)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.setblocking(False)
    host, port = running.url.removeprefix("http://").split(":")
    await loop.sock_connect(connection, (host, int(port)))
    await loop.sock_sendall(connection, data)
    return connection


def request_bytes(
    body: JSON, *headers: str, method: str = "POST", path: str = "/v1/chat/completions"
) -> bytes:
    """A request as it is on the wire."""
    data = msgspec.json.encode(body)
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + data


async def read_to_end(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    while block := await loop.sock_recv(connection, 2**16):
        received += block
    return bytes(received)


@pytest.mark.parametrize("body", [{"stream": True}, {}, {"n": 3}, {"n": 3, "stream": True}])
@pytest.mark.parametrize("where", ["in the thought", "in the response", "while the engine is silent"])
async def test_a_client_that_leaves_ends_the_engines_work_within_a_second(
    body: JSON, where: str, start_gateway: StartGateway
) -> None:
    """Streamed or not, with every choice, politely or not."""
    scripts = {
        "in the thought": ENDLESS,
        "in the response": Script([*ANSWERING, *[Delta("more ", delay=0.02)] * 5000]),
        "while the engine is silent": Script([*THINKING, Stall(100)]),
    }
    async with ScriptedUpstream(scripts[where]) as upstream:
        running = await start_gateway(upstream.url)
        connections = [await send(running, request_bytes({**BODY, **body})) for _ in range(2)]
        await until(lambda: upstream.running == 2 * body.get("n", 1), 3)
        await asyncio.sleep(0.05)
        connections[0].close()
        # Reset, not closed in good order.
        connections[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connections[1].close()
        await until(lambda: upstream.running == 0 and running.gateway.running == 0)
        assert running.gateway.idle.is_set()
        assert (await metric(running, "thinkserve_requests_running")).endswith(" 0.0")


async def test_a_client_that_leaves_between_two_tries_ends_the_engines_work_too(
    start_gateway: StartGateway,
) -> None:
    """While a cut thought is gone on with, and while a broken output is sampled again."""
    script = [Script(["SECRET no markers"]), ENDLESS]
    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, max_thought_tokens=10)
        for count in (1, 2):
            upstream.script = [script[0], ENDLESS] if count == 1 else [ENDLESS, Script([Stall(100)])]
            upstream.requests.clear()
            connection = await send(running, request_bytes({**BODY, "stream": True}))
            await until(lambda: len(upstream.requests) == 2 and upstream.running == 1, 3)
            connection.close()
            await until(lambda: upstream.running == 0)


async def test_a_client_that_does_not_read_holds_up_its_own_engine_and_nobody_else(
    start_gateway: StartGateway,
) -> None:
    """What it has not read is not collected here: the engine waits. Then it reads, and has missed nothing."""
    parts = [f"{at:05} " + "x" * 2000 for at in range(8000)]
    script = Script([*THINKING, "Here is my response:\n", *parts], events_per_write=20)
    async with ScriptedUpstream([script, Script(ANSWERING)]) as upstream:
        running = await start_gateway(upstream.url)
        connection = await send(
            running, request_bytes({**BODY, "stream": True}, "Connection: close"), receive_buffer=4096
        )
        await until(lambda: len(upstream.token_ids) > 100, 5)
        seen = -1
        while seen != len(upstream.token_ids):
            seen = len(upstream.token_ids)
            await asyncio.sleep(0.3)
        assert seen < len(parts) * 0.75, "the whole output was taken in, though nobody read it"
        began = time.monotonic()
        assert (await running.post(BODY))[1]["choices"][0]["message"]["content"] == "Hello"
        assert time.monotonic() - began < 1
        raw = await read_to_end(connection)
        connection.close()
        events = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: {")]
        texts = [msgspec.json.decode(event)["choices"][0]["delta"].get("content", "") for event in events]
        assert "".join(texts) == "".join(parts)
        assert b"data: [DONE]" in raw


async def test_an_engine_that_waits_for_a_slow_client_is_not_taken_for_dead(
    start_gateway: StartGateway,
) -> None:
    """It is silent because it was told to wait, for longer than it may be silent of its own."""
    parts = ["x" * 5000] * 3000
    script = Script([*THINKING, "Here is my response:\n", *parts], events_per_write=20)
    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, idle_seconds=0.4)
        connection = await send(
            running, request_bytes({**BODY, "stream": True}, "Connection: close"), receive_buffer=4096
        )
        await until(lambda: upstream.running == 1, 3)
        await asyncio.sleep(1.5)
        raw = await read_to_end(connection)
        connection.close()
        assert b"data: [DONE]" in raw and b"error" not in raw
        assert raw.count(b"x" * 5000) == len(parts)


async def test_a_client_that_does_not_read_the_end_is_given_up_too(start_gateway: StartGateway) -> None:
    """The engine is done by then, but the request still runs."""
    async with ScriptedUpstream(Script([*ANSWERING, "x" * 10_000_000])) as upstream:
        running = await start_gateway(upstream.url, stalled_client_seconds=0.3, keepalive_seconds=0.1)
        connection = await send(running, request_bytes({**BODY, "stream": True}), receive_buffer=4096)
        await until(lambda: len(upstream.requests) == 1, 3)
        await until(lambda: running.gateway.running == 0, 5)
        connection.close()


async def test_a_client_that_has_not_read_for_too_long_is_given_up(start_gateway: StartGateway) -> None:
    """So that it does not hold an engine's place for ever."""
    script = Script([*THINKING, "Here is my response:\n", *["x" * 5000] * 4000], events_per_write=20)
    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, stalled_client_seconds=0.4, keepalive_seconds=0.1)
        connection = await send(running, request_bytes({**BODY, "stream": True}), receive_buffer=4096)
        await until(lambda: upstream.running == 1, 3)
        await until(lambda: upstream.running == 0 and running.gateway.running == 0, 5)
        connection.close()


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for a few thousand sockets in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_five_hundred_streams_at_once_all_get_their_own_answer(
    many_files: None, start_gateway: StartGateway
) -> None:
    """All run side by side, and none gets another's text."""
    release = asyncio.Event()

    def script(request: Any) -> Script:
        word = f"Answer {request.body['seed']}."
        return Script([*THINKING, Wait(release), "Here is my response:\n", *chunked(word, 4)])

    async def one(seed: int) -> str:
        body = {**BODY, "seed": seed, "stream": True}
        async with http.post(f"{running.url}/v1/chat/completions", json=body) as response:
            raw = (await response.read()).decode()
        assert response.status == 200 and "SECRET" not in raw and raw.endswith("data: [DONE]\n\n")
        events: list[JSON | str] = [
            msgspec.json.decode(event[6:]) for event in raw.split("\n\n") if event.startswith("data: {")
        ]
        return content(events)

    async with (
        ScriptedUpstream(script) as upstream,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        running = await start_gateway(upstream.url)
        tasks = [asyncio.ensure_future(one(seed)) for seed in range(500)]
        await until(lambda: upstream.running == 500, 30)
        assert running.gateway.running == 500
        release.set()
        assert await asyncio.gather(*tasks) == [f"Answer {seed}." for seed in range(500)]
        await until(lambda: running.gateway.running == 0)


# Requests that are too large, or none


async def test_a_body_of_a_hundred_megabytes_is_a_413_that_its_sender_can_read(
    start_gateway: StartGateway,
) -> None:
    """By a client that writes all of it before it reads; with its length told, and in chunks without."""
    block = b"x" * 2**20
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url)
        loop = asyncio.get_running_loop()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        told = await send(running, f"{head}Content-Length: {100 * len(block)}\r\n\r\n".encode())
        for _ in range(100):
            await loop.sock_sendall(told, block)
        untold = await send(running, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(100):
            await loop.sock_sendall(untold, b"%x\r\n%s\r\n" % (len(block), block))
        await loop.sock_sendall(untold, b"0\r\n\r\n")
        for connection in (told, untold):
            answer = await loop.sock_recv(connection, 2**16)
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert b"body_too_large" in answer and b"8388608 bytes" in answer
            connection.close()
        large = io.BytesIO(msgspec.json.encode({**BODY, "user": "x" * 9_000_000}))
        async with running.http.post(f"{running.url}/v1/chat/completions", data=large) as response:
            assert response.status == 413
        assert not upstream.requests


async def test_the_body_is_bounded_where_the_operator_says(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """To the byte, compressed bodies by what they hold."""
    async with ScriptedUpstream(Script(ANSWERING)) as upstream:
        running = await start_gateway(upstream.url, max_body_bytes=2000)
        body = msgspec.json.encode({**BODY, "user": "x"})
        url = f"{running.url}/v1/chat/completions"
        for size, expected in ((2000, 200), (2001, 413)):
            padded = body + b" " * (size - len(body))
            async with running.http.post(url, data=padded) as response:
                assert response.status == expected
        bomb = gzip.compress(body + b" " * 10_000_000)
        for data, expected in ((gzip.compress(body), 200), (bomb, 413), (b"no gzip", 400)):
            async with running.http.post(url, data=data, headers={"Content-Encoding": "gzip"}) as response:
                assert response.status == expected, await response.text()
                assert (expected == 200) == ("error" not in await response.json())
        with pytest.raises(openai.APIStatusError, match="2000 bytes"):
            await gathered(connect(running), messages=[{"role": "user", "content": "x" * 3000}])


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/chat/completions HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: minus\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Huge: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Many: x\r\n" * 100_000 + b"\r\n",
    ],
)
async def test_what_is_no_request_or_a_huge_one_is_a_400(data: bytes, start_gateway: StartGateway) -> None:
    """Without a traceback, and the gateway serves on."""
    async with ScriptedUpstream(Script(ANSWERING)) as upstream:
        running = await start_gateway(upstream.url)
        loop = asyncio.get_running_loop()
        connection = await send(running, b"")
        try:
            await loop.sock_sendall(connection, data)
            answer = await asyncio.wait_for(loop.sock_recv(connection, 2**16), 5)
        except ConnectionError:
            answer = b""  # refused before it was all written
        connection.close()
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), answer[:200]
        assert b"Traceback" not in answer and b'File "' not in answer
        assert (await running.post(BODY))[0] == 200


# Paths


async def test_an_unknown_path_is_a_404_that_says_what_is_served(start_gateway: StartGateway) -> None:
    """In OpenAI's form."""
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url)
        for path in (
            "/playground",
            "/v1",
            "/v1/",
            "/v1/chat",
            "/v1/chat/completions/",
            "/docs",
            "/" + "x" * 3000,
            "/%00",
        ):
            async with running.http.get(running.url + path) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (404, "unknown_url")
                assert error["type"] == "invalid_request_error" and "GET /v1/models" in error["message"]
                assert len(error["message"]) < 500


async def test_a_known_path_with_another_method_is_a_405_that_says_which(start_gateway: StartGateway) -> None:
    """With the header that HTTP asks for."""
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url)
        for method, path, allowed in (
            ("GET", "/v1/chat/completions", "POST"),
            ("DELETE", "/v1/chat/completions", "POST"),
            ("POST", "/v1/models", "GET"),
            ("POST", "/metrics", "GET"),
            ("OPTIONS", "/version", "GET"),
        ):
            async with running.http.request(method, running.url + path) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (405, "method_not_allowed")
                assert allowed in response.headers["Allow"] and allowed in error["message"]


async def test_head_answers_as_get_does_without_a_body(start_gateway: StartGateway) -> None:
    """Load balancers ask so."""
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url)
        for path, expected in (("/health", 200), ("/ready", 200), ("/v1/models", 200), ("/nothing", 404)):
            async with running.http.head(running.url + path) as response:
                assert response.status == expected and await response.read() == b""
        async with running.http.head(f"{running.url}/v1/chat/completions") as response:
            assert response.status == 405


async def test_models_health_and_version_answer_in_their_forms(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """As the official client and probes expect them."""
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url, model_name="org/thinker")
        client = connect(running)
        assert [model.id for model in (await client.models.list()).data] == ["org/thinker"]
        assert (await client.models.retrieve("org/thinker")).owned_by == "thinkserve"
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("other")
        assert missing.value.code == "model_not_found"
        for path in ("/health", "/ready", "/version"):
            async with running.http.get(running.url + path) as response:
                assert response.status == 200 and await response.json()


async def test_an_engine_that_is_busy_need_not_be_the_only_one(start_gateway: StartGateway) -> None:
    """Two of three are busy: the third answers. All are: the client is told to come back."""
    busy = Script([Status(429, {"error": {"message": "too many requests"}})])
    async with (
        ScriptedUpstream(busy) as first,
        ScriptedUpstream(busy) as second,
        ScriptedUpstream(Script(ANSWERING)) as third,
    ):
        running = await start_gateway(first.url, second.url, third.url)
        for _ in range(3):
            status, answer = await running.post(BODY)
            assert status == 200 and answer["choices"][0]["message"]["content"] == "Hello"
        third.script = busy
        status, answer = await running.post(BODY)
        assert status == 429 and "busy" in answer["error"]["message"]


# Shutdown


async def test_while_draining_new_work_is_refused_and_running_streams_finish(
    start_gateway: StartGateway,
) -> None:
    """503 with Retry-After for whoever comes now; nobody who came before sees a difference."""
    release = asyncio.Event()
    script = Script([*THINKING, Wait(release), *ANSWERING[len(THINKING) :]])
    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url)
        task = asyncio.ensure_future(running.stream(BODY))
        await until(lambda: upstream.running == 1, 3)
        running.gateway.draining = True
        async with running.http.post(f"{running.url}/v1/chat/completions", json=BODY) as response:
            assert response.status == 503 and response.headers["Retry-After"] == "1"
            assert (await response.json())["error"]["code"] == "draining"
        async with running.http.get(f"{running.url}/ready") as response:
            assert response.status == 503
        release.set()
        assert content(await task) == "Hello"
        await asyncio.wait_for(running.gateway.idle.wait(), 1)


SERVER = """
import asyncio, sys
from thinkserve.engines.engine import Endpoint
from thinkserve.gateway.app import Gateway
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.keys import Keys
from thinkserve.gateway.server import serve
from thinkserve.gateway.pool import Pool
from thinkserve.gateway.upstream import Upstream
from thinkserve.thoughts import get_format

config = GatewayConfig(format=get_format("tpo-generic"), model_name="thinker", drain_seconds=float(sys.argv[2]))
pool = Pool([Upstream(Endpoint(sys.argv[1]), name="engine", idle_seconds=30)])

def ready(port):
    print(port, flush=True)

asyncio.run(serve(Gateway(config, pool, Keys({})), "127.0.0.1", 0, ready=ready))
"""


@pytest.mark.parametrize("finishes", [True, False])
async def test_sigterm_lets_running_streams_finish_for_a_bounded_time_and_exits_with_0(
    finishes: bool, connect: Connect
) -> None:
    """In a process of its own: a running stream ends well, or is ended; new work gets a 503 meanwhile."""
    release = asyncio.Event()
    script = Script([*THINKING, Wait(release), *ANSWERING[len(THINKING) :]])
    async with ScriptedUpstream(script) as upstream, aiohttp.ClientSession() as http:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SERVER, upstream.url, "20" if finishes else "0.3"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        url = f"http://127.0.0.1:{int(await process.stdout.readline())}/v1/chat/completions"
        async with http.post(url, json={**BODY, "stream": True}) as response:
            await response.content.readuntil(b"\n\n")
            process.send_signal(signal.SIGTERM)
            if finishes:
                await asyncio.sleep(0.2)
                async with http.post(url, json=BODY) as late:
                    assert late.status == 503 and late.headers["Retry-After"]
                release.set()
                assert (await response.content.read()).endswith(b"data: [DONE]\n\n")
            assert await asyncio.wait_for(process.wait(), 10) == 0
            if not finishes:
                # It is cut, and told so.
                rest = (await response.content.read()).strip().rsplit(b"\n\n", 1)[-1]
                assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == "draining"
        assert b"Traceback" not in await process.stderr.read()
        await until(lambda: upstream.running == 0)
