"""Tokens to text, a token at a time, with the two kinds of tokenizer whose tokens do not map to characters one by one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

pytest.importorskip("torch")

from thinkserve.engines.transformers_server.detokenizer import LIMIT, Detokenizer, StopStrings

TEXTS = ["hello world, the quick brown fox", "naïve café 😀 你好 world €5"]
SPECIAL = "<|eos|>"


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    return tokenizer


def characters() -> Tokenizer:
    vocab = {char: index for index, char in enumerate([SPECIAL, *"abcdefgh .🙂"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([SPECIAL])
    return tokenizer


def words() -> Tokenizer:
    """Without a decoder: tokens are joined by spaces."""
    vocab = {word: index for index, word in enumerate([SPECIAL, "one", "two", "three", "four"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL))
    tokenizer.add_special_tokens([SPECIAL])
    return tokenizer


BYTES = byte_level()
TOKENIZERS = {"byte level": BYTES, "characters": characters(), "words": words()}


def detokenizer(tokenizer: Tokenizer, prompt_ids: list[int] | None = None) -> Detokenizer:
    def decode(ids: list[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text

    return Detokenizer(decode, prompt_ids or [], frozenset([0]))


def push_all(tokenizer: Tokenizer, ids: list[int], prompt_ids: list[int] | None = None) -> str:
    each = detokenizer(tokenizer, prompt_ids)
    return "".join([*map(each.push, ids), each.flush()])


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_deltas_add_up_to_the_decoded_whole(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=100))
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    got = push_all(tokenizer, ids)
    # What may be missing is only what never became a character.
    assert whole.startswith(got)
    assert set(whole[len(got) :]) <= {"\ufffd"}


@given(st.text(alphabet="ab é😀€你 ", max_size=60))
def test_whole_characters_come_out_whole(text: str) -> None:
    each = detokenizer(BYTES)
    deltas = [each.push(token_id) for token_id in BYTES.encode(text).ids]
    assert "".join(deltas) == text
    assert not any("\ufffd" in delta for delta in deltas)


def byte_token(char: str) -> int:
    """The token that stands for one byte, by its character in the byte-level alphabet."""
    token_id = BYTES.token_to_id(char)
    assert token_id is not None
    return token_id


def test_half_a_character_waits_for_its_other_half_and_is_dropped_at_the_end() -> None:
    first, *rest = [byte_token(char) for char in "ðŁĴ©"]  # the four bytes of 💩, one token each
    each = detokenizer(BYTES)
    assert [each.push(first), *map(each.push, rest)] == ["", "", "", "💩"]
    assert each.push(first) == ""
    assert each.flush() == ""


def test_junk_bytes_do_not_hold_text_back_for_ever() -> None:
    continuation = byte_token("Ģ")  # byte 0x80: never the start of a character
    each = detokenizer(BYTES)
    shown = "".join(each.push(continuation) for _ in range(3 * LIMIT))
    assert set(shown) == {"\ufffd"}
    assert len(shown) >= 3 * LIMIT - 12


def test_first_token_has_the_text_it_has_after_the_prompt() -> None:
    tokenizer = TOKENIZERS["words"]
    assert push_all(tokenizer, [2, 3], prompt_ids=[1]) == " two three"


def test_special_tokens_are_left_out() -> None:
    assert push_all(TOKENIZERS["characters"], [1, 0, 2]) == "ab"


def test_work_for_a_token_does_not_grow_with_the_output() -> None:
    longest = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return "".join("abc"[token_id] for token_id in ids)

    each = Detokenizer(decode, [0] * 1000)
    for _ in range(1000):
        each.push(1)
    assert longest < 20


def cut(chunks: list[str], stops: list[str]) -> tuple[str, str | None]:
    strings = StopStrings(stops)
    text = ""
    for chunk in chunks:
        free, met = strings.push(chunk)
        text += free
        if met is not None:
            return text, met
    return text + strings.flush(), None


@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=10),
)
def test_any_chunking_is_cut_at_the_same_place(text: str, stops: list[str], cuts: list[int]) -> None:
    bounds = sorted({0, len(text), *(min(each, len(text)) for each in cuts)})
    chunks = [text[start:end] for start, end in itertools.pairwise(bounds)]
    assert cut(chunks, stops) == cut([text], stops) == cut(list(text), stops)


def test_start_of_a_stop_string_is_held_until_it_is_none() -> None:
    strings = StopStrings(["stop"])
    assert [strings.push(chunk) for chunk in ["a st", "o", "re", "sto"]] == [
        ("a ", None),
        ("", None),
        ("store", None),
        ("", None),
    ]
    assert strings.flush() == "sto"


def test_stop_string_that_is_complete_first_counts() -> None:
    assert cut(["xabcd"], ["abcd", "bc"]) == ("xa", "bc")
