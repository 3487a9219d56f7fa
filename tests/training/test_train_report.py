"""`report.html` of a training run: what it says of made-up runs and of results written by hand, finished or not."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.eval.structure import Structure
from tests.training.train_world import SKILLS, World, build, stopped, write_marker
from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.records import write_records, write_whole
from thinkserve.training import records
from thinkserve.training.folder import IterationFolder, TrainFolder
from thinkserve.training.recipe import EvaluateRecipe, JudgeRecipe, Mode, Recipe
from thinkserve.training.recipe_file import dump_recipe
from thinkserve.training.recipe_values import leaves as recipe_keys
from thinkserve.training.records import EvaluationRecord
from thinkserve.training.report.costs import tokens_of
from thinkserve.training.report.durations import duration
from thinkserve.training.report.examples import choose
from thinkserve.training.report.loading import read_run
from thinkserve.training.report.optimization import MOST_POINTS
from thinkserve.training.report.page import write_report

FULL = World(instructions=210)
TWENTY = tuple(f"Topic number {number}" for number in range(20))
WORLDS = {
    "full": FULL,
    "one arm": World(mode="thought", iterations=1, instructions=42),
    "baseline alone": World(mode="direct", iterations=1, instructions=42),
    "no category": World(iterations=1, instructions=25, skills=()),
    "twenty categories": World(metric="win_rate", iterations=1, instructions=420, skills=TWENTY, long=True),
    "hostile": World(iterations=1, instructions=150, hostile=True),
    "nothing measured": stopped(World(), "thought", 0, "evaluate"),
    "start alone": stopped(World(instructions=42), "thought", 1, "sample"),
    "killed in training": stopped(World(iterations=2, instructions=42), "direct", 1, "dpo"),
    "second arm not begun": stopped(World(iterations=1, instructions=42, parallel=False), "direct", 0, "evaluate"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {name: build(root / name.replace(" ", "-"), world) for name, world in WORLDS.items()}


@pytest.fixture
def full(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(folders["full"], tmp_path / "full")


def shown(folder: Path) -> str:
    """All that is to be read on a run's page."""
    return Structure(write_report(folder).read_text(encoding="utf-8")).text


def measure(rate: float, **more: Any) -> dict[str, Any]:
    return {"n": 400, "accuracy": rate, "ci": [rate - 0.05, rate + 0.05], **more}


def difference(points: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"difference": points / 100, "ci": [low / 100, high / 100], "p": 0.001, "n": 400, **more}


def run_of(
    path: Path, iterations: list[dict[str, Any]], *, mode: Mode = "both", total: int = 3, **more: Any
) -> Path:
    """A folder with a recipe and results, and nothing else; `more` changes the recipe."""
    recipe = Recipe(
        name="by hand",
        mode=mode,
        iterations=total,
        evaluate=EvaluateRecipe(metric="accuracy", temperature=0.7),
    )
    run = TrainFolder(path, mode)
    write_whole(run.recipe, dump_recipe(replace(recipe, **more)).encode())
    results = {"schema": "thinkserve.train/1", "metric": "accuracy", "iterations": iterations}
    write_whole(run.results, json.dumps(results).encode())
    return path


def both(iteration: int, **paired: Any) -> dict[str, Any]:
    arms = {arm: {name: measure(0.5) for name in paired} for arm in ("thought", "direct")}
    return {"iteration": iteration, **arms, "paired": paired}


@pytest.mark.parametrize("name", WORLDS)
def test_every_element_is_closed_and_every_link_leads_somewhere(folders: dict[str, Path], name: str) -> None:
    structure = Structure(write_report(folders[name]).read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in structure.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] or "" for attributes in structure.all("a")]
    assert links and {link.removeprefix("#") for link in links} <= set(ids)


def test_nothing_that_models_wrote_becomes_markup(folders: dict[str, Path]) -> None:
    """Names, instructions, thoughts, responses, categories and notes of the hostile run hold scripts, images and frames."""
    page = write_report(folders["hostile"]).read_text(encoding="utf-8")
    structure = Structure(page)
    assert not {"img", "iframe", "object", "embed", "link", "base"} & {name for name, _ in structure.elements}
    assert len(structure.all("script")) == 1
    assert not [a for _, attributes in structure.elements for a in attributes if a.startswith("on")]
    assert structure.text.count("window.hacked = 1") > 10
    assert "\u202e" not in page and "<U+202E>" in structure.text
    policy = next(one["content"] for one in structure.all("meta") if one.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; ") and "http" not in policy


@pytest.mark.parametrize(
    ("points", "ends", "said"),
    [
        (9.8, (6.1, 13.5), "thought mode is 9.8 points above the direct baseline trained the same way"),
        (-4.2, (-8.0, -0.4), "thought mode is 4.2 points below the direct baseline trained the same way"),
        (1.2, (-2.0, 4.4), "the direct baseline trained the same way cannot be told apart: +1.2 points"),
        (0.0, (0.0, 0.0), "cannot be told apart: 0.0 points"),
        (3.0, (0.0, 6.0), "cannot be told apart: +3.0 points"),
    ],
)
def test_the_headline_says_no_more_than_its_interval(
    tmp_path: Path, points: float, ends: tuple[float, float], said: str
) -> None:
    found = shown(
        run_of(
            tmp_path / "run",
            [both(0, sampled=difference(-12, -16, -8)), both(3, sampled=difference(points, *ends))],
        )
    )
    assert found.index("After 3 iterations, ") < found.index(said)
    signed = [f"{end:+.1f}".replace("-", "\u2212").replace("+0.0", "0.0") for end in ends]
    assert (
        f", sampled at temperature 0.7 (95 % interval {signed[0]} to {signed[1]}, 400 instructions)." in found
    )


def test_the_headline_says_what_its_points_are_points_of(tmp_path: Path) -> None:
    clear, vague = both(3, sampled=difference(9.8, 6.1, 13.5)), both(3, sampled=difference(1.2, -2, 4.4))
    assert "trained the same way in accuracy, sampled" in shown(run_of(tmp_path / "a", [clear]))
    assert "told apart: +1.2 points of accuracy, sampled" in shown(run_of(tmp_path / "b", [vague]))
    compared = run_of(tmp_path / "c", [clear], evaluate=EvaluateRecipe(metric="win_rate"))
    assert "trained the same way in win rate, sampled" in shown(compared)


def test_both_ways_of_decoding_are_in_the_headline_and_their_disagreement_is_a_warning(
    tmp_path: Path,
) -> None:
    found = [both(3, sampled=difference(1, -2, 4), greedy=difference(14.6, 10, 19))]
    page = shown(run_of(tmp_path / "run", found))
    assert "With greedy decoding: 14.6 points above (95 % interval +10.0 to +19.0, 400 instructions)." in page
    assert "The difference is clear for greedy outputs and not for sampled ones" in page
    agreed = [both(3, sampled=difference(5, 2, 8), greedy=difference(14.6, 10, 19))]
    assert "The difference is clear for" not in shown(run_of(tmp_path / "agreed", agreed))


def test_a_comparison_of_few_instructions_gives_no_verdict(tmp_path: Path) -> None:
    page = shown(run_of(tmp_path / "run", [both(3, sampled=difference(30, 10, 50, n=12))]))
    assert "12 instructions are too few to say whether thought mode is above or below" in page


def test_before_training_and_in_the_middle_the_headline_says_so(tmp_path: Path) -> None:
    start = [both(0, sampled=difference(-12, -16, -8))]
    assert "Before any training, thought mode is 12.0 points below direct mode" in shown(
        run_of(tmp_path / "a", start)
    )
    middle = [*start, both(1, sampled=difference(2.5, 1, 4))]
    page = shown(run_of(tmp_path / "b", middle))
    assert "So far, after 1 iteration, thought mode is 2.5 points above" in page
    assert "This run is not finished: 0 of 3 iterations" in page  # no marker says that they are done


def test_one_arm_alone_is_not_said_to_show_that_thoughts_help(tmp_path: Path) -> None:
    iterations = [
        {"iteration": 0, "thought": {"sampled": measure(0.385)}},
        {"iteration": 3, "thought": {"sampled": measure(0.61)}},
    ]
    page = shown(run_of(tmp_path / "run", iterations, mode="thought"))
    assert "thought mode went from 38.5 % (95 % interval 33.5 to 43.5) to 61.0 %" in page
    assert "No direct baseline was trained, so this does not say whether thoughts help" in page
    assert "points above" not in page


def test_arms_at_different_iterations_are_compared_where_both_were_measured(folders: dict[str, Path]) -> None:
    """The direct arm is to follow the thought arm and has no measure: there is nothing to compare."""
    page = shown(folders["second arm not begun"])
    assert "The two arms are compared once both have been measured after the same iteration." in page


def test_results_without_a_common_instruction_have_no_difference(tmp_path: Path) -> None:
    """Where every pair lacks a value the results say null, and the page shows the arms alone."""
    nothing: dict[str, Any] = {"n": 0, "difference": None, "ci": None, "p": None, "categories": {}}
    page = shown(run_of(tmp_path / "run", [both(3, sampled=nothing)]))
    assert "thought mode has an accuracy of 50.0 %" in page


def test_iterations_come_in_their_order_with_shares_as_percent(tmp_path: Path) -> None:
    iterations = [both(2, sampled=difference(3, 1, 5)), both(0, sampled=difference(-3, -5, -1))]
    iterations[0]["thought"]["sampled"] = measure(0.6125)
    page = write_report(run_of(tmp_path / "run", iterations)).read_text(encoding="utf-8")
    table = page[page.index('aria-label="Sampled at temperature 0.7: accuracy by iteration"') :]
    rows = re.findall(r'<th scope="row">(.*?)</th><td[^>]*>([\d.]+) ', table)
    assert rows[:2] == [("0 (start)", "50.0"), ("2", "61.3")]


def test_a_warning_where_the_last_model_often_gives_no_response(tmp_path: Path) -> None:
    """The recipe's validate.max_broken is 10 %: 12.5 % of the last iteration is said, 30 % of the first one is past."""
    iterations = [both(0, sampled=difference(1, 0.5, 2)), both(3, sampled=difference(1, 0.5, 2))]
    iterations[0]["direct"]["sampled"] = measure(0.5, parse_failures=0.3)
    iterations[1]["thought"]["sampled"] = measure(0.5, parse_failures=0.125)
    page = shown(run_of(tmp_path / "run", iterations))
    assert "Thought mode: 12.5 % of the last iteration's outputs have no readable response" in page
    assert "Direct mode:" not in page


def test_categories_are_filled_after_holms_correction_only(tmp_path: Path) -> None:
    """p 0.02 alone, 0.06 after Holm: hollow, though its own interval leaves out 0. Fewer than 20: not drawn."""
    categories = {
        "chain": difference(40, 20, 60, n=50, p=0.0001, p_holm=0.0003),
        "greet": difference(5, 1, 9, n=50, p=0.02, p_holm=0.06),
        "tiny": difference(50, 10, 90, n=6, p=0.03, p_holm=0.06),
    }
    last = both(3, sampled={**difference(10, 5, 15), "categories": categories})
    per_arm = {name: {"n": one["n"], "accuracy": 0.5, "ci": [0.4, 0.6]} for name, one in categories.items()}
    for arm in ("thought", "direct"):
        last[arm]["sampled"]["categories"] = per_arm
    page = write_report(run_of(tmp_path / "run", [last])).read_text(encoding="utf-8")
    groups = dict(re.findall(r'<g class="([^"]*)"><title>(\w+): thought minus direct', page))
    assert {name: class_ for class_, name in groups.items()} == {"chain": "s0", "greet": "s0 hollow"}
    assert "Too few to say:" in page


def test_the_change_of_a_category_is_that_of_the_same_instructions(tmp_path: Path) -> None:
    """Of four instructions one was right before; two more are now: +50 points. The unscored fifth is in no pair."""
    numbers = {"n": 5, "accuracy": 0.5, "ci": [0.2, 0.8], "categories": {"add": {"n": 5, "accuracy": 0.5}}}
    iterations = [{"iteration": number, "thought": {"greedy": numbers}} for number in (0, 1)]
    folder = run_of(tmp_path / "run", iterations, mode="thought", total=1)
    for number, values in enumerate(((1.0, 0.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 0.0, None))):
        evaluated = [
            EvaluationRecord(str(at), "t", "r", None, 1, 1, value, value, {"category": "add"})
            for at, value in enumerate(values)
        ]
        records.write(
            TrainFolder(folder, "thought").iteration("thought", number).evaluation("greedy"), evaluated
        )
    page = write_report(folder).read_text(encoding="utf-8")
    row = page[page.index("<h2>By category") :]
    assert re.search(r'<th scope="row">add</th>.*?data-value="50.0">\+50.0 <span', row)


def test_twenty_categories_are_drawn_and_none_at_all_leaves_the_section_out(folders: dict[str, Path]) -> None:
    page = shown(folders["twenty categories"])
    assert page.index("By category") < page.index("Topic number 19")
    assert "By category" not in shown(folders["no category"])


def test_lengths_and_failures_of_evaluation_and_of_samples(full: Path) -> None:
    """The means of the samples are those of the split stage's marker."""
    numbers = {
        "outputs": 240, "problems": {"unclosed": 3, "truncated": 9}, "parse_failures": 0.05,
        "mean_thought_tokens": 71.25, "mean_response_tokens": 12.5,
    }  # fmt: skip
    write_marker(TrainFolder(full, "both").iteration("thought", 2), "split", 1.0, numbers)
    page = write_report(full).read_text(encoding="utf-8")
    assert "Thought mode (TPO), iteration 3: Thought, tokens" in page
    assert "Direct baseline, iteration 3: No readable response, %" in page
    assert "Direct baseline, iteration 3: Thought, tokens" not in page
    text = Structure(page).text
    assert "Thought 224071.212.55.0 %truncated 9, unclosed 3" in text


def test_pairs_and_why_there_are_none(full: Path) -> None:
    path = TrainFolder(full, "both").iteration("direct", 2).pair_statistics
    statistics = json.loads(path.read_text())
    counts = {"instructions": 60, "pairs": 40, "broken_pairs": 4, "broken_share": 0.1}
    statistics |= {
        "rho": 0.3,
        "no_pair": {"tied": 17, "one_output": 3},
        "warnings": ["At rho 0.3, much is amiss."],
    }
    statistics["counts"] |= counts
    statistics["means"] |= {"score_margin": 0.4375, "chosen_length": 101.0, "rejected_length": 118.5}
    path.write_text(json.dumps(statistics))
    text = shown(full)
    assert "Direct 26040 (66.7 %)4 (10.0 %)0.30.438101.0118.5" in text
    assert re.search(r"with all scores equal[\d,]*17", text)
    assert "Direct 2: At rho 0.3, much is amiss." in text
    assert text.count("Audit of the pairs: ") == 6


def test_training_curves_pass_over_what_is_no_number_and_what_is_half_written(full: Path) -> None:
    """Python writes NaN, which is no JSON, and a kill leaves half a line."""
    log = TrainFolder(full, "both").iteration("thought", 1).dpo_log
    lines = [
        {"epoch": n / 100, "rewards/margins": n / 100, "rewards/accuracies": math.nan} for n in range(100)
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 1.0, "rew')
    page = write_report(full).read_text(encoding="utf-8")
    # 100 lines, no more than 60 points: neighbours are averaged by twos, the first to 0.005 and the last to 0.985.
    assert "Iteration 1. Thought mode (TPO): Reward margin from 0.005 to 0.985; Direct baseline" in page
    assert "Iteration 1. Direct baseline: Reward accuracy" in page
    one = page[page.index("Iteration 1. Thought mode (TPO): Reward margin") :]
    assert one[: one.index("</svg>")].count('class="join alone"') < 2 * MOST_POINTS


def test_the_epoch_that_was_chosen_is_filled(full: Path) -> None:
    found = {
        "candidates": [
            {"epoch": 0, "n": 40, "mean_score": 0.5, "broken": 0.0},
            {"epoch": 1, "n": 40, "mean_score": 0.625, "broken": 0.075},
            {"epoch": 2, "n": 40, "mean_score": None, "broken": 1.0},
        ],
        "chosen": 1,
        "reason": "the best of two, without one that broke",
    }
    for arm in ("thought", "direct"):
        path = TrainFolder(full, "both").iteration(arm, 1).validation
        path.write_text(json.dumps(found))
    page = write_report(full).read_text(encoding="utf-8")
    assert "<g><title>Thought mode (TPO), epoch 1: 0.625, chosen</title>" in page
    assert '<g class="hollow"><title>Thought mode (TPO), epoch 0: 0.5</title>' in page
    text = Structure(page).text
    assert "Thought 110.6257.540chosen: the best of two, without one that broke" in text
    assert "Thought 12\u2013100.040" in text


def test_time_and_tokens_are_summed_by_stage(tmp_path: Path) -> None:
    """Sampling: 100 s and 50 s, 6,000 and 3,000 tokens of output and 1,000 and 500 of prompts: 10,500 in 150 s, 70 a second."""
    folder = run_of(tmp_path / "run", [])
    for arm, seconds, scale in (("thought", 100.0, 2), ("direct", 50.0, 1)):
        numbers = {"engine": {"output_tokens": 3000 * scale, "prompt_tokens": 500 * scale}, "max_tokens": 96}
        write_marker(TrainFolder(folder, "both").iteration(arm, 1), "sample", seconds, numbers)  # type: ignore[arg-type]
    write_marker(TrainFolder(folder, "both").run_iteration, "prompts", 50.0, {})
    text = shown(folder)
    assert "3 min 20 s of computing in 3 finished stages." in text
    assert "sample22 min 30 s75.0 %10,50070" in text
    assert "prompts150 s25.0 %" in text
    assert "engine.output_tokens: 6,000" in text


def test_only_counts_of_tokens_are_counted() -> None:
    numbers = {
        "prompt_tokens": 5, "judge": {"completion_tokens": 7}, "mean_thought_tokens": 90, "max_tokens": 96,
        "chosen_thought_tokens": 4, "tokens_per_second": 11, "rate_tokens": 2.5, "tokens": True,
    }  # fmt: skip
    assert tokens_of(numbers) == 12
    assert tokens_of({"judge_numbers": {"tokens": 900, "padded_tokens": 1000}}) == 900


def test_validation_by_a_pairwise_judge_is_not_said_to_be_its_scores(tmp_path: Path) -> None:
    found = {"candidates": [{"epoch": 0, "mean_score": 0.5}, {"epoch": 1, "mean_score": 0.6}], "chosen": 1}
    folder = run_of(
        tmp_path / "run", [], judge=JudgeRecipe(kind="pairwise", model="http://judge.example#big")
    )
    write_whole(TrainFolder(folder, "both").iteration("thought", 1).validation, json.dumps(found).encode())
    text = shown(folder)
    assert "How often the judge prefers the response to a validation instruction to that of epoch 0" in text
    assert "Mean judge score of the responses" not in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "\u2013"), (0.0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min"), (200, "3 min 20 s"),
        (3599.6, "1 h"), (7500, "2 h 5 min"), (86399, "1 d"), (3.2 * 86400, "3 d 5 h"),
    ],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float | None, words: str) -> None:
    assert duration(seconds, " ") == words


def test_examples_are_the_first_of_each_category_in_turn(folders: dict[str, Path]) -> None:
    """Instruction number n has category n modulo 7, so the first nine in turn are simply the first nine."""
    run = read_run(folders["full"])
    outputs = {("greedy", "thought", 0): run.iteration("thought", 0).evaluation("greedy")}
    chosen = choose(run, outputs, 9)  # type: ignore[arg-type]
    assert [example.id for example in chosen] == list(run.instructions)[:9]
    assert [example.categories["category"] for example in chosen] == [*SKILLS, "copy", "greet"]
    reordered = dict(reversed(run.iteration("thought", 0).evaluation("greedy").items()))
    assert choose(run, {("greedy", "thought", 0): reordered}, 9) == chosen


def test_examples_show_each_iteration_with_thought_response_and_verdict(full: Path) -> None:
    run = TrainFolder(full, "both")
    asked = read_run(full).instructions
    first = next(iter(asked))
    long = "step by step " * 40
    outputs = {
        0: EvaluationRecord(first, "maybe 7", "7", None, 3, 1, 0.25, 0.0, {"category": "copy"}),
        1: EvaluationRecord(first, long, "", "truncated", 96, 0, None, 0.0, {"category": "copy"}),
        2: EvaluationRecord(first, "", "11", None, 0, 1, None, None, {"category": "copy"}),
        3: EvaluationRecord(first, "5 + 6", "11", None, 5, 1, 1.0, 1.0, {"category": "copy"}),
    }
    for number, record in outputs.items():
        records.write(run.iteration("thought", number).evaluation("sampled"), [record])
    page = write_report(full).read_text(encoding="utf-8")
    case = page[page.index('<details open class="case"') :]
    text = case[: case.index("Direct baseline")]
    assert 'data-kind="better" data-category="copy"' in text
    assert "maybe 7</span>" in text and "\u2717 wrong" in text and "score 0.25" in text
    assert re.search(r"<details><summary>step by step .*?<small>520 characters</small></summary>", text)
    assert "none: cut off at the token limit" in text
    assert "no thought" in text and "unscored" in text
    assert "\u2713 right" in text


def test_the_recipe_is_there_with_all_its_keys_and_so_are_the_instructions_that_were_left_out(
    full: Path,
) -> None:
    text = shown(full)
    missing = [
        key
        for key in recipe_keys(Recipe)
        if key not in text and not key.startswith(("dpo.lora.", "evaluate.judge.", "notes"))
    ]
    assert missing == []
    assert "source: counts: contaminated2" in text
    assert "source: contamination: benches: alpaca-eval2" in text


def test_a_run_is_shown_where_the_files_that_its_recipe_names_are_not(tmp_path: Path) -> None:
    """As when the folder was copied to another machine."""
    folder = build(tmp_path / "run", World(iterations=1, instructions=21, mode="thought"))
    recipe = World(iterations=1, mode="thought").recipe
    judge = JudgeRecipe(kind="pointwise", model="http://127.0.0.1:9/v1#m", template="/nowhere/template.txt")
    (folder / "recipe.yaml").write_text(
        dump_recipe(replace(recipe, judge=judge, chat_template="/nowhere/x.jinja"))
    )
    assert "http://127.0.0.1:9/v1#m (pointwise)" in shown(folder)


def test_a_judge_of_its_own_for_the_numbers_is_named_beside_that_of_training(full: Path) -> None:
    assert "Judgethinkserve.training.pocket.judge:score" in shown(full)
    recipe = FULL.recipe
    evaluate = replace(recipe.evaluate, judge=JudgeRecipe(model="another/judge"))
    (full / "recipe.yaml").write_text(dump_recipe(replace(recipe, evaluate=evaluate)))
    text = shown(full)
    assert "Judge in trainingthinkserve.training.pocket.judge:score" in text
    assert "Judge of these numbersanother/judge (reward-model)" in text
    assert "As another/judge (reward-model) gives them" in text


def test_a_folder_that_is_no_training_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent: there is no such folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"there is no recipe\.yaml: name a folder that `thinkserve train`"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "these are no results"),
        (
            '{"schema": "other/9", "iterations": []}',
            "its schema is 'other/9', and must be 'thinkserve.train/1'",
        ),
        (
            '{"iterations": [{"iteration": "x"}]}',
            r"Expected `int`, got `str` - at `\$\.iterations\[0\]\.iteration`",
        ),
        ('{"iterations": [{"iteration": 1, "paired": {"greedy": {}}}]}', "these are no results"),
    ],
)
def test_results_that_are_malformed_are_named(tmp_path: Path, content: str, said: str) -> None:
    folder = run_of(tmp_path / "run", [])
    (folder / "results.json").write_text(content)
    with pytest.raises(UsageError, match=rf"results\.json: .*{said}"):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "iter-1/pairs.json", "iter-1/stages/dpo.json", "iter-1/evaluation/greedy.jsonl"]
)
def test_files_that_are_malformed_are_named(full: Path, name: str) -> None:
    (full / name).write_text("{]\n")
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        write_report(full)


def test_the_page_is_written_where_it_is_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    assert write_report(folders["one arm"]) == folders["one arm"] / "report.html"
    elsewhere = tmp_path / "new" / "page.html"
    assert write_report(folders["one arm"], elsewhere) == elsewhere and elsewhere.is_file()
    (tmp_path / "file").touch()
    with pytest.raises(ThinkserveError, match="the report cannot be written"):
        write_report(folders["one arm"], tmp_path / "file" / "page.html")


def test_a_file_that_is_not_there_leaves_out_what_is_shown_of_it(full: Path) -> None:
    """All but the recipe may be missing."""
    run = TrainFolder(full, "both")
    folder: IterationFolder = run.iteration("thought", 1)
    for path in (folder.pair_statistics, folder.dpo_log, folder.validation, run.prompts_report, run.prompts):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = shown(full)
    assert "The instruction's text is not in this folder." in text
    run.results.unlink()
    assert "Nothing has been measured yet." in shown(full)
    write_records(run.iteration("thought", 0).evaluation("greedy"), [])
    for path in full.iterdir():
        if path.name != "recipe.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "Nothing has been measured yet." in shown(full)
