"""Texts as words, and as sets of word 5-grams (shingles): what two instructions are compared by."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5

# Chinese, Japanese, Thai, Lao, Burmese and Khmer put no space between words: each character counts as one.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_EDGES = string.punctuation + "“”‘’„«»…–—。、「」"

Ids = NDArray[np.int64]


def normalized(text: str) -> str:
    """The text without differences of width, case and white space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def words_of(normal: str) -> list[str]:
    """The words of a normalized text, without the punctuation at their edges.

    A word of nothing else stays: `x + y` and `x - y` are not the same.
    """
    found = normal.split(" ") if normal.isascii() else _WORD.findall(normal)
    return [word.strip(_EDGES) or word for word in found if word]


@dataclass(frozen=True, slots=True)
class Shingles:
    """The shingles of some texts, as numbers in order of rarity: the rarest comes first."""

    sets: Sequence[Ids]
    """Of each text, ascending, each shingle once; empty for a text with fewer words than a shingle has."""
    lonely: int
    """Shingles below this number are in one text only."""


def shingles_of(texts: Iterable[Sequence[str]]) -> Shingles:
    """Number the shingles of texts. Equal shingles have equal numbers and different ones different: nothing is hashed.

    Args:
        texts: their words.
    """
    texts = list(texts)
    known: dict[str, int] = {}
    flat = np.fromiter(
        (known.setdefault(word, len(known)) for word in chain.from_iterable(texts)), dtype=np.int64
    )
    lengths = np.array([len(words) for words in texts], dtype=np.int64)
    if len(flat) < SHINGLE:
        return Shingles([np.empty(0, np.int64)] * len(texts), 0)
    grams = flat
    for more in range(1, SHINGLE):  # a longer n-gram is a shorter one and the word after it
        grams = _numbered(grams[:-1] * len(known) + flat[more:])
    owners = np.repeat(np.arange(len(texts)), lengths)
    inside = owners[: len(grams)] == owners[SHINGLE - 1 :]  # the others run from one text into the next
    grams, owners = _numbered(grams[inside]), owners[: len(inside)][inside]
    kinds = int(grams.max(initial=-1)) + 1
    pairs = np.unique(owners * kinds + grams) if kinds else grams
    owners, grams = pairs // max(kinds, 1), pairs % max(kinds, 1)
    counts = np.bincount(grams, minlength=kinds)
    ranks = np.empty(kinds, np.int64)
    ranks[np.argsort(counts, kind="stable")] = np.arange(kinds)
    ranked = np.sort(owners * kinds + ranks[grams])
    ends = np.searchsorted(ranked, np.arange(1, len(texts)) * kinds)
    return Shingles(np.split(ranked % max(kinds, 1), ends), int(np.count_nonzero(counts == 1)))


def _numbered(values: Ids) -> Ids:
    return np.unique(values, return_inverse=True)[1].astype(np.int64, copy=False)
