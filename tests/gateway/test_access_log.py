"""The access log: a line a request, without bodies, safe against what clients write into their headers."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from thinkserve.errors import UsageError
from thinkserve.gateway.access_log import AccessLog, AccessRecord, client_request_id, printable

NASTY = "a\x1b[2J\nb\x9bc\u202ed\udce9e\u2028f"


def record(**fields: object) -> AccessRecord:
    """A record of which a test says what matters."""
    return AccessRecord(**{"method": "POST", "path": "/v1/chat/completions", **fields})  # type: ignore[arg-type]


def test_a_line_holds_these_fields_and_is_private(tmp_path: Path) -> None:
    """Always all of them, so that tools need no defaults; none has a place for a text of the conversation."""
    path = tmp_path / "access.log"
    log = AccessLog(path)
    before = datetime.now(UTC)
    log.append(
        record(
            id="chatcmpl-1",
            client_id="mine",
            caller="billing",
            status=200,
            model="thinker",
            stream=True,
            n=2,
            prompt_tokens=10,
            thought_tokens=20,
            response_tokens=5,
            seconds=1.23456789,
            first_response_seconds=0.98765432,
            finish_reasons=["stop", "length"],
            upstream="vllm",
            retries=1,
            failovers=2,
        )
    )
    log.append(record(path="other", status=404, error="unknown_url", method="GET"))
    log.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert before <= datetime.fromisoformat(first.pop("time")) <= datetime.now(UTC)
    assert first == {
        "id": "chatcmpl-1",
        "client_id": "mine",
        "caller": "billing",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "model": "thinker",
        "stream": True,
        "n": 2,
        "prompt_tokens": 10,
        "thought_tokens": 20,
        "response_tokens": 5,
        "seconds": 1.234568,
        "first_response_seconds": 0.987654,
        "finish_reasons": ["stop", "length"],
        "upstream": "vllm",
        "retries": 1,
        "failovers": 2,
        "error": None,
    }
    assert set(second) == {"time", *first}
    assert (second["id"], second["caller"], second["error"]) == (None, None, "unknown_url")


def test_what_a_client_wrote_is_cut_and_made_printable(tmp_path: Path) -> None:
    """Its model's name and method come as it wrote them: they must neither break a line nor a terminal nor the log."""
    path = tmp_path / "access.log"
    log = AccessLog(path)
    log.append(record(model=NASTY, method="X" * 1000))
    log.append(record(model="m" * 5000))
    log.close()
    raw = path.read_text()
    assert all(char.isprintable() or char == "\n" for char in raw)
    first, second = (json.loads(line) for line in raw.splitlines())
    assert first["model"] == "a?[2J?b?c?d?e?f" and first["method"] == "X" * 16
    assert second["model"] == "m" * 100


@pytest.mark.parametrize(
    ("header", "id"),
    [
        (None, None),
        ("", None),
        ("   ", None),
        ("req-1", "req-1"),
        (" 6f1d 2 ", "6f1d 2"),
        ("x" * 500, "x" * 128),
        ("a\tb\x7f", "a?b?"),
        ("a\r\nSet-Cookie: b", "a??Set-Cookie: b"),
        ("caf\u00e9", None),
        ("a\udce9", None),
    ],
)
def test_a_clients_own_id_is_passed_through_if_it_is_plain(header: str | None, id: str | None) -> None:
    """Fit for a log and for a header of the answer."""
    assert client_request_id(header) == id


def test_printable_text_of_any_script_stays() -> None:
    """Up to the limit."""
    assert printable("модель/思考 v2") == "модель/思考 v2"
    assert printable("abc", 2) == "ab"


def test_a_dash_is_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """Which a rotation does not touch, and which stays open when the log is closed."""
    log = AccessLog(Path("-"))
    log.append(record(id="a"))
    log.reopen()
    log.append(record(id="b"))
    log.close()
    os.write(1, b"{}\n")
    out = capfd.readouterr().out
    assert [json.loads(line).get("id") for line in out.splitlines()] == ["a", "b", None]
    assert not Path("-").exists()


def test_a_rotated_log_is_written_anew_after_reopening(tmp_path: Path) -> None:
    """A log that others may read is the operator's choice: it holds no bodies."""
    path = tmp_path / "access.log"
    path.touch(mode=0o644)
    log = AccessLog(path)
    log.append(record(id="a"))
    path.rename(tmp_path / "access.log.1")
    log.reopen()
    log.append(record(id="b"))
    log.close()
    assert [msgspec.json.decode(line)["id"] for line in path.read_bytes().splitlines()] == ["b"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """In one line that names it."""
    for path in (tmp_path, tmp_path / "none" / "log"):
        with pytest.raises(UsageError, match=f"cannot open the access log {path}"):
            AccessLog(path)


def _append_many(path: Path, name: str) -> None:
    log = AccessLog(path)
    for number in range(500):
        log.append(record(id=f"{name}-{number}", model=name * 100))
    log.close()


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    """Each is one system call."""
    path = tmp_path / "access.log"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_append_many, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 1500 and len({line["id"] for line in lines}) == 1500
