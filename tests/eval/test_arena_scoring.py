"""Arena-Hard's scores: by hand on small matches, and against the authors' own numbers."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest

from tests.eval.arena_data import V01, V01_MODELS, V20, V20_MODELS, expected, match, needs_data
from thinkserve.eval.answer import Style
from thinkserve.eval.arena.battle import battles_of
from thinkserve.eval.arena.bootstrap import resamples
from thinkserve.eval.arena.files import read_matches, read_questions
from thinkserve.eval.arena.logistic import Regression, newton
from thinkserve.eval.arena.scoring import score_arena
from thinkserve.eval.arena.version import Version
from thinkserve.eval.bench import Compat
from thinkserve.eval.match import Match
from thinkserve.eval.scores import Group, Scores, from_json, to_json

VERSIONS: tuple[Version, ...] = ("v0.1", "v2.0")
BOTH: tuple[Compat, ...] = ("official", "aligned")
JUDGES = (("synthetic-judge-a",), ("synthetic-judge-b",), ("synthetic-judge-a", "synthetic-judge-b"))


def v20(matches: Sequence[Match], compat: Compat = "aligned") -> Group:
    return score_arena("v2.0", {"m": matches}, compat=compat, seed=0).models["m"]


def test_a_strong_verdict_is_three_battles() -> None:
    """The model is B, then A. `B>>A`: 3 wins; `B>A`: 1 loss; `A=B`: half of one; `A>B`: 1 win: 4.5 of 6."""
    found = [match("1", ["B>>A", "B>A"]), match("2", ["A=B", "A>B"])]
    for version in VERSIONS:
        group = score_arena(version, {"m": found}, compat="aligned", seed=0).models["m"]
        assert group.score == pytest.approx(75.0)
        assert (group.n, group.unscored, group.forfeits) == (2, 0, 0)


def test_v01_drops_a_game_without_a_verdict_and_v20_the_question() -> None:
    """v0.1: `A>B` is one loss, and of the other question 1 win and a tie: 1.5 of 3. v2.0: 1.5 of 2."""
    found = [match("1", ["A>B", None]), match("2", ["B>A", "A=B"])]
    old = score_arena("v0.1", {"m": found}, compat="aligned", seed=0).models["m"]
    assert old.score == pytest.approx(50.0)
    assert (old.n, old.unscored) == (2, 0)
    new = v20(found)
    assert new.score == pytest.approx(75.0)
    assert (new.n, new.unscored) == (1, 1)


def test_of_two_judges_only_the_one_with_a_null_game_is_dropped() -> None:
    """The first judge's loss goes with its null game; the second's two wins stay."""
    group = v20([match("1", ["A>B", None, "B>A", "A>B"])])
    assert group.score == pytest.approx(100.0)
    assert (group.n, group.unscored) == (1, 0)


def test_nothing_scored_is_no_score() -> None:
    group = v20([match("1", [None, None]), match("2", [])])
    assert (group.n, group.unscored, group.score, group.ci) == (0, 2, None, None)


def test_a_model_without_verdicts_does_not_hide_the_others() -> None:
    scores = score_arena(
        "v2.0", {"m": [match("1", [None, None])], "o": [match("1", ["A=B", "A=B"])]}, compat="aligned", seed=0
    )
    assert scores.models["m"].score is None
    assert scores.models["o"].score == pytest.approx(50.0)


def test_forfeits_and_lengths_are_counted() -> None:
    group = v20(
        [match("1", ["A>>B", "B>>A"], complete=False), match("2", ["A=B", "A=B"], style=Style(7, 0, 0, 0))]
    )
    assert group.forfeits == 1
    assert group.score == pytest.approx(100 * 1 / 8)
    assert group.mean_length == 4.0  # "four"
    assert group.mean_tokens == 4.0  # 1 and 7


def test_categories_are_scored_on_their_own_and_small_ones_say_so() -> None:
    found = [
        match("1", ["B>A", "A>B"], category="hard_prompt", subcategory="math"),
        match("2", ["A>B", "B>A"], category="hard_prompt", subcategory="coding"),
    ]
    categories = v20(found).categories
    assert categories["category"]["hard_prompt"].score == pytest.approx(50.0)
    assert categories["subcategory"]["math"].score == pytest.approx(100.0)
    assert categories["subcategory"]["coding"].score == pytest.approx(0.0)
    assert categories["subcategory"]["math"].note == "too few to say: 1 instruction"
    assert categories["subcategory"]["math"].ci is None


def test_style_is_not_controlled_for_across_two_baselines() -> None:
    found = [
        *[match(f"h{n}", ["B>A", "A=B"], category="hard_prompt") for n in range(9)],
        *[match(f"c{n}", ["B>A", "A=B"], category="creative_writing", baseline="gemini") for n in range(9)],
    ]
    scores = score_arena("v2.0", {"m": found}, compat="aligned", seed=0)
    group = scores.models["m"]
    assert scores.baseline == "o3-mini-2025-01-31+gemini"
    assert group.score == pytest.approx(75.0) and group.style_controlled_score is None
    assert group.categories["category"]["creative_writing"].style_controlled_score is not None


def test_equal_styles_leave_nothing_to_control_for() -> None:
    found = [match(str(n), ["B>A", "A=B"]) for n in range(30)]
    for compat in BOTH:
        group = v20(found, compat)
        assert group.style_controlled_score == pytest.approx(75.0, abs=0.5)


def test_style_control_is_at_the_average_difference_in_style() -> None:
    """1 token against 2 wins 1 of 4 battles, 4 against 2 wins 3 of 4.

    (a - b) / (a + b) is -1/3 and 1/3, the log odds are -log 3 and log 3: 3 log 3 times the difference. With as many of both the average difference
    is 0 and the score there 50. With three times as many long ones it is 1/6: log odds log(3) / 2, which is 63.4 %.
    """
    short = [match(f"s{n}", ["A>B", "B>A" if n % 2 else "A>B"], style=Style(1, 0, 0, 0)) for n in range(40)]
    long = [
        match(f"l{k}-{n}", ["B>A", "B>A" if n % 2 else "A>B"], style=Style(4, 0, 0, 0))
        for k in range(3)
        for n in range(40)
    ]
    assert v20(short + long[:40]).style_controlled_score == pytest.approx(50.0, abs=1e-6)
    assert v20(short + long).style_controlled_score == pytest.approx(100 / (1 + 3**-0.5), abs=1e-4)


def test_missing_metadata_is_counted_and_told() -> None:
    found = [match(str(n), ["B>A", "A=B"]) for n in range(3)]
    bare = [replace(one, answer=replace(one.answer, style=None)) for one in found]
    scores = score_arena("v2.0", {"m": bare}, compat="aligned", seed=0)
    assert any(note.startswith("3 responses came without counts of style") for note in scores.notes)
    assert "token_counter" in scores.details


def test_a_judge_that_is_not_the_authors_is_named() -> None:
    ours = score_arena("v2.0", {"m": [match("1", ["A=B", "A=B"], judge="llama")]}, compat="aligned", seed=0)
    assert any("judged by llama" in note for note in ours.notes)
    theirs = score_arena("v2.0", {"m": [match("1", ["A=B", "A=B"])]}, compat="aligned", seed=0)
    assert not theirs.notes and theirs.judge == "gpt-4.1"


def test_the_bootstrap_over_questions_is_seeded_and_blind_to_the_order_of_a_file() -> None:
    labels = ["B>A", "A>>B", "A=B", "B>>A", "A>B"]
    found = [match(str(n), [labels[n % 5], labels[n % 3]]) for n in range(61)]
    first, again, turned = v20(found), v20(found), v20(found[::-1])
    other = score_arena("v2.0", {"m": found}, compat="aligned", seed=1).models["m"]
    assert first.ci == again.ci and first.ci is not None and other.ci != first.ci
    assert turned.ci == pytest.approx(first.ci)
    assert first.ci_level == 0.95 and v20(found, "official").ci_level == 0.9
    assert first.ci[0] < (first.score or 0) < first.ci[1]


def test_questions_are_drawn_whole_and_for_all_models_alike() -> None:
    found = [match(str(n), ["B>>A", "A>B"]) for n in range(20)]
    battles = battles_of("v2.0", {"m": found, "o": found})
    assert battles is not None
    counts, points = resamples("v2.0", battles, "aligned", 5, seed=3)
    assert np.array_equal(counts % 4, np.zeros_like(counts)) and np.array_equal(points, counts)
    assert np.array_equal(counts[:, :20], counts[:, 20:])
    assert np.array_equal(counts[:, :20].sum(axis=1), np.full(5, 80.0))


def test_newton_finds_the_plain_share_without_features() -> None:
    """With a constant feature of 0 the strength is the log odds: 3 of 4 battles won gives log 3."""
    battles = battles_of("v2.0", {"m": [match("1", ["B>A", "A>B", "B>A", "B>A"])]})
    assert battles is not None
    regression = Regression(battles, np.zeros((1, 1)))
    strengths, coefficients = newton(regression, battles.counts[None], battles.points[None])
    assert strengths[0, 0] == pytest.approx(np.log(3), abs=1e-6)
    assert coefficients[0, 0] == 0.0


def test_a_model_that_loses_everything_scores_zero_at_any_style() -> None:
    found = [match(str(n), ["A>B", "B>A"], style=Style(1 + n % 3, n % 2, 0, 0)) for n in range(30)]
    for compat in BOTH:
        group = v20(found, compat)
        assert group.score == 0.0
        assert group.style_controlled_score is not None and group.style_controlled_score < 5


def test_scores_are_written_and_read_as_they_are() -> None:
    scores = score_arena(
        "v2.0",
        {"m": [match(str(n), ["B>A", "A=B"], category="hard_prompt") for n in range(30)]},
        compat="official",
        seed=0,
    )
    found = from_json(msgspec.json.decode(msgspec.json.encode(to_json(scores))), "here")
    assert found.models["m"].score == scores.models["m"].score
    assert found.details["style_coefficients"].keys() == {"all", "hard_prompt"}


@cache
def v01_scores(compat: Compat) -> Scores:
    read = read_matches(
        "v0.1",
        read_questions("v0.1", V01 / "question.jsonl.gz"),
        [V01 / "model_answer" / f"{model}.jsonl.gz" for model in V01_MODELS],
        [V01 / "model_answer" / "gpt-4-0314.jsonl.gz"],
        [V01 / "model_judgment" / "gpt-4-1106-preview" / f"{model}.jsonl.gz" for model in V01_MODELS],
        compat=compat,
    )
    assert read.judge == "gpt-4-1106-preview" and not read.notes
    return score_arena("v0.1", read.matches, compat=compat, seed=0)


@cache
def v20_scores(judges: tuple[str, ...], compat: Compat) -> Scores:
    read = read_matches(
        "v2.0",
        read_questions("v2.0", V20 / "question.jsonl.gz"),
        [V20 / "model_answer" / f"{model}.jsonl.gz" for model in V20_MODELS],
        [V20 / "model_answer" / "o3-mini-2025-01-31.jsonl.gz"],
        [V20 / "model_judgment" / judge / f"{model}.jsonl.gz" for judge in judges for model in V20_MODELS],
        compat=compat,
    )
    assert read.judge == "+".join(judges)
    return score_arena("v2.0", read.matches, compat=compat, seed=0)


@needs_data
@pytest.mark.parametrize("compat", BOTH)
def test_v01_scores_are_exact(compat: Compat) -> None:
    for model, known in expected(V01)["models"].items():
        group = v01_scores(compat).models[model]
        assert group.score == pytest.approx(known["exact_score"], abs=1e-9)
        assert group.n + group.unscored == known["questions"]


@needs_data
def test_v01_is_as_its_authors_code_prints_it() -> None:
    """In the order of the files in which their code was run, even their bootstrap is met to its last digit."""
    known = expected(V01)["official_code_output"]
    scores = v01_scores("official")
    for model in V01_MODELS:
        group = scores.models[model]
        plain, styled = known["default"][model], known["--style-control"][model]
        drawn = scores.details["ci_of_authors_rounds"][model]
        assert drawn == pytest.approx((plain["ci_lower"], plain["ci_upper"]), abs=0.011)
        assert group.ci_level == 0.95
        assert int(group.mean_tokens or 0) == plain["avg_tokens"]
        assert group.style_controlled_score == pytest.approx(styled["score"], abs=0.011)
        assert group.style_controlled_ci == pytest.approx((styled["ci_lower"], styled["ci_upper"]), abs=0.02)
        length, markdown = known["--length-control-only"][model], known["--markdown-control-only"][model]
        assert group.length_controlled_score == pytest.approx(length["score"], abs=0.011)
        assert group.markdown_controlled_score == pytest.approx(markdown["score"], abs=0.02)
    coefficients = scores.details["style_coefficients"]
    assert [round(value, 3) for value in coefficients["all"].values()] == [0.416, 0.258, 0.004, 0.057]
    assert [round(value, 3) for value in coefficients["length alone"].values()] == [0.456]
    assert [round(value, 3) for value in coefficients["markdown alone"].values()] == [0.289, 0.101, 0.062]


@needs_data
@pytest.mark.parametrize("models", [V01_MODELS[::-1], *((model,) for model in V01_MODELS)])
def test_v01_intervals_are_near_the_authors_whatever_is_scored_beside(models: Sequence[str]) -> None:
    """Theirs come from 100 rounds over all models: drawn alone like that, an end would be off by 0.9."""
    read = read_matches(
        "v0.1",
        read_questions("v0.1", V01 / "question.jsonl.gz"),
        [],
        [],
        [V01 / "model_judgment" / "gpt-4-1106-preview" / f"{model}.jsonl.gz" for model in models],
        compat="official",
    )
    scores = score_arena("v0.1", read.matches, compat="official", seed=0)
    for model in models:
        known = expected(V01)["official_code_output"]["default"][model]
        assert scores.models[model].ci == pytest.approx((known["ci_lower"], known["ci_upper"]), abs=0.6)
        assert scores.models[model].ci == v01_scores("official").models[model].ci


def test_the_interval_over_battles_is_that_of_the_normal_approximation() -> None:
    """300 wins and 100 losses: 75 with a standard error of 100 * sqrt(0.75 * 0.25 / 400) = 2.165, so 70.76 to 79.24."""
    won, lost = ["B>A", "A>B"], ["A>B", "B>A"]  # the model is B in the first game, and A in the second
    matches = [match(f"q{n}", won if n < 150 else lost) for n in range(200)]
    group = score_arena("v0.1", {"m": matches}, compat="official", seed=0).models["m"]
    assert group.score == 75
    assert group.ci == pytest.approx((70.76, 79.24), abs=0.15)


@needs_data
def test_v01_has_a_group_for_each_cluster_and_calls_it_small() -> None:
    clusters = v01_scores("aligned").models["qwen2.5-72b-instruct"].categories["cluster"]
    assert len(clusters) == 250
    assert all(group.n + group.unscored == 2 and group.ci is None for group in clusters.values())
    assert all(group.note and "too few" in group.note for group in clusters.values())


@needs_data
@pytest.mark.parametrize("compat", BOTH)
@pytest.mark.parametrize("judges", JUDGES)
def test_v20_scores_are_exact_by_category_and_subcategory(judges: tuple[str, ...], compat: Compat) -> None:
    scores, known = v20_scores(judges, compat), expected(V20)["points_without_bootstrap"]
    compared = 0
    for model in V20_MODELS:
        for scheme, groups in scores.models[model].categories.items():
            for category, group in groups.items():
                name = category if scheme == "category" else f"sub:{category}"
                point = known[f"{'+'.join(judges)}|{name}"][model]
                assert group.score == pytest.approx(point["mean"], abs=1e-9)
                assert point.get("n_questions", group.n) == group.n
                compared += 1
    assert compared == 10


@needs_data
@pytest.mark.parametrize("judges", JUDGES)
def test_v20_style_control_meets_the_authors_optimiser_and_the_optimum(judges: tuple[str, ...]) -> None:
    style = expected(V20)["points_without_bootstrap"][f"{'+'.join(judges)}|hard_prompt|style"]
    printed = expected(V20)["show_result"][f"{'+'.join(judges)}|hard_prompt|style"]
    official, aligned = v20_scores(judges, "official"), v20_scores(judges, "aligned")
    for model in V20_MODELS:
        theirs = official.models[model].categories["category"]["hard_prompt"]
        ours = aligned.models[model].categories["category"]["hard_prompt"]
        stopped, optimum = style["official_optimizer_full_data"][model], style["converged_optimum"][model]
        assert theirs.style_controlled_score == pytest.approx(stopped, abs=1e-4)
        assert ours.style_controlled_score == pytest.approx(optimum, abs=1e-4)
        assert theirs.compat == {"style_controlled_score": pytest.approx(optimum, abs=1e-4)}
        assert ours.compat == {"style_controlled_score": pytest.approx(stopped, abs=1e-4)}
        line = printed["leaderboard"][model]
        low, high = line["score"] - line["ci_minus"], line["score"] + line["ci_plus"]
        assert theirs.style_controlled_ci == pytest.approx((low, high), abs=0.8)
        assert official.models[model].style_controlled_score is None
    coefficients = list(aligned.details["style_coefficients"]["hard_prompt"].values())
    assert coefficients == pytest.approx(style["converged_style_coefs"], abs=1e-5)


@needs_data
@pytest.mark.parametrize("judges", JUDGES)
def test_v20_intervals_are_near_what_the_authors_code_prints(judges: tuple[str, ...]) -> None:
    """Their code has no seed: the ends of its intervals differ by about 0.5 from run to run."""
    for category in ("hard_prompt", "creative_writing"):
        lines = expected(V20)["show_result"][f"{'+'.join(judges)}|{category}"]["leaderboard"]
        for model in V20_MODELS:
            group = v20_scores(judges, "official").models[model].categories["category"][category]
            low, high = (
                lines[model]["score"] + sign * lines[model][end]
                for sign, end in ((-1, "ci_minus"), (1, "ci_plus"))
            )
            assert group.ci == pytest.approx((low, high), abs=1.2)
            assert group.ci_level == 0.9
