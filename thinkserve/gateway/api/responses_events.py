"""The answers of `/v1/responses`: a body, or numbered events that build the same body up.

In a stream one output item is open at a time: the reasoning item while the model thinks, then what is shown. Text behind
a call is a message of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from thinkserve.gateway.api.responses_body import (
    Item,
    ResponseBody,
    call_item,
    is_empty,
    logprobs_json,
    message_item,
    status_of,
    text_part,
)
from thinkserve.gateway.choice import Choice, Visible
from thinkserve.gateway.endpoint import Answer, Call, Head, Text
from thinkserve.gateway.errors import ApiError
from thinkserve.gateway.tools import CallDelta
from thinkserve.gateway.wire import TokenLogprob, Usage, encode, event

_DELTA = "response.output_text.delta"


@dataclass(slots=True)
class _Open:
    """The item of a stream that is not done yet."""

    kind: Literal["reasoning", "message", "call"]
    id: str
    index: int
    """Its place in the output."""
    begun: bool = True
    """Whether its part was added (that of a reasoning item is for operators only)."""
    part: Text | Call | None = None
    """What it is made of, as far as it has come."""
    before: bytes = b""
    """What an event that adds text to a message begins with, up to the text."""


class ResponsesWriter:
    """Writes an answer as a response; keeps the `Writer` protocol."""

    keepalive = b": thinking\n\n"

    def __init__(self, head: Head) -> None:
        self._body = body = ResponseBody(head)
        self._logprobs = head.request.logprobs
        # What follows is the state of a stream.
        self._answer = Answer()
        self._sealed: str | None = None
        self._open: _Open | None = None
        if body.thinks:
            self._open = _Open("reasoning", body.reasoning_id, 0, begun=False)
        self._items = int(body.thinks)
        self._messages = 0
        # Those of the head have their numbers already: it may be asked for after an event that follows it.
        self._events = 2 + self._items

    def head(self) -> bytes:
        response = self._body.response("in_progress", [])
        out = [
            event({"type": kind, "sequence_number": number, "response": response}, kind)
            for number, kind in enumerate(("response.created", "response.in_progress"))
        ]
        if self._body.thinks:
            kind = "response.output_item.added"
            item = {"id": self._body.reasoning_id, "type": "reasoning", "summary": []}
            out.append(event({"type": kind, "sequence_number": 2, "output_index": 0, "item": item}, kind))
        return b"".join(out)

    def begin(self, index: int, choice: Choice) -> bytes:
        self._sealed = self._body.sealed(choice)
        return self._close()

    def text(self, index: int, visible: Visible) -> bytes:
        out = self._text_delta(visible.text, visible.logprobs) if visible.text else b""
        for part in visible.behind:
            out += self._text_delta(part) if isinstance(part, str) else self._call_delta(part)
        return out

    def thought(self, index: int, text: str) -> bytes:
        self._answer.thoughts.append(text)
        opened = self._open
        # What was hidden behind the beginning of the response is in the body at the end.
        if opened is None or opened.kind != "reasoning":
            return b""
        out = b""
        if not opened.begun:
            opened.begun = True
            part = {"type": "reasoning_text", "text": ""}
            out = self._event("response.content_part.added", opened, content_index=0, part=part)
        return out + self._event("response.reasoning_text.delta", opened, content_index=0, delta=text)

    def end_choice(self, index: int, choice: Choice) -> bytes:
        answer = self._answer
        answer.choice = choice
        out = self._open_message() if is_empty(answer) else b""
        return out + self._close(status_of(choice))

    def end(self, usage: Usage) -> bytes:
        response = self._body.whole(self._answer, self._sealed, usage)
        return self._event(f"response.{response['status']}", response=response)

    def fail(self, error: ApiError) -> bytes:
        # One of the few codes that there are for it; the message says the rest.
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        items = self._body.items(self._answer, self._sealed, "incomplete")
        told = {"code": code, "message": error.message}
        return self._event("response.failed", response=self._body.response("failed", items, error=told))

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        [answer] = answers
        assert answer.choice is not None
        return self._body.whole(answer, self._body.sealed(answer.choice), usage)

    # The events of a stream

    def _number(self) -> int:
        self._events += 1
        return self._events - 1

    def _event(self, kind: str, about: _Open | None = None, /, **more: Any) -> bytes:
        """An event; `about`: the item whose part it is of."""
        payload: dict[str, Any] = {"type": kind, "sequence_number": self._number()}
        if about is not None:
            payload |= {"item_id": about.id, "output_index": about.index}
        return event(payload | more, kind)

    def _add(self, opened: _Open, item: Item) -> bytes:
        """Open the next item, in the place of the one before it."""
        closed = self._close()
        self._open, self._items = opened, self._items + 1
        item["status"] = "in_progress"
        return closed + self._event("response.output_item.added", output_index=opened.index, item=item)

    def _open_message(self) -> bytes:
        opened = _Open("message", self._body.message_id(self._messages), self._items, part=Text())
        self._messages += 1
        # Nearly all events are these: made once, but for the text.
        delta = {"type": _DELTA, "item_id": opened.id, "output_index": opened.index, "content_index": 0}
        opened.before = b"event: %b\ndata: %b" % (_DELTA.encode(), encode(delta)[:-1]) + b',"delta":'
        added = self._add(opened, message_item(opened.id, Text()) | {"content": []})
        part = text_part(Text())
        return added + self._event("response.content_part.added", opened, content_index=0, part=part)

    def _text_delta(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        out = b"" if self._open is not None and self._open.kind == "message" else self._open_message()
        assert self._open is not None
        self._open.part = self._answer.add_text(text, logprobs)
        told = encode(logprobs_json(logprobs)) if self._logprobs else b"[]"
        rest = b',"logprobs":%b,"sequence_number":%d}\n\n' % (told, self._number())
        return out + self._open.before + encode(text) + rest

    def _call_delta(self, delta: CallDelta) -> bytes:
        out = b""
        if delta.id is not None:
            opened = _Open("call", self._body.call_id(delta.index), self._items)
            out = self._add(opened, call_item(opened.id, Call(delta.id, delta.name or "", "")))
        assert self._open is not None
        self._open.part = self._answer.add_call(delta)
        if not delta.arguments:
            return out
        return out + self._event("response.function_call_arguments.delta", self._open, delta=delta.arguments)

    def _close(self, status: str = "completed") -> bytes:
        """The item that is open is done."""
        opened, self._open = self._open, None
        if opened is None:
            return b""
        out, part = b"", opened.part
        if part is None:
            item = self._body.reasoning_item(self._answer, self._sealed)
            if opened.begun:
                out = self._part_done("response.reasoning_text.done", opened, item)
        elif isinstance(part, Text):
            item = message_item(opened.id, part)
            item["status"] = status
            out = self._part_done("response.output_text.done", opened, item)
        else:
            item = call_item(opened.id, part)
            item["status"] = status
            done = {"name": item["name"], "arguments": item["arguments"]}
            out = self._event("response.function_call_arguments.done", opened, **done)
        return out + self._event("response.output_item.done", output_index=opened.index, item=item)

    def _part_done(self, kind: str, opened: _Open, item: Item) -> bytes:
        """The one part of an item is whole."""
        [part] = item["content"]
        told = {key: part[key] for key in ("text", "logprobs") if key in part}
        done = self._event(kind, opened, content_index=0, **told)
        return done + self._event("response.content_part.done", opened, content_index=0, part=part)
