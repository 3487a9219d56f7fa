"""What the report computes itself: bins, correlations, axes, intervals, costs, which matches to read."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.eval.report_world import THREE, World, build
from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer
from thinkserve.eval.judgment import Judgment
from thinkserve.eval.match import Verdict
from thinkserve.eval.report.axis import MARGIN, axis, with_reference
from thinkserve.eval.report.binning import LEAST, binned, rank_correlation
from thinkserve.eval.report.disagreements import LIMIT, SHARES, select
from thinkserve.eval.report.evidence import Evidence, gather
from thinkserve.eval.report.health import Health, first_share, health_of
from thinkserve.eval.report.length_charts import length_differences, thought_lengths
from thinkserve.eval.report.lengths import mean_thought_tokens
from thinkserve.eval.report.loading import read_runs
from thinkserve.eval.report.metrics import headline_metric, interval
from thinkserve.eval.report.outcomes import outcomes_of
from thinkserve.eval.report.rankings import rank
from thinkserve.eval.scores import Group
from thinkserve.thoughts import Response

PAIRS = st.lists(st.tuples(st.integers(0, 30).map(float), st.sampled_from([0.0, 0.5, 1.0])), max_size=200)


def evidence_of(path: Path, world: World) -> tuple[Evidence, ...]:
    (ranking,) = rank(read_runs([build(path, world)]))
    return gather(ranking)


def test_bins_are_quantiles_with_the_interval_of_their_mean() -> None:
    """Two bins of 15: lengths 0..14 always lost but one draw, 15..29 always won.

    The first: mean 100 * 0.5 / 15 = 3.33; sum of squares 50^2 - 15 * 3.33^2 = 2333.3, deviation sqrt(2333.3 / 14) =
    12.91, error 1.96 * 12.91 / sqrt(15) = 6.53. The second has no spread at all.
    """
    pairs = [(float(x), 0.5 if x == 3 else 0.0 if x < 15 else 1.0) for x in range(30)]
    first, second = binned(pairs)
    assert (first.n, first.low, first.high, first.x) == (15, 0.0, 14.0, 7.0)
    assert first.mean == pytest.approx(10 / 3) and first.error == pytest.approx(6.53, abs=0.01)
    assert (second.n, second.x, second.mean, second.error) == (15, 22.0, 100.0, 0.0)


@given(PAIRS)
def test_bins_hold_every_pair_once_and_never_part_equal_lengths(pairs: list[tuple[float, float]]) -> None:
    bins = binned(pairs)
    if bins:
        assert sum(b.n for b in bins) == len(pairs) and min(b.n for b in bins) >= LEAST
        assert all(a.high < b.low for a, b in pairwise(bins))
    else:
        assert len(pairs) < 2 * LEAST or len({x for x, _ in pairs}) < 30


def test_rank_correlation_is_spearmans() -> None:
    """Rising 1, falling -1.

    With ties: y is 0 five times (mean rank 2) and 1 ten times (mean rank 9.5); x has the ranks 0 to 14, all around 7.
    Products: 5 * (2 - 7) * (2 - 7) + 10 * (9.5 - 7)^2 = 187.5, as is the square sum of y; that of x is 280. So the
    correlation is 187.5 / sqrt(280 * 187.5) = 0.8183.
    """
    values = [float(x) for x in range(15)]
    assert rank_correlation([(x, x**3) for x in values]) == pytest.approx(1)
    assert rank_correlation([(x, -x) for x in values]) == pytest.approx(-1)
    tied = rank_correlation([(x, float(x >= 5)) for x in values])
    assert tied == pytest.approx(0.8183, abs=1e-4)
    assert rank_correlation([(1.0, x) for x in values]) is None
    assert rank_correlation([(1.0, 1.0)]) is None


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_an_axis_of_rates_holds_all_of_them_and_has_a_tick_at_the_draw(values: list[float]) -> None:
    found = axis(with_reference(values, 50, 15), bounds=(0, 100), through=50)
    assert found.low <= min(values) and max(values) <= found.high
    assert all(MARGIN <= found.at(value) <= 100 - MARGIN for value in values)
    assert 2 <= len(found.ticks) <= 13
    if found.low <= 50 <= found.high:
        assert 50 in found.ticks


def test_an_axis_of_one_value_has_room_around_it() -> None:
    found = axis([50.0])
    assert found.low < 50 < found.high and found.at(50.0) == 50.0


@pytest.mark.parametrize(
    ("group", "key", "ends"),
    [
        (Group(9, win_rate=50.0, standard_error=2.0), "win_rate", (46.08, 53.92)),
        (
            Group(9, win_rate=50.0, standard_error=2.0, ci=(45.0, 54.0), ci_level=0.95),
            "win_rate",
            (45.0, 54.0),
        ),
        (Group(9, win_rate=1.0, standard_error=2.0), "win_rate", (0.0, 4.92)),
        (Group(9, score=50.0, ci=(45.0, 54.0), ci_level=0.9, win_rate=48.0), "score", (45.0, 54.0)),
        (
            Group(9, length_controlled_win_rate=50.0, lc_standard_error=1.0),
            "length_controlled_win_rate",
            (48.04, 51.96),
        ),
    ],
)
def test_intervals_are_the_given_ones_else_196_standard_errors(
    group: Group, key: str, ends: tuple[float, float]
) -> None:
    found = interval(group, key)
    assert found is not None and (found.low, found.high) == pytest.approx(ends, abs=0.005)


def test_a_number_without_an_interval_has_none() -> None:
    """The bootstrap's interval belongs to the score; a standard error of 0 says that nothing was learned."""
    group = Group(9, score=50.0, ci=(45.0, 54.0), win_rate=48.0, standard_error=0.0)
    assert interval(group, "win_rate") is None
    assert interval(group, "style_controlled_score") is None


def test_models_are_ranked_by_what_all_of_them_have() -> None:
    lc = Group(9, win_rate=40.0, length_controlled_win_rate=45.0)
    raw = Group(9, win_rate=40.0)
    styled = Group(9, score=40.0, style_controlled_score=42.0, win_rate=41.0)
    assert headline_metric("alpaca-eval", [lc, lc]) == "length_controlled_win_rate"
    assert headline_metric("alpaca-eval", [lc, raw]) == "win_rate"
    assert headline_metric("arena-hard", [styled]) == "style_controlled_score"
    assert headline_metric("arena-hard-v0.1", [Group(9, score=40.0, win_rate=41.0)]) == "score"
    assert headline_metric("mine", [Group(0)]) == "win_rate"


def test_mean_thought_length_counts_no_thought_as_0_and_leaves_out_the_unknown(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    assert mean_thought_tokens(path) is None
    line = '{{"id": "{}", "thought_tokens": {}, "thought_characters": null, "response_tokens": 3,'
    line += ' "response_characters": 9, "seconds": null}}\n'
    path.write_text(line.format("a", 10) + line.format("b", 0) + line.format("c", "null"))
    assert mean_thought_tokens(path) == 5.0
    path.write_text('{"id": "a"}\n')
    with pytest.raises(UsageError, match="m.jsonl:1"):
        mean_thought_tokens(path)


def judgment(id: str, game: int, preference: float | None, weight: int = 1) -> Judgment:
    verdict = None if preference is None else Verdict("x", preference, weight)
    return Judgment("k", id, game, game == 1, "m", "base", "judge", "0", "said", verdict=verdict)


def test_an_outcome_is_the_mean_of_its_games_and_a_lost_thought_is_a_loss() -> None:
    judgments = [judgment("both", 0, 0.0, 3), judgment("both", 1, 1.0), judgment("none", 0, None)]
    answers = {"gone": Answer("gone", Response(""), complete=False)}
    found = outcomes_of(judgments, answers, {}, "base")
    assert found["both"].preference == 0.5
    assert found["none"].preference is None
    assert found["gone"].preference == 0.0
    # Half of 3 to the one side, half of 1 to the other, of 3: (1.5 + 0.5) / 3.
    assert found["both"].spread == pytest.approx(2 / 3)
    assert found["none"].spread == 0.0


def test_where_the_baseline_has_no_response_either_it_is_a_draw() -> None:
    gone = {"gone": Answer("gone", Response(""), complete=False)}
    assert outcomes_of([], gone, {"base": gone}, "base")["gone"].preference == 0.5


def test_lengths_leave_out_what_was_lost_without_a_judge(tmp_path: Path) -> None:
    """A thought that never ended is long and lost by rule: it would make long thoughts look bad."""
    for item in evidence_of(tmp_path, World(THREE, instructions=200)):
        lost = {id for id, outcome in item.outcomes.items() if outcome.forfeit}
        judged = {id for id, outcome in item.outcomes.items() if outcome.preference is not None}
        assert lost
        assert len(thought_lengths(item)) == len(judged - lost)
        assert len(length_differences(item)) == len(judged - lost)


def test_matches_to_read_are_the_extreme_ones_and_each_is_there_once(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, World(THREE, instructions=200))
    matches = select(evidence)
    assert len(matches) == LIMIT == sum(SHARES.values())
    assert len({(m.left.name, m.right.name, m.id) for m in matches}) == LIMIT
    assert {m.kind for m in matches} == set(SHARES)
    first = matches[0]
    most = max(outcome.spread for outcome in evidence[0].outcomes.values())
    assert first.kind == "contested" and first.severity == most == 1.0
    for match in matches:
        assert not match.evidence.outcomes[match.id].forfeit
        if match.kind == "loss":
            assert match.preference is not None and match.preference < 0.35
        if match.kind == "differ":
            assert match.severity >= 0.5
        if match.kind == "unreadable":
            assert any(judgment.verdict is None for _, judgment in match.judgments)


def test_a_small_run_gives_what_it_has(tmp_path: Path) -> None:
    (item,) = evidence_of(tmp_path, World({"m": 0.5}, instructions=6))
    assert len(select([item])) <= 6


def test_order_bias_comes_with_wilsons_interval() -> None:
    """60 of 100: (0.6 + z²/200) / (1 + z²/100) = 0.5963 in the middle, 0.0943 to either side."""
    health = Health(200, 0, {}, 0, 5, 100, 60, 100, 0)
    found = first_share(health)
    assert found == pytest.approx((60.0, 50.20, 69.06), abs=0.01)


def test_order_bias_is_not_said_where_the_order_never_changed(tmp_path: Path) -> None:
    """With the model always first, how often the first response wins is nothing but the win rate."""
    (swapped,) = evidence_of(tmp_path / "two", World({"m": 0.5}, instructions=40))
    (fixed,) = evidence_of(tmp_path / "one", World({"m": 0.5}, instructions=40, games=1))
    assert first_share(health_of(swapped)) is not None and health_of(swapped).order_pairs
    assert first_share(health_of(fixed)) is None and health_of(fixed).order_flips is None
    assert health_of(fixed).games and health_of(fixed).unscored is not None
