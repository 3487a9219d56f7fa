"""What an endpoint is: how its requests are read, and how its answers are written. Everything between is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from thinkserve.gateway.choice import Choice, Visible
from thinkserve.gateway.errors import ApiError
from thinkserve.gateway.fields import Fields
from thinkserve.gateway.request import Request
from thinkserve.gateway.tools import CallDelta
from thinkserve.gateway.wire import TokenLogprob, Usage


@dataclass(slots=True)
class Call:
    """A tool call of a whole answer; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Text:
    """A stretch of text of a whole answer, up to its end or the next call."""

    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def __str__(self) -> str:
        return "".join(self.pieces)


@dataclass(slots=True)
class Answer:
    """What one choice adds up to."""

    parts: list[Text | Call] = field(default_factory=list)
    """In their order; no two texts side by side."""
    thoughts: list[str] = field(default_factory=list)
    """For operators who asked for them; empty for everybody else."""
    choice: Choice | None = None
    """Its final state: finish reason and counts."""

    @property
    def text(self) -> str:
        """The response, less its calls."""
        return "".join(str(part) for part in self.parts if isinstance(part, Text))

    @property
    def calls(self) -> list[Call]:
        """The calls in the response."""
        return [part for part in self.parts if isinstance(part, Call)]

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Those of the text, where they were asked for."""
        return [entry for part in self.parts if isinstance(part, Text) for entry in part.logprobs]

    @property
    def thought(self) -> str:
        """The thought."""
        return "".join(self.thoughts)

    def add(self, visible: Visible) -> None:
        """Take a visible stretch."""
        if visible.text:
            self.add_text(visible.text, visible.logprobs)
        for part in visible.behind:
            if isinstance(part, str):
                self.add_text(part)
            else:
                self.add_call(part)

    def add_text(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Text:
        """Take more text, and return the stretch that it belongs to."""
        last = self.parts[-1] if self.parts else None
        if not isinstance(last, Text):
            self.parts.append(last := Text())
        last.pieces.append(text)
        last.logprobs += logprobs
        return last

    def add_call(self, delta: CallDelta) -> Call:
        """Take a part of a tool call, and return what there is of the call."""
        if delta.id is not None:
            self.parts.append(Call(delta.id, delta.name or "", ""))
        call = self.parts[-1]
        assert isinstance(call, Call), "the deltas of a call come with no text between"
        call.arguments += delta.arguments
        return call


Seal = Callable[[str, str], str | None]
"""Seals a thought for the client of a request: (thought, what names its response) -> text, or None if it is too long."""


class Head(msgspec.Struct, frozen=True):
    """What all events and bodies of one answer say of it."""

    id: str
    created: int
    model: str
    request: Request
    reveal: bool
    """An operator asked for the thoughts."""
    seal: Seal | None = None
    """Where the client asked for its thoughts sealed."""


class Writer(Protocol):
    """Writes one answer, as events of a stream or as one body. One instance a request."""

    keepalive: bytes
    """What a stream that has nothing to show is kept alive with."""

    def head(self) -> bytes:
        """The first events of a stream."""

    def begin(self, index: int, choice: Choice) -> bytes:
        """The thought of choice `index` is over; called once, before its first text or its end."""

    def text(self, index: int, visible: Visible) -> bytes:
        """A visible stretch of choice `index`: text, with its logprobs where they were asked for, and tool calls."""

    def thought(self, index: int, text: str) -> bytes:
        """A stretch of a thought, for an operator who asked."""

    def end_choice(self, index: int, choice: Choice) -> bytes:
        """A choice is over."""

    def end(self, usage: Usage) -> bytes:
        """The last events of a stream."""

    def fail(self, error: ApiError) -> bytes:
        """The last event of a stream that is not whole."""

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        """The body of an answer that is not streamed."""


class Endpoint(Protocol):
    """One endpoint that generates."""

    path: str
    fields: Fields
    """Its policy."""
    required: tuple[str, ...]
    """The fields that a request must have."""

    def new_id(self) -> str:
        """An id for an answer."""

    def read(self, data: Mapping[str, Any]) -> Request:
        """Read a parsed body.

        Raises:
            ApiError: 400, it asks for what is not served; the message names the field.
        """

    def writer(self, head: Head) -> Writer:
        """What writes the answer."""

    def error(self, error: ApiError) -> bytes:
        """The body of an answer that is an error, in the form of this endpoint's API."""
