"""The line that parts what a judge is told from what it is to judge.

A response that holds the closing line of its section could go on with words that look like ours. So the lines of each
request begin with a word that is made of a hash of all its texts: a text cannot contain the hash of itself, and the same
request always has the same one, so it can be repeated and looked up.
"""

from __future__ import annotations

from hashlib import sha256
from itertools import count


def fence(*texts: str) -> str:
    """A word that is in none of the texts, and that hangs on all of them.

    Args:
        texts: what will stand between the lines.
    """
    folded = [text.casefold() for text in texts]
    digest = sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)
    for turn in count():
        word = sha256(digest.digest() + turn.to_bytes(8, "big")).hexdigest()[:16]
        if not any(word in text for text in folded):
            return f"====={word}"
    raise AssertionError("count() does not end")
