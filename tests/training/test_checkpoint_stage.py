"""The checkpoint of an iteration: complete, as a whole or not at all, and what `thinkserve serve` takes as it is."""

from __future__ import annotations

import json
import resource
import shutil
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.training.dpo_run import context, pocket_pairs, write_pairs
from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.pocket import CHECKPOINT, SEED_CHECKPOINT
from thinkserve.source import find_format, find_source
from thinkserve.thoughts import get_format
from thinkserve.training.dpo.card import add_scores
from thinkserve.training.dpo.checkpoint_stage import run
from thinkserve.training.dpo.companions import decoding, write_companions
from thinkserve.training.dpo.disk import explain_full_disk
from thinkserve.training.dpo.stage import run as train
from thinkserve.training.dpo.start_model import StartModel
from thinkserve.training.recipe import ComputeRecipe, SampleRecipe
from thinkserve.training.stage import StageContext

VALIDATION = {
    "candidates": [
        {"epoch": 0, "n": 8, "mean_score": 0.5, "broken": 0.0},
        {"epoch": 1, "n": 8, "mean_score": 0.7512345, "broken": 0.125},
        {"epoch": 2, "n": 8, "mean_score": None, "broken": 1.0},
    ],
    "chosen": 1,
    "reason": "the best mean score of 2 epochs",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    """After stage dpo and validation."""
    stage = context(tmp_path_factory.mktemp("run"))
    write_pairs(stage, pocket_pairs(8))
    train(stage)
    stage.folder.validation.write_bytes(msgspec.json.encode(VALIDATION))
    return stage


@pytest.fixture
def stage(trained: StageContext, tmp_path: Path) -> StageContext:
    """A copy of it."""
    shutil.copytree(trained.run.path, tmp_path / "run")
    return context(tmp_path / "run", stage="checkpoint")


def model_folder(out: Path, *, without: str | None = None, **generation: Any) -> Path:
    """A start model that differs from the pocket model."""
    shutil.copytree(SEED_CHECKPOINT, out)
    if without is not None:
        (out / without).unlink()
    if generation:
        (out / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **generation}))
    return out


def test_checkpoint_is_what_serve_takes_and_transformers_loads(stage: StageContext) -> None:
    numbers = run(stage)
    out = stage.folder.checkpoint
    assert numbers["epoch"] == 1
    source = find_source(str(out), ())
    assert find_format(source, None) == get_format(SEED_CHECKPOINT)
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    start = AutoTokenizer.from_pretrained(SEED_CHECKPOINT)
    assert tokenizer.chat_template == start.chat_template
    assert (out / "tokenizer.json").read_bytes() == (SEED_CHECKPOINT / "tokenizer.json").read_bytes()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Repeat abc"}],
        add_generation_prompt=True,
        return_dict=False,
        return_tensors="pt",
    )
    output = model.generate(ids, max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(output[0, ids.size(1) :], skip_special_tokens=True) == "abc"


def test_weights_are_those_of_the_chosen_epoch(stage: StageContext) -> None:
    chosen = (stage.folder.epoch(1) / "model.safetensors").read_bytes()
    assert chosen != (stage.folder.epoch(2) / "model.safetensors").read_bytes()
    run(stage)
    assert (stage.folder.checkpoint / "model.safetensors").read_bytes() == chosen


def test_everybody_may_read_every_file(stage: StageContext) -> None:
    run(stage)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in stage.folder.checkpoint.iterdir()}
    assert modes == {0o644}


def test_only_the_chosen_epoch_stays_and_takes_no_space_of_its_own(stage: StageContext) -> None:
    assert run(stage)["removed_epochs"] == 1
    assert [path.name for path in stage.folder.dpo.glob("*epoch-*")] == ["epoch-1"]
    weights = "model.safetensors"
    assert (stage.folder.epoch(1) / weights).samefile(stage.folder.checkpoint / weights)


def test_all_epochs_stay_where_the_recipe_keeps_them(stage: StageContext) -> None:
    keeping = context(stage.run.path, stage="checkpoint", compute=ComputeRecipe(keep_epochs=True))
    run(keeping)
    assert sorted(path.name for path in stage.folder.dpo.glob("epoch-*")) == ["epoch-1", "epoch-2"]


def test_killed_at_any_place_and_run_again_it_comes_to_the_same(stage: StageContext) -> None:
    """A draft that is half there, or an old checkpoint moved away and the new one not yet in its place."""
    run(stage)
    expected = {path.name: path.read_bytes() for path in stage.folder.checkpoint.iterdir()}
    draft = stage.folder.path / ".checkpoint"
    draft.mkdir()
    (draft / "half").write_text("x")
    stage.folder.checkpoint.rename(stage.folder.path / ".checkpoint.old")
    run(stage)
    assert {path.name: path.read_bytes() for path in stage.folder.checkpoint.iterdir()} == expected
    assert not [path for path in stage.folder.path.iterdir() if path.name.startswith(".")]


def test_epoch_that_is_gone_is_named(stage: StageContext) -> None:
    stage.folder.validation.write_text('{"chosen": 7}')
    with pytest.raises(ThinkserveError, match=r"has chosen epoch 7, and .*epoch-7 is not there"):
        run(stage)


@pytest.mark.parametrize("content", [None, "{}", "nonsense"])
def test_validation_that_chose_nothing_is_named(content: str | None, stage: StageContext) -> None:
    stage.folder.validation.unlink()
    if content is not None:
        stage.folder.validation.write_text(content)
    with pytest.raises(UsageError, match=r"validation\.json does not say which epoch was chosen"):
        run(stage)


def test_start_model_without_a_chat_template_is_refused_before_training(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", without="chat_template.jinja")
    stage = context(tmp_path / "run", model=str(model))
    write_pairs(stage, pocket_pairs(2))
    with pytest.raises(UsageError, match="has no chat template.*set `chat_template: FILE` in the recipe"):
        train(stage)


def test_chat_template_of_the_recipe_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", without="chat_template.jinja")
    template = "<bos><user>{{ messages[-1]['content'] }}<assistant>"
    (tmp_path / "template.jinja").write_text(template)
    stage = context(
        tmp_path / "run",
        model=str(model),
        chat_template=str(tmp_path / "template.jinja"),
        dpo={"epochs": 1},
    )
    write_pairs(stage, pocket_pairs(4))
    train(stage)
    stage.folder.validation.write_text('{"chosen": 1}')
    run(stage)
    assert AutoTokenizer.from_pretrained(stage.folder.checkpoint).chat_template == template
    assert AutoTokenizer.from_pretrained(stage.folder.epoch(1)).chat_template == template


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, (0.9, 0.95)),  # the recipe's
        ({"temperature": 0.6}, (0.6, 0.95)),
        ({"temperature": 0.6, "top_p": 0.8, "do_sample": False}, (0.6, 0.8)),
        ({"temperature": 0.0}, (0.9, 0.95)),  # not a temperature that can be sampled at
    ],
)
def test_checkpoint_samples_as_its_start_model_or_as_the_recipe(
    own: dict[str, Any], expected: tuple[float, float], tmp_path: Path
) -> None:
    """Without do_sample, transformers would decode greedily at any temperature."""
    (tmp_path / "model").mkdir()
    model = model_folder(tmp_path / "model" / "m", **(own or {"pad_token_id": 0}))
    config = decoding(StartModel(str(model), None, None), SampleRecipe(temperature=0.9, top_p=0.95))
    config.save_pretrained(tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert saved.do_sample
    assert (saved.temperature, saved.top_p) == expected


def test_start_model_with_a_generation_config_that_transformers_refuses_to_save_is_trained(
    tmp_path: Path,
) -> None:
    """A temperature without do_sample, as in many checkpoints: an error when the first epoch is saved."""
    model = model_folder(tmp_path / "model", temperature=0.6, top_p=0.9)
    stage = context(tmp_path / "run", model=str(model), dpo={"epochs": 1})
    write_pairs(stage, pocket_pairs(4))
    train(stage)
    saved = GenerationConfig.from_pretrained(stage.folder.epoch(1))
    assert (saved.do_sample, saved.temperature, saved.top_p) == (True, 0.6, 0.9)


def test_thought_format_is_the_recipes_else_the_start_models(tmp_path: Path) -> None:
    """A direct arm trains no format, so the start model's stays where there is one."""

    def written(name: str, model: Path, **recipe: Any) -> str | None:
        stage = context(tmp_path, **recipe)
        out = tmp_path / name
        out.mkdir()
        write_companions(out, StartModel(str(model), None, None), stage.recipe, stage.arm)
        return get_format(out).name if (out / "thought_format.json").exists() else None

    bare = model_folder(tmp_path / "bare", without="thought_format.json")
    assert written("1", CHECKPOINT) == get_format(CHECKPOINT).name
    assert written("2", CHECKPOINT, thought_format="think-tags") == "think-tags"
    assert written("3", CHECKPOINT, thought_format="think-tags", mode="direct") == get_format(CHECKPOINT).name
    assert written("4", bare, thought_format="tpo-generic", mode="direct") == "tpo-generic"
    assert written("5", bare, mode="direct") is None
    assert get_format(tmp_path / "4") == get_format("tpo-generic")
    # The specific prompt's format has no opening marker, so of itself it does not allow to ask without the prompt.
    assert written("6", bare, thought_format="tpo-specific", mode="direct") == "tpo-specific"
    assert get_format(tmp_path / "6").allows_direct
    assert written("7", tmp_path / "6", thought_format="tpo-specific") == "tpo-specific"
    assert not get_format(tmp_path / "7").allows_direct
    assert written("8", bare, thought_format="think-tags-in-prompt", mode="direct") == "think-tags-in-prompt"
    assert not get_format(tmp_path / "8").allows_direct
    assert get_format(tmp_path / "2") == get_format("think-tags")


def test_several_chat_templates_of_a_tokenizer_all_come_along(stage: StageContext) -> None:
    """transformers keeps all but the default one in a folder beside the tokenizer."""
    model = model_folder(stage.run.path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    templates = {"default": tokenizer.chat_template, "tool_use": "{{ messages[0]['content'] }}"}
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(model)
    write_companions(stage.folder.epoch(1), StartModel(str(model), None, None), stage.recipe, "thought")
    run(stage)
    out = stage.folder.checkpoint
    assert AutoTokenizer.from_pretrained(out).chat_template == templates
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    assert stat.S_IMODE(folder.stat().st_mode) & 0o700 == 0o700
    assert stat.S_IMODE((folder / "tool_use.jinja").stat().st_mode) == 0o644


def test_disk_that_is_full_where_a_tokenizer_is_written_is_told_in_a_line(tmp_path: Path) -> None:
    """Its library raises an error of its own, with nothing but the system's words."""
    tokenizer = AutoTokenizer.from_pretrained(SEED_CHECKPOINT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            pytest.raises(ThinkserveError, match="epoch 1 could not be written, the disk is full") as told,
            explain_full_disk(tmp_path, "the checkpoint"),
            explain_full_disk(tmp_path, "epoch 1"),
        ):
            tokenizer.save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(told.value)


def test_padding_of_the_trainer_does_not_get_into_the_checkpoint(tmp_path: Path) -> None:
    """TRL gives a tokenizer without a padding token the end-of-sequence token, and the model as well."""
    model = model_folder(tmp_path / "model")
    for name in ("tokenizer_config.json", "config.json"):
        values = json.loads((model / name).read_bytes())
        values.pop("pad_token", None)
        values.pop("pad_token_id", None)
        (model / name).write_text(json.dumps(values))
    stage = context(tmp_path / "run", model=str(model), dpo={"epochs": 1})
    write_pairs(stage, pocket_pairs(4))
    train(stage)
    assert AutoTokenizer.from_pretrained(stage.folder.epoch(1)).pad_token is None
    assert json.loads((stage.folder.epoch(1) / "config.json").read_bytes()).get("pad_token_id") is None


def test_card_has_recipe_data_validation_and_scores(stage: StageContext) -> None:
    stage.folder.pair_statistics.write_text(
        json.dumps({"rho": 0.2, "counts": {"pairs": 8, "broken_pairs": 1}, "histograms": {"edges": [1, 2]}})
    )
    measured = {"n": 40, "accuracy": 0.385, "score": 0.5, "ci": [0.3, 0.47], "parse_failures": 0.025}
    other = {**measured, "accuracy": 0.999}
    results = {
        "metric": "accuracy",
        "iterations": [
            {"iteration": 0, "thought": {"sampled": measured}, "direct": {"sampled": other}},
            {"iteration": 1, "thought": {"sampled": other}},
        ],
    }
    stage.run.results.write_text(json.dumps(results))
    run(stage)
    text = (stage.folder.checkpoint / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0"  # the start model's
    assert front["library_name"] == "transformers" and "thinkserve" in front["tags"]
    assert "# small: iteration 1, thought arm" in text
    assert "| rho | 0.2 |" in text and "| counts.broken_pairs | 1 |" in text and "edges" not in text
    assert "| 1 | 8 | 0.7512 | 0.125 | chosen |" in text
    assert "| 2 | 8 | - | 1 |  |" in text
    assert "| 0 | sampled | 0.385 | 0.3, 0.47 | 0.5 | 0.025 | 40 |" in text
    assert "0.999" not in text  # neither the other arm's nor a later one's
    assert "| `dpo.beta` | 0.1 |" in text and "| pairs | 8 |" in text
    assert "thinkserve serve FOLDER" in text


def test_card_has_the_scores_of_the_model_itself_once_they_are_measured(stage: StageContext) -> None:
    def measured(accuracy: float) -> dict[str, object]:
        return {"n": 40, "accuracy": accuracy, "score": 0.5, "ci": [0.3, 0.47], "parse_failures": 0.0}

    stage.run.results.write_text(
        json.dumps(
            {
                "metric": "accuracy",
                "iterations": [{"iteration": 0, "thought": {"sampled": measured(0.385)}}],
            }
        )
    )
    run(stage)
    card = stage.folder.checkpoint / "README.md"
    before = card.read_text(encoding="utf-8")
    own = {"greedy": measured(0.625), "sampled": measured(0.5625)}
    for _ in range(2):  # the stage may be killed after it, and run again
        add_scores(card, stage, own)
    after = card.read_text(encoding="utf-8")
    for line in ("| 0 | sampled | 0.385 |", "| 1 | greedy | 0.625 |", "| 1 | sampled | 0.5625 |"):
        assert after.count(line) == 1
    sections = [line for line in before.splitlines() if line.startswith("## ")]
    assert [line for line in after.splitlines() if line.startswith("## ")] == sections
    assert after.partition("## Recipe")[2] == before.partition("## Recipe")[2]
    card.unlink()
    add_scores(card, stage, own)  # nobody's card: nothing to do
    assert not card.exists()


def test_card_names_nothing_of_the_machine(trained: StageContext, tmp_path: Path) -> None:
    shutil.copytree(trained.run.path, tmp_path / "run")
    model = model_folder(tmp_path / "secret-place" / "m")
    from thinkserve.training.recipe import JudgeRecipe

    judge = JudgeRecipe(kind="pairwise", model="https://user:pass@judge.example/v1#big")
    stage = context(tmp_path / "run", model=str(model), judge=judge)
    run(stage)
    text = (stage.folder.checkpoint / "README.md").read_text(encoding="utf-8")
    assert "secret-place" not in text and str(tmp_path) not in text
    assert "user:pass" not in text and "https://judge.example/v1#big" in text
    # What a pairwise judge says of one response alone is no score.
    assert "The score is how often the judge prefers a response to that of epoch 0" in text


def test_license_of_a_start_model_without_a_card_is_left_out(trained: StageContext, tmp_path: Path) -> None:
    shutil.copytree(trained.run.path, tmp_path / "run")
    stage = context(tmp_path / "run", model=str(model_folder(tmp_path / "m", without="README.md")))
    run(stage)
    text = (stage.folder.checkpoint / "README.md").read_text(encoding="utf-8")
    assert "license" not in yaml.safe_load(text.split("---\n")[1])
