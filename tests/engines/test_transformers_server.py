"""The server over a real Unix socket, with a small random Llama and two tokenizers: characters and byte-level BPE."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from thinkserve.engines.transformers_server.app import ChatServer
from thinkserve.engines.transformers_server.batch import BatchLimits, ContinuousBatch, Event, Failure
from thinkserve.engines.transformers_server.decoder import Decoder
from thinkserve.engines.transformers_server.prompt import TextTokenizer
from thinkserve.engines.transformers_server.worker import DecodeThread

MODEL = "tiny"
CONTEXT = 256
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ message.role[0] + ':' + message.content }}{% if not loop.last %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' a:' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]


def character_tokenizer() -> Any:
    chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789 .,:?!\n"
    tokens = ["<pad>", "<eos>", "<unk>", *chars]
    tokenizer = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrapped(tokenizer)


def byte_level_tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<eos>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world, naïve café 😀 你好"] * 5, trainer)
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> Any:
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATE
    return fast


def random_model(vocab_size: int) -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval()


class Client:
    """A running server and a session to it."""

    def __init__(
        self, session: aiohttp.ClientSession, server: ChatServer, batch: ContinuousBatch, fast: Any
    ) -> None:
        self.session = session
        self.server = server
        self.batch = batch
        self.fast = fast

    async def post(self, **fields: Any) -> tuple[int, dict[str, Any]]:
        body = {"model": MODEL, "messages": HELLO, **fields}
        async with self.session.post("http://server/v1/chat/completions", json=body) as response:
            return response.status, await response.json()

    async def reply(self, **fields: Any) -> dict[str, Any]:
        status, body = await self.post(**fields)
        assert status == 200, body
        return body

    async def choice(self, **fields: Any) -> dict[str, Any]:
        [choice] = (await self.reply(**fields))["choices"]
        assert isinstance(choice, dict)
        return choice

    async def chunks(self, **fields: Any) -> list[dict[str, Any]]:
        """All chunks of a stream, which must end with the end mark."""
        body = {"model": MODEL, "messages": HELLO, "stream": True, **fields}
        async with self.session.post("http://server/v1/chat/completions", json=body) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            *events, done, rest = (await response.text()).split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    async def until(self, reached: Callable[[ContinuousBatch], bool]) -> None:
        """Wait until the batch, which another thread drives, is in some state."""
        async with asyncio.timeout(10):
            while not reached(self.batch):  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def idle(self) -> None:
        """Wait until nothing runs or waits."""
        await self.until(lambda batch: not batch.busy)


@pytest.fixture(scope="module", params=["characters", "byte level"])
def parts(request: pytest.FixtureRequest) -> tuple[Decoder, Any]:
    fast = character_tokenizer() if request.param == "characters" else byte_level_tokenizer()
    return Decoder(random_model(len(fast))), fast


@pytest.fixture(scope="module")
def character_parts() -> tuple[Decoder, Any]:
    fast = character_tokenizer()
    return Decoder(random_model(len(fast))), fast


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders can be too long for a socket
        yield Path(folder, "server.sock")


class Running:
    """Starts one server in the test's event loop, and ends it."""

    def __init__(self, socket: Path, decoder: Decoder, fast: Any, **limits: int) -> None:
        waiting = limits.pop("waiting", 64)
        self.batch = ContinuousBatch(
            decoder, BatchLimits(**{"rows": 8, "tokens": 8 * CONTEXT, "prefill_tokens": 64, **limits})
        )
        self.died = asyncio.Event()
        tokenizer = TextTokenizer(fast)
        self.worker = DecodeThread(
            self.batch, tokenizer, asyncio.get_running_loop(), max_waiting=waiting, on_death=self.died.set
        )
        self._server = ChatServer(MODEL, tokenizer, self.worker, max_model_len=CONTEXT, defaults={})
        self._runner = web.AppRunner(self._server.app(), handler_cancellation=True, shutdown_timeout=1)
        self._socket = socket
        self._fast = fast

    async def __aenter__(self) -> Client:
        self.worker.start()
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._socket)).start()
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._socket), limit=0))
        return Client(self._session, self._server, self.batch, self._fast)

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._runner.cleanup()
        self.worker.close()


@pytest.fixture
async def client(socket: Path, parts: tuple[Decoder, Any]) -> AsyncIterator[Client]:
    """With both tokenizers: for what depends on text."""
    async with Running(socket, *parts) as client:
        yield client


@pytest.fixture
async def plain(socket: Path, character_parts: tuple[Decoder, Any]) -> AsyncIterator[Client]:
    """One character a token: for what does not."""
    async with Running(socket, *character_parts) as client:
        yield client


async def test_health_and_models(plain: Client) -> None:
    async with plain.session.get("http://server/health") as response:
        assert response.status == 200
    async with plain.session.get("http://server/v1/models") as response:
        [card] = (await response.json())["data"]
    assert (card["id"], card["owned_by"], card["max_model_len"]) == (MODEL, "thinkserve", CONTEXT)


async def test_stream_and_reply_say_the_same(client: Client) -> None:
    fields = {
        "temperature": 1.3,
        "seed": 5,
        "max_tokens": 60,
        "n": 3,
        "return_token_ids": True,
        "logprobs": True,
    }
    reply = await client.reply(**fields, top_logprobs=2)
    chunks = await client.chunks(**fields, top_logprobs=2, stream_options={"include_usage": True})
    for choice in reply["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["delta"]["content"] for c in own) == choice["message"]["content"]
        assert [each for c in own for each in c.get("token_ids", [])] == choice["token_ids"]
        scores = [each for c in own[1:] for each in c["logprobs"]["content"]]
        assert [each["token"] for each in scores] == [each["token"] for each in choice["logprobs"]["content"]]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert all(c["finish_reason"] is None for c in own[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == reply["usage"]
    assert len({choice["message"]["content"] for choice in reply["choices"]}) == 3


async def test_greedy_reply_is_that_of_generate(client: Client, parts: tuple[Decoder, Any]) -> None:
    prompt = client.fast.encode("u:hello a:", add_special_tokens=False)
    busy = [asyncio.create_task(client.reply(max_tokens=60, temperature=1.5)) for _ in range(3)]
    reply = await client.reply(temperature=0, max_tokens=40, ignore_eos=True, return_token_ids=True)
    await asyncio.gather(*busy)
    with torch.inference_mode():
        output = parts[0].model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=40,
            do_sample=False,
        )
    assert reply["choices"][0]["token_ids"] == output[0, len(prompt) :].tolist()
    assert reply["prompt_token_ids"] == prompt
    assert reply["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 40,
        "total_tokens": len(prompt) + 40,
    }
    await asyncio.gather(*busy)


async def test_text_never_ends_in_half_a_character(client: Client) -> None:
    """A random byte-level model writes junk; what it writes is still the tokens' text, and no chunk breaks it."""
    fields: dict[str, Any] = {"temperature": 2.0, "seed": 1, "max_tokens": 150, "ignore_eos": True}
    chunks = await client.chunks(**fields, return_token_ids=True)
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    ids = [each for chunk in chunks for each in chunk["choices"][0].get("token_ids", [])]
    whole = client.fast.decode(ids, skip_special_tokens=True)
    assert whole.startswith(text)
    assert set(whole[len(text) :]) <= {"\ufffd"}


async def test_stop_string_is_met_across_tokens_and_cut_off(client: Client) -> None:
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    whole = (await client.choice(**fields))["message"]["content"]
    stop = whole[20:24]
    expected = whole[: whole.index(stop)]
    choice = await client.choice(**fields, stop=["never", stop], return_token_ids=True)
    assert choice["message"]["content"] == expected
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    chunks = await client.chunks(**fields, stop=stop)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == expected
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert len(choice["token_ids"]) < 60


async def test_end_of_sequence_is_counted_but_not_shown(plain: Client) -> None:
    """Any token may end the output: the one that greedy decoding writes fifth is made to."""
    fields: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": 10,
        "return_token_ids": True,
        "ignore_eos": True,
    }
    whole = await plain.choice(**fields)
    fifth = whole["token_ids"][4]
    place = whole["token_ids"].index(fifth)
    reply = await plain.reply(**fields, stop_token_ids=[fifth], logprobs=True)
    [choice] = reply["choices"]
    assert choice["token_ids"] == whole["token_ids"][: place + 1]
    assert choice["message"]["content"] == whole["message"]["content"][:place]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", fifth)
    assert reply["usage"]["completion_tokens"] == place + 1 == len(choice["logprobs"]["content"])
    later = await plain.choice(**fields, stop_token_ids=[fifth], min_tokens=9)
    assert fifth not in later["token_ids"][:9]


async def test_logprobs_have_the_openai_shape(client: Client) -> None:
    choice = await client.choice(max_tokens=8, temperature=0, seed=2, logprobs=True, top_logprobs=3)
    content = choice["logprobs"]["content"]
    for entry in content:
        assert entry["top_logprobs"][0]["token"] == entry["token"]
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 3
    joined = bytes(byte for entry in content for byte in entry["bytes"])
    assert joined.decode(errors="replace").startswith(choice["message"]["content"])


async def test_logprobs_do_not_depend_on_temperature(plain: Client) -> None:
    first = [
        (await plain.choice(max_tokens=1, temperature=temperature, logprobs=True, top_logprobs=5))["logprobs"]
        for temperature in (0, 2)
    ]
    tops = [[top["logprob"] for top in each["content"][0]["top_logprobs"]] for each in first]
    assert tops[0] == pytest.approx(tops[1], abs=1e-4)


async def test_every_chunk_can_carry_the_usage_so_far(plain: Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await plain.chunks(max_tokens=12, ignore_eos=True, stream_options=options, return_token_ids=True)
    count = 0
    for chunk in chunks:
        count += sum(len(choice.get("token_ids", [])) for choice in chunk["choices"])
        assert chunk["usage"]["completion_tokens"] == count
    assert count == 12
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


async def test_final_message_is_continued(plain: Client) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "the answer "}]
    reply = await plain.reply(
        messages=messages, continue_final_message=True, max_tokens=4, return_token_ids=True
    )
    assert plain.fast.decode(reply["prompt_token_ids"]) == "u:hello a:the answer "
    assert reply["choices"][0]["message"]["role"] == "assistant"


async def test_output_ends_with_the_context(plain: Client) -> None:
    reply = await plain.reply(ignore_eos=True, max_tokens=10_000)
    assert reply["usage"]["total_tokens"] == CONTEXT
    assert reply["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("length", [CONTEXT, 100_000])
async def test_prompt_longer_than_the_context_is_refused_and_the_server_lives(
    plain: Client, length: int
) -> None:
    status, body = await plain.post(messages=[{"role": "user", "content": "a" * length}])
    assert status == 400
    assert "maximum context length is 256" in body["error"]["message"]
    assert await plain.reply(max_tokens=2)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"temperature": "x"}, 400, "temperature"),
        ({"n": 100}, 400, "n"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages"),
    ],
)
async def test_errors_have_the_openai_shape(
    plain: Client, fields: dict[str, Any], status: int, param: str
) -> None:
    found, body = await plain.post(**fields)
    assert found == status
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["param"], body["error"]["code"]) == (param, status)
    assert "Traceback" not in body["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"messages":' + b"[" * 100_000])
async def test_broken_bodies_are_a_400(plain: Client, body: bytes) -> None:
    async with plain.session.post("http://server/v1/chat/completions", data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "BadRequestError"


async def test_unknown_route_is_a_404_in_json(plain: Client) -> None:
    async with plain.session.post("http://server/v1/completions", json={}) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == 404


@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_leaves_takes_its_sequences_along(plain: Client, stream: bool) -> None:
    request = asyncio.create_task(plain.post(n=4, ignore_eos=True, stream=stream))
    await plain.until(lambda batch: batch.running == 4)
    request.cancel()
    await plain.idle()


async def test_full_queue_is_a_503_and_the_queue_is_served_in_time(
    socket: Path, character_parts: tuple[Decoder, Any]
) -> None:
    async with Running(socket, *character_parts, rows=1, waiting=2) as client:
        replies = await asyncio.gather(*(client.post(max_tokens=20, ignore_eos=True) for _ in range(12)))
        statuses = [status for status, _ in replies]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 3
        assert await client.reply(max_tokens=2)


async def test_slow_reader_does_not_hold_up_the_others(plain: Client) -> None:
    body = {
        "messages": HELLO,
        "stream": True,
        "n": 4,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 20,
    }
    async with plain.session.post("http://server/v1/chat/completions", json=body) as response:
        await response.content.read(1)  # and no more for now
        await plain.reply(max_tokens=30, ignore_eos=True)
        await plain.idle()
        rest = await response.text()
    assert rest.endswith("data: [DONE]\n\n")


async def test_concurrent_requests_share_steps(plain: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    step = ContinuousBatch.step

    def counted(self: ContinuousBatch) -> tuple[list[Event], list[Failure]]:
        widths.append(self.running)
        return step(self)

    monkeypatch.setattr(ContinuousBatch, "step", counted)
    await asyncio.gather(*(plain.reply(max_tokens=40, ignore_eos=True) for _ in range(8)))
    assert max(widths) == 8
    assert len(widths) < 8 * 40 / 2


async def test_failed_decode_thread_ends_streams_with_an_error(
    socket: Path, character_parts: tuple[Decoder, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(socket, *character_parts)
    async with running as client:
        stream = client.session.post(
            "http://server/v1/chat/completions", json={"messages": HELLO, "stream": True, "ignore_eos": True}
        )
        async with stream as response:
            await response.content.readuntil(b"\n\n")

            def broken(*_: object) -> Any:
                raise RuntimeError("secret detail")

            monkeypatch.setattr(Decoder, "decode", broken)
            *_, last, rest = (await response.text()).split("\n\n")
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["code"], rest) == (500, "")
        assert "secret" not in error["message"]
        assert running.died.is_set()
        async with client.session.get("http://server/health") as health:
            assert health.status == 503
        assert (await client.post())[0] == 503


async def test_draining_server_finishes_what_runs_and_takes_nothing_new(plain: Client) -> None:
    running = asyncio.create_task(plain.reply(max_tokens=100, ignore_eos=True))
    await plain.until(lambda batch: batch.running > 0)
    plain.server.draining = True
    assert (await plain.post())[0] == 503
    began = time.monotonic()
    await asyncio.wait_for(plain.server.drained(), 10)
    assert time.monotonic() - began < 10
    assert (await running)["usage"]["completion_tokens"] == 100
