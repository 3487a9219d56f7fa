"""Progress is a bar on a terminal, and plain lines in a log file."""

from __future__ import annotations

import io
import re
import time

from thinkserve.eval.judging.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_log_file_there_are_plain_lines_and_a_last_one() -> None:
    log = io.StringIO()
    with Progress(
        "judging", 4, "judgments", concurrency=lambda: 7, stream=log, line_seconds=0.03
    ) as progress:
        progress.advance()
        progress.advance(failed=True)
        time.sleep(0.1)
        progress.advance()
        progress.advance()
    lines = log.getvalue().splitlines()
    assert len(lines) >= 3
    assert re.fullmatch(
        r"judging: 2/4 judgments \(50 %\), [\d.]+ judgments/s, 1 failed, 7 at once, ETA 0:00", lines[0]
    )
    assert re.fullmatch(
        r"judging: 4/4 judgments \(100 %\), [\d.]+ judgments/s, 1 failed, 7 at once, took 0:00", lines[-1]
    )
    assert all(char.isprintable() for line in lines for char in line)


def test_what_was_there_already_counts_as_done_and_not_as_speed() -> None:
    log = io.StringIO()
    with Progress("answers", unit="answers", stream=log) as progress:
        progress.begin(1000, 990)
        time.sleep(0.05)
        progress.advance()
        assert 0 < progress.rate < 20
    assert "answers: 991/1,000 answers (99 %)" in log.getvalue()
    assert "990 were there" in log.getvalue()


def test_without_any_progress_the_end_is_unknown() -> None:
    progress = Progress("judging", 10, stream=io.StringIO())
    assert progress.seconds_left is None
    assert "ETA unknown" in progress.line()


def test_a_run_that_is_broken_off_says_how_far_it_came() -> None:
    log = io.StringIO()
    try:
        with Progress("judging", 10, stream=log) as progress:
            progress.advance()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert log.getvalue().startswith("judging: 1/10 judgments (10 %)")
    assert log.getvalue().count("\n") == 1


def test_on_a_terminal_there_is_a_bar_with_all_of_it() -> None:
    terminal = Terminal()
    with Progress("judging", 10, concurrency=lambda: 3, stream=terminal) as progress:
        progress.begin(10, 4)
        for _ in range(6):
            progress.advance(failed=True)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "10/10" in shown
    assert "6 failed" in " ".join(shown.split())
