"""The stage `prompts`: its files, its report, and that a kill, a second run or a longer one changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.training.folder import TrainFolder
from thinkserve.training.pocket.world import is_held_out
from thinkserve.training.prompts.stage import read_instructions, run
from thinkserve.training.recipe import PromptsRecipe, Recipe
from thinkserve.training.stage import StageContext


def sentence(rng: Random, words: int = 12) -> str:
    return " ".join(f"w{rng.randrange(10_000)}" for _ in range(words))


def write(path: Path, texts: list[str], **more: str) -> Path:
    path.write_text("".join(json.dumps({"instruction": text, **more}) + "\n" for text in texts))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = Random(0)
    return write(tmp_path / "source.jsonl", [sentence(rng) for _ in range(100)], kind="noise")


def recipe(source: Path | str, **changes: Any) -> Recipe:
    iterations = changes.pop("iterations", 2)
    prompts = PromptsRecipe(
        source=str(source),
        per_iteration=10,
        validation=8,
        evaluation=6,
        decontaminate=(),
        category_field="kind",
    )
    return Recipe(name="r", iterations=iterations, prompts=replace(prompts, **changes))


def execute(out: Path, asked: Recipe) -> Mapping[str, Any]:
    return run(StageContext(TrainFolder(out, "thought"), asked, "thought", 0, "prompts"))


def finish(out: Path) -> None:
    """The marker, as the loop's process writes it after the stage."""
    marker = TrainFolder(out, "thought").run_iteration.marker("prompts")
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text("{}")


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "prompts").glob("[!.]*.json*"))}


def report(out: Path) -> Any:
    return json.loads((out / "prompts" / "report.json").read_text())


def test_every_part_has_its_file_and_all_is_counted(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert execute(out, recipe(source)) == {
        "read": 100,
        "bad_lines": 0,
        "too_long": 0,
        "duplicates": 0,
        "contaminated": 0,
        "left": 100,
        "dealt": 34,
    }
    assert list(files(out)) == [
        "evaluation.jsonl",
        "iter-1.jsonl",
        "iter-2.jsonl",
        "report.json",
        "validation.jsonl",
    ]
    parts = [
        read_instructions(TrainFolder(out, "both").prompts_of(part))
        for part in ("validation", "evaluation", 1, 2)
    ]
    assert [len(some) for some in parts] == [8, 6, 10, 10]
    assert len({one.id for some in parts for one in some}) == 34
    first = parts[0][0]
    assert first == Instruction(id_of(first.text), first.text, {"category": "noise"}, 0)
    told = report(out)
    assert told["sizes"] == {"validation": 8, "evaluation": 6, "1": 10, "2": 10}
    assert told["source"]["sha256"] == sha256(source.read_bytes()).hexdigest()
    assert (told["seed"], told["prompts"]["per_iteration"]) == (0, 10)


def test_what_is_left_out_is_counted_and_shown(tmp_path: Path) -> None:
    """10 good ones; 2 copies of the first, one nearly it (12 + 1 words: J = 8/9), 1 of 200 characters, 2 bad lines, and one
    of each kind that is in the bench."""
    rng = Random(1)
    good = [sentence(rng) for _ in range(10)]
    taken = sentence(rng, 20)
    bench = write(tmp_path / "bench.jsonl", ["Who are you?", taken])
    source = write(
        tmp_path / "source.jsonl",
        [
            *good,
            good[0],
            good[0].upper(),
            f"{good[0]} more",
            "x" * 200,
            "who ARE you?",
            taken,
            f"Now: {taken}",
        ],
    )
    source.write_text(source.read_text() + 'no JSON\n{"prompt": "x"}\n')
    asked = recipe(
        source, iterations=1, per_iteration=3, longest=199, decontaminate=(str(bench),), bad_lines="skip"
    )
    asked = replace(asked, prompts=replace(asked.prompts, validation=4, evaluation=3, category_field=None))
    numbers = execute(tmp_path / "run", asked)
    assert numbers == {
        "read": 19,
        "bad_lines": 2,
        "too_long": 1,
        "duplicates": 4,
        "contaminated": 2,
        "left": 10,
        "dealt": 10,
    }
    told = report(tmp_path / "run")["source"]
    assert told["counts"] == {name: count for name, count in numbers.items() if name != "dealt"}
    assert [line.partition(": ")[0] for line in told["bad_lines"]] == [f"{source}:18", f"{source}:19"]
    assert (told["duplicates"]["exact"], told["duplicates"]["near"]) == (2, 2)
    assert told["duplicates"]["examples"][0] == {"kind": "exact", "text": good[0], "same_as": good[0]}
    assert told["contamination"]["benches"] == {
        str(bench): {"instructions": 2, "removed": 2, "exact": 2, "near": 0, "passage": 0}
    }
    assert told["contamination"]["examples"][0] == {
        "id": id_of("who ARE you?"),
        "kind": "exact",
        "text": "who ARE you?",
        "bench": str(bench),
        "bench_id": id_of("Who are you?"),
        "bench_text": "Who are you?",
    }


def test_at_most_a_hundred_examples_are_shown_and_long_ones_cut(tmp_path: Path) -> None:
    rng = Random(2)
    texts = [sentence(rng, 300) for _ in range(120)]
    write(tmp_path / "bench.jsonl", texts)
    source = write(tmp_path / "source.jsonl", [*texts, *(sentence(rng) for _ in range(40))], kind="x")
    execute(tmp_path / "run", recipe(source, decontaminate=(str(tmp_path / "bench.jsonl"),)))
    told = report(tmp_path / "run")["source"]["contamination"]
    assert [bench["removed"] for bench in told["benches"].values()] == [120]
    assert len(told["examples"]) == 100
    assert {len(one["text"]) for one in told["examples"]} == {1003}


@pytest.mark.parametrize("kind", ["file", "pocket"])
def test_a_second_run_and_a_longer_one_give_the_same_files(source: Path, tmp_path: Path, kind: str) -> None:
    out, name = tmp_path / "run", source if kind == "file" else "pocket"
    execute(out, recipe(name))
    finish(out)
    before = files(out)
    execute(out, recipe(name))
    assert files(out) == before
    execute(out, recipe(name, iterations=4))
    after = files(out)
    assert set(after) - set(before) == {"iter-3.jsonl", "iter-4.jsonl"}
    assert {path for path in before if after[path] != before[path]} == {"report.json"}
    execute(tmp_path / "other", recipe(name, iterations=4))
    assert files(tmp_path / "other") == after


def test_a_run_killed_after_any_file_ends_with_the_same(source: Path, tmp_path: Path) -> None:
    """The report is first and the last iteration last; what is half written has another name and counts for nothing."""
    execute(tmp_path / "whole", recipe(source))
    whole = files(tmp_path / "whole")
    order = ["report.json", "validation.jsonl", "evaluation.jsonl", "iter-1.jsonl", "iter-2.jsonl"]
    assert set(order) == set(whole)
    written = {name: (tmp_path / "whole" / "prompts" / name).stat().st_mtime_ns for name in order}
    assert sorted(order, key=lambda name: written[name]) == order
    for count in range(len(order)):
        out = tmp_path / f"killed-{count}"
        (out / "prompts").mkdir(parents=True)
        for name in order[:count]:
            shutil.copy(tmp_path / "whole" / "prompts" / name, out / "prompts")
        (out / "prompts" / f".{order[count]}.123").write_bytes(whole[order[count]][:20])
        execute(out, recipe(source))
        assert files(out) == whole


def test_a_source_that_has_changed_is_refused_once_the_prompts_are_in_use(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    execute(out, recipe(source))
    write(source, [sentence(Random(number)) for number in range(500, 600)], kind="noise")
    execute(out, recipe(source))  # no stage has used them
    finish(out)
    before = files(out)
    write(source, [sentence(Random(number)) for number in range(700, 800)], kind="noise")
    with pytest.raises(
        UsageError, match=r"prompts/validation\.jsonl: would come out different now: the source"
    ):
        execute(out, recipe(source, iterations=3))
    assert files(out) == before


def test_what_is_measured_on_may_come_from_elsewhere_and_is_not_trained_on(
    source: Path, tmp_path: Path
) -> None:
    rng = Random(9)
    other = write(tmp_path / "other.jsonl", [sentence(rng, 20) for _ in range(6)], kind="fresh")
    lines = other.read_text().replace("fresh", "noise").upper().replace('"INSTRUCTION"', '"instruction"')
    source.write_text(source.read_text() + lines.replace('"KIND"', '"kind"'))
    out = tmp_path / "run"
    asked = recipe(source, iterations=1, per_iteration=92, evaluation_source=str(other))
    assert execute(out, asked)["contaminated"] == 6
    evaluation = read_instructions(out / "prompts" / "evaluation.jsonl")
    assert {one.categories["category"] for one in evaluation} == {"fresh"}
    told = report(out)
    assert told["evaluation_source"]["counts"]["left"] == told["sizes"]["evaluation"] == 6
    assert told["source"]["contamination"]["benches"]["evaluation_source"]["exact"] == 6


def test_the_same_source_may_be_measured_on(source: Path, tmp_path: Path) -> None:
    """Only the instructions that are dealt to the evaluation are kept from training, not their whole source."""
    execute(tmp_path / "run", recipe(source, per_iteration=43, evaluation_source=str(source)))
    sizes = report(tmp_path / "run")["sizes"]
    assert sizes == {"validation": 8, "evaluation": 6, "1": 43, "2": 43}
    assert list(sizes)[-1] == "2"  # in the order in which they are written


def test_a_file_may_be_measured_on_the_pocket_world_and_the_other_way_round(
    source: Path, tmp_path: Path
) -> None:
    execute(tmp_path / "a", recipe(source, evaluation_source="pocket"))
    evaluation = read_instructions(tmp_path / "a" / "prompts" / "evaluation.jsonl")
    assert len(evaluation) == 6
    assert all(is_held_out(one.text) for one in evaluation)
    execute(tmp_path / "b", recipe("pocket", evaluation_source=str(source)))
    assert report(tmp_path / "b")["source"] == {"kind": "pocket"}
    assert read_instructions(tmp_path / "b" / "prompts" / "evaluation.jsonl")[0].categories == {
        "category": "noise"
    }


def test_the_pocket_world_needs_no_bench(tmp_path: Path) -> None:
    """Benches are in no world of fixed forms, and fetching them for nothing would need the network."""
    numbers = execute(tmp_path, recipe("pocket", decontaminate=("no such bench",)))
    assert numbers == {"dealt": 34}


def test_a_missing_bench_is_told_before_the_source_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"prompts\.decontaminate"):
        execute(tmp_path, recipe("none.jsonl", decontaminate=("no such bench",)))


def test_too_few_are_counted_step_by_step_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    source.write_text(source.read_text() * 2)
    with pytest.raises(UsageError) as caught:
        execute(tmp_path / "run", recipe(source, iterations=9))
    assert (
        "has 100 instructions left (200 less 0 bad lines, 0 too long, 100 duplicates and 0 of benches), and the recipe "
        "wants 104 (prompts.validation 8 + prompts.evaluation 6 + 9 iterations x prompts.per_iteration 10); lower "
        "prompts.per_iteration to 9 or less"
    ) in str(caught.value)
    assert files(tmp_path / "run") == {}


def test_a_file_of_instructions_that_was_changed_is_refused(source: Path, tmp_path: Path) -> None:
    execute(tmp_path, recipe(source))
    path = tmp_path / "prompts" / "iter-1.jsonl"
    path.write_text(path.read_text().replace('"text":"w', '"text":"v', 1))
    with pytest.raises(UsageError, match=r"iter-1\.jsonl:1: field 'id' is not that of the text"):
        read_instructions(path)
    path.write_text('{"id": "1", "text": "x", "categories": 7}\n')
    with pytest.raises(UsageError, match=r"iter-1\.jsonl:1: field 'categories' must be an object"):
        read_instructions(path)
    path.write_text("")
    assert read_instructions(path) == []
    with pytest.raises(UsageError, match="there is no such file"):
        read_instructions(tmp_path / "none.jsonl")


def test_importing_the_stage_loads_no_heavy_library() -> None:
    code = "import sys, thinkserve.training.prompts.stage; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "datasets", "pyarrow", "pandas", "openai"} & set(loaded)
