"""Which outputs become a pair, and which instructions have none."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from tests.training.pair_outputs import SCORES, Given, group, records
from thinkserve.errors import UsageError
from thinkserve.training.pairs.candidates import Candidates, candidates_of
from thinkserve.training.pairs.selection import Pick, Reason, Selection, select
from thinkserve.training.recipe import PairsRecipe

# Lengths 10, 20 and 60 with scores 1, 2 and 3: `test_length_control.py` derives the values.
THREE: tuple[Given, ...] = (("a" * 10, 1.0), ("b" * 20, 2.0), ("c" * 60, 3.0))
BROKEN: Given = ("thinking and thinking", None, "unclosed")


def pick_of(*outputs: Given, rho: float = 0.0, **keys: Any) -> Pick | Reason:
    recipe = PairsRecipe(**keys)
    return select([group("q", *outputs, recipe=recipe)], rho, recipe, 0).picks[0]


def indices(pick: Pick | Reason) -> tuple[int, int]:
    assert isinstance(pick, Pick), pick
    return pick.chosen.index, pick.rejected.index


def broken_ids(groups: list[Candidates], selection: Selection) -> set[str]:
    return {
        found.id
        for found, pick in zip(groups, selection.picks, strict=True)
        if isinstance(pick, Pick) and pick.rejected_value is None
    }


@pytest.mark.parametrize(("rho", "expected"), [(0.0, (2, 0)), (0.5, (2, 0)), (1.0, (1, 0)), (2.0, (1, 2))])
def test_the_best_value_is_chosen_and_the_worst_rejected(rho: float, expected: tuple[int, int]) -> None:
    """N(score) = -1.2247, 0, 1.2247 and N(length) = -0.9258, -0.4629, 1.3887.

    rho 1: -0.2989, 0.4629, -0.1640. rho 2: 0.6269, 0.9258, -1.5527.
    """
    assert indices(pick_of(*THREE, rho=rho)) == expected


def test_values_and_lengths_come_with_the_pair() -> None:
    pick = pick_of(*THREE, rho=2.0)
    assert isinstance(pick, Pick)
    assert (pick.chosen.score, pick.chosen.length, pick.rejected.length) == (2.0, 20, 60)
    assert (pick.chosen_value, pick.rejected_value) == pytest.approx((0.925820, -1.552716), abs=1e-6)


def test_the_length_of_a_thought_never_counts() -> None:
    long_thought = pick_of(("t" * 500 + "|" + "a" * 10, 1.0), *THREE[1:], rho=2.0)
    assert indices(long_thought) == indices(pick_of(*THREE, rho=2.0))


def test_length_in_tokens_is_another_length() -> None:
    """The first response has more characters, the second more tokens; equal scores but for a hair."""
    outputs: tuple[Given, ...] = (("abcdefghij", 1.0), ("a b c d", 1.1), ("abcdef e", 0.5))
    unit = [pick_of(*outputs, rho=3.0, length=unit) for unit in ("characters", "tokens")]
    assert [indices(pick)[0] for pick in unit] == [1, 0]
    assert [pick.chosen.length for pick in unit if isinstance(pick, Pick)] == [7, 1]


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ([BROKEN, ("", None, "empty")], "no_readable"),
        ([("a", None), ("b", None), BROKEN], "unscored"),
        ([("a", 1.0)], "one_output"),
        ([("a", 1.0), ("a", 1.0)], "one_output"),
        ([("a", 1.0), ("b", None)], "one_output"),
        ([("a", 1.0), ("bb", 1.0), ("ccc", 1.0)], "tied"),
    ],
)
def test_instructions_without_a_contest_have_no_pair(outputs: list[Given], reason: str) -> None:
    assert pick_of(*outputs, rho=0.5, broken="drop") == reason


def test_scores_must_differ_by_more_than_the_least_spread() -> None:
    """0.4 - 0.3 is 0.10000000000000003 in floats, and is no more than 0.1."""
    outputs: list[Given] = [("a", 0.3), ("b", 0.4)]
    assert pick_of(*outputs, min_spread=0.1) == "small_spread"
    assert indices(pick_of(*outputs, min_spread=0.09)) == (1, 0)


def test_the_spread_is_that_of_the_scores_before_length_control() -> None:
    """At rho 2 the pair is of scores 2 and 3, the spread of the instruction's scores is 2."""
    assert indices(pick_of(*THREE, rho=2.0, min_spread=1.5)) == (1, 2)


def test_length_control_may_leave_nothing_to_tell_apart() -> None:
    """Scores 1, 2 and lengths 1, 2 have the same N: at rho 1 both values are 0."""
    assert pick_of(("a", 1.0), ("bb", 2.0), rho=1.0) == "length_control"


def test_a_chosen_output_needs_the_least_score() -> None:
    """At rho 2 the best value is that of score 2; score 3 alone is good enough, and nothing is below it."""
    assert indices(pick_of(*THREE, min_chosen_score=3.0)) == (2, 0)
    assert pick_of(*THREE, min_chosen_score=3.5) == "low_chosen"
    assert indices(pick_of(*THREE, rho=1.0, min_chosen_score=3.0)) == (2, 0)
    assert pick_of(*THREE, rho=2.0, min_chosen_score=3.0) == "length_control"


def test_equal_outputs_count_once_or_as_often_as_they_came() -> None:
    """Scores 1, 1, 1, 5: merged they are 1 and 5 (N = -1, 1), else N(5) = 3 / sqrt(3), with mean 2 and variance 3."""
    outputs: list[Given] = [("a", 1.0), ("a", 1.0), ("a", 1.0), ("b", 5.0)]
    merged, kept = pick_of(*outputs), pick_of(*outputs, duplicates="keep")
    assert isinstance(merged, Pick) and isinstance(kept, Pick)
    assert (merged.chosen_value, merged.rejected_value, merged.rejected_ties) == (1.0, -1.0, 0)
    assert kept.chosen_value == pytest.approx(3**0.5)
    assert kept.rejected_ties == 2
    assert group("q", *outputs).duplicates == 2


def test_the_same_response_after_another_thought_is_another_output() -> None:
    found = group("q", ("so|a", 1.0), ("or|a", 2.0), ("so|a", 1.0))
    assert [one.index for one in found.readable] == [0, 1]
    assert indices(pick_of(("so|a", 1.0), ("or|a", 2.0))) == (1, 0)


def test_scores_of_equal_outputs_are_averaged_without_breaking_ties() -> None:
    """The mean of three times 0.1 must tie with a single 0.1."""
    assert group("q", ("a", 1.0), ("a", 3.0), ("b", 0.0)).readable[0].score == 2.0
    assert pick_of(("a", 0.1), ("a", 0.1), ("a", 0.1), ("b", 0.1)) == "tied"


def test_a_text_is_never_set_against_itself() -> None:
    """A judge gave one text the best and the worst score; kept apart, its worst is passed over."""
    outputs: list[Given] = [("a", 3.0), ("a", 1.0), ("b", 2.0)]
    assert indices(pick_of(*outputs, duplicates="keep")) == (0, 2)


def test_ties_are_drawn_shortest_or_first() -> None:
    outputs: list[Given] = [("aaa", 1.0), ("a", 1.0), ("bbb", 0.0), ("b", 0.0)]
    assert indices(pick_of(*outputs, ties="first")) == (0, 2)
    assert indices(pick_of(*outputs, ties="shortest")) == (1, 3)
    groups = [group(str(number), *outputs) for number in range(200)]
    picks = select(groups, 0.0, PairsRecipe(), 0).picks
    counts = [sum(indices(pick) == pair for pick in picks) for pair in ((0, 2), (0, 3), (1, 2), (1, 3))]
    assert sum(counts) == 200 and min(counts) > 25
    assert all(isinstance(pick, Pick) and (pick.chosen_ties, pick.rejected_ties) == (1, 1) for pick in picks)


def test_values_that_differ_only_by_rounding_tie() -> None:
    """Scores 0, 0.3, 0.6, 0.9 and lengths 1, 4, 7, 10 are both evenly spaced; N differs by 3e-16 alone."""
    outputs: list[Given] = [("a" * (1 + 3 * at), 0.3 * at) for at in range(4)]
    assert pick_of(*outputs, rho=1.0) == "length_control"


@pytest.mark.parametrize(("lengths", "ties"), [((10, 1, 4, 7), (2, 0)), ((4, 7, 10, 1), (0, 2))])
def test_outputs_whose_values_differ_only_by_rounding_are_equally_good(
    lengths: tuple[int, ...], ties: tuple[int, int]
) -> None:
    """In steps of a standard deviation / 1.118, scores are 0, 1, 2, 3 and lengths 3, 0, 1, 2 (or 1, 2, 3, 0), so at
    rho 1 values are -3, 1, 1, 1 (or -1, -1, -1, 3)."""
    outputs: list[Given] = [("a" * length, 0.3 * at) for at, length in enumerate(lengths)]
    pick = pick_of(*outputs, rho=1.0)
    assert isinstance(pick, Pick)
    assert (pick.chosen_ties, pick.rejected_ties) == ties


def many(n: int, *more: Given) -> list[Candidates]:
    return [group(f"q{number}", ("a", 1.0), ("b", 0.0), *more) for number in range(n)]


@pytest.mark.parametrize(("cap", "expected"), [(0.1, 10), (0.29, 29), (0.0, 0), (1.0, 100), (0.005, 0)])
def test_broken_outputs_are_rejected_up_to_their_share_of_pairs(cap: float, expected: int) -> None:
    """0.29 * 100 is 28.999999999999996 in floats."""
    groups = many(100, BROKEN)
    selection = select(groups, 0.0, PairsRecipe(max_broken=cap), 0)
    assert len(broken_ids(groups, selection)) == expected
    assert (len(selection.pairs), selection.beyond_cap) == (100, 100 - expected)
    for pick in selection.pairs:
        assert (pick.rejected_value is None) == (pick.rejected.index == 2)


def test_the_cap_counts_the_pairs_that_broken_outputs_add() -> None:
    """Nine pairs and five instructions with one readable output each: the first one taken makes it 1 of 10, a second
    would make it 2 of 11, which is more than 10 %."""
    lone = [group(f"lone{number}", ("a", 1.0), BROKEN) for number in range(5)]
    selection = select([*many(9), *lone], 0.0, PairsRecipe(max_broken=0.1), 0)
    assert (len(selection.pairs), selection.beyond_cap) == (10, 4)
    assert selection.picks.count("one_output") == 4
    alone = select(lone, 0.0, PairsRecipe(max_broken=0.1), 0)
    assert alone.pairs == []


def test_which_instructions_get_a_broken_output_hangs_on_the_seed_and_not_on_their_order() -> None:
    groups = many(200, BROKEN)
    recipe = PairsRecipe(max_broken=0.2)
    drawn = broken_ids(groups, select(groups, 0.0, recipe, 0))
    shuffled = Random(1).sample(groups, len(groups))
    assert broken_ids(shuffled, select(shuffled, 0.0, recipe, 0)) == drawn
    other = broken_ids(groups, select(groups, 0.0, recipe, 1))
    # By chance 8 of 40 are drawn both times; neighbouring seeds must not draw neighbours.
    assert len(drawn) == len(other) == 40 and len(drawn & other) < 20


def test_fill_takes_a_broken_output_only_where_readable_ones_tie() -> None:
    recipe = PairsRecipe(broken="fill", max_broken=1.0)
    assert indices(pick_of(("a", 1.0), ("b", 0.0), BROKEN, broken="fill", max_broken=1.0)) == (0, 1)
    tied = group("q", ("a", 1.0), ("b", 1.0), BROKEN, recipe=recipe)
    lone = group("r", ("a", 1.0), BROKEN, recipe=recipe)
    bare = group("s", BROKEN, recipe=recipe)
    selection = select([tied, lone, bare], 0.0, recipe, 0)
    assert [indices(pick)[1] for pick in selection.picks[:2]] == [2, 1]
    assert selection.picks[2] == "no_readable"


def test_drop_never_takes_a_broken_output() -> None:
    assert indices(pick_of(("a", 1.0), ("b", 0.0), BROKEN, broken="drop", max_broken=1.0)) == (0, 1)
    assert pick_of(("a", 1.0), BROKEN, broken="drop", max_broken=1.0) == "one_output"


def test_against_a_broken_output_the_chosen_one_needs_the_least_score_too() -> None:
    keys: dict[str, Any] = {"max_broken": 1.0, "min_chosen_score": 2.0}
    assert pick_of(("a", 1.0), ("b", 0.0), BROKEN, **keys) == "low_chosen"
    assert pick_of(("a", 1.0), ("b", None), **keys) == "one_output"


def test_a_text_that_was_cut_off_at_its_very_end_is_not_set_against_itself() -> None:
    """The token limit was met with the last token: the same text is readable once, and truncated once."""
    sample, cut, scores = records("q", ("a", 1.0), ("x", None, "truncated"))
    sample = msgspec.structs.replace(sample, outputs=(sample.outputs[0], sample.outputs[0]))
    recipe = PairsRecipe(max_broken=1.0)
    found = candidates_of(sample, cut, scores, recipe, SCORES)
    assert select([found], 0.0, recipe, 0).picks == ("one_output",)


def test_pairs_of_an_instruction_do_not_hang_on_the_others() -> None:
    """The same draws in another order, and alone."""
    outputs: list[Given] = [("a", 1.0), ("b", 1.0), ("c", 0.0), ("d", 0.0)]
    groups = [group(f"q{number}", *outputs) for number in range(30)]
    recipe = PairsRecipe()
    together = dict(zip((one.id for one in groups), select(groups, 0.0, recipe, 7).picks, strict=True))
    backwards = select(groups[::-1], 0.0, recipe, 7).picks
    assert dict(zip((one.id for one in groups[::-1]), backwards, strict=True)) == together
    assert select(groups[4:5], 0.0, recipe, 7).picks == (together["q4"],)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_no_number_are_an_error_with_file_and_instruction(score: float) -> None:
    with pytest.raises(UsageError, match=r"scores\.jsonl: instruction q7: the score of output 1 is"):
        group("q7", ("a", 1.0), ("b", score))


def test_records_of_different_runs_are_an_error() -> None:
    sample, cut, _ = records("q7", ("a", 1.0), ("b", 2.0))
    _, _, scores = records("q7", ("a", 1.0))
    with pytest.raises(UsageError, match=r"q7 has 2 samples, 2 cut outputs and 1 scores"):
        candidates_of(sample, cut, scores, PairsRecipe(), SCORES)
