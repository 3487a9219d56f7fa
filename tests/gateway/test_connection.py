"""Connections to an engine, over a real socket: what is used again must work again."""

from __future__ import annotations

import asyncio

import pytest

from thinkserve.engines.engine import Endpoint
from thinkserve.gateway.connection import BACKLOG_BYTES, Connections
from thinkserve.gateway.errors import UpstreamFailed


async def test_an_answer_that_filled_the_backlog_leaves_a_connection_that_reads() -> None:
    """Nobody reads while the answer comes, and its end comes in the read that makes the backlog too large."""
    accepted = 0
    left = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * size))
                # In two reads: the first fills the backlog to its brim, the second is the end.
                for _ in range(2):
                    writer.write(b"x" * size)
                    await writer.drain()
                    await asyncio.sleep(0.2)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            left.set()

    size = BACKLOG_BYTES * 3 // 4
    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=2**20)
    port = server.sockets[0].getsockname()[1]
    connections = Connections(Endpoint(f"http://127.0.0.1:{port}"), idle_seconds=5)
    try:
        for _ in range(2):
            connection = await asyncio.wait_for(connections.request("GET", "/"), 2)
            await asyncio.sleep(0.7)
            read = 0

            def take(body: bytes) -> bool:
                nonlocal read
                read += len(body)
                return False

            while not connection.drained:
                await asyncio.wait_for(connection.read(take), 2)
            assert read == 2 * size
            connections.release(connection)
        assert accepted == 1, "the connection was used again"
    finally:
        connections.close()
        await asyncio.wait_for(left.wait(), 2)
        await asyncio.sleep(0.05)  # for both ends to be closed, and not merely closing
        server.close()
        await server.wait_closed()


async def test_only_a_silent_engine_that_nobody_waits_for_is_given_up() -> None:
    """One that was told to wait by a reader who is busy is not silent; nor may what was shown be given up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    connections = Connections(
        Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), idle_seconds=5
    )
    try:
        movable = False
        connection = await asyncio.wait_for(connections.request("GET", "/", movable=lambda: movable), 2)
        await asyncio.sleep(0.1)
        movable = True
        connections.give_up(0.05)
        assert connection.failure is None, "what it sent has not been read yet"
        await connection.read(lambda body: True)
        await asyncio.sleep(0.1)
        connections.give_up(5)
        assert connection.failure is None, "it was not silent for so long"
        movable = False
        connections.give_up(0.05)
        assert connection.failure is None, "a part of it was shown"
        movable = True
        connections.give_up(0.05)
        with pytest.raises(UpstreamFailed, match=r"silent for 0\.05 s"):
            await connection.read(lambda body: False)
        connections.release(connection)
        assert not connections._busy
    finally:
        connections.close()
        await asyncio.sleep(0.05)
        server.close()
        await server.wait_closed()
