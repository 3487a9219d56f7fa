"""The pocket tokenizer: round trips, the thought prompt's single token, the chat template."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from thinkserve.thoughts import get_format
from thinkserve.training.pocket.tokenizer import MARKER, SPECIAL, THOUGHT_PROMPT, build_tokenizer, render

TOKENIZER = build_tokenizer()
PRINTABLE = "".join(chr(code) for code in range(32, 127)) + "\n"
NO_SPECIAL = st.text(PRINTABLE).filter(lambda text: not any(token in text for token in SPECIAL))


def encode(text: str) -> list[int]:
    tokens: list[int] = TOKENIZER.encode(text, add_special_tokens=False)
    return tokens


@settings(deadline=None)
@given(NO_SPECIAL)
def test_printable_ascii_comes_back_as_it_was(text: str) -> None:
    assert TOKENIZER.decode(encode(text), skip_special_tokens=True) == text


@settings(deadline=None)
@given(st.lists(st.sampled_from(["Repeat", " is", "Tell", "Hmm", ",", " ", "let me", MARKER, "a", "7"])))
def test_the_worlds_words_come_back_as_they_were(parts: list[str]) -> None:
    text = "".join(parts)
    assert TOKENIZER.decode(encode(text), skip_special_tokens=True) == text


@settings(deadline=None)
@given(st.text())
def test_any_unicode_text_has_tokens(text: str) -> None:
    assert all(0 <= token < len(TOKENIZER) for token in encode(text))


def test_every_ascii_letter_and_digit_is_a_token_of_its_own() -> None:
    for char in string.ascii_letters + string.digits:
        assert len(encode(char)) == 1
        assert TOKENIZER.unk_token_id not in encode(char)


def test_a_word_inside_a_longer_one_is_spelled_out() -> None:
    assert len(encode("Repeatin")) == 8


def test_thought_prompt_is_one_token_and_the_formats_own_text() -> None:
    assert get_format("tpo-specific").thought_prompt("X") == THOUGHT_PROMPT + "X"
    assert THOUGHT_PROMPT.endswith('"<R>".\n\nUser query: ')
    assert len(encode(THOUGHT_PROMPT)) == 1
    assert len(encode(THOUGHT_PROMPT + "Repeat abc")) == 1 + 5


def test_marker_is_one_token_and_survives_skipping_special_tokens() -> None:
    tokens = encode(f"b>a{MARKER}a")
    assert len(tokens) == 5
    assert TOKENIZER.decode([*tokens, TOKENIZER.eos_token_id], skip_special_tokens=True) == "b>a<R>a"


def test_saved_tokenizer_is_the_same_and_knows_its_special_tokens(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = render(THOUGHT_PROMPT + "Tell Mira what ice is", earlier=[("Repeat ab", "ab")])
    assert loaded.encode(text, add_special_tokens=False) == encode(text)
    assert loaded.decode(encode(text), skip_special_tokens=True) == (
        "Repeat ab" + "ab" + THOUGHT_PROMPT + "Tell Mira what ice is"
    )
    assert loaded.chat_template == TOKENIZER.chat_template


# --- chat template ---


def chat(
    *messages: dict[str, object], tokenizer: PreTrainedTokenizerFast = TOKENIZER, **options: bool
) -> str:
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    return text


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def assistant(content: object) -> dict[str, object]:
    return {"role": "assistant", "content": content}


def system(content: object) -> dict[str, object]:
    return {"role": "system", "content": content}


@pytest.mark.parametrize(
    ("messages", "options", "expected"),
    [
        ([user("Hi")], {"add_generation_prompt": True}, "<bos><user>Hi<assistant>"),
        ([user("Hi")], {}, "<bos><user>Hi"),
        ([user(" Hi\n")], {}, "<bos><user> Hi\n"),
        (
            [system("Be kind."), user("Hi")],
            {"add_generation_prompt": True},
            "<bos><system>Be kind.<user>Hi<assistant>",
        ),
        (
            [user("a"), assistant("b"), user("c")],
            {"add_generation_prompt": True},
            "<bos><user>a<assistant>b<eos><user>c<assistant>",
        ),
        (
            [user([{"type": "text", "text": "Repeat "}, {"type": "text", "text": "ab"}])],
            {"add_generation_prompt": True},
            "<bos><user>Repeat ab<assistant>",
        ),
        ([user("a"), assistant("b")], {}, "<bos><user>a<assistant>b<eos>"),
        ([user("a"), assistant("Bon")], {"continue_final_message": True}, "<bos><user>a<assistant>Bon"),
        (
            [user("a"), assistant([{"type": "text", "text": "Bon"}])],
            {"continue_final_message": True},
            "<bos><user>a<assistant>Bon",
        ),
        ([user("a"), assistant(None)], {}, "<bos><user>a<assistant><eos>"),
    ],
)
def test_chat_template_renders(
    messages: list[dict[str, object]], options: dict[str, bool], expected: str
) -> None:
    assert chat(*messages, **options) == expected


def test_render_for_training_is_what_the_chat_template_makes() -> None:
    assert render("c", system="s", earlier=[("a", "b")]) == chat(
        system("s"), user("a"), assistant("b"), user("c"), add_generation_prompt=True
    )
    assert render("c") == chat(user("c"), add_generation_prompt=True)
