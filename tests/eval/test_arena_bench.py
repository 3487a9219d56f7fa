"""Arena-Hard as a bench."""

from pathlib import Path

import pytest

from tests.eval.arena_data import DATA, match, needs_data
from thinkserve.errors import UsageError
from thinkserve.eval.arena.bench import ArenaHardBench
from thinkserve.eval.bench import Bench


class Folder:
    """A folder laid out like the official data."""

    def find(self, name: str) -> Path:
        for ending in (".jsonl", ".jsonl.gz"):
            if (path := DATA / (name + ending)).is_file():
                return path
        raise UsageError(f"{name} is not there")


@pytest.fixture
def v20() -> ArenaHardBench:
    return ArenaHardBench("v2.0", Folder())


def test_the_versions_are_benches_with_their_authors_judges(v20: ArenaHardBench) -> None:
    old: Bench = ArenaHardBench("v0.1", Folder())
    new: Bench = v20
    assert (old.name, old.official_judge) == ("arena-hard-v0.1", "gpt-4-1106-preview")
    assert (new.name, new.official_judge) == ("arena-hard", "gpt-4.1")


def test_a_bench_scores_its_matches(v20: ArenaHardBench) -> None:
    scores = v20.score({"m": [match("1", ["B>A", "A>B"])]}, compat="aligned", seed=0)
    assert (scores.bench, scores.compat, scores.models["m"].score) == ("arena-hard", "aligned", 100.0)


def test_a_missing_file_is_told_with_its_place(v20: ArenaHardBench, tmp_path: Path) -> None:
    class Empty:
        def find(self, name: str) -> Path:
            raise UsageError(f"put {name} into {tmp_path}")

    with pytest.raises(UsageError, match="arena_hard_v2.0/question"):
        _ = ArenaHardBench("v2.0", Empty()).instructions


@needs_data
def test_the_official_instructions_have_their_categories_and_baselines(v20: ArenaHardBench) -> None:
    baselines = [v20.baseline_of(instruction) for instruction in v20.instructions]
    assert baselines.count("o3-mini-2025-01-31") == 500
    assert baselines.count("gemini-2.0-flash-001") == 250
    subcategories = [instruction.categories["subcategory"] for instruction in v20.instructions]
    assert [subcategories.count(name) for name in ("coding", "math", "creative_writing")] == [253, 247, 250]
    assert [instruction.position for instruction in v20.instructions] == list(range(750))
    old = ArenaHardBench("v0.1", Folder())
    assert len(old.instructions) == 500
    assert {old.baseline_of(instruction) for instruction in old.instructions} == {"gpt-4-0314"}
    assert len(old.baseline_answers(old.instructions)["gpt-4-0314"].by_id) == 500


@needs_data
def test_the_creative_baseline_is_asked_for_only_where_it_is_needed(v20: ArenaHardBench) -> None:
    if (DATA / "arena_hard_v2.0/model_answer/gemini-2.0-flash-001.jsonl.gz").exists():
        pytest.skip("the data has the answers of gemini-2.0-flash-001")
    with pytest.raises(
        UsageError, match="gemini-2.0-flash-001.* for creative_writing: bring .*jsonl in --data"
    ):
        v20.baseline_answers(v20.instructions)
    hard = [one for one in v20.instructions if one.categories["category"] == "hard_prompt"]
    assert list(v20.baseline_answers(hard[:7])) == ["o3-mini-2025-01-31"]
    assert [path.name for path in v20.baseline_files()] == ["o3-mini-2025-01-31.jsonl.gz"]


def test_each_judge_is_sampled_its_own_way(v20: ArenaHardBench) -> None:
    assert v20.protocol_of("gpt-4.1").settings["temperature"] == 0.0
    assert v20.protocol_of("gemini-2.5-pro").settings["temperature"] == 1.0
