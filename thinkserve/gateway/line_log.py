"""A file of JSON lines that several processes append to, and that a rotation may move away: what the logs build on."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any

from thinkserve.errors import UsageError
from thinkserve.gateway.wire import encode

logger = logging.getLogger(__name__)

STANDARD_OUTPUT = Path("-")


class LineLog:
    """Appends records to a file, a line each.

    Args:
        path: the file, made with mode 0600 if it is not there; `-` is standard output.
        what: what to call it in errors.
        private: refuse a file that others can read.

    Raises:
        UsageError: the file cannot be opened, or others can read it though they must not.
    """

    def __init__(self, path: Path, *, what: str, private: bool = False) -> None:
        self._path = path
        self._what = what
        self._private = private
        self._failing = False
        self._torn = False
        self._file = self._open()

    def _open(self) -> int:
        if self._path == STANDARD_OUTPUT:
            return os.dup(1)
        # Not to wait: a pipe that nobody reads would stop the gateway, at the start or with any line.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            file = os.open(self._path, flags, 0o600)
        except OSError as exc:
            raise UsageError(f"cannot open the {self._what} {self._path}: {exc.strerror}") from exc
        if self._private and stat.S_IMODE(os.fstat(file).st_mode) & 0o077:
            os.close(file)
            raise UsageError(
                f"others can read the {self._what} {self._path}; chmod 600 it, or name a new file"
            )
        return file

    def append(self, record: Any) -> None:
        """Write one line, in one system call, so that lines of several processes do not mix.

        A disk that is full is the operator's trouble and no reason to lose an answer: it is told once, until a line
        can be written again.
        """
        line = encode(record) + b"\n"
        if self._torn:  # the rest of that line is lost, and this one is not to be lost with it
            line = b"\n" + line
        try:
            written = os.write(self._file, line)
        except OSError as exc:
            if not self._failing:
                logger.error("cannot write to the %s (%s)", self._what, exc.strerror)
            self._failing = True
        else:
            self._failing = False
            self._torn = written < len(line)

    def reopen(self) -> None:
        """Open the file again under its name, after a rotation has moved it away.

        Raises:
            UsageError: that cannot be done; the old file is written on.
        """
        file = self._open()
        os.close(self._file)
        self._file = file
        self._torn = False

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
