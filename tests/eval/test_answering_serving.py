"""A checkpoint that is served for a run: it is what `thinkserve serve` serves, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import openai
import pytest

from thinkserve.engines.engine import Endpoint
from thinkserve.engines.process import EngineProcess, ProcessEngine, private_socket_path
from thinkserve.engines.transformers import transformers_version
from thinkserve.errors import EngineError, ThoughtFormatError, UsageError
from thinkserve.eval.answering import serving
from thinkserve.eval.answering.answerer import Asking, Mode, seed_of
from thinkserve.eval.answering.fingerprint import fingerprint
from thinkserve.eval.answering.opening import kept_of_checkpoint, open_answerer
from thinkserve.eval.answering.serving import JUDGE_FORMAT, serve_privately
from thinkserve.eval.answering.spec import CheckpointSpec
from thinkserve.eval.answering.stage import answer_instructions
from thinkserve.eval.folder import RunFolder, read_lengths
from thinkserve.eval.instruction import Instruction
from thinkserve.gateway.config import GatewayConfig
from thinkserve.pocket import CHECKPOINT
from thinkserve.serve import ServeConfig

ROOT = Path(__file__).parents[2]

# A process on a Unix socket that is healthy at once and never ends an answer: what matters here is how it ends.
_ENGINE = """
import asyncio, sys
from aiohttp import web
async def health(request): return web.Response()
async def chat(request): await asyncio.sleep(600)
async def main():
    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, sys.argv[1]).start()
    await asyncio.sleep(600)
asyncio.run(main())
"""


class LightEngine(ProcessEngine):
    """A real engine process without a model in it, so that it starts in half a second."""

    name = "transformers"

    def __init__(self, checkpoint: Path | str, *, model_name: str, extra_args: Sequence[str] = ()) -> None:
        socket = private_socket_path()
        self.endpoint = Endpoint(base_url="http://localhost", uds=socket, model=model_name)
        command = [sys.executable, "-c", _ENGINE, str(socket)]
        self._process = EngineProcess(command, socket=socket, name=self.name, stop_grace=5)


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where engines put their sockets; by its name their processes are found."""
    with tempfile.TemporaryDirectory(prefix="ts-", dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinkserve.serve.TransformersEngine", LightEngine)


def engine_pids(sockets: Path) -> list[int]:
    """The processes whose command line names a socket there."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{sockets}/thinkserve-".encode() in command:
                pids.append(int(entry.name))
    return pids


def assert_nothing_left(sockets: Path) -> None:
    assert engine_pids(sockets) == [] and list(sockets.iterdir()) == []


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.mark.usefixtures("light")
async def test_only_who_has_the_keys_may_ask_and_they_are_in_no_text(sockets: Path) -> None:
    async with serve_privately(str(CHECKPOINT), engine="transformers") as server:
        assert server.model == "pocket" and server.private and server.raw_format is None
        assert server.url.startswith("http://127.0.0.1:")
        assert server.api_key not in (None, server.operator_key)
        assert str(server.api_key) not in repr(server) and str(server.operator_key) not in repr(server)
        async with aiohttp.ClientSession() as http:
            for key, status in (("", 401), ("sk-guess", 401), (server.api_key, 200)):
                headers = {"Authorization": f"Bearer {key}"}
                async with http.get(f"{server.url}/v1/models", headers=headers) as response:
                    assert response.status == status
        assert len(engine_pids(sockets)) >= 1
    assert_nothing_left(sockets)


@pytest.mark.usefixtures("light")
async def test_signals_stay_with_the_run() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with serve_privately(str(CHECKPOINT), engine="transformers"):
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.usefixtures("light")
async def test_an_error_in_the_run_ends_the_engine_and_goes_on_its_way(sockets: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with serve_privately(str(CHECKPOINT), engine="transformers"):
            assert engine_pids(sockets)
            raise ZeroDivisionError
    assert_nothing_left(sockets)


@pytest.mark.usefixtures("light")
async def test_a_cancelled_run_ends_the_engine_though_an_answer_is_on_its_way(sockets: Path) -> None:
    asking = asyncio.Event()

    async def run() -> None:
        async with (
            serve_privately(str(CHECKPOINT), engine="transformers") as server,
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.api_key) as client,
        ):
            asking.set()
            await client.chat.completions.create(
                model="pocket", messages=[{"role": "user", "content": "hello"}]
            )

    task = asyncio.create_task(run())
    await asking.wait()
    await asyncio.sleep(0.3)
    task.cancel()
    started = time.monotonic()
    await asyncio.wait([task])
    assert task.cancelled() and time.monotonic() - started < 5
    assert_nothing_left(sockets)


@pytest.mark.usefixtures("light")
async def test_a_run_that_is_cancelled_while_the_engine_starts_leaves_none(sockets: Path) -> None:
    async def run() -> None:
        async with serve_privately(str(CHECKPOINT), engine="transformers"):
            raise AssertionError("it was cancelled before")

    task = asyncio.create_task(run())
    await until(lambda: engine_pids(sockets))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert_nothing_left(sockets)


async def test_an_engine_that_cannot_start_says_why(sockets: Path) -> None:
    with pytest.raises(EngineError, match="--no-such-option"):
        async with serve_privately(str(CHECKPOINT), engine="transformers", engine_args=["--no-such-option"]):
            raise AssertionError("it did not start")
    assert_nothing_left(sockets)


async def test_an_engine_that_is_lost_for_good_ends_the_run_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run(
        config: ServeConfig, *, announce: Callable[[GatewayConfig, str], None], handle_signals: bool
    ) -> None:
        announce(config.gateway, "http://127.0.0.1:1")
        await asyncio.sleep(0.05)
        raise EngineError("the engine is gone for good: out of memory")

    monkeypatch.setattr(serving, "run", run)
    with pytest.raises(EngineError, match="out of memory"):
        async with serve_privately(str(CHECKPOINT), engine="transformers"):
            await asyncio.sleep(60)
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


_INTERRUPTED = """
import asyncio, sys, tempfile
tempfile.tempdir = sys.argv[1]
import thinkserve.serve
from tests.eval.test_answering_serving import LightEngine
from thinkserve.eval.answering.serving import serve_privately
from thinkserve.pocket import CHECKPOINT
thinkserve.serve.TransformersEngine = LightEngine
async def main():
    async with serve_privately(str(CHECKPOINT), engine="transformers"):
        print("serving", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_run_that_is_interrupted_takes_its_engine_along(
    sockets: Path, number: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _INTERRUPTED, str(sockets)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"serving\n"
    assert engine_pids(sockets)
    process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), 20) == -number
    await until(lambda: not engine_pids(sockets))


async def test_a_checkpoint_without_a_thought_format_is_a_judge_but_no_model(
    tmp_path: Path, light: None, sockets: Path
) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ThoughtFormatError, match="--thought-format"):
        async with serve_privately(str(folder), engine="transformers"):
            raise AssertionError
    async with serve_privately(str(folder), engine="transformers", unnamed_format=JUDGE_FORMAT) as server:
        assert server.model == "plain"
    with pytest.raises(UsageError, match="no checkpoint"):
        async with serve_privately(str(tmp_path / "none"), engine="transformers"):
            raise AssertionError


@asynccontextmanager
async def ordinary_server() -> AsyncIterator[openai.AsyncOpenAI]:
    """`thinkserve serve` with the pocket model as anybody starts it, and an ordinary client of it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "thinkserve.cli", "serve", "--engine", "transformers", "--port", "0"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        url = None
        while url is None:
            line = await asyncio.wait_for(process.stdout.readline(), 90)
            assert line, "thinkserve serve ended"
            url = re.search(r"http://[\d.:]+/v1", line.decode())
        async with openai.AsyncOpenAI(base_url=url.group(), api_key="none") as client:
            yield client
    finally:
        process.terminate()
        await process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(transformers_version() is None, reason="needs transformers and torch")
async def test_the_pocket_model_answers_a_run_as_it_answers_any_client(tmp_path: Path, sockets: Path) -> None:
    """Same checkpoint, same seed, sampled at its own temperature: the responses are the same, in both modes."""
    texts = [f"How many b in {word}?" for word in ("cbabba", "bbbb", "acac", "bab")] + ["Reverse abcd"]
    instructions = [Instruction(str(at), text) for at, text in enumerate(texts)]
    folder = RunFolder(tmp_path)
    async with (
        ordinary_server() as client,
        serve_privately(str(CHECKPOINT), engine="transformers") as server,
    ):
        for mode, effort in (("thought", {}), ("direct", {"reasoning_effort": "none"})):
            async with open_answerer(server, Asking(cast(Mode, mode), seed=5)) as answerer:
                # One at a time, since a batch of another size may round otherwise.
                answers = await answer_instructions(instructions, answerer, folder, mode, concurrency=1)
            usual = [
                await client.chat.completions.create(
                    model="pocket",
                    messages=[{"role": "user", "content": text}],
                    seed=seed_of(5, text),
                    **cast(Any, effort),
                )
                for text in texts
            ]
            assert [answer.response for answer in answers.by_id.values()] == [
                one.choices[0].message.content for one in usual
            ]
            assert all(answer.complete and answer.response for answer in answers.by_id.values())
            # Another run finds them without serving anything; with another seed there is nothing to find.
            spec, asking = CheckpointSpec(str(CHECKPOINT), "pocket"), Asking(cast(Mode, mode), seed=5)
            assert kept_of_checkpoint(spec, asking, instructions, folder, mode) == answers
            assert kept_of_checkpoint(spec, Asking(asking.mode), instructions, folder, mode) is None
            lengths = read_lengths(folder.lengths(mode)).values()
            usages = [(one.usage, one.usage and one.usage.completion_tokens_details) for one in usual]
            assert [(length.thought_tokens, length.response_tokens) for length in lengths] == [
                (details.reasoning_tokens, usage.completion_tokens - (details.reasoning_tokens or 0))
                for usage, details in usages
                if usage is not None and details is not None
            ]
            for length in lengths:
                assert ((length.thought_characters or 0) > 0) == (mode == "thought")
                assert length.response_tokens is not None and length.response_tokens > 0
    assert_nothing_left(sockets)


def test_a_checkpoint_that_was_trained_further_has_another_fingerprint(tmp_path: Path) -> None:
    weights = bytes(range(256)) * 1024
    for name in ("one", "copy", "trained"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    (tmp_path / "trained" / "model.safetensors").write_bytes(weights[:-1] + b"\0")
    one, copy, trained = (fingerprint(str(tmp_path / name)) for name in ("one", "copy", "trained"))
    assert one == copy != trained
    assert fingerprint("org/model") == "org/model"
