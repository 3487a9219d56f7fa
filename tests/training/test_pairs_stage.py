"""The stage that makes pairs: its files, its numbers, and what it says when there is nothing to pair."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from tests.training.pair_outputs import Given, records
from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.instruction import id_of
from thinkserve.eval.records import write_records
from thinkserve.training.folder import TrainFolder
from thinkserve.training.models import format_of
from thinkserve.training.pairs.stage import run
from thinkserve.training.recipe import Arm, DpoRecipe, PairsRecipe, Recipe
from thinkserve.training.records import PairRecord, read, write
from thinkserve.training.stage import StageContext

BROKEN: Given = ("thinking and thinking", None, "unclosed")
# The longer response is the better one in both.
OUTPUTS: dict[str, list[Given]] = {
    "q1": [("so|yes", 0.5), ("or|yes indeed", 1.0), ("so|yes", 0.5), BROKEN],
    "q2": [("hm|no", 0.0), ("no|never", 1.0), ("ah|no", None), ("no|no way", 0.5)],
    "q3": [("a|one", 1.0), ("b|two", 1.0), ("c|three", 1.0), ("d|four", 1.0)],
}
RECIPE = Recipe(
    name="test", model="pocket", pairs=PairsRecipe(rho=0.0, max_broken=0.5), dpo=DpoRecipe(batch=2)
)


def asked(name: str) -> str:
    """An instruction."""
    return f"Is {name} so?"


def context(
    path: Path, outputs: dict[str, list[Given]] = OUTPUTS, recipe: Recipe = RECIPE, arm: Arm = "thought"
) -> StageContext:
    """The stage of iteration 1, with its files there."""
    made = StageContext(TrainFolder(path, recipe.mode), recipe, arm, 1, "pairs")
    found = [records(id_of(asked(name)), *given) for name, given in outputs.items()]
    lines = [{"id": id_of(asked(name)), "text": asked(name), "categories": {}} for name in outputs]
    write_records(made.run.prompts_of(1), lines)
    for at, file in enumerate((made.folder.samples, made.folder.outputs, made.folder.scores)):
        # In an order of its own, as sampling writes them.
        write(file, [three[at] for three in reversed(found)])
    return made


def test_pairs_hold_the_thought_prompt_and_the_raw_outputs(tmp_path: Path) -> None:
    """q1: its broken output is rejected; q2: 1.0 against 0.0; q3: all tie. One broken of two pairs is the half allowed."""
    stage = context(tmp_path)
    numbers = run(stage)
    first, second = read(stage.folder.pairs, PairRecord)
    assert first == PairRecord(
        id=id_of(asked("q1")),
        prompt=format_of(RECIPE).thought_prompt(asked("q1")),
        chosen="or<R>yes indeed",
        rejected="thinking and thinking",
        chosen_index=1,
        rejected_index=3,
        chosen_score=1.0,
        rejected_score=None,
        chosen_value=1.0,
        rejected_value=None,
        chosen_length=len("yes indeed"),
        rejected_length=0,
    )
    assert first.prompt != asked("q1")
    assert (second.id, second.chosen, second.rejected) == (id_of(asked("q2")), "no<R>never", "hm<R>no")
    # Scores 0, 1 and 0.5: mean 0.5, variance 1/6, so N(1) is 0.5 * sqrt(6).
    assert (second.chosen_value, second.rejected_value) == pytest.approx((1.224745, -1.224745), abs=1e-6)
    assert (numbers["instructions"], numbers["pairs"], numbers["broken_pairs"]) == (3, 2, 1)
    assert (numbers["no_pair"], numbers["broken_share"], numbers["warnings"]) == ({"tied": 1}, 0.5, [])
    assert (numbers["score_margin"], numbers["chosen_length"], numbers["rejected_length"]) == (1.0, 5, 2)


def test_the_direct_arm_is_asked_the_plain_instruction(tmp_path: Path) -> None:
    stage = context(tmp_path, arm="direct")
    run(stage)
    assert [pair.prompt for pair in read(stage.folder.pairs, PairRecord)] == [asked("q1"), asked("q2")]


def test_statistics_say_what_was_counted(tmp_path: Path) -> None:
    stage = context(tmp_path)
    run(stage)
    found = msgspec.json.decode(stage.folder.pair_statistics.read_bytes())
    assert found["counts"] == {
        "instructions": 3,
        "outputs": 12,
        "broken": {"unclosed": 1},
        "unscored": 1,
        "duplicates": 1,
        "pairs": 2,
        "broken_pairs": 1,
        "broken_share": 0.5,
        "broken_beyond_cap": 0,
        "chosen_ties": 0,
        "rejected_ties": 0,
        "chosen_scored_lower": 0,
    }
    # Thoughts of the pair of q2, `no` and `hm`; the broken one of q1 is not compared.
    assert found["means"]["chosen_thought_characters"] == found["means"]["rejected_thought_characters"] == 2
    assert found["means"]["chosen_thought_tokens"] == 1
    scores = found["histograms"]["score"]
    assert [scores["all"]["n"], scores["controlled"]["chosen"]["n"]] == [9, 1]
    assert sum(scores["all"]["counts"]) == 9
    assert found["histograms"]["length"]["all"]["mean"] == pytest.approx(
        sum(map(len, ("yes", "yes indeed", "no", "never", "no way", "one", "two", "three", "four"))) / 9
    )
    readable, broken = found["examples"]
    assert (readable["instruction"]["text"], broken["instruction"]["text"]) == (asked("q2"), asked("q1"))
    assert (
        broken["chosen"]["thought"]["text"] == "or" and broken["chosen"]["response"]["text"] == "yes indeed"
    )
    assert (broken["rejected"]["problem"], broken["rejected"]["score"]) == ("unclosed", None)


def test_a_stage_that_is_run_again_writes_the_same_bytes(tmp_path: Path) -> None:
    """Whatever a killed run left, and in another folder."""
    first, second = context(tmp_path / "a"), context(tmp_path / "b")
    run(first)
    second.folder.pairs.write_text('{"id": "cut')
    names = ("pairs.jsonl", "pairs.json", "pairs.html")
    run(second)
    run(second)
    for name in names:
        assert (first.folder.path / name).read_bytes() == (second.folder.path / name).read_bytes()
    assert sorted(path.name for path in second.folder.path.iterdir()) == sorted(
        [*names, "samples.jsonl", "outputs.jsonl", "scores.jsonl"]
    )


def test_few_pairs_and_length_that_is_not_under_control_are_warned_of(tmp_path: Path) -> None:
    """q2 prefers the longer response at any step that is tried."""
    recipe = Recipe(name="test", model="pocket", pairs=PairsRecipe(rho_steps=(0.0, 0.1), max_broken=0))
    numbers = run(context(tmp_path, recipe=recipe))
    assert not numbers["rho_reached"] and numbers["rho"] == 0.1
    longer, few = numbers["warnings"]
    assert "At rho 0.1" in longer and "pairs.rho_steps" in longer
    assert "still longer than rejected ones, by 5 characters of 7.5 in the mean" in longer
    assert "do not fill one optimizer step of 128 (dpo.batch)" in few


@pytest.mark.parametrize(
    ("outputs", "keys", "said"),
    [
        ([BROKEN, BROKEN], {}, "1 without a readable response; see whether the thought format"),
        ([("a", None), ("b", None)], {}, "1 without a score; see the log of the score stage"),
        ([("a", 1.0), ("a", 1.0)], {}, "1 with one distinct output; raise sample.temperature"),
        ([("a", 1.0), ("b", 1.0)], {}, "1 with all scores equal; raise sample.k"),
        ([("a", 1.0), ("b", 1.1)], {"min_spread": 0.5}, "; lower pairs.min_spread"),
        ([("a", 1.0), ("b", 2.0)], {"min_chosen_score": 3.0}, "; lower pairs.min_chosen_score"),
        ([("a", 1.0), BROKEN], {}, "1 could have a broken output as the rejected one, but for pairs.max_broken"),
    ],
)  # fmt: skip
def test_no_pairs_at_all_is_an_error_that_says_why_and_what_to_change(
    tmp_path: Path, outputs: list[Given], keys: dict[str, Any], said: str
) -> None:
    recipe = Recipe(name="test", model="pocket", pairs=PairsRecipe(**keys))
    stage = context(tmp_path, {"q1": outputs}, recipe)
    with pytest.raises(ThinkserveError) as raised:
        run(stage)
    assert said in str(raised.value) and str(stage.folder.scores) in str(raised.value)
    assert "\n" not in str(raised.value) and not stage.folder.pairs.exists()


def test_files_of_other_instructions_are_an_error(tmp_path: Path) -> None:
    stage = context(tmp_path)
    write(stage.folder.scores, [records(id_of(asked("q1")), *OUTPUTS["q1"])[2]])
    with pytest.raises(UsageError, match=rf"scores\.jsonl: has no line for instruction {id_of(asked('q2'))}"):
        run(stage)


def test_five_thousand_instructions_take_seconds(tmp_path: Path) -> None:
    random = Random(0)
    outputs: dict[str, list[Given]] = {
        f"q{number}": [
            (f"{random.random()}|{'a' * random.randrange(500, 2000)}", random.random()) for _ in range(8)
        ]
        for number in range(5000)
    }
    stage = context(tmp_path, outputs, Recipe(name="test", model="pocket"))
    began = time.process_time()
    assert run(stage)["pairs"] == 5000
    assert time.process_time() - began < 20
