"""One choice of an answer: takes what the engine generates, gives out what the client may see.

A plain object without I/O. All that decides about a response is here, once, for streamed and gathered answers alike:
the splitter, stop strings, the bounds on thought and response, token counts and logprobs. What passes them goes through
the echo guard and the reader of tool calls.

An engine may send several tokens a chunk. Those of the chunk that come behind the end of the response (a stop string, a
bound) are not counted: the engine's next chunk might as well not have come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from thinkserve.gateway.echo import EchoGuard, echo_share
from thinkserve.gateway.errors import FormatBroken
from thinkserve.gateway.stops import StopMatcher
from thinkserve.gateway.tokens import TokenTexts, trimmed
from thinkserve.gateway.tools import CallParser, Part, Tools
from thinkserve.gateway.wire import TokenLogprob
from thinkserve.thoughts import Piece, ThoughtFormat, ThoughtSplitter


class Bounds(msgspec.Struct, frozen=True):
    """How many tokens a choice may have; None: as many as the engine gives."""

    response: int | None = None
    thought: int | None = None
    total: int | None = None
    forced: int | None = None
    """From here on a closing marker is the engine's, which bounds the thought."""


UNBOUNDED = Bounds()


class Visible(NamedTuple):
    """What the client gets next: a stretch of the response, with the logprobs of its tokens if they were asked for.

    From its first tool call on the response comes in parts.
    """

    text: str
    logprobs: Sequence[TokenLogprob] = ()
    behind: Sequence[Part] = ()
    """What follows the text: tool calls, and the text behind them."""


@dataclass(slots=True)
class _Segment:
    """A stretch of the output that is not settled yet, and its tokens (more than one only for a lone character)."""

    start: int
    end: int
    tokens: int
    logprobs: list[TokenLogprob]


class _Counted(NamedTuple):
    """Tokens that were just counted."""

    visible: int
    """Characters of the response."""
    tokens: int
    of_response: int


# A stretch of the response and the logprobs of its token; the second token of a lone character has no text.
Entry = tuple[str, TokenLogprob | None]


class Choice:
    """The state of one choice. `feed` it chunks; it is over when `finish_reason` is set, by itself or by `finish`."""

    def __init__(
        self,
        format: ThoughtFormat,
        *,
        direct: bool = False,
        stops: tuple[str, ...] = (),
        bounds: Bounds = UNBOUNDED,
        logprobs: bool = False,
        keep_thought: bool = False,
        texts: TokenTexts | None = None,
        tools: Tools | None = None,
        echo: EchoGuard | None = None,
        measure_echo: bool = False,
    ) -> None:
        self._splitter = ThoughtSplitter(format, direct=direct)
        self._stops = StopMatcher(stops) if stops else None
        self._bounds = bounds
        self._wants_logprobs = logprobs
        self._texts = texts or TokenTexts()
        self._calls = CallParser(tools) if tools is not None and tools.allowed else None
        self._echo = echo
        self._settled_ahead: deque[Piece] = deque()  # response pieces whose tokens are not all settled
        self._segments: deque[_Segment] = deque()
        self._unreleased: deque[Entry] = deque()  # not free of a stop that may be beginning
        self._free = 0  # characters at the head of `_unreleased` that are
        self._fed = 0  # characters
        self._keep = keep_thought or measure_echo
        self._response: list[str] | None = [] if measure_echo else None
        self._raw: list[str] = []
        self._thought: list[str] = []
        self._thought_taken = 0
        self._first_thought: int | None = None  # how many pieces came before the response
        self.completion_tokens = 0
        self.response_tokens = 0
        self.shown = False
        self.finish_reason: str | None = None

    @property
    def reasoning_tokens(self) -> int:
        """The tokens that no part of was visible: thought, markers, and what followed the end of the response."""
        return self.completion_tokens - self.response_tokens

    @property
    def thinking(self) -> bool:
        """Whether the text that comes next would be hidden."""
        return not self._splitter.complete

    @property
    def stop_string(self) -> str | None:
        """The client's stop string that ended the response."""
        return None if self._stops is None else self._stops.matched

    @property
    def calls(self) -> int:
        """How many tool calls the response holds so far."""
        return 0 if self._calls is None else self._calls.calls

    @property
    def echoes(self) -> int:
        """How often the response repeats a long stretch of the thought (if there is an echo guard)."""
        return 0 if self._echo is None else self._echo.repeats

    @property
    def echo_share(self) -> float | None:
        """The share of the response that repeats the thought word for word; None where that is not measured."""
        if self._response is None or not self._thought:
            return None
        return echo_share(self.thought, "".join(self._response))

    @property
    def thought(self) -> str:
        """The thought so far (if it was asked to be kept)."""
        return "".join(self._thought)

    @property
    def first_thought(self) -> str:
        """The thought up to where the response begins (if it was asked to be kept)."""
        return "".join(self._thought[: self._first_thought])

    def take_thought(self) -> str:
        """What was added to the thought since this was last called (if the thought was asked to be kept)."""
        taken, self._thought_taken = self._thought_taken, len(self._thought)
        return "".join(self._thought[taken:])

    def count(self, completion_tokens: int) -> None:
        """Correct the count of all tokens by the engine's own, where chunks came without token ids."""
        self.completion_tokens = completion_tokens
        self.response_tokens = min(self.response_tokens, completion_tokens)

    @property
    def raw(self) -> str:
        """The output so far (if the thought was asked to be kept)."""
        return "".join(self._raw)

    @property
    def over_thought_budget(self) -> bool:
        """Whether the thought has used up its bound, and the response has not begun."""
        return (
            self._bounds.thought is not None
            and self.thinking
            and not self._splitter.holding
            and self.completion_tokens > self._bounds.thought
            and not self.shown
        )

    @property
    def lost_to(self) -> str | None:
        """What ended the output before its response began, in the manner of OpenAI's `incomplete_details.reason`."""
        if self.finish_reason != "length" or self.shown or not self.thinking:
            return None
        bounds = self._bounds
        if bounds.thought is not None and self.completion_tokens > bounds.thought:
            return "max_thought_tokens"
        return "context_length" if bounds.total is None else "max_completion_tokens"

    def feed(
        self,
        text: str,
        tokens: int,
        ids: list[int] | None = None,
        logprobs: list[TokenLogprob] | None = None,
        lengths: list[int] | None = None,
    ) -> Visible | None:
        """Take a chunk of the output, or several joined; return what they make visible.

        Args:
            text: what the engine added; may be empty for a token that completes no character.
            tokens: how many tokens it is.
            ids: their ids, where the engine told them.
            logprobs: their logprobs, where they were asked for.
            lengths: how many characters each of them is, where that is known.
        """
        visible = self._feed(text, tokens, ids, logprobs, lengths)
        if self._calls is None and self._echo is None and self._response is None:
            return visible
        return self._read(visible, over=self.finish_reason is not None)

    def _read(self, visible: Visible | None, *, over: bool) -> Visible | None:
        """Look for repeated thoughts and for tool calls in what is visible; `over`: nothing more comes."""
        if visible is None and not over:
            return None
        text, logprobs, _ = visible or Visible("")
        if self._response is not None:
            self._response.append(text)
        parts: list[Part] = [text]
        if self._calls is not None:
            parts = self._calls.feed(text)
            if over:
                parts += self._calls.flush()
        echo = self._echo
        if echo is not None:
            parts = [guarded for part in parts for guarded in _guarded(part, echo)]
            if over:
                parts.append(echo.flush())
        first = next((at for at, part in enumerate(parts) if not isinstance(part, str)), len(parts))
        text, behind = "".join(map(str, parts[:first])), [part for part in parts[first:] if part]
        return Visible(text, logprobs, behind) if text or behind else None

    def _feed(
        self,
        text: str,
        tokens: int,
        ids: list[int] | None,
        logprobs: list[TokenLogprob] | None,
        lengths: list[int] | None,
    ) -> Visible | None:
        total = self._bounds.total
        if total is not None and self.completion_tokens + tokens > total:
            lengths = lengths or self._texts.lengths(text, ids, tokens, logprobs)
            return self._cut_at_total(text, total - self.completion_tokens, ids, logprobs, lengths)
        self.completion_tokens += tokens
        forced = self._bounds.forced
        if forced is not None and self.completion_tokens > forced and self.thinking and not self.shown:
            self._splitter.force()
        if self._keep:
            self._raw.append(text)
        pieces = self._splitter.feed(text)
        # The two cases that nearly all chunks are: all of it hidden, or all of it visible at once.
        if len(pieces) == 1 and not self._segments and len(pieces[0].text) == len(text):
            piece = pieces[0]
            if piece.kind == "thought":
                self._fed += len(text)
                self._take_thought(text)
                return None
            limit = self._bounds.response
            if not self._wants_logprobs and (limit is None or self.response_tokens + tokens < limit):
                self._fed += len(text)
                self.response_tokens += tokens
                if self._first_thought is None:
                    self._first_thought = len(self._thought)
                if self._stops is None:
                    self.shown = True
                    return Visible(text)
                visible = self._release([(text, None)])
                if self._stops.matched:
                    behind = lengths or self._texts.lengths(text, ids, tokens, logprobs)
                    self._uncount_behind([_Counted(length, 1, 1) for length in behind])
                return visible
        if lengths is None:
            # Text without a token is the gateway's own: the closing marker of a thought that it cut.
            lengths = self._texts.lengths(text, ids, tokens, logprobs) if tokens else [len(text)]
        self._queue(lengths, min(tokens, 1), logprobs or [])
        return self._settle(pieces)

    def _take_thought(self, text: str) -> None:
        if self._keep:
            self._thought.append(text)
        if self._echo is not None:
            self._echo.thought(text)

    def cut_thought(self, closing: str, *, watched: bool) -> None:
        """Close the thought in the model's stead.

        Args:
            closing: the marker.
            watched: the model may go on thinking behind it. Not so where a grammar leaves no room for that: a marker
                in a string is none.
        """
        if watched:
            self._splitter.force()
        self.feed(closing, 0)

    def finish(self, reason: str) -> Visible | None:
        """The engine has ended the output; return what was held back.

        Raises:
            FormatBroken: nothing was shown, and the output ended by itself inside its thought; or what was shown of a
                direct answer turned out to be a thought.
        """
        visible = self._finish(reason)
        if self._calls is None and self._echo is None and self._response is None:
            return visible
        return self._read(visible, over=True)

    def _finish(self, reason: str) -> Visible | None:
        visible = self._settle(self._splitter.flush(), final=True)
        if self.finish_reason is None:
            visible = _joined(visible, self._flush_stops())
            if self.thinking and not self.shown and reason != "length":
                raise FormatBroken("the thought was never closed")
            self.finish_reason = reason
        return visible

    def _cut_at_total(
        self,
        text: str,
        left: int,
        ids: list[int] | None,
        logprobs: list[TokenLogprob] | None,
        lengths: list[int],
    ) -> Visible | None:
        """The engine gave more than the client's bound on the whole output: take what fits, and end."""
        visible = None
        if left > 0:
            fit = lengths[:left]
            visible = self._feed(
                text[: sum(fit)], left, ids and ids[:left], logprobs and logprobs[:left], fit
            )
        if self.finish_reason is None:
            visible = _joined(visible, self._finish("length"))
        return visible

    def _queue(self, lengths: list[int], counts: int, entries: list[TokenLogprob]) -> None:
        """Queue the tokens of a chunk, to be counted (as `counts` each) when the splitter has settled their text."""
        for at, length in enumerate(lengths):
            entry = entries[at : at + 1] if len(entries) == len(lengths) else []
            end = self._fed + length
            last = self._segments[-1] if self._segments else None
            if last is not None and last.end == last.start:
                # A token that completed no character belongs to the one that does.
                last.end, last.tokens = end, last.tokens + counts
                last.logprobs += entry
            else:
                self._segments.append(_Segment(self._fed, end, counts, entry))
            self._fed = end

    def _settle(self, pieces: list[Piece], *, final: bool = False) -> Visible | None:
        """Count the tokens whose text is settled by now, and release what of it is visible."""
        for piece in pieces:
            if piece.kind == "response":
                self._settled_ahead.append(piece)
                if self._first_thought is None:
                    self._first_thought = len(self._thought)
                continue
            self._take_thought(piece.text)
        limit = self._bounds.response
        settled = self._fed if final else self._splitter.settled
        out: list[Entry] = []
        counted: list[_Counted] = []
        while self._segments and (limit is None or self.response_tokens < limit):
            segment = self._segments[0]
            if not final and (segment.end > settled or segment.end == segment.start):
                break
            self._segments.popleft()
            text = self._visible_part(segment)
            # The end-of-sequence token has no text; behind a response it is the response's.
            of_response = bool(text) or (segment.end == segment.start and not self.thinking)
            counted.append(_Counted(len(text), segment.tokens, segment.tokens if of_response else 0))
            self.response_tokens += counted[-1].of_response
            if text:
                out += _entries(text, segment)
        visible = self._release(out)
        if self._stops is not None and self._stops.matched:
            self._uncount_behind(counted)
        if limit is not None and self.response_tokens >= limit and self.finish_reason is None and self.shown:
            visible = _joined(visible, self._flush_stops())
            self.finish_reason = "length"
        if self.finish_reason is not None:
            # Of the chunk in which the response ended, what is behind its end.
            self.completion_tokens -= sum(segment.tokens for segment in self._segments)
            self._segments.clear()
        # What comes behind the end of a response does not break it.
        if self._splitter.broken and self.finish_reason is None:
            raise FormatBroken("a direct answer held a thought")
        return visible

    def _visible_part(self, segment: _Segment) -> str:
        """The characters of a settled segment that are the response's."""
        text = ""
        ahead = self._settled_ahead
        while ahead and ahead[0].start < segment.end:
            piece = ahead[0]
            text += piece.text[max(segment.start - piece.start, 0) : segment.end - piece.start]
            if piece.start + len(piece.text) > segment.end:
                break
            ahead.popleft()
        return text

    def _release(self, entries: list[Entry]) -> Visible | None:
        """Pass visible text through the stop strings; return what no stop can reach any more."""
        if not entries:
            return None
        self.shown = True
        if self._stops is None:
            return _visible(entries)
        free = self._stops.feed("".join(text for text, _ in entries))
        if self._stops.matched:
            self.finish_reason = "stop"
        return self._free_to_go(entries, free)

    def _uncount_behind(self, counted: list[_Counted]) -> None:
        """Take back the tokens, of those just counted, that lie wholly behind the stop string."""
        assert self._stops is not None
        behind, self._stops.behind = self._stops.behind, 0
        while counted and counted[-1].visible <= behind:
            last = counted.pop()
            behind -= last.visible
            self.completion_tokens -= last.tokens
            self.response_tokens -= last.of_response

    def _flush_stops(self) -> Visible | None:
        return None if self._stops is None else self._free_to_go([], self._stops.flush())

    def _free_to_go(self, entries: list[Entry], free: str) -> Visible | None:
        """Release `free` characters more: as text, or in whole tokens where their logprobs go with them."""
        if not self._wants_logprobs:
            return Visible(free) if free else None
        self._unreleased += entries
        self._free += len(free)
        out: list[Entry] = []
        while self._unreleased and len(self._unreleased[0][0]) <= self._free:
            out.append(self._unreleased.popleft())
            self._free -= len(out[-1][0])
        if self._free and self.finish_reason is not None and self._unreleased:
            # The stop string begins inside this token.
            text, entry = self._unreleased.popleft()
            text = text[: self._free]
            out.append((text, entry and trimmed(entry, text)))
        return _visible(out) if out else None


def _guarded(part: Part, echo: EchoGuard) -> tuple[Part, ...]:
    """A part as the guard gives it back. The arguments of calls are not changed: they would be no JSON any more."""
    if isinstance(part, str):
        return (echo.feed(part),)
    # What is held back stands before the call.
    return (part,) if part.id is None else (echo.flush(), part)


def _entries(text: str, segment: _Segment) -> list[Entry]:
    """The visible text of a segment, with the logprobs of its tokens cut to what is visible."""
    if not segment.logprobs:
        return [(text, None)]
    whole = len(text) == segment.end - segment.start
    first, *others = segment.logprobs if whole else [trimmed(segment.logprobs[0], text)]
    return [(text, first), *(("", entry) for entry in others)]


def _visible(entries: list[Entry]) -> Visible:
    return Visible("".join(text for text, _ in entries), [entry for _, entry in entries if entry is not None])


def _joined(first: Visible | None, second: Visible | None) -> Visible | None:
    if first is None or second is None:
        return first or second
    return Visible(first.text + second.text, [*first.logprobs, *second.logprobs])
