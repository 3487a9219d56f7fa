"""The operators' thought log: what a line holds, what happens when a disk is full or the file is rotated, and its reader."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import msgspec
import pytest

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.gateway.line_log import LineLog
from thinkserve.gateway.thought_log import ThoughtLog, ThoughtRecord
from thinkserve.thought_reader import read_thoughts, show_thoughts, written_out

HOSTILE = "\x1b[31mred\x1b]0;title\x07 [bold]markup[/bold] :smile: \u202ekcab\r\x9b2J\x00\u200b"


def record(**fields: object) -> ThoughtRecord:
    """A record of which a test says what matters."""
    given = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "thinker", "thought": "T", **fields}
    return msgspec.convert(given, ThoughtRecord)


def write(path: Path, *records: ThoughtRecord) -> None:
    """Append to a log as the gateway does."""
    log = ThoughtLog(path)
    for one in records:
        log.append(one)
    log.close()


# Writing


def test_a_line_holds_all_fields_and_is_private(tmp_path: Path) -> None:
    """Also those that are at their defaults: a reader by `jq` need not know them."""
    path = tmp_path / "log"
    write(path, record(attempt=1, retried=True, malformed="unclosed_thought", caller="billing"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    [line] = [json.loads(line) for line in path.read_text().splitlines()]
    assert line == {
        "id": "chatcmpl-1",
        "created": 1_700_000_000,
        "model": "thinker",
        "choice": 0,
        "attempt": 1,
        "retried": True,
        "malformed": "unclosed_thought",
        "caller": "billing",
        "upstream": None,
        "seconds": None,
        "finish_reason": None,
        "thought_tokens": 0,
        "response_tokens": 0,
        "thought": "T",
    }


def test_a_rotated_log_is_written_anew_after_reopening(tmp_path: Path) -> None:
    """Until then it goes on under its new name; the new file is private too."""
    path, moved = tmp_path / "log", tmp_path / "log.1"
    log = ThoughtLog(path)
    log.append(record(thought="a"))
    path.rename(moved)
    log.append(record(thought="b"))
    log.reopen()
    log.append(record(thought="c"))
    log.close()
    assert [one.thought for one in read_thoughts(moved, [])] == ["a", "b"]
    assert [one.thought for one in read_thoughts(path, [])] == ["c"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_that_cannot_be_reopened_is_written_on(tmp_path: Path) -> None:
    """A rotation that left a file others can read, or no folder: the operator is told, and no line is lost."""
    path, moved = tmp_path / "log", tmp_path / "log.1"
    log = ThoughtLog(path)
    path.rename(moved)
    path.touch(mode=0o644)
    open_files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError, match="others can read the thought log"):
        log.reopen()
    assert len(os.listdir("/proc/self/fd")) == open_files
    log.append(record())
    log.close()
    assert len(moved.read_bytes().splitlines()) == 1 and not path.read_bytes()


def test_a_line_cut_short_takes_no_other_with_it(tmp_path: Path) -> None:
    """A pipe of one page that is nearly full takes a part of a line, as a full disk does."""
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o600)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = LineLog(path, what="log")
    size = 65536
    log.append("x" * (size + 100))  # longer than the pipe: cut
    got = os.read(reader, 2 * size)
    assert len(got) == size
    log.append("y")
    log.append("z")
    assert os.read(reader, size) == b'\n"y"\n"z"\n'
    log.close()
    os.close(reader)


def test_a_full_disk_is_told_once_and_again_after_it_was_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not with every request; and a pipe that is full stands for it, which must not make the gateway wait."""
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o600)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    caplog.set_level(logging.ERROR)
    log = LineLog(path, what="access log")

    def fill() -> None:
        for _ in range(80):  # more than the 64 KiB of a pipe
            log.append("SECRET" * 200)

    fill()
    assert len(caplog.records) == 1 and "cannot write to the access log" in caplog.text
    os.read(reader, 1 << 20)
    log.append("again")
    assert os.read(reader, 100) == b'"again"\n'
    fill()
    assert len(caplog.records) == 2 and "SECRET" not in caplog.text
    log.close()
    os.close(reader)


def test_a_pipe_that_nobody_reads_is_refused_at_the_start(tmp_path: Path) -> None:
    """Opening it would wait for a reader."""
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o600)
    with pytest.raises(UsageError, match="cannot open the thought log"):
        ThoughtLog(path)


# Reading


def test_the_reader_tells_all_of_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When, what, how long, and the thought as it is."""
    path = tmp_path / "log"
    more = {"upstream": "vllm", "caller": "billing", "finish_reason": "stop", "seconds": 3.21}
    write(
        path, record(thought="one\n  two", thought_tokens=7, response_tokens=9, choice=2, attempt=1, **more)
    )
    show_thoughts(path)
    out = capsys.readouterr().out
    head, *thought = out.splitlines()
    for told in ("chatcmpl-1", "thinker", "choice 2", "attempt 1", "7 tokens of thought, 9 of response"):
        assert told in head
    for told in ("3.2 s", "stop", "vllm", "billing", "2023-11-1"):
        assert told in head
    assert thought == ["one", "  two", ""]


def test_an_output_that_was_thrown_away_is_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was never the thought of a response."""
    path = tmp_path / "log"
    write(path, record(retried=True, malformed="unclosed_thought"), record(attempt=1))
    show_thoughts(path)
    first, second = [line for line in capsys.readouterr().out.splitlines() if "thinker" in line]
    assert "thrown away" in first and "malformed: unclosed_thought" in first
    assert "thrown away" not in second and "malformed" not in second


def test_hostile_text_is_written_out_and_no_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences, text that runs backwards, rich's markup and emoji; in the names too."""
    path = tmp_path / "log"
    write(path, record(thought=HOSTILE, model=f"m\n{HOSTILE}", id=HOSTILE, caller="[red]c"))
    show_thoughts(path)
    out = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in out)
    assert len(out.splitlines()) == 3
    assert (
        out.count(r"\x1b[31mred\x1b]0;title\x07 [bold]markup[/bold] :smile: \u202ekcab\r\x9b2J\x00\u200b")
        == 3
    )
    assert "[red]c" in out


def test_json_is_a_line_each_in_ascii(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that it is safe in a terminal, and whole for a program."""
    path = tmp_path / "log"
    write(path, record(thought=HOSTILE), record(thought="two\nlines"))
    show_thoughts(path, as_json=True)
    out = capsys.readouterr().out
    assert out.isascii() and all(char.isprintable() for line in out.splitlines() for char in line)
    assert [json.loads(line)["thought"] for line in out.splitlines()] == [HOSTILE, "two\nlines"]


def test_records_are_chosen_by_id_and_from_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the whole id; the last of those that were asked for, in their order."""
    path = tmp_path / "log"
    write(
        path, *(record(id=f"r-{number % 2}", thought=str(number)) for number in range(6)), record(id="r-11")
    )

    def chosen(**how: object) -> list[str]:
        show_thoughts(path, as_json=True, **how)  # type: ignore[arg-type]
        return [json.loads(line)["thought"] for line in capsys.readouterr().out.splitlines()]

    assert chosen(id="r-1") == ["1", "3", "5"]
    assert chosen(id="r-1", last=2) == ["3", "5"]
    assert chosen(last=2) == ["5", "T"]
    with pytest.raises(ThinkserveError, match="holds nothing of r-2"):
        chosen(id="r-2")


def test_torn_lines_are_passed_over_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last, where the gateway was killed while it wrote; others, from a disk that was full."""
    path = tmp_path / "log"
    write(path, record(thought="a"))
    with path.open("ab") as file:
        file.write(b'{"id":"chatcmpl-2","thought":"SEC\n\n\xff\xfe\n')
    write(path, record(thought="b"))
    with path.open("ab") as file:
        file.write(b'{"id":"chatcmpl-3","created":1,"model":"m","thought":"RET')
    show_thoughts(path)
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line in ("a", "b")] == ["a", "b"]
    assert "line 2 and 2 more could not be read" in err and "SEC" not in out + err and "RET" not in out + err


def test_a_log_of_an_older_release_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the fields that came later, and with ones that this one does not know."""
    path = tmp_path / "log"
    path.write_text('{"id":"a","created":1,"model":"m","choice":0,"thought":"old","later":1}\n')
    show_thoughts(path)
    assert "old" in capsys.readouterr().out


def test_a_log_that_cannot_be_read_or_is_empty_is_told(tmp_path: Path) -> None:
    """Each in one line that names it."""
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="cannot read the thought log"):
            show_thoughts(path)
    (tmp_path / "log").touch()
    with pytest.raises(ThinkserveError, match="holds nothing yet"):
        show_thoughts(tmp_path / "log")


def test_text_that_can_be_printed_stays_as_it_is() -> None:
    """In any script, with line ends and tabs."""
    text = "naïve 思考\tи\nmore 🙂"
    assert written_out(text) == text
