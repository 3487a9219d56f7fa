"""Responses that repeat their thought: how much they do, and a guard against long verbatim repeats.

A thought is hidden as a stretch of the output; nothing keeps a model from writing the same words again in its
response. What can be told without knowing what the words mean is told here: runs of words that stand in the thought
just so. Words are compared; case, white space and punctuation do not count. Where a script has no spaces between
words, each character counts as one.

The limits of it, which are wide:
- A paraphrase, a translation or a summary of the thought is no repeat, and neither is anything below the length.
- What the thought took from the question, or from anything else that the client knows, is a repeat nevertheless.
- The thoughts of TPO hold a draft of the response. A good response then repeats much of its thought, as it should:
  there `redact` would do harm, and `flag` counts what is no fault.
"""

from __future__ import annotations

import re
import sys
from array import array
from bisect import bisect_left
from collections import deque
from typing import Literal

EchoMode = Literal["flag", "redact"]
REDACTED = "[redacted]"
MOST_WORDS = 256
"""The most that the length of a run to look for may be."""

# White space and punctuation: ASCII's, Latin-1's, and that of other scripts.
_BETWEEN = (
    r"\s!-/:-@\[-`{-~\xa1\xa7\xab\xb6\xb7\xbb\xbf\u055a-\u055f\u0589\u05be\u05f3\u05f4\u060c\u061b\u061e\u061f\u06d4"
    r"\u0964\u0965\u2000-\u206f\u3000-\u3004\u3008-\u3020\u3030\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
# Thai, Lao, Myanmar, Khmer, Japanese and Chinese: words are not set apart, so each character counts.
_ALONE = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
# A longer word counts as several, so that there is an end to how long the beginning of one is held back.
_LONGEST_WORD = 64
_WORD = re.compile(f"[{_ALONE}]|[^{_BETWEEN}{_ALONE}]{{1,{_LONGEST_WORD}}}")
_PART = re.compile(f"([{_BETWEEN}]+)|([{_ALONE}])|[^{_BETWEEN}{_ALONE}]{{1,{_LONGEST_WORD}}}")
_REST = re.compile(f"[^{_BETWEEN}{_ALONE}]*")


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def echo_share(thought: str, response: str) -> float:
    """The share of a response (0 to 1, in words) that is its longest run of words which stands in the thought.

    Linear in both texts: a suffix automaton of the response, which the thought is then read through.
    """
    words = _words(response)
    if not words:
        return 0.0
    # A state stands for the runs of the response that end at the same places; `longest` of them has `length` words,
    # and `link` leads to the state of the longest suffix that ends at more places.
    following: list[dict[str, int]] = [{}]
    link, length = [-1], [0]
    last = 0
    for word in words:
        state = len(following)
        following.append({})
        length.append(length[last] + 1)
        link.append(0)
        before = last
        while before >= 0 and word not in following[before]:
            following[before][word] = state
            before = link[before]
        if before >= 0:
            after = following[before][word]
            if length[after] > length[before] + 1:
                # Its shorter runs now end at one place more than its longest: they get a state of their own.
                split = len(following)
                following.append(following[after].copy())
                length.append(length[before] + 1)
                link.append(link[after])
                link[after] = split
                while before >= 0 and following[before].get(word) == after:
                    following[before][word] = split
                    before = link[before]
                after = split
            link[state] = after
        last = state

    best = run = state = 0
    for word in _words(thought):
        while (then := following[state].get(word)) is None and state:
            state = link[state]
            run = length[state]
        if then is not None:
            state = then
            run += 1
            best = max(best, run)
    return best / len(words)


class _Codes(dict[str, str]):
    """Gives each word a character, so that texts are compared as strings of one character a word."""

    def __missing__(self, word: str) -> str:
        # Past the last code point words share it: a thought so long may be taken to be repeated where it is not.
        code = self[word] = chr(min(len(self) + 1, sys.maxunicode))
        return code


_UNKNOWN = "\0"  # the code of all words that the thought does not have


class EchoGuard:
    """Finds runs of words in a response that stand in its thought; for a text that comes in pieces.

    Give it the thought (`thought`) before the response (`feed`, then `flush`). However the texts are cut, the result
    is the same. In the mode "flag" it gives every text back as it came, and counts. In the mode "redact" it puts
    `[redacted]` in the place of such a run, and holds text back only while a run is growing that may become one.

    Args:
        longest: how many words a run must have to count as a repeat; 1 to `MOST_WORDS`.
        mode: what to do about repeats.
    """

    __slots__ = (
        "_at",
        "_codes",
        "_gap",
        "_held",
        "_longest",
        "_new",
        "_order",
        "_partial",
        "_redacting",
        "_redacts",
        "_rest",
        "_run",
        "_thought",
        "_vocabulary",
        "repeats",
    )

    def __init__(self, longest: int, mode: EchoMode = "flag") -> None:
        if not 1 <= longest <= MOST_WORDS:
            raise ValueError(f"a run of {longest} words; it must be of 1 to {MOST_WORDS}")
        self.repeats = 0
        """How many repeats there were, as far as the response has come. Repeats that touch are one."""
        self._longest = longest
        self._redacts = mode == "redact"
        self._new: list[str] = []  # of the thought, not in the index yet
        self._codes = _Codes()
        self._thought = ""  # a character a word
        self._order = array("I")  # where in the thought its suffixes begin, in their order
        self._vocabulary: list[str] = []  # the thought's words, in order
        # The longest end of the response, of at most `longest` words, that stands in the thought, and where it does.
        self._run = ""
        self._at = 0
        self._partial = ""  # the beginning of a word of the thought, which may go on
        self._rest = 0  # how many characters may still belong to a word whose beginning was shown
        # Words of the run that are not decided on, each with what stands before it if that is not shown yet.
        self._held: deque[tuple[str, str]] = deque()
        self._gap = ""  # what came after the last word, if that is held or was redacted
        self._redacting = False  # whether the last word that was decided on was redacted

    def thought(self, text: str) -> None:
        """Take the next text of the thought."""
        self._new.append(text)

    def feed(self, text: str) -> str:
        """Take the next text of the response; return what of it (and of what was held back) can be shown."""
        if self._new:
            self._index()
        shown: list[str] = []
        start = self._skip_rest(text, shown) if self._rest else 0
        rest, self._partial = self._partial + text[start:], ""
        for part in _PART.finditer(rest):
            word = part[0]
            if part.lastindex == 1:
                self._between(word, shown)
            elif part.lastindex == 2 or part.end() < len(rest):
                self._take(word, self._codes.get(word.casefold(), _UNKNOWN), shown)
            elif self._begins_word(word.casefold()):
                self._partial = word
            else:
                self._take(word, _UNKNOWN, shown)
                self._rest = _LONGEST_WORD - len(word)
        return "".join(shown) if self._redacts else text

    def flush(self) -> str:
        """The response has ended; return what was held back."""
        shown: list[str] = []
        if self._partial:
            self._take(self._partial, self._codes.get(self._partial.casefold(), _UNKNOWN), shown)
        shown += (text for word in self._held for text in word)
        shown.append(self._gap)
        self._held.clear()
        self._partial = self._gap = self._run = ""
        self._rest, self._redacting = 0, False
        return "".join(shown) if self._redacts else ""

    def _index(self) -> None:
        """Put the new text of the thought into the index: its suffixes, sorted by as many words as a run has."""
        words = _words("".join(self._new))
        self._new.clear()
        self._thought = thought = self._thought + "".join(map(self._codes.__getitem__, words))
        longest = self._longest
        self._order = array("I", sorted(range(len(thought)), key=lambda at: thought[at : at + longest]))
        self._vocabulary = sorted(self._codes)

    def _begins_word(self, text: str) -> bool:
        at = bisect_left(self._vocabulary, text)
        return at < len(self._vocabulary) and self._vocabulary[at].startswith(text)

    def _skip_rest(self, text: str, shown: list[str]) -> int:
        """Show the rest of a word whose beginning was shown; return where it ends."""
        found = _REST.match(text, 0, self._rest)
        end = found.end() if found else 0
        shown.append(text[:end])
        self._rest = self._rest - end if end == len(text) else 0
        return end

    def _between(self, text: str, shown: list[str]) -> None:
        if self._held or self._redacting:
            self._gap += text
        else:
            shown.append(text)

    def _take(self, word: str, code: str, shown: list[str]) -> None:
        """Take a whole word: it makes the run longer, or shorter; show or redact what that decides on."""
        self._held.append((self._gap, word))
        self._gap = ""
        self._extend(code)
        if len(self._run) == self._longest:
            if not self._redacting:
                self.repeats += 1
                self._redacting = True
                shown.append(REDACTED)
            self._held.clear()
            return
        while len(self._held) > len(self._run):
            shown += self._held.popleft()
            self._redacting = False
        if self._held and not self._redacting:
            before, word = self._held[0]
            shown.append(before)
            self._held[0] = ("", word)

    def _extend(self, code: str) -> None:
        """Make `_run` the longest end of the response that stands in the thought, now that this word has come."""
        if code == _UNKNOWN:
            self._run = ""
            return
        run, at = self._run + code, self._at
        if len(run) > self._longest:
            run, at = run[1:], at + 1
        if self._thought[at + len(run) - 1 : at + len(run)] != code:
            # It does not go on where it was found; perhaps elsewhere, or a shorter end of it does.
            while (found := self._find(run)) is None:
                run = run[1:]
            at = found
        self._run, self._at = run, at

    def _find(self, run: str) -> int | None:
        thought, length = self._thought, len(run)
        place = bisect_left(self._order, run, key=lambda at: thought[at : at + length])
        if place < len(self._order) and thought.startswith(run, self._order[place]):
            return self._order[place]
        return None
