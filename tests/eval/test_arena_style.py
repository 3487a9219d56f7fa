"""Length and markdown, counted as Arena-Hard's answer files have them."""

import hashlib
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.eval.arena_data import V01, V20, needs_data, rows
from thinkserve.eval.answer import Style
from thinkserve.eval.arena.style import metadata_of, style_of
from thinkserve.eval.arena.tokens import ESTIMATE, O200K_FILE, estimated_tokens, token_counter
from thinkserve.thoughts import Response

TEXT = """# Title
## Part
1. one **bold** and __also__
  2. two
- three
* four **a** **b**
```python
# no header
- no list
```
#no header
"""


def test_markdown_outside_of_code_is_counted() -> None:
    """Headers h1 and h2; lists 2 ordered, 2 unordered; bold 3 + 1; the code between the fences does not count."""
    assert style_of(Response(TEXT), len) == Style(len(TEXT), headers=2, lists=4, bold=4)
    counts = metadata_of(Response(TEXT), len)
    assert counts["header_count"] == {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0}
    assert counts["list_count"] == {"ordered": 2, "unordered": 2}
    assert counts["bold_count"] == {"**": 3, "__": 1}


def test_what_is_in_a_code_block_goes_everywhere_as_the_authors_do_it() -> None:
    """`**b**` is the text of a block, so the one outside goes with it."""
    assert style_of(Response("**b** and **c** ```**b**```"), len).bold == 1


def test_an_empty_response_has_no_style() -> None:
    assert style_of(Response(""), estimated_tokens) == Style(0, 0, 0, 0)


def test_the_estimate_is_near_for_plain_text() -> None:
    """13 words and a full stop: gpt-4o's tokenizer makes 14 tokens of it."""
    count = estimated_tokens("The quick brown fox jumps over the lazy dog and then it sleeps.")
    assert 11 <= count <= 16


def test_the_counter_does_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    token_counter.cache_clear()
    name, count = token_counter()
    token_counter.cache_clear()
    assert name == ESTIMATE
    assert count("two words") == estimated_tokens("two words") > 0


def test_the_tokenizer_is_looked_for_where_tiktoken_keeps_it() -> None:
    source = inspect.getsource(import_module("tiktoken_ext.openai_public"))
    addresses = re.findall(r'"(https[^"]+)"', source)
    assert O200K_FILE in {hashlib.sha1(address.encode()).hexdigest() for address in addresses}


@needs_data
@pytest.mark.parametrize("folder", [V01, V20])
def test_markdown_is_counted_as_in_every_official_answer(folder: Path) -> None:
    compared = 0
    for path in sorted((folder / "model_answer").glob("*.gz")):
        for row in rows(path):
            if folder == V01:
                text, theirs = row["choices"][0]["turns"][0]["content"], row["conv_metadata"]
            else:
                text, theirs = row["messages"][-1]["content"]["answer"], row["metadata"]
            assert metadata_of(Response(text), len) | {"token_len": theirs["token_len"]} == theirs
            compared += 1
    assert compared == (2000 if folder == V01 else 2248)


@needs_data
def test_the_estimate_is_near_for_the_answers_it_was_fitted_to() -> None:
    ours = theirs = 0
    for row in rows(V20 / "model_answer" / "sky-t1-32b.jsonl.gz")[::5]:
        ours += estimated_tokens(row["messages"][-1]["content"]["answer"])
        theirs += row["metadata"]["token_len"]
    assert ours == pytest.approx(theirs, rel=0.05)
