"""How far a stage is, on a terminal or in a log file.

On a terminal a bar; anywhere else a plain line every ten seconds and one at the end, with no control characters. It is
used for answers as well as for judgments, and is told of each by `advance`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

LINE_SECONDS = 10.0
# The rate is that of the last minute: judges slow down and recover.
RATE_SECONDS = 60.0


class Progress:
    """The progress of one stage, shown while its context is open.

    Args:
        label: of the stage: `judging MODEL`.
        total: how many there are; `begin` may say so later.
        unit: of what, in the plural: `judgments`.
        concurrency: how many calls may run now.
        stream: None: standard error.
        line_seconds: between lines, where it is no terminal.
    """

    def __init__(
        self,
        label: str,
        total: int = 0,
        unit: str = "judgments",
        *,
        concurrency: Callable[[], int] | None = None,
        stream: TextIO | None = None,
        line_seconds: float = LINE_SECONDS,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.kept = self.failures = 0
        self._concurrency = concurrency
        self._stream = sys.stderr if stream is None else stream
        self._line_seconds = line_seconds
        self._began = time.monotonic()
        self._samples = deque([(self._began, 0)])
        """When so many were done: one a second at most, of the last minute and one before."""
        self._lock = threading.Lock()
        self._bar: Bar | None = None
        self._closed = threading.Event()
        self._lines: threading.Thread | None = None

    def begin(self, total: int, kept: int = 0) -> None:
        """Say how many there are, and how many of them were there already."""
        self.total, self.kept, self.done = total, kept, kept
        self._began = time.monotonic()
        with self._lock:
            self._samples = deque([(self._began, kept)])
        self._show()

    def advance(self, *, failed: bool = False) -> None:
        """One more is done; `failed`: in vain."""
        now = time.monotonic()
        with self._lock:
            if now - self._samples[-1][0] >= 1:
                self._samples.append((now, self.done))
            while len(self._samples) > 1 and self._samples[1][0] < now - RATE_SECONDS:
                self._samples.popleft()
        self.done += 1
        self.failures += failed
        self._show()

    @property
    def rate(self) -> float:
        """How many a second, over the last minute."""
        with self._lock:
            then, done = self._samples[0]
        return (self.done - done) / max(time.monotonic() - then, 1e-3)

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None where none has come for a minute."""
        rate = self.rate
        return (self.total - self.done) / rate if rate else None

    def line(self) -> str:
        """Where it stands, in a line."""
        share = f" ({100 * self.done // self.total} %)" if self.total else ""
        parts = [f"{self.label}: {self.done:,}/{self.total:,} {self.unit}{share}", self.state()]
        return ", ".join(part for part in parts if part)

    def state(self) -> str:
        """Rate, failures, calls at once, and when it will be done."""
        parts = [f"{self.rate:.1f} {self.unit}/s"]
        if self.kept:
            parts.append(f"{self.kept:,} were there")
        parts.append(f"{self.failures:,} failed")
        if self._concurrency is not None:
            parts.append(f"{self._concurrency()} at once")
        left = self.seconds_left
        if self.done < self.total:
            parts.append("ETA unknown" if left is None else f"ETA {_clock(left)}")
        else:
            parts.append(f"took {_clock(time.monotonic() - self._began)}")
        return ", ".join(parts)

    def __enter__(self) -> Self:
        if self._stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _State(self))
            self._bar = Bar(*columns, console=Console(file=self._stream))
            self._bar.add_task(self.label, total=self.total or None)
            self._bar.start()
        else:
            # A thread, so that a log says that nothing moves, too.
            self._lines = threading.Thread(target=self._write_lines, name="progress", daemon=True)
            self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._bar is not None:
            self._show()
            self._bar.stop()
        if self._lines is not None:
            self._lines.join()
            self._write(self.line())

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self.total or None, completed=self.done)

    def _write_lines(self) -> None:
        while not self._closed.wait(self._line_seconds):
            self._write(self.line())

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class _State(ProgressColumn):
    """Made when the bar is drawn, and not at every advance."""

    max_refresh = 0.5

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        return Text(self._progress.state(), style="dim")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
