"""From a SPEC to a server that can be asked, and from a server to what asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from thinkserve.eval.answer import Answers
from thinkserve.eval.answering.answerer import Answerer, Asking
from thinkserve.eval.answering.server import ModelServer, find_server
from thinkserve.eval.answering.serving import JUDGE_FORMAT, describe, serve_privately
from thinkserve.eval.answering.spec import CheckpointSpec, EndpointSpec
from thinkserve.eval.answering.stage import kept_answers
from thinkserve.eval.bench import JudgeRequest
from thinkserve.eval.folder import RunFolder
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.completion import Completion
from thinkserve.serve import EngineName
from thinkserve.thoughts import get_format

# Tells our gateway to send thoughts to an operator beside the response, which is the same with and without it.
_REVEAL = {"thinkserve-reveal": "1"}


@asynccontextmanager
async def open_server(
    spec: CheckpointSpec | EndpointSpec,
    *,
    api_key: str | None = None,
    thought_format: str | None = None,
    engine: EngineName = "auto",
    engine_args: Sequence[str] = (),
) -> AsyncIterator[ModelServer]:
    """The server of a model: a checkpoint is served while the block runs, another's server is looked up.

    Args:
        spec: which model.
        api_key: for another's server.
        thought_format: of a checkpoint that names none, or of a server that shows whole outputs.
        engine: generates for a checkpoint.
        engine_args: more arguments for it.

    Raises:
        ThinkserveError: it cannot be served, does not answer, or its thought format is not known.
    """
    if isinstance(spec, EndpointSpec):
        raw_format = None if thought_format is None else get_format(thought_format)
        yield await find_server(spec, api_key=api_key, raw_format=raw_format)
        return
    async with serve_privately(
        spec.path, engine=engine, thought_format=thought_format, engine_args=engine_args
    ) as server:
        yield server


class _Nobody:
    """Stands where a client would, for what is there already."""

    async def complete(self, request: JudgeRequest) -> Completion:
        raise AssertionError("a model that is not served is not asked")


def kept_of_checkpoint(
    spec: CheckpointSpec,
    asking: Asking,
    instructions: Sequence[Instruction],
    folder: RunFolder,
    model: str,
    *,
    thought_format: str | None = None,
    engine_args: Sequence[str] = (),
) -> Answers | None:
    """All answers of a checkpoint, if an earlier run has them, so that it need not be served; else None.

    Raises:
        UsageError: there is no such checkpoint, or the file of answers is malformed.
    """
    server = describe(spec.path, thought_format=thought_format, engine_args=engine_args)
    answerer = Answerer(server, _Nobody(), asking)
    return kept_answers(instructions, answerer, folder, model)


@asynccontextmanager
async def open_judge(
    spec: CheckpointSpec | EndpointSpec, *, api_key: str | None = None, engine: EngineName = "auto"
) -> AsyncIterator[ModelServer]:
    """The server of a judge. A checkpoint that names no thought format may judge all the same.

    Raises:
        ThinkserveError: it cannot be served, or does not answer.
    """
    if isinstance(spec, EndpointSpec):
        yield await find_server(spec, api_key=api_key)
        return
    async with serve_privately(spec.path, engine=engine, unnamed_format=JUDGE_FORMAT) as server:
        yield server


@asynccontextmanager
async def open_answerer(
    server: ModelServer,
    asking: Asking,
    *,
    concurrency: int = 16,
    seconds: float = 600.0,
    retries: int = 6,
    back_off: float = 1.0,
) -> AsyncIterator[Answerer]:
    """What asks a server's model, with connections that are closed after the block.

    Args:
        server: the model's.
        asking: the mode and the settings.
        concurrency: calls at once, at most.
        seconds: for one call.
        retries: as in `ChatClient`.
        back_off: as in `ChatClient`.

    Raises:
        UsageError: the server cannot be asked like this.
    """
    key = server.operator_key or server.api_key
    async with ChatClient(
        f"{server.url}/v1",
        server.model,
        key,
        concurrency=concurrency,
        timeout=seconds,
        retries=retries,
        back_off=back_off,
        headers=_REVEAL if server.private else None,
    ) as chat:
        yield Answerer(server, chat, asking)
