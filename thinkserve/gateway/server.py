"""Runs a gateway until it is told to stop: sockets, signals, draining."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import signal
from collections.abc import Callable

from aiohttp import web

from thinkserve.errors import UsageError
from thinkserve.gateway.app import Gateway

logger = logging.getLogger(__name__)

MOST_FILES = 65536


async def serve(
    gateway: Gateway, host: str, port: int, *, ready: Callable[[int], None], handle_signals: bool = True
) -> None:
    """Serve until SIGTERM or SIGINT, then let running answers finish, for a bounded time.

    Args:
        gateway: what to serve.
        host: the address to listen on.
        port: the port; 0 takes a free one.
        ready: called with the port once the gateway listens.
        handle_signals: False leaves the signals to the caller, who ends the gateway by cancelling it.

    Raises:
        UsageError: the address cannot be listened on.
    """
    _allow_many_files()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT) if handle_signals else ():
        loop.add_signal_handler(number, stop.set)
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
        site = web.TCPSite(runner, host, port, backlog=1024)
        try:
            await site.start()
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise UsageError(
                    f"port {port} on {host} is in use; stop what listens there, or choose another with --port"
                ) from exc
            raise UsageError(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
        ready(runner.addresses[0][1])
        await stop.wait()
        gateway.draining = True
        logger.info("draining: %d requests are running", gateway.running)
        await _drained(gateway)
    finally:
        await runner.cleanup()


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
