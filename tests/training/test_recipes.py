"""The built-in recipes: they load, they are what they say, and a run's folder can keep them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from thinkserve.training.memory import sharding
from thinkserve.training.models import format_of
from thinkserve.training.recipe import Recipe
from thinkserve.training.recipe_file import BUILT_IN, built_in_recipes, dump_recipe, find_recipe, load_recipe

NAMES = ("pocket", "tpo-llama3-8b", "tpo-llama3-8b-pairwise", "tpo-small-gpu")
# What a comment may give as the reason of a value.
SOURCES = ("paper", "draft", "RLMT", "IRPO", "chosen by us", "default")


def load(name: str) -> Recipe:
    return load_recipe(find_recipe(name))


def test_these_are_built_in() -> None:
    assert built_in_recipes() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_recipe_is_named_as_its_file_and_survives_a_dump(name: str, tmp_path: Path) -> None:
    recipe = load(name)
    assert recipe.name == name
    kept = tmp_path / "recipe.yaml"
    kept.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(kept) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_recipe_has_a_thought_format(name: str) -> None:
    assert format_of(load(name)).prompt is not None


@pytest.mark.parametrize("name", ["tpo-llama3-8b", "tpo-small-gpu"])
def test_every_number_says_where_it_is_from(name: str) -> None:
    lines = find_recipe(name).read_text(encoding="utf-8").splitlines()
    numbers = [line for line in lines if re.match(r" *[a-z_0-9]+: +[-\d.]+(e-?\d+)? *(#|$)", line)]
    assert len(numbers) > 10
    without = [line for line in numbers if not any(source in line for source in SOURCES)]
    # `top_p` of the evaluation goes with the temperature above it.
    assert [line.split("#")[0].strip() for line in without] == ["top_p: 0.95"]


def test_the_papers_setting_is_the_papers() -> None:
    """Sources: arXiv 2410.10630 and its draft."""
    recipe = load("tpo-llama3-8b")
    assert (recipe.model, recipe.iterations) == ("meta-llama/Meta-Llama-3-8B-Instruct", 4)
    assert recipe.thought_format == "tpo-specific"
    assert (recipe.prompts.source, recipe.prompts.per_iteration) == ("openbmb/UltraFeedback", 5000)
    assert (recipe.sample.k, recipe.sample.temperature, recipe.sample.top_p) == (8, 0.8, 0.95)
    assert recipe.judge.model == "RLHFlow/ArmoRM-Llama3-8B-v0.1"
    assert (recipe.dpo.epochs, recipe.prompts.validation) == (10, 1500)


def test_the_pairwise_variant_differs_in_the_judge_alone() -> None:
    one, other = load("tpo-llama3-8b"), load("tpo-llama3-8b-pairwise")
    assert other.judge.kind == "pairwise"
    for part in ("model", "thought_format", "iterations", "prompts", "sample", "pairs", "dpo", "evaluate"):
        assert getattr(one, part) == getattr(other, part), part


def test_the_accelerate_configuration_is_read_by_accelerate_and_fits_the_recipe() -> None:
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    dpo = load("tpo-llama3-8b").dpo
    assert dpo.accelerate_config == str(BUILT_IN / "accelerate" / "fsdp-8.yaml")
    config = config_args.load_config_from_file(dpo.accelerate_config)
    assert config.distributed_type == "FSDP"
    assert config.num_processes == dpo.processes == 8
    # The stage takes whole weights from what the trainer leaves.
    assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    assert sharding(dpo) == (8, 3)


def test_the_pocket_recipe_is_for_two_cores_and_needs_no_network() -> None:
    recipe = load("pocket")
    assert (recipe.model, recipe.mode, recipe.prompts.source) == ("pocket-seed", "both", "pocket")
    assert recipe.iterations >= 3
    assert (recipe.compute.parallel_arms, recipe.compute.threads) == (True, 1)
    assert (recipe.sample.engine, recipe.judge.kind, recipe.dpo.bf16) == ("transformers", "function", False)
