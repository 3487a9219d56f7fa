"""AlpacaEval's numbers against those that were published, the package as it is, and a second computation by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.eval.alpaca_data import (
    DATA,
    MODELS,
    OFFICIAL,
    Folder,
    annotations_of,
    expected,
    match,
    needs_data,
    official_bench,
    official_rows,
    outputs_of,
    whole_package,
)
from thinkserve.errors import UsageError
from thinkserve.eval.alpaca import package
from thinkserve.eval.alpaca.bench import AlpacaEvalBench
from thinkserve.eval.alpaca.files import read_annotations
from thinkserve.eval.alpaca.folds import Folds, fold_of
from thinkserve.eval.alpaca.glm import LengthControl, length_control
from thinkserve.eval.alpaca.matches import read_matches
from thinkserve.eval.alpaca.scoring import score_alpaca
from thinkserve.eval.bench import Bench, Compat
from thinkserve.eval.match import Match
from thinkserve.eval.scores import Group, Scores, to_json

GAMED = OFFICIAL / "glm" / "df_gamed.csv.gz"


def matches_of(model: str) -> list[Match]:
    return list(_matches_of(model))


@cache
def _matches_of(model: str) -> tuple[Match, ...]:
    return read_annotations(annotations_of(model), official_bench().instructions).matches


def fit(matches: list[Match], positions: list[int], folds: Folds) -> LengthControl:
    found = length_control(matches, positions, folds=folds, gamed=GAMED)
    assert found is not None
    return found


def scored(
    matches: list[Match], compat: Compat = "aligned", model: str = "model", folds: Folds | None = None
) -> Scores:
    return score_alpaca({model: matches}, compat=compat, seed=0, gamed=GAMED, folds=folds)


def group(
    matches: list[Match], compat: Compat = "aligned", model: str = "model", folds: Folds | None = None
) -> Group:
    return scored(matches, compat, model, folds).models[model]


@needs_data
@pytest.mark.parametrize("model", MODELS)
def test_official_numbers_are_those_of_the_leaderboard(model: str) -> None:
    bench: Bench = official_bench()
    official, by_dataset = expected()[model]["official"], expected()[model]["per_dataset_computed_here"]
    matches, judge, _ = read_matches(bench.instructions, [outputs_of(model)], None, [annotations_of(model)])
    scores = bench.score(matches, compat="official", seed=0)
    (found,) = scores.models.values()
    assert (scores.judge, scores.baseline) == (judge, "gpt4_1106_preview")
    assert scores.notes == ()
    assert found.win_rate == pytest.approx(official["win_rate"], abs=1e-6)
    assert found.standard_error == pytest.approx(official["standard_error"], abs=1e-6)
    assert found.length_controlled_win_rate == pytest.approx(official["length_controlled_winrate"], abs=1e-6)
    if official["lc_standard_error"] is not None:
        assert found.lc_standard_error == pytest.approx(official["lc_standard_error"], abs=1e-6)
    assert found.discrete_win_rate == pytest.approx(official["discrete_win_rate"], abs=1e-6)
    assert found.mean_length is not None and int(found.mean_length) == official["avg_length"]
    counts = (found.n, found.wins, found.losses, found.draws)
    assert counts == tuple(official[name] for name in ("n_total", "n_wins", "n_wins_base", "n_draws"))
    ((_, details),) = scores.details["glm"].items()
    by_folds = details["length_controlled_win_rate_by_folds"]
    for folds, run in (("official", "official_folds"), ("stable", "sklearn_1.9.1")):
        theirs = expected()[model][f"alpaca_eval_0.6.6_{run}"]["length_controlled_winrate"]
        assert by_folds[folds] == pytest.approx(theirs, abs=1e-6)
    assert found.categories["dataset"].keys() == by_dataset.keys()
    for dataset, one in found.categories["dataset"].items():
        theirs = by_dataset[dataset]
        assert one.n == theirs["n"]
        assert one.win_rate == pytest.approx(theirs["win_rate"], abs=1e-6)
        assert one.standard_error == pytest.approx(theirs["standard_error"], abs=1e-6)
        assert one.mean_length == pytest.approx(theirs["avg_length"], abs=1e-6)
        # `expected.json` has them out of the fit with official folds.
        if details["folds"] == "official":
            assert one.length_controlled_win_rate == pytest.approx(theirs["lc_mean_of_global_fit"], abs=1e-6)


@needs_data
def test_the_official_folds_are_those_of_the_leaderboard() -> None:
    folds = json.loads((OFFICIAL / "glm" / "official_folds.json").read_text())
    for groups in (2414, 2415):
        assert list(fold_of(groups, "official")) == folds[str(groups)]


def test_the_official_folds_of_eighteen_rows_by_hand() -> None:
    """One round of quicksort over equal keys: the middle (8) is put before the last, and the scans meet at it.

    They swap 1 with 15, 2 with 14 ... 7 with 9; 8 returns from place 16 to the place of 16, its own. The order is 0, 15,
    14 ... 1, 16, 17. From its end on, rows go to folds 0, 1, 2, 3, 4, 0 ...: row 17 to 0, 16 to 1, 1 to 2, 2 to 3 ...
    """
    assert fold_of(18, "official") == (2, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 1, 0)
    assert fold_of(16, "official") == fold_of(16, "stable") == (0, *(4, 3, 2, 1, 0) * 3)


@needs_data
def test_stable_folds_are_those_of_scikit_learn_now() -> None:
    from sklearn.model_selection import GroupKFold

    groups = np.tile(np.arange(2415), 2)
    for fold, (_, test) in enumerate(GroupKFold(5).split(groups, groups=groups)):
        assert set(test) == {row for row in range(4830) if fold_of(2415, "stable")[row % 2415] == fold}


def by_hand(model: str, folds: Folds) -> tuple[float, float]:
    """The GLM without alpaca_eval, pandas and patsy: its win rate and C."""
    from sklearn.linear_model import LogisticRegression

    gamed = np.genfromtxt(GAMED, delimiter=",", names=True, dtype=None, encoding="utf-8")
    difficulty = gamed["instruction_difficulty"][:805]
    rows = official_rows(model)
    y = np.array([row["preference"] or 1.5 for row in rows]) - 1
    delta = np.array([len(row["output_1"]) - len(row["output_2"]) for row in rows], dtype=float)
    delta /= delta.std(ddof=1)
    ours = np.column_stack([np.tanh(delta), difficulty[: len(rows)], np.ones(len(rows))])
    theirs = np.column_stack(
        [np.tanh(gamed["std_delta_len"]), gamed["instruction_difficulty"], np.zeros(len(gamed))]
    )
    x = np.tile(np.vstack([theirs, ours]), (2, 1))
    soft = np.concatenate([gamed["preference"], y])
    n = len(soft)
    right = np.concatenate([soft, 1 - soft])
    weight = np.tile(np.repeat([0.1, 1.0], [len(gamed), len(rows)]), 2)
    label = np.repeat([1, 0], n)
    fold = np.tile(fold_of(n, folds), 2)
    cs = np.logspace(-4, 4, 10)

    def trained(c: float, among: Any, seed: Any) -> Any:
        regression = LogisticRegression(
            C=c, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=seed
        )
        return regression.fit(x[among], label[among], (right * weight)[among])

    likelihood = np.zeros(len(cs))
    for number in range(5):
        seed, held = np.random.RandomState(123), fold == number
        for index, c in enumerate(cs):
            p = np.clip(trained(c, ~held, seed).predict_proba(x[held])[:, 1], 1e-15, 1 - 1e-15)
            truth = np.where(label == 1, right, 1 - right)[held]
            likelihood[index] += np.mean(weight[held] * (truth * np.log(p) + (1 - truth) * np.log(1 - p)))
    best = cs[likelihood.argmax()]
    ours[:, 0] = 0
    return 100 * float(trained(best, slice(None), 123).predict_proba(ours)[:, 1].mean()), float(best)


@needs_data
@pytest.mark.parametrize(
    ("model", "folds"),
    [("OpenHermes-2.5-Mistral-7B", "official"), ("NullModel", "stable"), ("alpaca-7b_concise", "official")],
)
def test_a_second_computation_agrees(model: str, folds: Folds) -> None:
    matches = matches_of(model)
    found = fit(matches, list(range(len(matches))), folds)
    win_rate, c = by_hand(model, folds)
    assert found.win_rate == pytest.approx(win_rate, abs=1e-9)
    assert found.c == pytest.approx(c)


@needs_data
def test_the_whole_package_finds_the_same_where_judgments_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own folds are the stable ones. It leaves failed rows out of the fit and predicts them all the same."""
    import pandas as pd
    import sklearn

    matches = [
        match(
            m.instruction.text,
            m.games[0].verdict.preference if row % 9 and m.games[0].verdict else None,
            m.answer.response,
            m.baseline.response,
            position=row,
        )
        for row, m in enumerate(matches_of("vicuna-7b")[:700])
    ]
    frame = pd.DataFrame([dict(row) for row in official_rows("vicuna-7b")[:700]])
    frame.loc[frame.index % 9 == 0, "preference"] = float("nan")
    theirs = whole_package().metrics.glm_winrate
    monkeypatch.setattr(theirs, "hf_hub_download", lambda **_: str(GAMED))
    with warnings.catch_warnings(), sklearn.config_context():
        warnings.simplefilter("ignore", FutureWarning)
        right = theirs.get_length_controlled_winrate(
            frame, save_weights_dir=None, is_warn_extreme_changes=False
        )
    found = group(matches, "official", folds="stable")
    assert (found.n, found.unscored) == (622, 78)
    assert found.win_rate == pytest.approx(right["win_rate"], abs=1e-12)
    assert found.length_controlled_win_rate == pytest.approx(right["length_controlled_winrate"], abs=1e-9)
    assert found.lc_standard_error == pytest.approx(right["lc_standard_error"], abs=1e-9)
    # Aligned, they are not there at all.
    kept = [m for m in matches if m.games[0].verdict is not None]
    alone = group(kept, "aligned", folds="stable")
    aligned = group(matches, "aligned", folds="stable")
    assert aligned.length_controlled_win_rate == alone.length_controlled_win_rate
    assert aligned.compat["length_controlled_win_rate"] == pytest.approx(
        right["length_controlled_winrate"], abs=1e-9
    )
    assert aligned.note is not None and "rows without a verdict" in aligned.note


@needs_data
def test_a_missing_row_shifts_the_official_reading_and_both_are_shown() -> None:
    matches = matches_of("alpaca-7b_concise")
    official, aligned = group(matches, "official"), group(matches, "aligned")
    assert official.compat["length_controlled_win_rate"] == pytest.approx(aligned.length_controlled_win_rate)
    assert aligned.compat["length_controlled_win_rate"] == pytest.approx(official.length_controlled_win_rate)
    assert official.note == aligned.note
    assert aligned.note is not None and "115 of 804 rows are not at their instruction's place" in aligned.note
    # In its own words: the row after the gap (689) has the difficulty of instruction 690, not of row 689.
    positions = [m.instruction.position for m in matches]
    assert positions == [*range(689), *range(690, 805)]
    assert aligned.length_controlled_win_rate == pytest.approx(fit(matches, positions, "official").win_rate)


@needs_data
def test_the_order_of_the_rows_moves_the_official_reading_alone() -> None:
    matches = matches_of("claude-2.1")
    shuffled = [matches[row] for row in np.random.default_rng(0).permutation(len(matches))]
    found, whole = group(shuffled), group(matches)
    assert found.length_controlled_win_rate == pytest.approx(whole.length_controlled_win_rate, abs=1e-12)
    assert (
        abs(
            found.compat["length_controlled_win_rate"]
            - expected()["claude-2.1"]["official"]["length_controlled_winrate"]
        )
        > 2
    )
    assert whole.compat == {} and whole.note is None


@needs_data
def test_the_published_number_decides_between_folds_in_the_official_reading_alone() -> None:
    matches, published = (
        matches_of("NullModel"),
        expected()["NullModel"]["official"]["length_controlled_winrate"],
    )
    official, aligned = scored(matches, "official", "example"), scored(matches, "aligned", "example")
    details = official.details["glm"]["example"]
    assert (details["folds"], aligned.details["glm"]["example"]["folds"]) == ("stable", "official")
    assert details["published"]["model"] == "NullModel"
    assert details["length_controlled_win_rate_by_folds"] == pytest.approx(
        {"official": 86.3250203181125, "stable": published}, abs=1e-6
    )
    found = aligned.models["example"]
    assert found.length_controlled_win_rate == pytest.approx(86.3250203181125, abs=1e-6)
    assert found.compat["length_controlled_win_rate"] == pytest.approx(published, abs=1e-6)
    assert found.note is not None and "stable folds" in found.note
    # One other verdict, and they are no longer the judgments that were published.
    matches[0] = match(matches[0].instruction.text, 0.5, "a", "b", judge=package.ANNOTATOR)
    other = scored(matches, "official", "example")
    assert other.details["glm"]["example"]["folds"] == "official"
    assert "published" not in other.details["glm"]["example"]


@needs_data
def test_nothing_of_the_host_is_changed(tmp_path: Path) -> None:
    """No module is left behind, no setting of scikit-learn, no handler of the root logger, no file of the package."""
    script = f"""
import logging, os, pathlib, sys
from thinkserve.eval.alpaca import package
from thinkserve.eval.alpaca.bench import AlpacaEvalBench
from thinkserve.eval.alpaca.matches import read_matches
from tests.eval.alpaca_data import Folder, annotations_of
import sklearn
folder = package.folder()
def files():
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*") if "__pycache__" not in str(p))
before, settings, environment = files(), sklearn.get_config(), dict(os.environ)
bench = AlpacaEvalBench(Folder(pathlib.Path({str(DATA)!r})))
matches, _, _ = read_matches(bench.instructions, [], None, [annotations_of("vicuna-7b")])
rows = matches["vicuna-7b"]
scores = bench.score({{"vicuna-7b": rows}}, compat="aligned", seed=0)
assert scores.models["vicuna-7b"].length_controlled_win_rate
assert files() == before
assert sklearn.get_config() == settings
assert dict(os.environ) == environment
assert not logging.getLogger().handlers
heavy = ("alpaca_eval", "datasets", "huggingface_hub", "pkg_resources", "torch", "transformers", "openai")
print(sorted(n for n in sys.modules if n.startswith(heavy)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_the_copy_of_the_glm_is_not_the_packages_own_module() -> None:
    theirs = whole_package().metrics.glm_winrate
    ours = package.glm_winrate()
    assert ours is not theirs and ours is package.glm_winrate()
    assert ours.__file__ == theirs.__file__
    assert sys.modules["alpaca_eval.metrics.glm_winrate"] is theirs


@needs_data
def test_failed_judgments_are_unscored_and_lost_ones_without_a_judge_are_forfeits() -> None:
    """Two wins, a draw, a forfeit: (1 + 1 + 0.5 + 0) / 4; of whole wins the same."""
    matches = [
        match("a", 1.0, "xxx", "y", position=0),
        match("b", 1.0, "x", "yy", position=1),
        match("c", 0.5, "x", "yyyy", position=2),
        match("d", 0.0, "", "y", position=3, complete=False),
        match("e", None, "xx", "y", position=4),
    ]
    found = group(matches)
    assert (found.n, found.unscored, found.forfeits) == (4, 1, 1)
    assert (found.win_rate, found.wins, found.draws, found.losses) == (62.5, 2, 1, 1)
    assert found.discrete_win_rate == 62.5
    # The sample deviation of 100, 100, 50, 0 is 47.87; over sqrt(4).
    assert found.standard_error == pytest.approx(23.9357, abs=1e-4)
    assert found.mean_length == (3 + 1 + 1 + 0 + 2) / 5
    assert found.length_controlled_win_rate is not None
    assert found.note is not None and "fewer than 200" in found.note
    assert found.ci_level == 0.95 and found.ci is not None and 0 <= found.ci[0] < 62.5 < found.ci[1] <= 100
    assert found.ci == group(matches).ci


@needs_data
@pytest.mark.parametrize("count", [1, 2])
def test_without_differences_of_length_there_is_no_length_control(count: int) -> None:
    found = group([match(str(row), 1.0, "xx", "y", position=row) for row in range(count)])
    assert (found.win_rate, found.length_controlled_win_rate, found.lc_standard_error) == (100.0, None, None)
    assert found.standard_error == (0.0 if count == 2 else None)
    assert found.note is not None and "no length-controlled win rate" in found.note
    msgspec.json.encode(to_json(scored([match("0", 1.0, "xx", "y")])))


@needs_data
def test_a_length_controlled_win_rate_that_is_far_off_is_pointed_out() -> None:
    """It loses where its responses are far shorter, which is mostly, and wins where they are not."""
    matches = [
        match(str(row), 0.05, "x", "y" * 2000, position=row)
        if row % 10
        else match(str(row), 0.95, "x" * row, "y" * row, position=row)
        for row in range(805)
    ]
    found = group(matches)
    assert found.win_rate == pytest.approx(14, abs=0.5)
    assert found.length_controlled_win_rate is not None
    assert found.length_controlled_win_rate > 50
    assert found.note is not None and "far from the raw one" in found.note


@needs_data
def test_numbers_of_another_judge_or_baseline_say_so() -> None:
    matches = [match(str(row), 0.3, "x" * row, "y", position=row, judge="other") for row in range(3)]
    assert any("judged by other" in note for note in scored(matches).notes)
    matches = [match(str(row), 0.3, "x" * row, "y", position=row, baseline_model="b") for row in range(3)]
    assert any("judged against b" in note for note in scored(matches).notes)
    bench = AlpacaEvalBench(Folder(DATA), verdicts="text")
    matches = [match(str(row), 0.0, "x" * row, "y", position=row) for row in range(3)]
    assert any(
        "not comparable" in note for note in bench.score({"m": matches}, compat="aligned", seed=0).notes
    )


def test_what_cannot_be_scored_is_refused() -> None:
    one, other = match("a", 1.0, "x", "y"), match("b", 0.0, "x", "yy", judge="another judge", position=1)
    failed = match("a", None, "x", "y")
    with pytest.raises(
        UsageError, match="one judge, and these judgments have another judge, gpt-4-1106-preview"
    ):
        scored([one, other])
    with pytest.raises(UsageError, match="model: none of its 1 judgments has a verdict"):
        scored([failed])
    with pytest.raises(UsageError, match="gpt4_1106_preview was judged against itself"):
        scored([one], model="gpt4_1106_preview")
    with pytest.raises(UsageError, match="no judgments to score"):
        score_alpaca({}, compat="aligned", seed=0, gamed=GAMED)


def test_a_file_of_gamed_baselines_that_is_another_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "df_gamed.csv"
    path.write_text("index,instruction_difficulty\n0,0.0\n")
    matches = [match(str(row), 1.0, "x" * row, "y", position=row) for row in range(3)]
    with pytest.raises(UsageError, match="df_gamed.csv:1: there is no column 'model'"):
        score_alpaca({"m": matches}, compat="aligned", seed=0, gamed=path)
