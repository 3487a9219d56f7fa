"""A full disk, said in one line. Weights are written by libraries that each have an error of their own for it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinkserve.errors import ThinkserveError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of safetensors and tokenizers (which keep the system's words) and of torch.save (which has none of its own for the reason).
_WORDS = ("No space left", "quota exceeded", "File too large", "PytorchStreamWriter failed", "unexpected pos")


@contextmanager
def explain_full_disk(folder: Path, what: str) -> Iterator[None]:
    """Turn the errors of a disk that is full into one that says what to do.

    Raises:
        ThinkserveError: the disk is full.
    """
    try:
        yield
    except Exception as exc:  # tokenizers raises an error of no other kind
        if not _is_full(exc):
            raise
        raise ThinkserveError(
            f"{folder}: {what} could not be written, the disk is full or a file may not be so large "
            f"({str(exc).strip().partition(chr(10))[0]}); free some space and run again: finished epochs are kept"
        ) from exc


def _is_full(exc: Exception) -> bool:
    if isinstance(exc, ThinkserveError):  # says what to do already
        return False
    if isinstance(exc, OSError) and exc.errno is not None:
        return exc.errno in _FULL
    return any(word.casefold() in str(exc).casefold() for word in _WORDS)
