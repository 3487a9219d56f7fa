"""A checkpoint, served for one run through our own gateway: what answers is exactly what a client would get.

The gateway runs in this process on a free port of the loopback, with random keys; the engine is a process of its own,
which ends with the run however that ends (the engine's launcher sees to it even after a SIGKILL).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from hashlib import sha256

import msgspec

from thinkserve.errors import EngineError
from thinkserve.eval.answering.answerer import check_direct
from thinkserve.eval.answering.fingerprint import fingerprint
from thinkserve.eval.answering.server import ModelServer
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.keys import Keys
from thinkserve.serve import EngineName, ServeConfig, run
from thinkserve.source import Source, default_model_name, find_format, find_source
from thinkserve.thoughts import BUILT_IN, ThoughtFormat

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
# A judge may be any chat model. Where its checkpoint names no format, what stands in think tags is its thought, and a
# text without them is all response.
JUDGE_FORMAT = replace(BUILT_IN["think-tags"], name="think-tags-or-none", thought_required=False)


@asynccontextmanager
async def serve_privately(
    checkpoint: str,
    *,
    engine: EngineName = "auto",
    thought_format: str | None = None,
    unnamed_format: ThoughtFormat | None = None,
    engine_args: Sequence[str] = (),
) -> AsyncIterator[ModelServer]:
    """Serve a checkpoint while the block runs; nothing of it is left behind, however the block ends.

    If the engine is lost for good meanwhile, the block is cancelled and the `EngineError` raised in its place.

    Args:
        checkpoint: a folder in Hugging Face layout, or a name on the Hub.
        engine: what generates.
        thought_format: a built-in format or a file; None: as the checkpoint names it.
        unnamed_format: for a checkpoint that names none; None: such a checkpoint is refused.
        engine_args: more arguments for the engine.

    Raises:
        UsageError: there is no such checkpoint, or its thought format is not known.
        EngineError: the engine could not be started, or is gone for good.
    """
    source = find_source(checkpoint, ())
    config = _configuration(source, engine, _format(source, thought_format, unnamed_format), engine_args)
    client_key, operator_key = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    config = replace(config, keys=Keys({client_key: "client", operator_key: "operator"}))
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        run(config, announce=lambda _, url: address.set_result(url), handle_signals=False),
        name=f"serve {config.gateway.model_name}",
    )
    try:
        waited: tuple[asyncio.Future[str], asyncio.Task[None]] = (address, serving)
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not address.done():
            serving.result()
        async with _cancelled_with(serving):
            yield replace(
                _description(config), url=address.result(), api_key=client_key, operator_key=operator_key
            )
    finally:
        address.cancel()
        await _end(serving)


def _format(source: Source, asked: str | None, unnamed: ThoughtFormat | None) -> ThoughtFormat:
    if asked is None and unnamed is not None:
        folder = source.folder
        if folder is None or not (folder / "thought_format.json").exists():
            return unnamed
    return find_format(source, asked)


def describe(
    checkpoint: str, *, thought_format: str | None = None, engine_args: Sequence[str] = ()
) -> ModelServer:
    """What `serve_privately` would yield, without an address: enough to tell whether answers are this model's.

    Raises:
        UsageError: there is no such checkpoint, or its thought format is not known.
    """
    source = find_source(checkpoint, ())
    return _description(_configuration(source, "auto", find_format(source, thought_format), engine_args))


def check_mode(checkpoint: str, mode: str, *, thought_format: str | None = None) -> None:
    """Make sure that a checkpoint is there, that its thought format is known, and that it can answer in a mode.

    Raises:
        UsageError: one of these is not so.
    """
    format = find_format(find_source(checkpoint, ()), thought_format)
    if mode != "thought":
        check_direct(format, checkpoint)


def _description(config: ServeConfig) -> ModelServer:
    # What answers hang on beside the instruction and the settings.
    parts = [fingerprint(config.source.checkpoint or ""), asdict(config.gateway.format), *config.engine_args]
    identity = sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()
    return ModelServer("", config.gateway.model_name, identity=identity)


def _configuration(
    source: Source, engine: EngineName, format: ThoughtFormat, engine_args: Sequence[str]
) -> ServeConfig:
    tokenizer = None if source.folder is None else source.folder / "tokenizer.json"
    return ServeConfig(
        source=source,
        engine=engine,
        engine_args=tuple(engine_args),
        gateway=GatewayConfig(
            format=format,
            model_name=default_model_name(source),
            tokenizer=tokenizer if tokenizer is not None and tokenizer.is_file() else None,
        ),
        keys=Keys({}),
        host=HOST,
        port=0,
    )


@asynccontextmanager
async def _cancelled_with(serving: asyncio.Task[None]) -> AsyncIterator[None]:
    """Cancel the block when the server ends under it, and raise what ended the server."""
    owner = asyncio.current_task()
    assert owner is not None
    cancels = owner.cancelling()
    lost = False

    def on_end(_: asyncio.Task[None]) -> None:
        nonlocal lost
        lost = True
        owner.cancel()

    serving.add_done_callback(on_end)
    try:
        yield
    except asyncio.CancelledError as exc:
        # As `asyncio.timeout` does: a cancel that came from elsewhere as well goes its way.
        if lost and owner.cancelling() - 1 <= cancels:
            if not serving.cancelled():
                serving.result()
            raise EngineError("the server of the checkpoint ended before the run did") from exc
        raise
    finally:
        serving.remove_done_callback(on_end)
        if lost:
            owner.uncancel()


async def _end(serving: asyncio.Task[None]) -> None:
    """End the server and wait until its engine is gone; errors that ended it before were raised already."""
    serving.cancel()
    await asyncio.wait([serving])
    if not serving.cancelled() and (error := serving.exception()) is not None:
        logger.debug("the private server ended with %s", type(error).__name__)
