"""Tool calls, read out of a response that comes in pieces.

A plain object without I/O; it sees the response only, so what a thought says of calls is none. What decides, and what
it costs:

- A call in the exact form of its format streams: its arguments go out as they come. One with other white space, other
  keys or another order of keys is held until its JSON object is whole, and then given at once. Either way the
  arguments are the model's own JSON text, byte for byte.
- A call counts when its JSON object is whole and names a tool that may be called, with an object of arguments; the end
  marker behind it may be missing. What begins like a call and is none is text, verbatim, and no call is looked for
  inside it.
- Once arguments have begun to stream the call cannot be taken back: if the output ends or breaks off inside them, they
  stay as far as they came, as they do where the output is cut by a bound.
- White space next to a call belongs to the call and is not shown, but for a line end between the texts on its sides.
- Where one call at most is allowed, those behind the first are dropped: a client that asked for one must not see two.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from thinkserve.gateway.tool_json import JsonEnd

if TYPE_CHECKING:
    from thinkserve.gateway.tools import Tools


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of a call. The first delta of a call has its id and name; later ones only more of its arguments."""

    index: int
    id: str | None
    name: str | None
    arguments: str
    """JSON text, to be put behind what came before."""


Part = str | CallDelta
"""What a response is made of, in its order: text, and calls, whose deltas come with no text between."""


def new_call_id() -> str:
    """An id for a call, in the form of OpenAI's."""
    return f"call_{secrets.token_hex(12)}"


class _Place(Enum):
    """Where in the response the parser is."""

    TEXT = "text"
    CALL = "call"  # behind a begin marker; not known yet to be a call
    ARGUMENTS = "arguments"  # of a call that streams
    REST = "rest"  # of the object round the arguments
    END = "end"  # behind the object: the end marker


class CallParser:
    """Reads the calls out of one response. `feed` it the text, then `flush` it once.

    Args:
        tools: what may be called, and how calls are written.
        new_id: gives each call its id.
    """

    def __init__(self, tools: Tools, new_id: Callable[[], str] = new_call_id) -> None:
        format = tools.format
        self._format = format
        self._marker = format.begin.strip()
        self._end = format.end.strip()
        self._parallel = tools.parallel
        self._new_id = new_id
        # The exact form, from behind the marker to the first character of the arguments.
        begun = len(format.begin) - len(format.begin.lstrip()) + len(self._marker)
        self._heads = {name: format.head(name)[begun:] + "{" for name in tools.allowed}
        self._place = _Place.TEXT
        self._may_begin = True  # a call; where there is no marker, only the response's first character may
        self._behind_call = False  # where white space is dropped
        self._held = ""  # not given out yet
        self._lead = ""  # in front of it, what goes out with it if it is no call
        self._scanner = JsonEnd()
        self._scanned = 0  # characters of `_held`
        self._dropped = False  # the call that streams is one too many
        self._shown = False  # whether any text was
        self._parted = False  # whether a call was since
        self._parts: list[Part] = []
        self.calls = 0
        """How many calls have begun."""

    def feed(self, text: str) -> list[Part]:
        """Take the next text of the response; return what is known by now, in its order."""
        return self._advance(text, final=False)

    def flush(self) -> list[Part]:
        """The response has ended: return what was held back."""
        return self._advance("", final=True)

    def _advance(self, text: str, *, final: bool) -> list[Part]:
        self._held += text
        steps = {
            _Place.TEXT: self._read_text,
            _Place.CALL: self._read_call,
            _Place.ARGUMENTS: self._read_arguments,
            _Place.REST: self._read_rest,
            _Place.END: self._read_end,
        }
        while steps[self._place](final):
            pass
        parts, self._parts = self._parts, []
        return parts

    def _show(self, text: str) -> None:
        if text:
            self._parts.append("\n" + text if self._parted and self._shown else text)
            self._shown, self._parted = True, False

    # Each step takes what it can of the held text, and returns whether another one goes on with the rest.

    def _read_text(self, final: bool) -> bool:
        if self._behind_call:
            self._held = self._held.lstrip()
            self._behind_call = not self._held
        if self._may_begin and not self._marker:
            if (lead := self._response_lead(final)) is None:
                return False
            self._may_begin = False
            if self._held.startswith("{", len(lead)):
                self._begin_call(lead, self._held[len(lead) :])
                return True
        held = self._held
        if self._may_begin and (at := held.find(self._marker)) >= 0:
            end = len(held[:at].rstrip())
            behind = at + len(self._marker)
            self._show(held[:end])
            self._begin_call(held[end:behind], held[behind:])
            return True
        end = len(held)
        if self._may_begin and not final:
            end = len(held[: end - _begun(self._marker, held)].rstrip())
        self._show(held[:end])
        self._held = held[end:]
        return False

    def _response_lead(self, final: bool) -> str | None:
        """What stands before the first character that counts, where calls have no marker; None: not known yet."""
        held = self._held
        body = held.lstrip()
        optional = self._format.optional_begin
        if optional and body.startswith(optional):
            body = body[len(optional) :].lstrip()
        elif optional.startswith(body) and not final:
            return None
        return held[: len(held) - len(body)] if body or final else None

    def _begin_call(self, lead: str, behind: str) -> None:
        self._place, self._lead, self._held = _Place.CALL, lead, behind
        self._scanner, self._scanned = JsonEnd(), 0

    def _read_call(self, final: bool) -> bool:
        held = self._held
        for name, head in self._heads.items():
            if held.startswith(head):
                self._stream(name, held[len(head) - 1 :])
                return True
            if not final and head.startswith(held):
                return False
        body = held.lstrip()
        if not body and not final:
            return False
        if not body.startswith("{"):
            return self._no_call(0)
        end = self._scanner.scan(held, self._scanned)
        self._scanned = len(held)
        if end is None:
            return self._no_call(len(held)) if final else False
        call = None if self._scanner.broken else self._decoded(held[:end])
        if call is None:
            return self._no_call(end)
        if self._take_call():
            self._parts.append(CallDelta(self.calls - 1, self._new_id(), *call))
        self._held, self._place = held[end:], _Place.END
        return True

    def _decoded(self, text: str) -> tuple[str, str] | None:
        """The name and the arguments of a call; None: it is none."""
        format = self._format
        try:
            call = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            name = msgspec.json.decode(call[format.name_key], type=str)
            arguments = call[format.arguments_key]
            # A raw value has been skipped over, not read.
            msgspec.json.decode(arguments, type=dict)
        except (msgspec.DecodeError, ValueError, KeyError, RecursionError):
            return None
        return (name, str(arguments, "utf-8").strip()) if name in self._heads else None

    def _take_call(self) -> bool:
        """Count a call; return whether it is given to the client."""
        self._dropped = self.calls > 0 and not self._parallel
        if not self._dropped:
            self.calls += 1
        return not self._dropped

    def _no_call(self, end: int) -> bool:
        """It began like a call: it is text as far as it was read."""
        self._show(self._lead + self._held[:end])
        self._held, self._place = self._held[end:], _Place.TEXT
        return True

    def _stream(self, name: str, arguments: str) -> None:
        if self._take_call():
            self._parts.append(CallDelta(self.calls - 1, self._new_id(), name, ""))
        self._held, self._place, self._scanner = arguments, _Place.ARGUMENTS, JsonEnd()

    def _read_arguments(self, final: bool) -> bool:
        held = self._held
        end = self._scanner.scan(held)
        arguments = held[:end]
        if arguments and not self._dropped:
            self._parts.append(CallDelta(self.calls - 1, None, None, arguments))
        self._held = held[len(arguments) :]
        if end is None:
            return False
        self._place = _Place.END if self._scanner.broken else _Place.REST
        self._scanner = JsonEnd(depth=1)
        return True

    def _read_rest(self, final: bool) -> bool:
        end = self._scanner.scan(self._held)
        self._held = "" if end is None else self._held[end:]
        if end is not None:
            self._place = _Place.END
        return end is not None

    def _read_end(self, final: bool) -> bool:
        held = self._held.lstrip()
        if held.startswith(self._end):
            held = held[len(self._end) :]
        elif self._end.startswith(held):
            if not final:
                return False
            held = ""  # an end marker that is cut off
        self._held, self._place, self._behind_call = held, _Place.TEXT, True
        self._parted = True
        return True


def _begun(marker: str, text: str) -> int:
    """How many characters at the end of a text are the beginning of a marker."""
    return next(
        (
            length
            for length in range(min(len(marker) - 1, len(text)), 0, -1)
            if text.endswith(marker[:length])
        ),
        0,
    )
