"""Runs a gateway until it is told to stop: sockets, signals, draining."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web

from thinkserve.errors import UsageError
from thinkserve.gateway.app import Gateway

logger = logging.getLogger(__name__)

MOST_FILES = 65536
# Connections that wait to be accepted; the kernel bounds it further (net.core.somaxconn).
BACKLOG = 1024


async def serve(
    gateway: Gateway,
    host: str,
    port: int,
    *,
    ready: Callable[[int], None],
    handle_signals: bool = True,
    share_port: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then let running answers finish, for a bounded time. SIGHUP reads the keys again.

    Args:
        gateway: what to serve.
        host: the address to listen on.
        port: the port; 0 takes a free one.
        ready: called with the port once the gateway listens.
        handle_signals: False leaves the signals to the caller, who ends the gateway by cancelling it.
        share_port: other processes of this user may listen on the port as well, each of which gets its share.

    Raises:
        UsageError: the address cannot be listened on.
    """
    _allow_many_files()
    stop = asyncio.Event()
    if handle_signals:
        on_signals(stop.set, reload=gateway.reload)
    runner = web.AppRunner(
        gateway.application(),
        handle_signals=False,
        # A client that goes away cancels its handler, and with that the engine's work for it.
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=BACKLOG, reuse_port=share_port or None)
        try:
            await site.start()
        except OSError as exc:
            raise _not_listening(host, port, exc) from exc
        ready(runner.addresses[0][1])
        await stop.wait()
        gateway.draining = True
        logger.info("draining: %d requests are running", gateway.running)
        await _drained(gateway)
    except asyncio.CancelledError:
        gateway.draining = True
        gateway.cut()
        raise
    finally:
        await runner.cleanup()


def on_signals(stop: Callable[[], object], *, reload: Callable[[], object]) -> None:
    """From now on, call `stop` at SIGTERM and SIGINT, and `reload` at SIGHUP.

    A terminal that is closed sends SIGHUP too, to what was started in it. That means what it always did: stop, unless
    the process was started to ignore it (`nohup`).
    """
    loop = asyncio.get_running_loop()
    terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    def hang_up() -> None:
        if terminal and not _has_terminal():
            stop()
        else:
            reload()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hang_up)


def _has_terminal() -> bool:
    """Whether this process has a terminal that is open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def reserve_port(host: str, port: int) -> tuple[list[socket.socket], int]:
    """Take a port that processes are going to listen on with `share_port`, so that no other process gets it.

    Args:
        host: the address.
        port: the port; 0 takes a free one.

    Returns:
        Sockets that hold the port until they are closed (they get no connections), and the port.

    Raises:
        UsageError: it cannot be listened on. That also says whether somebody listens there who shares the port: with
            sharing alone, a second server on one port would go unnoticed, and take half of the first one's clients.
    """
    check_address(host, port)
    held: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            holder = socket.socket(family, socket.SOCK_STREAM)
            held.append(holder)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            holder.bind((address[0], port, *address[2:]))
            port = holder.getsockname()[1]
    except OSError as exc:
        for holder in held:
            holder.close()
        raise _not_listening(host, port, exc) from exc
    return held, port


def check_address(host: str, port: int) -> None:
    """Make sure that an address can be listened on, before anything that takes long.

    Raises:
        UsageError: it cannot.
    """
    try:
        for family, address in _addresses(host, port):
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as exc:
        raise _not_listening(host, port, exc) from exc


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """What a host is, each once: a name may stand in the hosts file twice."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _not_listening(host: str, port: int, exc: OSError) -> UsageError:
    if exc.errno == errno.EADDRINUSE:
        return UsageError(
            f"port {port} on {host} is in use; stop what listens there, or choose another with --port"
        )
    return UsageError(f"cannot listen on {host}:{port}: {exc.strerror or exc}")


def _allow_many_files() -> None:
    """Raise the limit on open files as far as may be: every stream takes two, and 1,024 is a common default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _drained(gateway: Gateway) -> None:
    """Return when nothing runs any more, or the time to drain is over.

    The socket stays open meanwhile: whoever still comes is told to go elsewhere, which a refused connection cannot.
    """
    try:
        async with asyncio.timeout(gateway.config.drain_seconds):
            await gateway.idle.wait()
    except TimeoutError:
        gateway.cut()
        logger.warning("%d requests did not finish in %g s", gateway.running, gateway.config.drain_seconds)
