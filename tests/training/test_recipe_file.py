"""Recipes in YAML: what is read, what is refused with which words, what comes back from a dump, what counts as a change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from thinkserve.errors import UsageError
from thinkserve.training.recipe import (
    DpoRecipe,
    EvaluateRecipe,
    JudgeRecipe,
    LoraRecipe,
    PromptsRecipe,
    Recipe,
    SampleRecipe,
)
from thinkserve.training.recipe_checks import RANGES, Range, value_of
from thinkserve.training.recipe_file import (
    PATHS,
    WITHOUT_EFFECT,
    differing_keys,
    dump_recipe,
    find_recipe,
    load_recipe,
)
from thinkserve.training.recipe_values import Origin, hint_of, leaves


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    return folder / "mine.yaml"


def read(file: Path, text: str, *overrides: str) -> Recipe:
    file.write_text(text, encoding="utf-8")
    return load_recipe(file, overrides)


def refused(file: Path, text: str, *overrides: str) -> str:
    """What is said about a recipe, without the path of its file; always one line."""
    with pytest.raises(UsageError) as caught:
        read(file, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(file), "FILE")


def test_a_recipe_with_a_name_alone_has_the_defaults(file: Path) -> None:
    assert read(file, "name: mine") == Recipe(name="mine")


def test_values_arrive_in_the_types_that_the_recipe_has(file: Path) -> None:
    recipe = read(
        file,
        """
        name: mine
        prompts: {decontaminate: []}
        sample: {temperature: 1, engine_args: [--dtype, half]}
        judge: {kind: pointwise, model: "http://127.0.0.1:8001#judge", scale: [0, 1]}
        pairs: {rho: 0.25}
        dpo: {lora: {r: 8, target_modules: [q_proj, v_proj]}}
        notes: {who: me, tries: [1, 2.5, null]}
        """,
    )
    assert recipe == Recipe(
        name="mine",
        prompts=PromptsRecipe(decontaminate=()),
        sample=SampleRecipe(temperature=1.0, engine_args=("--dtype", "half")),
        judge=JudgeRecipe(kind="pointwise", model="http://127.0.0.1:8001#judge", scale=(0.0, 1.0)),
        pairs=replace(Recipe(name="x").pairs, rho=0.25),
        dpo=DpoRecipe(lora=LoraRecipe(r=8, target_modules=("q_proj", "v_proj"))),
        notes={"who": "me", "tries": [1, 2.5, None]},
    )
    assert type(recipe.sample.temperature) is float


@pytest.mark.parametrize("text", ["5e-7", "5E-7", "0.0000005", "5.0e-7", "'5e-7'"])
def test_a_number_that_yaml_takes_for_text_is_read_as_the_number(file: Path, text: str) -> None:
    assert read(file, f"name: mine\ndpo: {{learning_rate: {text}}}").dpo.learning_rate == 5e-7


def test_a_date_is_text(file: Path) -> None:
    recipe = read(file, "name: 2024-10-14\nrevision: 2024-10-14\nnotes: {day: 2024-10-14}")
    assert (recipe.name, recipe.revision, recipe.notes["day"]) == ("2024-10-14",) * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "FILE: is empty; give a recipe, at least `name: ...`"),
        ("- a", "FILE: is no recipe: it has ['a'] where keys and values are expected"),
        ("mode: both", "FILE: name is missing; give text"),
        ("name: a\nname: b", "FILE, line 2: the key 'name' comes twice"),
        ("name: a\ndpo:\n  beta: 1\n  beta: 2", "FILE, line 4: the key 'beta' comes twice"),
        ("name: a\ndpo: {bta: 1}", "FILE: there is no key dpo.bta; did you mean dpo.beta?"),
        ("name: a\nbeta: 1", "FILE: there is no key beta; did you mean dpo.beta?"),
        (
            "name: a\ndpo: {lora: {x: 1}}",
            "FILE: there is no key dpo.lora.x; dpo.lora has the keys r, alpha, dropout, target_modules",
        ),
        ("name: a\nyes: 1", None),
        ("name: yes", "FILE: name is true; give text: if it is text, put it in quotes"),
        (
            "name: a\nrevision: 1234567",
            "FILE: revision is 1234567; give text or null: if it is text, put it in quotes",
        ),
        ("name: '  '", "FILE: name is '  '; give a text that is not empty"),
        ("name: null", "FILE: name is null; give text"),
        ("name: a\nmode: fast", "FILE: mode is 'fast'; give thought, direct or both"),
        ("name: a\ndpo: {bf16: 1}", "FILE: dpo.bf16 is 1; give true or false"),
        ("name: a\ndpo: {epochs: true}", "FILE: dpo.epochs is true; give a whole number"),
        ("name: a\ndpo: {epochs: 2.0}", "FILE: dpo.epochs is 2.0; give a whole number"),
        ("name: a\ndpo: {epochs: null}", "FILE: dpo.epochs is null; give a whole number"),
        ("name: a\ndpo: {beta: true}", "FILE: dpo.beta is true; give a number"),
        ("name: a\ndpo: {beta: .nan}", "FILE: dpo.beta is nan; give a number"),
        ("name: a\ndpo: {beta: 1e999}", "FILE: dpo.beta is '1e999'; give a number"),
        ("name: a\npairs: {rho: most}", "FILE: pairs.rho is 'most'; give a number or auto"),
        ("name: a\njudge: {scale: [1]}", "FILE: judge.scale is [1]; give a list of 2 numbers"),
        ("name: a\nsample: {engine_args: --x}", "FILE: sample.engine_args is '--x'; give a list of texts"),
        (
            "name: a\nsample: {engine_args: [--x, 1]}",
            "FILE: sample.engine_args[1] is 1; give text: if it is text, put it in quotes",
        ),
        ("name: a\nnotes: 1", "FILE: notes is 1; give keys and values"),
        ("name: a\nnotes: {x: {1: 2}}", "FILE: notes.x has the key 1; write it in quotes"),
        ("name: a\nnotes: {x: &x [*x]}", "FILE: notes is nested more than 20 deep; make it flatter"),
        ("name: [", "FILE, line 1: expected the node content, but found '<stream end>'"),
    ],
)
def test_what_is_no_recipe_is_refused_with_key_value_and_choices(
    file: Path, text: str, message: str | None
) -> None:
    found = refused(file, text)
    assert found == message if message is not None else found.startswith("FILE: there is no key true; ")


def test_a_section_without_keys_says_which_it_has(file: Path) -> None:
    assert refused(file, "name: a\nvalidate:") == (
        "FILE: validate is null; give keys and values (temperature, max_broken, max_tokens)"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("iterations=0", "iterations is 0; give at least 1"),
        ("prompts.per_iteration=0", "prompts.per_iteration is 0; give at least 1"),
        ("prompts.near_duplicates=0", "prompts.near_duplicates is 0.0; give more than 0 and at most 1"),
        ("sample.k=1", "sample.k is 1; give at least 2"),
        ("sample.temperature=0", "sample.temperature is 0.0; give more than 0"),
        ("sample.top_p=0", "sample.top_p is 0.0; give more than 0 and at most 1"),
        ("sample.top_p=1.1", "sample.top_p is 1.1; give more than 0 and at most 1"),
        ("pairs.rho=-0.1", "pairs.rho is -0.1; give at least 0"),
        ("pairs.rho_steps=[0.1,-1]", "pairs.rho_steps is [0.1, -1.0]; give at least 0"),
        (
            "pairs.rho_steps=[0.2,0.1]",
            "pairs.rho_steps is [0.2, 0.1]; give at least one number, and each higher than the one before",
        ),
        (
            "pairs.rho_steps=[]",
            "pairs.rho_steps is []; give at least one number, and each higher than the one before",
        ),
        ("pairs.max_broken=1.5", "pairs.max_broken is 1.5; give at least 0 and at most 1"),
        ("judge.prior=0", "judge.prior is 0.0; give more than 0"),
        ("judge.scale=[5,5]", "judge.scale is [5.0, 5.0]; give the lowest grade, then the highest"),
        ("dpo.warmup_share=1", "dpo.warmup_share is 1.0; give at least 0 and less than 1"),
        ("dpo.lora.r=0", "dpo.lora.r is 0; give at least 1"),
        (
            "dpo.lora.target_modules=[]",
            "dpo.lora.target_modules is []; give all-linear or a list of names of modules",
        ),
        ("dpo.device_batch=3", "dpo.batch is 128; give a multiple of 3 (dpo.device_batch = 3)"),
        (
            "sample.engine=llama.cpp",
            "sample.engine is 'llama.cpp'; give auto, vllm, transformers or the URL of a server (http://...)",
        ),
        (
            "judge.kind=function",
            "judge.function is null; judge.kind is function: give module:function",
        ),
        (
            "judge.function=a:b",
            "judge.function is 'a:b'; judge.kind is reward-model: set judge.kind to function, or leave this out",
        ),
        (
            "judge.model=null",
            "judge.model is null; judge.kind is reward-model: give its folder or its name on the Hub",
        ),
        (
            "judge.kind=pairwise",
            (
                "judge.model is 'RLHFlow/ArmoRM-Llama3-8B-v0.1'; judge.kind is pairwise: give URL#model, as "
                "http://127.0.0.1:8001#judge"
            ),
        ),
    ],
)
def test_what_is_impossible_is_refused(file: Path, override: str, message: str) -> None:
    """The same from the file and from `--set`, but for the place."""
    found = refused(file, "name: a", override)
    place, _, rest = found.partition(": ")
    assert rest == message
    # Two keys that do not fit: the blame may be on the one in the file.
    assert place == ("--set" if message.startswith(override.partition("=")[0]) else "FILE")


def test_a_device_gets_no_more_than_its_share_of_a_batch(file: Path) -> None:
    """32 pairs over 2 processes are 16 each, though a device could take 32; over 3 they cannot be spread."""
    text = "name: a\ndpo: {batch: 32, device_batch: 32}"
    assert read(file, text, "dpo.processes=2").dpo.processes == 2
    assert refused(file, text, "dpo.processes=3") == (
        "FILE: dpo.batch is 32; give a multiple of 30 (dpo.device_batch = 32, dpo.processes = 3)"
    )


def test_engine_arguments_without_vllm_are_refused(file: Path) -> None:
    assert refused(file, "name: a\nsample: {engine: transformers, engine_args: [--x]}") == (
        "FILE: sample.engine_args is ['--x']; they are for vLLM, and sample.engine is transformers: leave them out"
    )


def test_accuracy_needs_a_judge_that_knows_what_is_right(file: Path) -> None:
    judge = (
        "judge: {kind: %s, model: 'http://127.0.0.1:8001#m'}\nevaluate: {metric: accuracy, right_score: %s}"
    )
    assert "give win_rate" in refused(file, "name: a\n" + judge % ("pairwise", 1))
    # With grades from 1 to 10 every response has at least 1.
    assert refused(file, "name: a\n" + judge % ("pointwise", 1)) == (
        "FILE: evaluate.right_score is 1.0; grades go from 1 to 10 (scale): give one above 1 up to 10"
    )
    assert read(file, "name: a\n" + judge % ("pointwise", 8)).evaluate.right_score == 8
    # The evaluation's own judge is the one that counts there.
    own = "evaluate.judge={kind: function, function: 'a:b'}"
    assert read(file, "name: a\n" + judge % ("pairwise", 1), own).evaluate.metric == "accuracy"


def test_the_judge_of_the_evaluation_is_checked_as_the_other_one(file: Path) -> None:
    assert refused(file, "name: a\nevaluate: {judge: {kind: pairwise}}") == (
        "FILE: evaluate.judge.model is 'RLHFlow/ArmoRM-Llama3-8B-v0.1'; evaluate.judge.kind is pairwise: give URL#model, "
        "as http://127.0.0.1:8001#judge"
    )
    assert refused(file, "name: a\nevaluate: {judge: {prior: 0}}") == (
        "FILE: evaluate.judge.prior is 0.0; give more than 0"
    )
    one, other = (read(file, "name: a", f"evaluate.judge.{key}") for key in ("devices=1", "devices=2"))
    assert differing_keys(one, other) == []
    assert differing_keys(one, read(file, "name: a")) == ["evaluate.judge"]


def test_every_key_that_can_be_a_number_has_a_range() -> None:
    """So that a new key is not forgotten."""

    def is_number(hint: Any) -> bool:
        return hint in (int, float) or (get_origin(hint) is not None and any(map(is_number, get_args(hint))))

    origin = Origin(Path("x"))
    numbers = {key for key in leaves(Recipe) if is_number(hint_of(key, Recipe, origin))}
    assert numbers == set(RANGES)


def test_a_range_says_what_it_holds() -> None:
    half_open = Range(0, 1, high_included=False)
    assert [half_open.holds(one) for one in (-0.1, 0, 0.5, 1)] == [False, True, True, False]
    assert str(half_open) == "at least 0 and less than 1"


def test_overrides_are_yaml_under_dotted_keys_and_the_last_one_counts(file: Path) -> None:
    recipe = read(
        file,
        "name: a\ndpo: {lora: {r: 4}}",
        "dpo.beta=0.2",
        "dpo.learning_rate=1e-4",
        "prompts.per_iteration=100",
        "dpo.lora=null",
        "judge.scale=[0,1]",
        "notes.why.not=2024-10-14",
        "dpo.beta=0.3",
        "name=b=c",
    )
    assert (recipe.dpo.beta, recipe.dpo.learning_rate, recipe.dpo.lora) == (0.3, 1e-4, None)
    assert (recipe.prompts.per_iteration, recipe.judge.scale, recipe.name) == (100, (0.0, 1.0), "b=c")
    assert recipe.notes == {"why": {"not": "2024-10-14"}}


def test_an_override_makes_the_section_that_it_needs(file: Path) -> None:
    assert read(file, "name: a\ndpo: {lora: null}", "dpo.lora.r=16").dpo.lora == LoraRecipe(r=16)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dpo.beta", "--set 'dpo.beta': give key=value, as in --set dpo.beta=0.2"),
        ("=1", "--set '=1': give key=value, as in --set dpo.beta=0.2"),
        ("dpo.bta=1", "--set: there is no key dpo.bta; did you mean dpo.beta?"),
        ("dpo.beta.x=1", "--set: there is no key dpo.beta.x; dpo.beta has no keys of its own"),
        ("dpo.beta=x", "--set: dpo.beta is 'x'; give a number"),
        ("dpo.lora={r: x}", "--set: dpo.lora.r is 'x'; give a whole number"),
        ("dpo=[", "--set 'dpo=[', line 1: expected the node content, but found '<stream end>'"),
    ],
)
def test_an_override_that_is_wrong_is_named(file: Path, override: str, message: str) -> None:
    assert refused(file, "name: a", override) == message


def test_an_override_inside_of_what_has_no_keys_blames_the_file(file: Path) -> None:
    assert refused(file, "name: a\ndpo: 5", "dpo.beta=1") == "FILE: dpo is 5; give keys and values"


def test_paths_are_looked_for_beside_the_recipe_then_in_the_working_directory(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    beside = file.parent
    for folder in (here, beside):
        (folder / "both.jsonl").touch()
        (folder / "model").mkdir()
        (folder / "model" / "config.json").touch()
    (here / "here.jinja").touch()
    (beside / "no-model").mkdir()
    recipe = read(
        file,
        """
        name: a
        model: model
        chat_template: here.jinja
        prompts: {source: both.jsonl, evaluation_source: org/dataset}
        judge: {model: no-model}
        """,
    )
    assert recipe.model == str(beside / "model")
    assert recipe.chat_template == str(here / "here.jinja")
    assert recipe.prompts.source == str(beside / "both.jsonl")
    assert (recipe.prompts.evaluation_source, recipe.judge.model) == ("org/dataset", "no-model")
    # What is typed is meant from where it is typed.
    assert read(file, "name: a", "prompts.source=both.jsonl").prompts.source == str(here / "both.jsonl")


def test_reserved_names_are_no_paths(file: Path) -> None:
    (file.parent / "pocket").touch()
    (file.parent / "granite").touch()
    (file.parent / "mine").touch()
    recipe = read(file, "name: a\nthought_format: granite\nprompts: {source: pocket}")
    assert (recipe.thought_format, recipe.prompts.source) == ("granite", "pocket")
    assert read(file, "name: a\nthought_format: mine").thought_format == str(file.parent / "mine")


@pytest.mark.parametrize(
    "key", ["chat_template", "judge.template", "dpo.accelerate_config", "evaluate.judge.template"]
)
def test_a_file_that_is_not_there_is_named(file: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent.parent)
    assert refused(file, "name: a", f"{key}=gone.txt") == (
        f"--set: {key} is 'gone.txt'; there is no such file, neither in {file.parent} nor in {file.parent.parent}"
    )


def test_a_dump_has_all_keys_and_gives_the_recipe_back(file: Path, tmp_path: Path) -> None:
    recipe = read(
        file,
        """
        name: "Größe: 'x' # y"
        revision: "1234567"
        dpo: {learning_rate: 3e-7, lora: {r: 8}}
        judge: {scale: [0, 1]}
        prompts: {category_field: "no"}
        notes: {commit: "12e45", day: 2024-10-14, at: "5e-7", list: [1, {a: null}], "on": true}
        """,
    )
    text = dump_recipe(recipe)
    again = tmp_path / "recipe.yaml"
    again.write_text(text, encoding="utf-8")
    assert load_recipe(again) == recipe
    assert "Größe" in text
    for key in leaves(Recipe):
        assert f"{key.rpartition('.')[2]}:" in text


def test_a_dump_without_adapters_keeps_them_away(file: Path) -> None:
    recipe = Recipe(name="a")
    assert read(file, dump_recipe(recipe)) == recipe


def test_differing_keys_are_those_that_change_the_result(file: Path) -> None:
    one = read(file, "name: a")
    other = read(
        file,
        "name: b",
        "dpo.beta=0.2",
        "prompts.per_iteration=7",
        "dpo.lora.r=8",
        "judge.concurrency=1",
        "sample.concurrency=1",
        "dpo.device_batch=2",
        "compute.threads=1",
        "evaluate.examples=1",
        "notes.x=1",
    )
    assert differing_keys(one, other) == ["prompts.per_iteration", "dpo.beta", "dpo.lora"]
    assert differing_keys(one, one) == []
    eight, four = (read(file, "name: a", f"dpo.lora.r={r}") for r in (8, 4))
    assert differing_keys(eight, four) == ["dpo.lora.r"]


def test_a_run_may_get_more_iterations_but_not_fewer(file: Path) -> None:
    three, four = (read(file, "name: a", f"iterations={n}") for n in (3, 4))
    assert differing_keys(three, four) == []
    assert differing_keys(four, three) == ["iterations"]


def test_the_keys_named_in_code_are_keys() -> None:
    recipe = Recipe(name="a", dpo=DpoRecipe(lora=LoraRecipe()), evaluate=EvaluateRecipe(judge=JudgeRecipe()))
    for key in (*WITHOUT_EFFECT, *PATHS):
        value_of(recipe, key)


def test_find_recipe_knows_the_built_in_names_and_paths(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket").mkdir()  # the folder of a run
    assert find_recipe("pocket").name == "pocket.yaml"
    file.write_text("name: a", encoding="utf-8")
    assert find_recipe(str(file)) == file


def test_find_recipe_says_what_there_is(file: Path) -> None:
    names = "pocket, tpo-llama3-8b, tpo-llama3-8b-pairwise, tpo-small-gpu"
    with pytest.raises(UsageError) as caught:
        find_recipe("pockte")
    assert str(caught.value) == (
        f"no recipe 'pockte'; did you mean pocket? give a YAML file, or one of the built-in {names}"
    )
    with pytest.raises(UsageError, match="is a folder and no recipe; give a YAML file"):
        find_recipe(str(file.parent))
    (file.parent / "recipe.yaml").touch()
    with pytest.raises(UsageError, match=r"is a folder and no recipe; give .*recipe\.yaml"):
        find_recipe(str(file.parent))


@pytest.mark.parametrize(
    ("raw", "message"), [(b"name: \xff", "is no YAML"), (b"name: \0", "is no YAML"), (None, "no such file")]
)
def test_a_file_that_cannot_be_read_is_named(file: Path, raw: bytes | None, message: str) -> None:
    if raw is not None:
        file.write_bytes(raw)
    with pytest.raises(UsageError) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
