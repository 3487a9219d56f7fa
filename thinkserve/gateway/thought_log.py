"""The one place where thoughts are kept, if the operator asked for it: JSON lines in a file that only they can read."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any

from thinkserve.errors import UsageError
from thinkserve.gateway.wire import encode

logger = logging.getLogger(__name__)


class ThoughtLog:
    """Appends a line for each choice: `{"id", "created", "model", "choice", "thought", "thought_tokens", ...}`.

    Raises:
        UsageError: the file cannot be opened, or others can read it already.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise UsageError(f"cannot open the thought log {path}: {exc.strerror}") from exc
        if stat.S_IMODE(os.fstat(self._file).st_mode) & 0o077:
            os.close(self._file)
            raise UsageError(f"others can read the thought log {path}; chmod 600 it, or name a new file")

    def append(self, record: dict[str, Any]) -> None:
        """Write one line, in one system call, so that lines of several processes do not mix.

        A disk that is full is the operator's trouble and no reason to lose the answer.
        """
        try:
            os.write(self._file, encode(record) + b"\n")
        except OSError as exc:
            logger.error("cannot write to the thought log (%s)", exc.strerror)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
