"""Cutting samples, choosing an epoch, and the numbers of results.json, each against values derived by hand."""

from __future__ import annotations

import pytest

from thinkserve.errors import ThinkserveError
from thinkserve.thoughts import BUILT_IN
from thinkserve.training.evaluate import accuracy
from thinkserve.training.measuring import preference
from thinkserve.training.recipe import EvaluateRecipe, ValidateRecipe
from thinkserve.training.records import CutOutput, EvaluationRecord, Problem, Sampled
from thinkserve.training.results import compare, measure
from thinkserve.training.split import cut, numbers
from thinkserve.training.validate import Candidate, choose

SPECIFIC = BUILT_IN["tpo-specific"]


def words(text: str) -> int:
    """Tokens are words here."""
    return len(text.split())


@pytest.mark.parametrize(
    ("text", "finish", "thought", "response", "problem"),
    [
        ("draft one <R> the answer", "stop", "draft one", "the answer", None),
        ("draft one <R> the ans", "length", "draft one", "the ans", "truncated"),
        ("only a draft", "stop", "only a draft", "", "unclosed"),
        ("draft <R>", "stop", "draft", "", "empty"),
    ],
)
def test_an_output_is_cut_and_its_problem_named(
    text: str, finish: str, thought: str, response: str, problem: Problem | None
) -> None:
    found = cut(Sampled(text, finish, 6), SPECIFIC, words, direct=False)
    assert (found.thought.strip(), found.response.strip(), found.problem) == (thought, response, problem)
    # 6 tokens in all: those of the response, and the thought has the rest with its marker.
    assert found.response_tokens == words(response)
    assert found.thought_tokens == 6 - words(response)


def test_a_direct_output_is_all_response_and_one_that_thinks_all_the_same_is_broken() -> None:
    plain = cut(Sampled("the answer", "stop", 2), SPECIFIC, words, direct=True)
    assert (plain.thought, plain.response, plain.problem, plain.thought_tokens) == ("", "the answer", None, 0)
    thinking = cut(Sampled("draft <R> the answer", "stop", 4), SPECIFIC, words, direct=True)
    assert thinking.problem == "unclosed"


def test_counts_of_outputs() -> None:
    """Two readable outputs with thoughts of 4 and 2 tokens and one truncated: 1 of 3 fails, the mean thought has 3."""
    outputs = [
        CutOutput("t", "r", None, 4, 1),
        CutOutput("t", "r", None, 2, 3),
        CutOutput("t", "", "truncated", 9, 0),
    ]
    found = numbers(outputs)
    assert found["problems"] == {"truncated": 1}
    assert found["parse_failures"] == pytest.approx(1 / 3)
    assert found["mean_thought_tokens"] == 3
    assert found["mean_response_tokens"] == 2
    assert numbers([])["mean_thought_tokens"] is None


def epoch(number: int, score: float | None, broken: float = 0.0) -> Candidate:
    return Candidate(number, 10, score, broken, 1.0, 1.0)


def test_the_epoch_with_the_best_mean_score_is_chosen_and_never_the_start_model() -> None:
    chosen, reason = choose([epoch(0, 9.0), epoch(1, 1.0), epoch(2, 3.0), epoch(3, 3.0)], ValidateRecipe())
    assert chosen.epoch == 2  # the earlier of two equals
    assert reason == "the best mean score of 3 epochs"


def test_a_single_epoch_is_not_said_to_be_the_best() -> None:
    chosen, reason = choose([epoch(0, 9.0), epoch(1, 1.0)], ValidateRecipe())
    assert (chosen.epoch, reason) == (1, "the only epoch with a score")


def test_an_epoch_that_breaks_its_format_is_passed_over() -> None:
    candidates = [epoch(1, 1.0), epoch(2, 5.0, broken=0.3)]
    chosen, reason = choose(candidates, ValidateRecipe(max_broken=0.1))
    assert chosen.epoch == 1
    assert "without 1 that broke too many" in reason


def test_where_all_epochs_break_too_much_the_one_that_breaks_least_is_chosen() -> None:
    chosen, reason = choose([epoch(1, 5.0, broken=0.4), epoch(2, 1.0, broken=0.2)], ValidateRecipe())
    assert chosen.epoch == 2
    assert "fewest broken" in reason


def test_no_readable_response_at_all_is_an_error_that_says_what_to_try() -> None:
    with pytest.raises(ThinkserveError, match=r"broken outputs by epoch: 100 %.*dpo\.learning_rate"):
        choose([epoch(0, 1.0), epoch(1, None, broken=1.0)], ValidateRecipe())


def test_preferences_and_accuracies() -> None:
    assert [preference(2.0, 1.0), preference(1.0, 1.0), preference(0.0, 1.0)] == [1.0, 0.5, 0.0]
    assert preference(None, 1.0) is None
    settings = EvaluateRecipe(metric="accuracy", right_score=1.0)
    right, broken = CutOutput("", "r", None, 0, 1), CutOutput("", "", "unclosed", 0, 0)
    assert accuracy(right, 1.0, settings) == 1.0
    assert accuracy(right, 0.99, settings) == 0.0
    assert accuracy(right, None, settings) is None
    assert accuracy(broken, None, settings) == 0.0


def record(
    id: str, value: float | None, category: str = "a", problem: Problem | None = None
) -> EvaluationRecord:
    return EvaluationRecord(id, "t", "r", problem, 4, 2, value, value, {"category": category})


def test_the_numbers_of_a_model() -> None:
    """Values 1, 0, 1, none: accuracy 2/3 of three, one unscored of four; the broken one has no length."""
    found = measure(
        [record("1", 1.0), record("2", 0.0, problem="empty"), record("3", 1.0, "b"), record("4", None, "b")],
        "accuracy",
        seed=0,
    )
    assert found["n"] == 4
    assert found["unscored"] == 1
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["parse_failures"] == 0.25
    assert found["mean_thought_tokens"] == 4
    assert found["categories"]["a"]["accuracy"] == 0.5
    assert found["categories"]["b"]["accuracy"] == 1.0


def test_two_models_are_compared_over_what_both_have() -> None:
    """Differences 1, 0, -1, 1 over four instructions (the fifth is unscored for one): mean 1/4."""
    thought = [record(str(n), value) for n, value in enumerate((1.0, 1.0, 0.0, 1.0, 1.0))]
    direct = [record(str(n), value) for n, value in enumerate((0.0, 1.0, 1.0, 0.0, None))]
    found = compare(thought, direct, seed=0)
    assert found["n"] == 4
    assert found["difference"] == pytest.approx(0.25)
    assert found["ci"][0] <= 0.25 <= found["ci"][1]
    assert found["categories"]["a"]["p_holm"] == found["categories"]["a"]["p"]


def test_nothing_to_compare_is_said_so() -> None:
    assert compare([record("1", None)], [record("1", 1.0)], seed=0)["difference"] is None
