"""Rankings and scores in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.eval.report_world import THREE, World, build
from thinkserve.eval.report.leaderboard import (
    headline,
    print_leaderboard,
)
from thinkserve.eval.scores import Group, Scores, read_scores, write_scores


def leaderboard_text(folders: Sequence[Path], width: int = 120) -> str:
    """The leaderboard without colours."""
    console = Console(file=StringIO(), width=width, no_color=True, force_terminal=False, highlight=False)
    print_leaderboard(folders, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def run(path: Path, judge: str = "judge", compat: str = "aligned", **rates: float) -> Path:
    groups = {
        name: Group(805, win_rate=rate - 5, standard_error=1.0, length_controlled_win_rate=rate, lc_standard_error=0.5)
        for name, rate in rates.items()
    }  # fmt: skip
    write_scores(path / "scores.json", Scores("alpaca-eval", judge, "gpt4", compat, groups))
    return path


def rows(shown: str) -> list[str]:
    """The first words of the lines that are ranked."""
    return [line.split()[1] for line in shown.split("\n") if line[:2].strip().isdigit()]


def test_models_of_several_runs_are_ranked_by_the_headline(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one", low=20.0, high=60.0), run(tmp_path / "two", middle=40.0)
    shown = leaderboard_text([one, two])
    assert rows(shown) == ["high", "middle", "low"]
    assert "60.0 (59.0\u201361.0)" in shown  # 1.96 * 0.5 to either side
    assert shown.count("AlpacaEval 2") == 1


@pytest.mark.parametrize("other", [{"judge": "another"}, {"compat": "official"}])
def test_what_cannot_be_compared_is_ranked_apart_with_the_reason(
    tmp_path: Path, other: dict[str, str]
) -> None:
    one, two = run(tmp_path / "one", x=20.0), run(tmp_path / "two", **other, y=40.0)  # type: ignore[arg-type]
    shown = leaderboard_text([one, two])
    assert rows(shown) == ["x", "y"]  # two tables
    (word, value) = next(iter(other.items()))
    assert f"numbers with another {word} cannot be compared. Here: {word} {value}." in " ".join(shown.split())


def test_a_run_of_fewer_instructions_is_noted(tmp_path: Path) -> None:
    one = run(tmp_path / "one", x=20.0)
    scores = Scores(
        "alpaca-eval", "judge", "gpt4", "aligned", {"y": Group(100, win_rate=3.0, standard_error=1.0)}
    )
    write_scores(tmp_path / "two" / "scores.json", scores)
    shown = " ".join(leaderboard_text([one, tmp_path / "two"]).split())
    assert "not asked the same instructions: between 100 and 805" in shown
    assert "LC win rate" in shown  # shown, but not what is ranked by: y has none
    assert shown.index("15.0") < shown.index("3.0")


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_narrow_terminal_loses_columns_and_no_numbers(tmp_path: Path, width: int) -> None:
    folder = build(tmp_path, World(THREE, instructions=60))
    shown = leaderboard_text([folder], width=width)
    assert max(map(len, shown.split("\n"))) <= width
    for group in read_scores(folder / "scores.json").models.values():
        assert group.style_controlled_score is not None and group.style_controlled_ci is not None
        low, high = group.style_controlled_ci
        assert f"{group.style_controlled_score:.1f} ({low:.1f}\u2013{high:.1f})" in shown
    assert ("thought" in shown) == (width >= 80)


def test_a_name_is_never_read_as_markup(tmp_path: Path) -> None:
    folder = run(tmp_path, "judge", "aligned", **{"[bold]model[/bold]": 30.0})
    assert "[bold]model[/bold]" in leaderboard_text([folder])
    out = StringIO()
    print_leaderboard([folder], Console(file=out, width=100))
    assert "[bold]model[/bold]" in out.getvalue()


def test_the_end_of_a_run_shows_numbers_notes_and_small_schemes(tmp_path: Path) -> None:
    folder = build(tmp_path, World(THREE))
    out = StringIO()
    Console(file=out, width=120).print(headline(read_scores(folder / "scores.json")))
    shown = out.getvalue()
    assert "! The judge is not the official one" in shown
    assert "pocket-27m \u2212 pocket-27m-direct: +" in shown
    assert "Style-controlled score by category" in shown and "hard_prompt" in shown
    assert "by topic" not in shown  # twenty of them: in the report


def test_a_small_group_says_so(tmp_path: Path) -> None:
    few = Group(3, win_rate=50.0, note="too few to say: 3 instructions")
    group = Group(90, win_rate=50.0, standard_error=5.0, categories={"category": {"rare": few}})
    out = StringIO()
    Console(file=out, width=100).print(headline(Scores("mine", "j", "b", "aligned", {"m": group})))
    assert "too few to say" in out.getvalue()
