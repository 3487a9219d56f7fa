"""`TransformersEngine`: the real server as a child process, from start to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from thinkserve.engines.engine import Engine
from thinkserve.engines.process import RestartPolicy
from thinkserve.engines.transformers import TransformersEngine, transformers_version
from thinkserve.engines.transformers_server.__main__ import main
from thinkserve.errors import EngineUnavailableError, UsageError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tokens = ["<eos>", *"abcdefghijklmnopqrstuvwxyz "]
    tokenizer = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<eos>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    fast.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_version_is_known_without_importing_the_library() -> None:
    code = (
        "import sys\nfrom thinkserve.engines.transformers import transformers_version\n"
        "print(transformers_version())\nassert not {'torch', 'transformers'} & set(sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == metadata.version("transformers") == transformers_version()


def test_missing_library_names_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert transformers_version() is None
    with pytest.raises(EngineUnavailableError, match=r"pip install 'thinkserve\[transformers\]'"):
        TransformersEngine(tmp_path, model_name="tiny")


@pytest.mark.parametrize("arg", ["--uds", "--ud=/tmp/x", "--served-model-name=x", "--served"])
def test_socket_and_name_cannot_be_given(arg: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=arg):
        TransformersEngine(tmp_path, model_name="tiny", extra_args=[arg])


def test_missing_folder_is_named() -> None:
    with pytest.raises(UsageError, match="/no/such/folder"):
        TransformersEngine("/no/such/folder", model_name="tiny")


def test_folder_without_a_model_is_refused_before_a_process_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        TransformersEngine(tmp_path, model_name="tiny")


@pytest.mark.parametrize("config", ["{", '{"model_type": "no such type"}'])
def test_checkpoint_that_cannot_be_loaded_ends_the_server_with_one_line(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(config)
    socket = tmp_path / "server.sock"
    assert main([str(tmp_path), "--uds", str(socket), "--served-model-name", "tiny"]) == 1
    error = capsys.readouterr().err
    assert "error: " in error
    assert "Traceback" not in error


async def test_engine_serves_restarts_and_drains(checkpoint: Path) -> None:
    """One process start costs seconds, so its whole life is one test."""
    engine: Engine = TransformersEngine(
        checkpoint,
        model_name="tiny",
        extra_args=["--max-concurrent", "4"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        restart=RestartPolicy(first_delay=0.01),
    )
    assert isinstance(engine, TransformersEngine)
    assert engine.name == "transformers"
    await engine.start()
    try:
        assert engine.endpoint.uds is not None and engine.pid is not None
        connector = aiohttp.UnixConnector(str(engine.endpoint.uds))
        async with aiohttp.ClientSession(engine.endpoint.base_url, connector=connector) as session:
            assert await completion_tokens(session, 5) == 5
            os.kill(engine.pid, signal.SIGKILL)
            async with asyncio.timeout(60):
                while not engine.restarts or not await healthy(session):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            running = asyncio.create_task(completion_tokens(session, 300))
            await asyncio.sleep(0.2)
            stopping = asyncio.create_task(engine.stop())
            assert await running == 300
            await stopping
    finally:
        await engine.stop()
    assert engine.restarts == 1
    assert not engine.endpoint.uds.exists()


async def completion_tokens(session: aiohttp.ClientSession, tokens: int) -> int:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    async with session.post("/v1/chat/completions", json=body) as response:
        reply: dict[str, Any] = await response.json()
    count: int = reply["usage"]["completion_tokens"]
    return count


async def healthy(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
