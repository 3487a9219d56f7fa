"""The splitter: cuts a stream of text into thought and response, a delta at a time.

No I/O and no clock; one instance an output. `split` runs the same automaton over a whole text, so a streamed and a
gathered output cannot be cut differently.

The rules, with what they cost:

- Text whose place is not known is thought. A thought that is never closed is all thought, and not `complete`.
- Text before a late opening marker is hidden. If the opening marker was left out, the closing marker still ends the
  thought.
- A marker inside quotes or backticks (directly round it, or with one punctuation mark as in `"<R>,"`) is a mention and
  ends nothing. Where the format asks for line starts, so is a marker in the middle of a line.
- Where one marker begins another, the one that a stream completes first counts.
- A thought that begins again inside the response is hidden again.
- A closing marker inside the response is text.
- Direct answers, and those to a thought that was cut (`force`), are watched too: an opening marker begins a thought, and a closing marker without one means that what
  came before was a thought, so the output is `broken` and nothing after it is shown.

What risk remains: a thought that states its own closing marker otherwise (bare, in a longer quotation or code span, and
at a line start where the format asks for that, as in a fenced block or behind `>`) ends there, and what it goes on to
think is shown. Formats without an opening marker cannot hide a second thought inside a response.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from thinkserve.thoughts.format import ThoughtFormat, get_format
from thinkserve.thoughts.markers import MarkerScanner, emphasis_open_after, is_quoted
from thinkserve.thoughts.output import Kind, Output, Piece, Response

# How much settled text is kept: emphasis before a marker with the character before it (4), or a quote sign with the
# character before it (2).
CONTEXT = 4
# White space that opens a line of the response is its indentation up to this many characters, and dropped beyond:
# what waits for the response to begin stays bounded.
MAX_INDENT = 200
# A long text is taken in blocks: behind each marker what is left of the block is copied, so a text full of markers
# would else take time in the square of its length.
BLOCK = 4096


class State(Enum):
    """Where in its output the model is."""

    PREAMBLE = "preamble"  # before the opening marker: hidden
    THOUGHT = "thought"
    RESPONSE = "response"
    DIRECT = "direct"  # a response that no thought came before
    BROKEN = "broken"  # a closing marker came where no thought was open: nothing more is shown


class ThoughtSplitter:
    """Cuts one output. `feed` it deltas, then `flush` it once.

    Args:
        format: the thought format, or what `get_format` takes.
        direct: the model was asked for a response without a thought.
    """

    __slots__ = (
        "_context",
        "_emphasis",
        "_forced",
        "_format",
        "_held",
        "_kind",
        "_offset",
        "_on_marker_line",
        "_quick",
        "_scanner",
        "_shown",
        "_state",
        "_swallowing",
        "_trigger",
    )

    def __init__(self, format: ThoughtFormat | str, *, direct: bool = False) -> None:
        self._format = get_format(format)
        self._context = "\n"  # settled text; the start of the output is the start of a line
        self._quick = False  # no marker can begin before the next trigger character
        self._held = ""  # may still become a marker, or the indentation of the response
        self._offset = 0  # of the first character of `_held` in the output
        self._shown = False  # a response piece was given out
        self._forced = False  # the next closing marker is not the model's own
        self._swallowing = False  # before a response, white space is dropped
        self._on_marker_line = True  # and so is all of it that stands on the line of the marker
        self._emphasis = ""  # what closes the emphasis round the marker: `**` behind `**Here is my response:`
        if direct or not self._format.thought_required:
            self._enter(State.DIRECT)
        else:
            self._enter(State.THOUGHT if self._format.starts_in_thought else State.PREAMBLE)

    @property
    def state(self) -> State:
        """Where the text that comes next belongs, as far as is known now."""
        return self._state

    @property
    def broken(self) -> bool:
        """Whether something was shown that turned out to be a thought nobody announced."""
        return self._state is State.BROKEN

    @property
    def settled(self) -> int:
        """How many characters of the output are settled: those before what is held back."""
        return self._offset

    @property
    def holding(self) -> bool:
        """Whether text is held back that may still become a marker."""
        return bool(self._held)

    @property
    def complete(self) -> bool:
        """Whether the output may end here: no thought is open, and none that is required is missing."""
        return self._kind == "response"

    def force(self) -> None:
        """The closing marker that comes next is not the model's: its thought has used up its bound.

        A model that goes on thinking behind it is found out at the closing marker of its own, as in a direct answer.
        """
        self._forced = True

    def feed(self, text: str) -> list[Piece]:
        """Take the next stretch of the output; return what is settled by it, in order."""
        # Nearly every delta ends here: nothing is held back, and no marker can begin in this text.
        if self._quick and (self._trigger is None or self._trigger not in text):
            if not text:
                return []
            start = self._offset
            self._offset = start + len(text)
            # Not cut to CONTEXT characters where it is short: this runs once a delta.
            self._context = text if CONTEXT <= len(text) <= BLOCK else (self._context + text)[-CONTEXT:]
            return [Piece(self._kind, text, start)]
        pieces: list[Piece] = []
        for begin in range(0, len(text), BLOCK):
            pieces += self._advance(text[begin : begin + BLOCK], final=False)
        return pieces

    def flush(self) -> list[Piece]:
        """The output has ended: return what was held back."""
        return self._advance("", final=True)

    def _enter(self, state: State) -> None:
        """Change the state, and with it what is looked for and what the text is."""
        format = self._format
        self._state = state
        self._kind: Kind = "response" if state in (State.RESPONSE, State.DIRECT) else "thought"
        self._scanner: MarkerScanner | None
        match state:
            case State.PREAMBLE | State.DIRECT:
                self._scanner = format.scan_preamble
            case State.THOUGHT:
                self._scanner = format.scan_thought
            case State.RESPONSE:
                self._scanner = format.scan_response
            case State.BROKEN:
                self._scanner = None
        # None: nothing is looked for; "" is in every text, so every text is searched.
        self._trigger = None if self._scanner is None else self._scanner.trigger
        if self._kind == "response":
            self._swallowing = True

    def _advance(self, text: str, *, final: bool) -> list[Piece]:
        """The general path: settle what can be settled of the text held back and the new text."""
        pieces: list[Piece] = []
        buffer = self._context + self._held + text
        start = len(self._context)  # everything before it is settled
        base = self._offset - start  # offset of buffer[0] in the output

        def settle(end: int) -> None:
            nonlocal start
            if end > start:
                pieces.append(Piece(self._kind, buffer[start:end], base + start))
                self._shown = self._shown or self._kind == "response"
            start = end

        at = start  # where to look for the next marker: what lies between start and at holds mentions only
        while True:
            if self._swallowing:
                body = self._swallow(buffer, start, final=final)
                buffer, base = "\n" + buffer[body:], base + body - 1
                start = at = 1
                if self._swallowing:
                    break
            match = None if self._scanner is None else self._scanner.find(buffer, at, final=final)
            if match is None:
                settle(len(buffer))
                break
            begin, end, group = match.start(), match.end(), match.lastgroup or "partial"
            if group == "partial":
                settle(begin)
                break
            quoted = is_quoted(buffer, match.start(group), end)
            if quoted is None and not final:  # the next characters tell a mention from a marker
                settle(begin)
                break
            # A quotation that the end of the output cuts off is read as what shows less.
            if quoted or (quoted is None and group == "closing"):
                at = end
                continue
            settle(begin)
            self._pass_marker(group)
            self._emphasis = emphasis_open_after(buffer, end, match.start(group))
            self._on_marker_line = buffer[end - 1] != "\n"
            # What follows a marker is like the start of a line, though it may stand on the marker's own.
            buffer, base = "\n" + buffer[end:], base + end - 1
            start = at = 1
        self._held = buffer[start:]
        self._offset = base + start
        self._context = buffer[max(0, start - CONTEXT) : start]
        scanner = self._scanner
        at_line_start = scanner is not None and scanner.line_start and self._context[-1] == "\n"
        self._quick = not (self._held or self._swallowing or at_line_start)
        return pieces

    def _pass_marker(self, group: str) -> None:
        """Change the state at a marker."""
        if group == "opening":
            self._enter(State.THOUGHT)
        elif self._state is State.DIRECT and self._shown:
            self._enter(State.BROKEN)
        else:
            self._enter(State.DIRECT if self._forced else State.RESPONSE)
            self._forced = False

    def _swallow(self, buffer: str, start: int, *, final: bool) -> int:
        """Drop a marker's closing emphasis and the white space before a response; return where the rest begins.

        White space goes up to the last line end before the response, or all of it where the response begins on the
        marker's own line: so code that opens a response keeps its indentation.
        """
        while self._emphasis and start < len(buffer):
            if buffer[start] != self._emphasis[0]:
                self._emphasis = ""
            else:
                self._emphasis = self._emphasis[1:]
                start += 1
        body = len(buffer) - len(buffer[start:].lstrip())
        line_end = buffer.rfind("\n", start, body)
        if line_end >= 0:
            start, self._on_marker_line = line_end + 1, False
        if self._on_marker_line or body - start > MAX_INDENT or (final and body == len(buffer)):
            start, self._on_marker_line = body, True
        self._swallowing = body == len(buffer)
        return start


def split(text: str, format: ThoughtFormat | str = "tpo-generic", *, direct: bool = False) -> Output:
    """Cut a whole output by the automaton that cuts streams.

    Args:
        text: the output as the model wrote it.
        format: the thought format, or what `get_format` takes.
        direct: the model was asked for a response without a thought.
    """
    splitter = ThoughtSplitter(format, direct=direct)
    pieces = splitter.feed(text) + splitter.flush()
    return Output(
        thought="".join(piece.text for piece in pieces if piece.kind == "thought"),
        response=Response("".join(piece.text for piece in pieces if piece.kind == "response")),
        complete=splitter.complete,
    )


def strip_thoughts(text: str, format: ThoughtFormat | str) -> Response:
    """What a client may have shown of a past turn: the text less every thought and marker in it.

    A text without markers stays as it is; where a closing marker has no opening one, what stands before it was a
    thought.
    """
    format = get_format(format)
    splitter = ThoughtSplitter(format, direct=True)
    pieces = splitter.feed(text) + splitter.flush()
    if splitter.state is State.DIRECT:
        return Response(text)
    if splitter.broken:
        splitter = ThoughtSplitter(replace(format, thought_required=True))
        pieces = splitter.feed(text) + splitter.flush()
    return Response("".join(piece.text for piece in pieces if piece.kind == "response"))
