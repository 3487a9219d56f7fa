"""What each caller has used of its limits lately: in memory, or in a file that all processes of a gateway share.

A bucket holds what was used and when that was true; it drains with time. So one that nobody has used yet is all zeros,
which is also what a new file holds, and other limits after a reload of the keys count at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from thinkserve.errors import UsageError

T = TypeVar("T")


@dataclass(slots=True)
class Used:
    """What one caller has used, at one time."""

    at: float = 0.0
    """Seconds, of the clock that all processes share."""
    requests: float = 0.0
    tokens: float = 0.0


class Buckets(Protocol):
    """Where the buckets are."""

    def update(self, id: str, change: Callable[[Used], T]) -> T:
        """Change what a caller has used, with nobody else changing it meanwhile; return what `change` does."""

    def close(self) -> None:
        """Let go of what is open."""


class OwnBuckets:
    """The buckets of a gateway that is one process."""

    def __init__(self) -> None:
        self._used: dict[str, Used] = {}

    def update(self, id: str, change: Callable[[Used], T]) -> T:
        return change(self._used.setdefault(id, Used()))

    def close(self) -> None:
        pass


MAGIC = b"thinkserve limits 1\n"
# A caller's slot: the digest of its id (zeros: free), then the fields of `Used`.
SLOT = struct.Struct("=32s3d8x")
USED = struct.Struct("=3d")
# Far more than there are keys: slots of keys that a reload took away are not used again. The file is sparse.
SLOTS = 65536


class SharedBuckets:
    """The buckets of a gateway that is several processes, in a file that the parent has made with `create`.

    The file is locked a caller at a time, so callers do not wait for each other; the kernel drops the lock of a process
    that dies. Each process must open it for itself: locks belong to a process.

    Args:
        path: the file.

    Raises:
        UsageError: it cannot be opened, or is something else.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            raise UsageError(f"cannot open the limits' file {path}: {exc.strerror}") from exc
        if os.pread(self._file, len(MAGIC), 0) != MAGIC or os.fstat(self._file).st_size != _size():
            os.close(self._file)
            raise UsageError(f"{path} is no file of limits; it is made anew with every start")
        self._map = mmap.mmap(self._file, _size())
        self._offsets: dict[str, int] = {}

    @staticmethod
    def create(path: Path) -> None:
        """Make the file, with nothing used yet. It must be a new one.

        Raises:
            UsageError: it cannot be made.
        """
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(file, _size())
                os.pwrite(file, MAGIC, 0)
            finally:
                os.close(file)
        except OSError as exc:
            raise UsageError(f"cannot make the limits' file {path}: {exc.strerror}") from exc

    def update(self, id: str, change: Callable[[Used], T]) -> T:
        offset = self._offsets.get(id)
        if offset is None:
            offset = self._offsets[id] = self._find(id)
        fcntl.lockf(self._file, fcntl.LOCK_EX, SLOT.size, offset)
        try:
            used = Used(*USED.unpack_from(self._map, offset + 32))
            result = change(used)
            USED.pack_into(self._map, offset + 32, used.at, used.requests, used.tokens)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, SLOT.size, offset)
        return result

    def _find(self, id: str) -> int:
        """Where the slot of a caller is; it gets one if it has none yet."""
        digest = hashlib.sha256(id.encode()).digest()
        first = int.from_bytes(digest[:8]) % SLOTS
        fcntl.lockf(self._file, fcntl.LOCK_EX, SLOT.size, 0)
        try:
            for step in range(SLOTS):
                offset = SLOT.size * (1 + (first + step) % SLOTS)
                owner = self._map[offset : offset + 32]
                if owner == digest:
                    return offset
                if not any(owner):
                    self._map[offset : offset + 32] = digest
                    return offset
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, SLOT.size, 0)
        return SLOT.size * (1 + first)  # the file is full: two callers share what they may use

    def close(self) -> None:
        self._map.close()
        os.close(self._file)


def _size() -> int:
    return SLOT.size * (1 + SLOTS)
