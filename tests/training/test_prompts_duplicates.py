"""Duplicates among instructions: equal up to case, width and white space, or near in their word 5-grams."""

from __future__ import annotations

import time
from random import Random

import pytest

from thinkserve.training.prompts.duplicates import Duplicate, NearIndex, find_duplicates, jaccard
from thinkserve.training.prompts.words import normalized, shingles_of, words_of


def found(texts: list[str], threshold: float = 0.8) -> list[tuple[int, int, str]]:
    return [(one.number, one.of, one.kind) for one in find_duplicates(texts, threshold)]


def sentence(*words: int | str) -> str:
    return " ".join(f"w{word}" for word in words)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is tea?", "what  is\tTEA?\n"),
        ("Straße", "STRASSE"),
        ("ｗｉｄｅ", "wide"),
        ("ﬁne", "fine"),
        ("e\u0301t\u00e9", "\u00e9te\u0301"),
        ("a\u00a0b", "a b"),
    ],
)
def test_case_width_composition_and_white_space_make_no_difference(one: str, other: str) -> None:
    assert found([one, other]) == [(1, 0, "exact")]


def test_words_lose_punctuation_at_their_edges_but_operators_stay() -> None:
    assert words_of(normalized('He said: "don\'t (ever) x + y".')) == [
        "he", "said", "don't", "ever", "x", "+", "y",
    ]  # fmt: skip
    assert words_of(normalized("x + y")) != words_of(normalized("x - y"))
    assert words_of("") == words_of(normalized("  ")) == []


def test_scripts_without_spaces_count_by_character() -> None:
    assert words_of(normalized("今日は good！茶")) == ["今", "日", "は", "good", "茶"]
    question = "请告诉我今天北京的天气怎么样以及明天会不会下雨谢谢你"
    assert found([question, question + "吗"]) == [(1, 0, "near")]


def test_the_threshold_is_reached_exactly() -> None:
    """12 words have 8 shingles; one more word at the end makes 9, of which 8 are common: J = 8/9 = 0.888...

    With two more J = 8/10 = 0.8, with three more 8/11.
    """
    base = list(range(12))
    texts = [sentence(*base), sentence(*base, 91, 92)]
    sets = shingles_of(words_of(text) for text in texts).sets
    assert [len(one) for one in sets] == [8, 10]
    assert jaccard(*sets) == 0.8
    assert found(texts) == [(1, 0, "near")]
    assert found(texts, 0.81) == []
    assert found([sentence(*base), sentence(*base, 91, 92, 93)]) == []


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_products_that_floats_round_up_still_reach_the_threshold(threshold: float) -> None:
    """Ten shingles, of which as many are in the other text as the threshold asks for: 0.7 * 10 is above 7 in floats.

    The other text is a beginning of the first of `10 * threshold` shingles, so that J = threshold.
    """
    shingles = round(10 * threshold)
    assert found([sentence(*range(14)), sentence(*range(shingles + 4))], threshold) == [(1, 0, "near")]
    assert found([sentence(*range(shingles + 4)), sentence(*range(14))], threshold) == [(1, 0, "near")]


def test_short_texts_are_compared_exactly_alone() -> None:
    assert found(["one two three four", "one two three four!", "one two three FOUR"]) == [(2, 0, "exact")]
    assert found([sentence(1, 2, 3, 4, 5), sentence(1, 2, 3, 4, 5) + "!"]) == [(1, 0, "near")]


def test_a_threshold_of_one_leaves_near_duplicates_in() -> None:
    texts = [sentence(*range(50)), sentence(*range(50)) + "!", sentence(*range(50)).upper()]
    assert found(texts, 1.0) == [(2, 0, "exact")]


def test_the_first_stays_and_who_resembles_only_a_duplicate_stays_too() -> None:
    """B shares 18 of 20 shingles with A (J = 18/20); C as many with B, but 16 of 20 with A, and 16/20 < 0.85."""
    a, b, c = (sentence(*range(start, start + 22)) for start in (0, 1, 2))
    sets = shingles_of(words_of(text) for text in (a, b, c)).sets
    assert jaccard(sets[0], sets[1]) == jaccard(sets[1], sets[2]) == 17 / 19
    assert jaccard(sets[0], sets[2]) == 16 / 20
    assert found([a, b, c], 0.85) == [(1, 0, "near")]
    assert found([b, a, c], 0.85) == [(1, 0, "near"), (2, 0, "near")]


def test_an_equal_of_a_duplicate_is_one_too() -> None:
    text = sentence(*range(30))
    assert found([text, text + " more", text + " MORE"]) == [(1, 0, "near"), (2, 0, "near")]


def test_repeated_shingles_count_once() -> None:
    """`a b` over and over has two shingles only, so its length does not matter."""
    assert found(["a b " * 10, "a b " * 30]) == [(1, 0, "near")]


def test_nothing_is_found_among_nothing() -> None:
    assert found([]) == found(["x"]) == found(["", "x y"]) == []


@pytest.mark.parametrize("seed", range(30))
def test_no_near_duplicate_is_missed_or_made_up(seed: int) -> None:
    """Against the definition, counted out over all pairs."""
    rng = Random(seed)
    threshold = rng.choice((0.3, 0.5, 0.7, 0.8, 0.9))
    bases = [[rng.choice("abcdefgh") for _ in range(rng.randint(1, 30))] for _ in range(8)]
    texts = []
    for _ in range(60):
        words = list(rng.choice(bases))
        for _ in range(rng.randint(0, 3)):
            words[rng.randrange(len(words))] = rng.choice("abcdefghij")
        texts.append(" ".join(words))

    def similar(one: str, other: str) -> bool:
        first, second = (
            {tuple(words[at : at + 5]) for at in range(len(words) - 4)}
            for words in (one.split(), other.split())
        )
        return one == other or (
            bool(first and second) and len(first & second) >= threshold * len(first | second)
        )

    kept: list[int] = []
    expected = []
    for number, text in enumerate(texts):
        if any(similar(texts[earlier], text) for earlier in kept):
            expected.append(number)
        else:
            kept.append(number)
    duplicates = find_duplicates(texts, threshold)
    assert [one.number for one in duplicates] == expected
    assert all(one.of in kept and similar(texts[one.of], texts[one.number]) for one in duplicates)


def test_an_index_finds_only_what_was_added() -> None:
    text = sentence(*range(20))
    index = NearIndex(shingles_of([words_of(text), words_of(text)]), 0.8)
    assert index.find(1) is None
    index.add(0)
    assert index.find(1) == 0


def test_thousands_of_prompts_with_one_template_take_seconds() -> None:
    """Their template is 9 of 10 words, so that nearly all of the 2 million pairs are candidates, and none is near."""
    rng = Random(0)
    template = [f"t{number}" for number in range(90)]
    texts = [
        " ".join([*template[:45], *(f"u{rng.randrange(10**9)}" for _ in range(12)), *template[45:]])
        for _ in range(2000)
    ]
    began = time.process_time()
    assert find_duplicates(texts, 0.8) == []
    assert time.process_time() - began < 20  # here 2


def test_time_grows_with_the_number_of_prompts_and_not_with_its_square() -> None:
    """Of 60 words on average, with a vocabulary as skewed as a language's; every tenth is an earlier one, changed."""
    rng = Random(0)
    words = [f"w{number}" for number in range(20_000)]
    weights = [1 / number for number in range(1, len(words) + 1)]
    drawn = rng.choices(words, weights, k=12_000 * 60)
    texts = [" ".join(drawn[60 * at : 60 * at + 60]) for at in range(12_000)]
    texts[9::10] = [f"{text} {number}" for number, text in enumerate(texts[0::10])]
    began = time.process_time()
    assert find_duplicates(texts, 0.8) == [Duplicate(at, at - 9, "near") for at in range(9, 12_000, 10)]
    assert time.process_time() - began < 12  # here 2; 64 thousand take 13
