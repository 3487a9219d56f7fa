"""The pocket bench: its instructions, its rule judge, its baseline and its scores."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from random import Random

import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer
from thinkserve.eval.bench import Bench, JudgeProtocol, Reply, Unreadable
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.match import Game, Match, PlayedGame, Verdict
from thinkserve.eval.scores import from_json, to_json
from thinkserve.thoughts import Response
from thinkserve.training.pocket.bench import BASELINE, PocketBench, RuleJudge
from thinkserve.training.pocket.habits import HABITS, draw_example
from thinkserve.training.pocket.judge import is_right, score
from thinkserve.training.pocket.world import CATEGORIES, is_held_out, solve

SUM = Instruction("1", "What is 347+285?", {"category": "add"})
GAME = Game(0, model_first=True)


def played(bench: PocketBench, instruction: Instruction, response: str, complete: bool = True) -> Match:
    """The match of a response with `half-right`, as the judging stage would play it."""
    baseline = bench.baseline_answers(bench.instructions)[BASELINE].by_id[instruction.id]
    answer = Answer(instruction.id, Response(response), complete)
    (game,) = bench.protocol_of("rule").games(instruction)
    if complete:
        verdict = bench.protocol_of("rule").request(instruction, game, answer.response, baseline.response)
    else:
        verdict = bench.protocol_of("rule").forfeit(game, model_answered=False, baseline_answered=True)
    assert isinstance(verdict, Verdict)
    return Match(instruction, answer, baseline, BASELINE, (PlayedGame(game, "rule", verdict),))


def gold(instruction: Instruction) -> str:
    task = solve(instruction.text)
    assert task is not None
    return task.answer


def test_it_is_a_bench_and_its_rule_a_protocol() -> None:
    bench: Bench = PocketBench(8)
    protocol: JudgeProtocol = bench.protocol_of("rule")
    assert (bench.name, bench.official_judge) == ("pocket", None)
    assert bench.baseline_of(bench.instructions[0]) == BASELINE
    assert list(bench.baseline_answers(bench.instructions)) == [BASELINE]
    assert protocol.games(bench.instructions[0]) == (GAME,)


def test_instructions_are_held_out_readable_distinct_and_of_all_categories_alike() -> None:
    bench = PocketBench()
    assert len(bench.instructions) == len({one.id for one in bench.instructions}) == 200
    for position, one in enumerate(bench.instructions):
        task = solve(one.text)
        assert task is not None
        assert one.categories == {"category": task.category}
        assert one.position == position
        assert is_held_out(one.text)
    for name in CATEGORIES:
        assert sum(one.categories["category"] == name for one in bench.instructions) == 25


def test_no_instruction_is_among_those_that_models_are_trained_on() -> None:
    asked = {one.text for one in PocketBench(2000).instructions}
    rng = Random(0)
    for _ in range(5000):
        example = draw_example(rng, HABITS)
        assert not asked & {example.task.instruction, *(task.instruction for task in example.earlier)}


def test_seed_decides_everything_and_a_smaller_bench_is_the_start_of_a_larger_one() -> None:
    bench, same, other, small = PocketBench(64), PocketBench(64), PocketBench(64, seed=1), PocketBench(16)
    assert bench.instructions == same.instructions
    assert bench.baseline_answers(bench.instructions) == same.baseline_answers(same.instructions)
    assert not {one.id for one in bench.instructions} & {one.id for one in other.instructions}
    assert small.instructions == bench.instructions[:16]
    for key, answer in small.baseline_answers(small.instructions)[BASELINE].by_id.items():
        assert bench.baseline_answers(bench.instructions)[BASELINE].by_id[key] == answer


@pytest.mark.parametrize("count", [0, -1, 20_001])
def test_a_size_that_it_cannot_have_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match=rf"1 to 20000 instructions, not {count}"):
        PocketBench(count)


def test_half_right_is_right_half_of_the_time_and_otherwise_wrong_in_one_place() -> None:
    """Of each category 25: 12 pairs, with one right each, and one that may be. A wrong one is as long as the gold answer,
    and differs in one letter or digit: the rule gives it 1 - 1/length."""
    bench = PocketBench(200)
    answers = bench.baseline_answers(bench.instructions)[BASELINE].by_id
    right = Counter[str]()
    for one in bench.instructions:
        response, expected = answers[one.id].response, gold(one)
        assert len(response) == len(expected)
        right[one.categories["category"]] += is_right(one.text, response)
        if response != expected:
            (at,) = (place for place in range(len(expected)) if response[place] != expected[place])
            assert score(one.text, response) == pytest.approx(1 - 1 / len(expected))
            for kind in (str.islower, str.isupper, str.isdigit):
                assert kind(response[at]) == kind(expected[at])
    assert set(right) == set(CATEGORIES)
    assert set(right.values()) <= {12, 13}


def test_which_of_the_answers_are_right_is_a_coin() -> None:
    """Of 2000 answers the first ones of 1000 pairs: 500 right, standard deviation sqrt(250) = 15.8; 4 of them are 63."""
    bench = PocketBench(2000)
    answers = bench.baseline_answers(bench.instructions)[BASELINE].by_id
    first = [one for one in bench.instructions if one.position // len(CATEGORIES) % 2 == 0]
    assert len(first) == 1000
    assert abs(sum(is_right(one.text, answers[one.id].response) for one in first) - 500) < 63


@pytest.mark.parametrize(
    ("response", "baseline", "label", "preference"),
    [
        ("632", "631", "right>wrong", 1.0),
        ("631", "632", "wrong<right", 0.0),
        ("632", " 632\n", "right=right", 0.5),
        ("631", "931", "wrong>wrong", 1.0),
        ("931", "631", "wrong<wrong", 0.0),
        ("631", "622", "wrong=wrong", 0.5),
        ("", "", "wrong=wrong", 0.5),
        ("The sum is 632", "631", "wrong<wrong", 0.0),
    ],
)
def test_rule_prefers_the_response_with_more_right_characters(
    response: str, baseline: str, label: str, preference: float
) -> None:
    """The gold answer is 632."""
    verdict = RuleJudge().request(SUM, GAME, Response(response), Response(baseline))
    assert verdict == Verdict(label, preference, weight=1)


@pytest.mark.parametrize(
    ("model", "baseline", "label", "preference"),
    [
        (False, True, "none<response", 0.0),
        (True, False, "response>none", 1.0),
        (False, False, "none=none", 0.5),
    ],
)
def test_no_response_loses_to_any(model: bool, baseline: bool, label: str, preference: float) -> None:
    assert RuleJudge().forfeit(GAME, model, baseline) == Verdict(label, preference)


def test_no_judge_is_asked_and_none_is_read() -> None:
    bench = PocketBench(80)
    for one in bench.instructions:
        assert isinstance(bench.protocol_of("rule").request(one, GAME, Response("x"), Response("y")), Verdict)
    assert isinstance(bench.protocol_of("rule").read(SUM, GAME, Reply("[[A>B]]")), Unreadable)


def test_another_worlds_instruction_is_refused_by_name() -> None:
    with pytest.raises(
        UsageError, match=r"instruction q7 \('Write a poem'\) is not one of the pocket world's"
    ):
        RuleJudge().request(Instruction("q7", "Write a poem"), GAME, Response(""), Response(""))


def test_scores_by_hand() -> None:
    """A model that is always right wins where `half-right` is wrong and ties elsewhere; one that never answers loses all.
    So with r right baselines of 40 the first has (40 - r/2)/40 and the second 0."""
    bench = PocketBench(40)
    answers = bench.baseline_answers(bench.instructions)[BASELINE].by_id
    right = sum(is_right(one.text, answers[one.id].response) for one in bench.instructions)
    assert 16 <= right <= 24  # 2 or 3 of 5 in each of 8 categories
    matches = {
        "perfect": [played(bench, one, gold(one)) for one in bench.instructions],
        "endless": [played(bench, one, "", complete=False) for one in bench.instructions],
        "echo": [played(bench, one, answers[one.id].response) for one in bench.instructions],
    }
    scores = bench.score(matches, compat="aligned", seed=0)
    assert (scores.bench, scores.judge, scores.baseline, scores.compat) == (
        "pocket",
        "rule",
        BASELINE,
        "aligned",
    )
    perfect, endless, echo = (scores.models[name] for name in ("perfect", "endless", "echo"))
    assert (perfect.n, perfect.wins, perfect.draws, perfect.losses) == (40, 40 - right, right, 0)
    assert perfect.win_rate == pytest.approx(100 * (40 - right / 2) / 40)
    assert perfect.length_controlled_win_rate == pytest.approx(perfect.win_rate, abs=0.1)
    assert (endless.win_rate, endless.forfeits, endless.losses) == (0.0, 40, 40)
    assert endless.length_controlled_win_rate == pytest.approx(0, abs=0.5)
    assert (echo.win_rate, echo.ci) == (50.0, (50.0, 50.0))
    assert set(perfect.categories["category"]) == set(CATEGORIES)
    for group in perfect.categories["category"].values():
        assert group.n == 5
        assert group.note == "too few to say: 5 instructions"
        assert group.length_controlled_win_rate is not None
    accuracy = scores.details["accuracy"]
    assert accuracy["perfect"] == {name: 100.0 for name in ("all", *CATEGORIES)}
    assert accuracy["endless"] == {name: 0.0 for name in ("all", *CATEGORIES)}
    assert accuracy["echo"] == accuracy[BASELINE]
    assert accuracy[BASELINE]["all"] == pytest.approx(100 * right / 40)
    assert bench.score(matches, compat="aligned", seed=0) == scores
    assert to_json(from_json(to_json(scores), "here")) == to_json(scores)


def test_it_needs_neither_torch_nor_transformers() -> None:
    """In a process of its own, because other tests import them."""
    code = (
        "import sys; from thinkserve.training.pocket.bench import PocketBench; PocketBench(8).baseline_answers([]); "
        "print(sorted({'torch', 'transformers', 'tokenizers', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
