"""Limits: requests and tokens a minute by key, in one process and in several, and how many requests run at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkserve.errors import UsageError
from thinkserve.gateway.buckets import SLOT, Buckets, OwnBuckets, SharedBuckets
from thinkserve.gateway.concurrency import Concurrency
from thinkserve.gateway.errors import ApiError
from thinkserve.gateway.keys import Caller
from thinkserve.gateway.limits import Limits, duration
from thinkserve.gateway.metrics import Metrics

ANYONE = Caller("client", "salt", "anyone")
CALLER = replace(ANYONE, id="billing", requests_per_minute=3, tokens_per_minute=1000)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(params=["own", "shared"])
def buckets(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Buckets]:
    """Both kinds: all tests of limits are of both."""
    opened: Buckets = OwnBuckets()
    if request.param == "shared":
        SharedBuckets.create(tmp_path / "limits")
        opened = SharedBuckets(tmp_path / "limits")
    yield opened
    opened.close()


@pytest.fixture
def limits(metrics: Metrics, buckets: Buckets, clock: Clock) -> Limits:
    return Limits(metrics, buckets, clock=clock)


def refusal(limits: Limits, caller: Caller, tokens: int = 0) -> ApiError:
    """How a request is refused."""
    with pytest.raises(ApiError) as refused:
        limits.take(caller, tokens)
    return refused.value


def count(metrics: Metrics, name: str, **labels: str) -> float:
    """What a metric stands at."""
    return metrics.registry.get_sample_value(name, labels) or 0.0


# Requests and tokens a minute


def test_requests_are_let_through_up_to_the_limit_and_then_one_at_a_time(
    limits: Limits, clock: Clock
) -> None:
    """3 a minute are 3 at once, and then one each 20 s."""
    for _ in range(3):
        limits.take(CALLER, 0)
    refusal(limits, CALLER)
    clock.now += 19.9
    refusal(limits, CALLER)
    clock.now += 0.2
    limits.take(CALLER, 0)
    refusal(limits, CALLER)
    clock.now += 1e6
    for _ in range(3):
        limits.take(CALLER, 0)
    refusal(limits, CALLER)


def test_a_refusal_tells_what_when_and_where_the_caller_stands(
    limits: Limits, clock: Clock, metrics: Metrics
) -> None:
    """In OpenAI's words, with the headers that its clients wait by."""
    for _ in range(3):
        limits.take(CALLER, 100)
    clock.now += 0.5
    error = refusal(limits, CALLER, 100)
    assert (error.status, error.code, error.type) == (429, "rate_limit_exceeded", "requests")
    assert error.message == "your key may use 3 requests a minute, and has; try again in 19.5s"
    assert error.headers["Retry-After"] == "20" and error.headers["retry-after-ms"] == "19500"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert count(metrics, "thinkserve_rate_limited_total", limit="requests") == 1
    clock.now += 60
    limits.take(CALLER, 900)
    error = refusal(limits, CALLER, 200)
    assert (error.type, error.headers["Retry-After"]) == ("tokens", "6")
    assert "1000 tokens a minute" in error.message and "6s" in error.message
    assert count(metrics, "thinkserve_rate_limited_total", limit="tokens") == 1


def test_headers_tell_the_state_on_every_answer(limits: Limits, clock: Clock) -> None:
    """Names and forms as OpenAI's; they change nothing."""
    assert limits.headers(CALLER) == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": "0s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "1000",
        "x-ratelimit-reset-tokens": "0s",
    }
    limits.take(CALLER, 20)
    for _ in range(2):
        assert limits.headers(CALLER) == {
            "x-ratelimit-limit-requests": "3",
            "x-ratelimit-remaining-requests": "2",
            "x-ratelimit-reset-requests": "20s",
            "x-ratelimit-limit-tokens": "1000",
            "x-ratelimit-remaining-tokens": "980",
            "x-ratelimit-reset-tokens": "1.2s",
        }
    clock.now += 10
    headers = limits.headers(CALLER)
    assert headers["x-ratelimit-remaining-requests"] == "2" and headers["x-ratelimit-reset-requests"] == "10s"
    assert headers["x-ratelimit-remaining-tokens"] == "1000"


def test_what_was_used_takes_the_place_of_the_estimate(limits: Limits) -> None:
    """Less is given back, more is owed; only the first settlement of a request counts."""
    charge = limits.take(CALLER, 800)
    charge.settle(50)
    charge.settle(0)
    charge.cancel()
    assert limits.headers(CALLER)["x-ratelimit-remaining-tokens"] == "950"
    assert limits.headers(CALLER)["x-ratelimit-remaining-requests"] == "2"


def test_a_debt_is_waited_for_and_never_more(limits: Limits, clock: Clock) -> None:
    """An answer that came out at 4 times the limit is 4 minutes of it."""
    limits.take(CALLER, 10).settle(4000)
    headers = limits.headers(CALLER)
    assert headers["x-ratelimit-remaining-tokens"] == "0" and headers["x-ratelimit-reset-tokens"] == "4m0s"
    assert refusal(limits, CALLER, 1).headers["Retry-After"] == "181"  # 3 minutes of debt, and a token
    clock.now += 180
    assert refusal(limits, CALLER, 1).type == "tokens"
    clock.now += 1
    limits.take(CALLER, 1)


def test_more_than_a_minutes_tokens_may_be_asked_for_by_one_who_has_used_none(
    limits: Limits, clock: Clock
) -> None:
    """Many clients always ask for far more than they get; and while it runs, nothing else does."""
    charge = limits.take(CALLER, 10**9)
    assert refusal(limits, CALLER, 1).type == "tokens"
    charge.settle(100)
    assert refusal(limits, CALLER, 10**9).headers["Retry-After"] == "6"
    clock.now += 6
    limits.take(CALLER, 10**9)


def test_a_process_that_never_settles_leaves_a_minute_at_most(limits: Limits, clock: Clock) -> None:
    """It was killed; its caller is not locked out for what it had only asked for."""
    limits.take(CALLER, 10**9)
    clock.now += 60
    limits.take(CALLER, 1000)


def test_nothing_is_gained_by_a_late_settlement(limits: Limits, clock: Clock) -> None:
    """What has drained meanwhile is not given back a second time."""
    charge = limits.take(CALLER, 1000)
    clock.now += 60
    charge.settle(0)
    assert limits.headers(CALLER)["x-ratelimit-remaining-tokens"] == "1000"
    limits.take(CALLER, 1000)
    assert refusal(limits, CALLER, 1).type == "tokens"


def test_a_request_that_never_began_is_not_counted(limits: Limits) -> None:
    """It met a full queue; its tries must not use up its minute."""
    for _ in range(10):
        limits.take(CALLER, 1000).cancel()
    assert limits.headers(CALLER)["x-ratelimit-remaining-requests"] == "3"
    assert limits.headers(CALLER)["x-ratelimit-remaining-tokens"] == "1000"


def test_a_refused_request_is_charged_nothing(limits: Limits) -> None:
    """Not by the limit that would have let it through either."""
    limits.take(CALLER, 1000)
    for _ in range(10):
        refusal(limits, CALLER, 1)
    assert limits.headers(CALLER)["x-ratelimit-remaining-requests"] == "2"


def test_callers_do_not_share_limits(limits: Limits) -> None:
    """Nor does one without limits have any, or headers that tell of some."""
    other = replace(CALLER, id="other")
    for _ in range(3):
        limits.take(CALLER, 300)
    limits.take(other, 1000)
    for _ in range(100):
        limits.take(ANYONE, 10**9).settle(10**9)
    assert limits.headers(ANYONE) == {}
    assert refusal(limits, CALLER).type == "requests"


def test_one_limit_alone_bounds_nothing_else(limits: Limits) -> None:
    """Only its own headers are sent."""
    requests, tokens = (
        replace(CALLER, tokens_per_minute=None),
        replace(CALLER, id="b", requests_per_minute=None),
    )
    for _ in range(3):
        limits.take(requests, 10**9).settle(10**9)
    assert refusal(limits, requests).type == "requests"
    for _ in range(100):
        limits.take(tokens, 10)
    assert refusal(limits, tokens, 1).type == "tokens"
    assert {name.rpartition("-")[2] for name in limits.headers(requests)} == {"requests"}
    assert {name.rpartition("-")[2] for name in limits.headers(tokens)} == {"tokens"}


def test_other_limits_after_a_reload_count_at_once(limits: Limits) -> None:
    """With what was used before; what had no limit was not counted."""
    limits.take(replace(CALLER, requests_per_minute=None), 400)
    assert limits.headers(CALLER)["x-ratelimit-remaining-requests"] == "3"
    more = replace(CALLER, tokens_per_minute=2000, requests_per_minute=10)
    assert limits.headers(more)["x-ratelimit-remaining-tokens"] == "1600"
    less = replace(CALLER, tokens_per_minute=100)
    assert limits.headers(less)["x-ratelimit-remaining-tokens"] == "0"
    assert refusal(limits, less, 1).type == "tokens"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0001, "1ms"),
        (0.012, "12ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.2, "1.2s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (61.25, "1m1.25s"),
        (3600, "1h0m0s"),
        (90061.001, "25h1m1.001s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    """Rounded up to the millisecond, so that who waits so long has waited long enough."""
    assert duration(seconds) == text


@given(st.floats(0, 10**7))
def test_a_duration_reads_back_as_the_time_it_is(seconds: float) -> None:
    """By the pattern of those who parse it; at most a millisecond more, never less."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"([0-9.]+)(ms|h|m|s)", duration(seconds))
    assert "".join(number + unit for number, unit in parts) == duration(seconds)
    assert -1e-6 <= sum(float(number) * units[unit] for number, unit in parts) - seconds <= 0.0011


# Several processes

HAMMER = """
import sys, time
from pathlib import Path
from thinkserve.gateway.buckets import SharedBuckets
from thinkserve.gateway.errors import ApiError
from thinkserve.gateway.keys import Caller
from thinkserve.gateway.limits import Limits
from thinkserve.gateway.metrics import Metrics

path, requests, tokens = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
limits = Limits(Metrics(), SharedBuckets(path), clock=lambda: 1000.0)
callers = [
    Caller("client", "", "by requests", requests_per_minute=requests),
    Caller("client", "", "by tokens", tokens_per_minute=tokens),
]
print("ready", flush=True)
sys.stdin.readline()
allowed = [0, 0]
for _ in range(600):
    for number, caller in enumerate(callers):
        try:
            limits.take(caller, 10).settle(7)
            allowed[number] += 1
        except ApiError:
            pass
print(*allowed)
"""


def test_processes_share_one_limit(tmp_path: Path) -> None:
    """Four that ask all the time are let through as often as one: 1,000 requests, and 7 tokens of 10,000 each."""
    path = tmp_path / "limits"
    SharedBuckets.create(path)
    command = [sys.executable, "-c", HAMMER, str(path), "1000", "10000"]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate(timeout=60)[0] for process in processes]
    allowed = [[int(word) for word in text.split()] for text in told]
    assert all(process.returncode == 0 for process in processes)
    assert sum(requests for requests, _ in allowed) == 1000
    # A request is let through while 10 are left, and some run in other processes with 10 each that they do not use.
    assert (10_000 - 10 * 4) // 7 <= sum(tokens for _, tokens in allowed) <= 10_000 // 7
    assert sum(1 for requests, _ in allowed if requests) > 1


LOCKER = """
import fcntl, sys, time
from pathlib import Path
from thinkserve.gateway.buckets import SharedBuckets
buckets = SharedBuckets(Path(sys.argv[1]))
def stay(used):
    used.requests = 5.0
    print("locked", flush=True)
    time.sleep(60)
buckets.update("billing", stay)
"""


def test_a_process_that_dies_leaves_no_lock(tmp_path: Path) -> None:
    """Killed in the middle of a change, which then never was."""
    path = tmp_path / "limits"
    SharedBuckets.create(path)
    command = [sys.executable, "-c", LOCKER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        buckets = SharedBuckets(path)
        assert (
            buckets.update("other", lambda used: used.requests) == 0.0
        )  # callers do not wait for each other
        process.kill()
    assert buckets.update("billing", lambda used: used.requests) == 0.0
    buckets.close()


def test_many_callers_have_each_their_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found again by another process, though their places collide; in a file that is full, two share one."""
    monkeypatch.setattr("thinkserve.gateway.buckets.SLOTS", 64)
    path = tmp_path / "limits"
    SharedBuckets.create(path)
    first, second = SharedBuckets(path), SharedBuckets(path)
    for number in range(64):
        first.update(f"key-{number}", lambda used, number=number: setattr(used, "tokens", float(number)))  # type: ignore[misc]
    for number in reversed(range(64)):
        assert second.update(f"key-{number}", lambda used: used.tokens) == number
    assert second.update("one too many", lambda used: used.tokens) in range(64)
    first.close()
    second.close()


def test_an_error_in_a_change_leaves_no_lock(tmp_path: Path) -> None:
    """Nor a half of the change."""
    path = tmp_path / "limits"
    SharedBuckets.create(path)
    buckets = SharedBuckets(path)

    def fail(used: object) -> None:
        used.requests = 7.0  # type: ignore[attr-defined]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        buckets.update("billing", fail)
    code = (
        "import sys; from pathlib import Path; from thinkserve.gateway.buckets import SharedBuckets\n"
        "print(SharedBuckets(Path(sys.argv[1])).update('billing', lambda used: used.requests))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=20, check=True
    )
    assert told.stdout == "0.0\n"
    buckets.close()


def test_the_file_of_limits_is_private_and_new(tmp_path: Path) -> None:
    """It tells who calls how much; and one that is there already may be another gateway's."""
    path = tmp_path / "limits"
    SharedBuckets.create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="cannot make the limits' file"):
        SharedBuckets.create(path)
    with pytest.raises(UsageError, match="cannot open the limits' file"):
        SharedBuckets(tmp_path / "none")
    for data in (b"", b"something else", path.read_bytes()[: SLOT.size * 3]):
        (tmp_path / "other").write_bytes(data)
        with pytest.raises(UsageError, match="is no file of limits"):
            SharedBuckets(tmp_path / "other")


# How many run at once


class Requests:
    """Requests that run until a test lets them end."""

    def __init__(self, concurrency: Concurrency) -> None:
        self.concurrency = concurrency
        self.running: list[str] = []
        self.most = 0
        self.begun: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def _run(self, name: str) -> None:
        async with self.concurrency:
            self.running.append(name)
            self.begun.append(name)
            self.most = max(self.most, len(self.running))
            try:
                await self._ends[name].wait()
            finally:
                self.running.remove(name)

    async def come(self, *names: str) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(name))
        await _settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await _settle()

    async def leave(self, name: str) -> None:
        self.tasks[name].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.tasks[name]


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_so_many_run_and_the_rest_wait_in_their_order(metrics: Metrics) -> None:
    """Who comes later does not overtake, and the gauge tells how many wait."""
    requests = Requests(Concurrency(2, 3, metrics))
    await requests.come("a", "b", "c", "d", "e")
    assert requests.running == ["a", "b"]
    assert count(metrics, "thinkserve_requests_waiting") == 3
    await requests.end("b")
    await requests.end("a")
    assert requests.running == ["c", "d"]
    await requests.come("f")
    await requests.end("c")
    await requests.end("d")
    assert requests.begun == ["a", "b", "c", "d", "e", "f"] and requests.most == 2
    assert count(metrics, "thinkserve_requests_waiting") == 0
    assert count(metrics, "thinkserve_queue_seconds_count") == 4
    await requests.end("e")
    await requests.end("f")
    assert not requests.running


async def test_who_meets_a_full_queue_is_told_at_once(metrics: Metrics) -> None:
    """With a 503 that says when to try again; one that comes when there is room again waits."""
    requests = Requests(Concurrency(1, 1, metrics))
    await requests.come("a", "b", "c")
    assert requests.tasks["c"].done()
    error = requests.tasks["c"].exception()
    assert isinstance(error, ApiError)
    assert (error.status, error.code) == (503, "server_busy")
    assert int(error.headers["Retry-After"]) > 0
    assert count(metrics, "thinkserve_busy_total") == 1
    await requests.end("a")
    await requests.come("d")
    assert requests.running == ["b"]
    await requests.end("b")
    assert requests.running == ["d"]
    await requests.end("d")


async def test_without_a_queue_nobody_waits(metrics: Metrics) -> None:
    """A queue of 0 is one that is always full."""
    requests = Requests(Concurrency(1, 0, metrics))
    await requests.come("a", "b")
    assert isinstance(requests.tasks["b"].exception(), ApiError)
    await requests.end("a")
    await requests.come("c")
    assert requests.running == ["c"]
    await requests.end("c")


async def test_a_client_that_leaves_the_queue_makes_room_in_it(metrics: Metrics) -> None:
    """And is passed over."""
    requests = Requests(Concurrency(1, 2, metrics))
    await requests.come("a", "b", "c")
    await requests.leave("b")
    assert count(metrics, "thinkserve_requests_waiting") == 1
    await requests.come("d")
    assert not requests.tasks["d"].done()
    await requests.end("a")
    assert requests.running == ["c"]
    await requests.end("c")
    assert requests.running == ["d"]
    await requests.end("d")


@pytest.mark.parametrize("turn_first", [True, False])
async def test_a_client_that_leaves_as_its_turn_comes_takes_no_place_with_it(
    turn_first: bool, metrics: Metrics
) -> None:
    """In the same round of the event loop, in either order."""
    concurrency = Concurrency(1, 5, metrics)
    requests = Requests(concurrency)
    async with concurrency:
        await requests.come("b", "c")
        if not turn_first:
            requests.tasks["b"].cancel()
    if turn_first:
        requests.tasks["b"].cancel()
    await _settle()
    assert requests.tasks["b"].cancelled() and requests.begun == ["c"]
    await requests.end("c")
    await requests.come("d")
    assert requests.running == ["d"] and count(metrics, "thinkserve_requests_waiting") == 0
    await requests.end("d")


async def test_a_request_that_fails_gives_its_place_back(metrics: Metrics) -> None:
    """Whatever the error."""
    concurrency = Concurrency(1, 0, metrics)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with concurrency:
                raise ZeroDivisionError
    async with concurrency:
        pass


async def test_places_are_neither_lost_nor_made_by_a_crowd_that_comes_and_goes(metrics: Metrics) -> None:
    """500 requests of which a third leaves at any time: at most 4 at once, and at the end all 4 are free."""
    concurrency = Concurrency(4, 1000, metrics)
    running = most = 0

    async def one(number: int) -> None:
        nonlocal running, most
        await asyncio.sleep(number % 7 / 1000)
        async with concurrency:
            running += 1
            most = max(most, running)
            try:
                await asyncio.sleep(number % 3 / 1000)
            finally:
                running -= 1

    tasks = [asyncio.create_task(one(number)) for number in range(500)]
    for number, task in enumerate(tasks):
        if number % 3 == 0:
            asyncio.get_running_loop().call_later(number % 50 / 1000, task.cancel)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 4 and running == 0
    assert count(metrics, "thinkserve_requests_waiting") == 0
    requests = Requests(concurrency)
    await requests.come(*"abcde")
    assert requests.running == list("abcd")
    for name in "abcde":
        await requests.end(name)


async def test_without_a_limit_all_run(metrics: Metrics) -> None:
    """And nothing is counted."""
    requests = Requests(Concurrency(None, 0, metrics))
    names = [str(number) for number in range(100)]
    await requests.come(*names)
    assert requests.running == names
    for name in names:
        requests._ends[name].set()
    await asyncio.gather(*requests.tasks.values())
    assert count(metrics, "thinkserve_queue_seconds_count") == 0


def test_the_clock_is_one_for_all_processes(metrics: Metrics) -> None:
    """By default it is the machine's: a process that started later must not see others' use as long past."""
    code = "import time; print(time.monotonic())"
    before = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20
    )
    assert before <= float(told.stdout) <= time.monotonic()
    assert os.name == "posix"
    assert Limits(metrics)._clock is time.monotonic
