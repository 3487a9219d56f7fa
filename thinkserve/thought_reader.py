"""`thinkserve thoughts`: shows the operators' thought log in a terminal, or as JSON lines.

A thought is hostile text: the model wrote it, from what a client wrote. So nothing of it is read as markup, and what a
terminal would act on (escape sequences, text that runs backwards) is written out.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.gateway.thought_log import ThoughtRecord

_decode = msgspec.json.Decoder(ThoughtRecord).decode


def show_thoughts(
    path: Path, *, id: str | None = None, last: int | None = None, as_json: bool = False
) -> None:
    """Print what a thought log holds, the oldest first.

    Args:
        path: the thought log.
        id: only the outputs of the response with this id.
        last: only so many, the latest.
        as_json: a line of JSON each, in ASCII, instead of text to read.

    Raises:
        UsageError: the log cannot be read.
        ThinkserveError: it holds nothing of what was asked for.
    """
    console = Console(markup=False, highlight=False, emoji=False)
    unreadable: list[int] = []
    chosen = (record for record in read_thoughts(path, unreadable) if id is None or record.id == id)
    records: Iterable[ThoughtRecord] = chosen if last is None else deque(chosen, maxlen=last)
    found = False
    for record in records:
        if as_json:
            print(json.dumps(msgspec.to_builtins(record)))
        else:
            console.print(_shown(record), soft_wrap=True)
        found = True
    if unreadable:
        lines = f"line {unreadable[0]}" + (f" and {len(unreadable) - 1} more" if unreadable[1:] else "")
        Console(stderr=True, markup=False, highlight=False).print(
            f"{path}: {lines} could not be read; a write was cut short", soft_wrap=True
        )
    if not found:
        what = "nothing yet" if id is None else f"nothing of {written_out(id)}"
        raise ThinkserveError(f"the thought log {path} holds {what}")


def read_thoughts(path: Path, unreadable: list[int]) -> Iterator[ThoughtRecord]:
    """The records of a thought log, one at a time.

    Args:
        path: the thought log.
        unreadable: takes the numbers of lines that are no record: a write that a full disk or a crash cut short.

    Raises:
        UsageError: the log cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip():
                        yield _decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    unreadable.append(number)
    except OSError as exc:
        raise UsageError(f"cannot read the thought log {path}: {exc.strerror}") from exc


def written_out(text: str) -> str:
    r"""A text without anything that a terminal would act on: but for line ends and tabs, such is written as `\x1b`."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def _shown(record: ThoughtRecord) -> Text:
    told = [
        datetime.fromtimestamp(record.created).astimezone().isoformat(sep=" ", timespec="seconds"),
        record.model,
        f"choice {record.choice}",
    ]
    if record.attempt:
        told.append(f"attempt {record.attempt}")
    if record.malformed is not None:
        told.append(f"malformed: {record.malformed}")
    if record.retried:
        told.append("thrown away")
    told.append(f"{record.thought_tokens} tokens of thought, {record.response_tokens} of response")
    if record.seconds is not None:
        told.append(f"{record.seconds:.1f} s")
    told += [text for text in (record.finish_reason, record.upstream, record.caller) if text is not None]
    head = written_out(f"{record.id}  {' · '.join(told)}").replace("\n", r"\n")
    return Text.assemble((head, "bold"), "\n", written_out(record.thought.strip("\n")), "\n")
