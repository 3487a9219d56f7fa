"""Length control: what is left of a win rate at equal length."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from thinkserve.eval.answer import Answer
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.length_control import POOLING, WEAK, length_controlled, length_difference
from thinkserve.eval.match import Match
from thinkserve.eval.statistics import standard_error
from thinkserve.thoughts import Response

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("THINKSERVE_EVAL_DATA", ROOT.parent / "shared" / "data"))

Floats = NDArray[np.float64]
rows = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(-3000, 3000), st.sampled_from("abc")),
    min_size=1,
    max_size=40,
)


def draw(n: int, theta: float, phi: float, *, longer: float = 0.0, seed: int = 0) -> tuple[Floats, Floats]:
    """Wins (0 or 1) and length differences of `n` instructions from the model itself."""
    rng = np.random.default_rng(seed)
    differences = rng.normal(longer, 300, n)
    feature = np.tanh(differences / differences.std(ddof=1))
    wins = rng.random(n) < 1 / (1 + np.exp(-theta - phi * feature))
    return wins.astype(np.float64), differences


def test_without_an_effect_of_length_the_win_rate_stays() -> None:
    wins, differences = draw(5000, theta=-0.8, phi=0.0)
    found = length_controlled(wins, differences)
    assert found.win_rate == pytest.approx(100 * wins.mean(), abs=0.2)
    assert found.coefficient == pytest.approx(0.0, abs=0.1)


def test_a_model_whose_only_merit_is_length_gets_half() -> None:
    """phi 2, and responses that are one standard deviation longer: the raw rate is about 72 %, the estimate 50 +- 2."""
    wins, differences = draw(4000, theta=0.0, phi=2.0, longer=300)
    found = length_controlled(wins, differences)
    assert wins.mean() > 0.7
    assert found.win_rate == pytest.approx(50, abs=3 * found.standard_error)
    assert found.standard_error < 1.5
    assert found.coefficient == pytest.approx(2.0, abs=0.2)


def test_a_good_model_with_short_responses_gains() -> None:
    """theta 0.5 is 62.2 % at equal length."""
    wins, differences = draw(4000, theta=0.5, phi=2.0, longer=-300)
    found = length_controlled(wins, differences)
    assert wins.mean() < 0.5
    assert found.win_rate == pytest.approx(62.2, abs=3 * found.standard_error)


@settings(deadline=None, max_examples=60)
@given(rows)
def test_swapping_the_models_mirrors_everything(table: list[tuple[float, int, str]]) -> None:
    wins, differences, groups = zip(*table, strict=True)
    forth = length_controlled(wins, differences, groups)
    back = length_controlled([1 - win for win in wins], [-d for d in differences], groups)
    assert forth.win_rate + back.win_rate == pytest.approx(100, abs=1e-6)
    assert forth.coefficient == pytest.approx(back.coefficient, abs=1e-6)
    assert forth.standard_error == pytest.approx(back.standard_error, abs=1e-6)
    for name, rate in forth.by_group.items():
        assert rate + back.by_group[name] == pytest.approx(100, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(rows, st.randoms())
@example([(0.0, 1, "b"), (0.0, 10, "a"), (1.0, 5, "a")], Random(0))
def test_any_data_has_a_finite_result_that_does_not_hang_on_the_order(
    table: list[tuple[float, int, str]], chance: object
) -> None:
    shuffled = list(table)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    found, again = (length_controlled(*zip(*some, strict=True)) for some in (table, shuffled))
    assert 0 < found.win_rate < 100
    assert 0 <= found.standard_error <= 50
    assert np.isfinite(found.coefficient)
    assert set(found.by_group) == {group for _, _, group in table}
    assert again.win_rate == pytest.approx(found.win_rate, abs=1e-6)


def test_one_instruction() -> None:
    found = length_controlled([1.0], [120])
    assert 90 < found.win_rate < 100
    assert found.standard_error == 50
    assert found.coefficient == 0


def test_all_wins_are_all_wins_at_equal_length_too() -> None:
    found = length_controlled([1.0] * 100, list(range(-50, 50)))
    assert 99 < found.win_rate < 100


def test_wins_that_length_alone_decides_are_half_at_equal_length() -> None:
    differences = np.arange(-99.5, 100, dtype=np.float64)
    found = length_controlled((differences > 0).astype(np.float64), differences)
    assert found.win_rate == pytest.approx(50, abs=1e-6)
    assert 5 < found.coefficient < 1000


@pytest.mark.parametrize("difference", [0, 37, -0.1])
def test_equal_length_differences_leave_the_win_rate_and_its_standard_error(difference: float) -> None:
    """The ridge on theta moves the mean by 0.01 * 0.847 / 100 (logit of 0.3), which is 0.0085 points."""
    wins = np.array([1.0] * 30 + [0.0] * 70)
    found = length_controlled(wins, [difference] * 100)
    assert found.win_rate == pytest.approx(30.0085, abs=1e-3)
    assert found.standard_error == pytest.approx(100 * standard_error(wins), rel=1e-3)
    assert found.coefficient == 0


def test_standard_error_is_the_spread_over_samples() -> None:
    """300 samples of 200 instructions: the spread of 300 estimates is known to 4 %."""
    found = [length_controlled(*draw(200, -0.5, 1.5, longer=200, seed=seed)) for seed in range(300)]
    spread = np.std([one.win_rate for one in found], ddof=1)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.12)


def test_small_categories_are_drawn_towards_the_others_and_large_ones_hardly() -> None:
    """4 wins of 4 beside 500 of 1000. The u sum to 0 (theta is as good as free), so they are u and -u, and theta is u
    as the large one stays at 0. The slope in u is 4 (1 - p) = u/10 with logit(p) = 2u: u = 1.594, p = 0.960."""
    wins = np.array([1.0] * 4 + [1.0] * 500 + [0.0] * 500)
    groups = ["small"] * 4 + ["large"] * 1000
    by_group = length_controlled(wins, np.zeros(1004), groups).by_group
    assert list(by_group) == ["small", "large"]
    assert by_group == pytest.approx({"small": 96.0, "large": 50.0}, abs=0.2)


def test_one_category_is_the_whole() -> None:
    wins, differences = draw(100, 0.3, 1.0)
    alone, grouped = length_controlled(wins, differences), length_controlled(wins, differences, ["a"] * 100)
    assert grouped.by_group == {"a": pytest.approx(alone.win_rate, abs=1e-9)}
    assert grouped.standard_error == alone.standard_error


def test_the_fit_is_that_of_scikit_learn() -> None:
    """There labels are doubled rows with weights, and the one ridge is spread by scaling columns."""
    wins, differences = draw(300, -0.4, 1.2, longer=100)
    wins = 0.8 * wins + 0.1
    groups = ["ab"[n % 3 == 0] for n in range(300)]
    ours = length_controlled(wins, differences, groups)

    feature = np.tanh(differences / differences.std(ddof=1))
    member = np.array([[g == name for name in ("b", "a")] for g in groups], dtype=np.float64)
    scale = np.sqrt([1 / WEAK, 1 / WEAK, 1 / POOLING, 1 / POOLING])
    design = np.column_stack([np.ones(300), feature, member]) * scale
    theirs = LogisticRegression(
        C=1.0, fit_intercept=False, tol=1e-12, max_iter=1000, solver="newton-cholesky"
    )
    theirs.fit(
        np.vstack([design, design]), [1] * 300 + [0] * 300, sample_weight=np.concatenate([wins, 1 - wins])
    )
    level = design.copy()
    level[:, 1] = 0
    assert ours.win_rate == pytest.approx(100 * theirs.predict_proba(level)[:, 1].mean(), abs=1e-5)
    assert ours.coefficient == pytest.approx((theirs.coef_[0] * scale)[1], abs=1e-5)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the official data at {DATA}")
@pytest.mark.parametrize(
    ("model", "official"),
    [("claude-2.1", 32.405), ("gemma-7b-it", 13.002), ("gpt-3.5-turbo-1106", 37.774), ("NullModel", 84.710)],
)
def test_on_real_verdicts_it_agrees_with_the_minimal_model_of_alpaca_eval(
    model: str, official: float
) -> None:
    """`official`: from alpaca_eval 0.6.6, glm_name="length_controlled_minimal", scikit-learn 1.9.1, on the same rows."""
    path = DATA / "alpaca_eval" / "annotations" / f"{model}.jsonl.gz"
    found = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    wins = [(row["preference"] or 1.5) - 1 for row in found]
    differences = [len(row["output_2"]) - len(row["output_1"]) for row in found]
    assert length_controlled(wins, differences).win_rate == pytest.approx(official, abs=0.1)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="preferences from 0 to 1"):
        length_controlled([], [])
    with pytest.raises(ValueError, match="preferences from 0 to 1"):
        length_controlled([float("nan")], [1])
    with pytest.raises(ValueError, match="preferences from 0 to 1"):
        length_controlled([1.5], [1])
    with pytest.raises(ValueError, match="not finite"):
        length_controlled([1.0], [float("inf")])
    with pytest.raises(ValueError, match=r"differ in length: \[1, 2\]"):
        length_controlled([1.0, 0.0], [1], ["a", "b"])


def test_length_is_that_of_responses_and_a_loss_without_one_is_not_excused_as_short() -> None:
    instruction = Instruction("1", "Say it.")
    baseline = Answer("1", Response("a long response"))
    short, none = Answer("1", Response("short")), Answer("1", Response(""), complete=False)
    assert length_difference(Match(instruction, short, baseline, "b", ())) == 5 - 15
    assert length_difference(Match(instruction, none, baseline, "b", ())) == 0
    assert length_difference(Match(instruction, short, none, "b", ())) == 0


def test_the_error_of_a_category_is_that_of_its_mean_where_lengths_tell_nothing() -> None:
    """Without length and with hardly any pooling, a category is a mean: its error is sd / sqrt(n), 40 wins of 100 here.

    sqrt(0.4 * 0.6 / 100) = 0.049; a category four times as large has half the error.
    """
    wins = [1.0] * 40 + [0.0] * 60 + [1.0] * 160 + [0.0] * 240
    found = length_controlled(wins, np.zeros(500), ["small"] * 100 + ["large"] * 400)
    assert found.error_by_group["small"] == pytest.approx(4.9, rel=0.05)
    assert found.error_by_group["large"] == pytest.approx(2.45, rel=0.05)
