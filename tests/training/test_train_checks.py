"""What is refused before anything is run, and what is said when a run cannot write or is told to end."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.train_run import command, environment
from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.pocket import SEED_CHECKPOINT
from thinkserve.training.loop import train
from thinkserve.training.models import format_of, revision_of
from thinkserve.training.recipe import Recipe
from thinkserve.training.recipe_file import dump_recipe, find_recipe, load_recipe

POCKET = load_recipe(find_recipe("pocket"))


def test_a_model_that_names_no_format_is_told_by_the_key_of_the_recipe(tmp_path: Path) -> None:
    """There is no option --thought-format here."""
    bare = tmp_path / "bare"
    shutil.copytree(SEED_CHECKPOINT, bare)
    (bare / "thought_format.json").unlink()
    for model in (str(bare), "org/model"):
        with pytest.raises(
            UsageError, match=r"thought_format is null, .*set it to one of tpo-generic"
        ) as error:
            format_of(Recipe(name="test", model=model))
        assert "--" not in str(error.value)
        assert format_of(Recipe(name="test", model=model, thought_format="tpo-specific")).closing == ("<R>",)


def test_a_revision_is_that_of_the_start_model_alone() -> None:
    recipe = Recipe(name="test", model="org/model", revision="v2")
    assert revision_of(recipe, "org/model") == "v2"
    assert revision_of(recipe, "/run/iter-1/checkpoint") is None


def test_two_arms_that_would_be_asked_the_same_are_refused(tmp_path: Path) -> None:
    """In this format a model thinks or not as it likes: nothing in the prompt tells the arms apart."""
    recipe = replace(POCKET, mode="both", thought_format="think-tags")
    with pytest.raises(UsageError, match="'think-tags' has no prompt that asks: both arms would be the same"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    with pytest.raises(ThinkserveError, match=re.escape(f"{folder}: Not a directory; give another --out")):
        train(POCKET, folder)


def test_a_run_goes_on_where_a_file_without_effect_has_moved(tmp_path: Path) -> None:
    """As the accelerate configuration of a built-in recipe does when the package is installed elsewhere."""
    out = tmp_path / "run"
    out.mkdir()
    moved = replace(POCKET, dpo=replace(POCKET.dpo, accelerate_config=str(tmp_path / "gone.yaml")))
    (out / "recipe.yaml").write_text(dump_recipe(moved), encoding="utf-8")
    with pytest.raises(UsageError, match="--stage dpo: it is not the next stage here; next is prompts"):
        train(POCKET, out, only="dpo")


def test_a_run_that_has_done_nothing_may_be_given_another_recipe(tmp_path: Path) -> None:
    """As after a first stage that failed because of it. What that stage has left is not taken for the new one's."""
    out = tmp_path / "run"
    (out / "prompts" / "stages").mkdir(parents=True)
    (out / "recipe.yaml").write_text(dump_recipe(replace(POCKET, seed=5)), encoding="utf-8")
    left = out / "prompts" / "iter-3.jsonl"
    left.touch()
    with pytest.raises(UsageError, match="next is prompts"):
        train(POCKET, out, only="dpo")
    assert not left.exists()
    assert load_recipe(out / "recipe.yaml") == POCKET
    (out / "prompts" / "stages").mkdir(parents=True)
    (out / "prompts" / "stages" / "prompts.json").touch()
    with pytest.raises(UsageError, match="has a run of another recipe .different: seed"):
        train(replace(POCKET, seed=5), out, only="dpo")
    assert load_recipe(out / "recipe.yaml") == POCKET


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_says_how_to_go_on(tmp_path: Path, sent: signal.Signals) -> None:
    out = tmp_path / "run [1]"
    process = subprocess.Popen(
        command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    deadline = time.monotonic() + 60
    while not (out / "prompts" / "logs" / "prompts.log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    said, wrong = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert f"stopped; what is finished is kept in {out}: run the same again" in said
    assert not wrong
