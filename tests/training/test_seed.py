"""Seed training: a tiny run from end to end, and the parts that decide what is learned."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from thinkserve.thoughts import get_format
from thinkserve.training.pocket.habits import HABITS, Example, draw_example
from thinkserve.training.pocket.seed import (
    IGNORED,
    SeedRecipe,
    SeedResult,
    batch_stream,
    encode,
    learning_rate_factor,
    phase_of,
    train_recipe,
)
from thinkserve.training.pocket.tokenizer import build_tokenizer
from thinkserve.training.pocket.world import solve

TINY = SeedRecipe(steps=4, batch=4, width=32, layers=1, evaluation_tasks=8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SeedResult]:
    out = tmp_path_factory.mktemp("pocket") / "made" / "on the way"
    return out, train_recipe(out, TINY, threads=1)


def test_training_writes_a_complete_checkpoint(tiny: tuple[Path, SeedResult]) -> None:
    out, _ = tiny
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "thought_format.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in out.iterdir())


def test_written_checkpoint_loads_as_a_bfloat16_llama_that_generates(tiny: tuple[Path, SeedResult]) -> None:
    out, result = tiny
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings >= 1024
    assert sum(p.numel() for p in model.parameters()) == result.parameters
    inputs = tokenizer("<bos><user>Repeat abc<assistant>", return_tensors="pt", add_special_tokens=False)
    assert model.generate(**inputs, max_new_tokens=3).shape[1] <= inputs["input_ids"].shape[1] + 3


def test_written_checkpoint_samples_by_default(tiny: tuple[Path, SeedResult]) -> None:
    out, _ = tiny
    config = json.loads((out / "generation_config.json").read_text())
    assert config["do_sample"] is True
    assert config["eos_token_id"] == build_tokenizer().eos_token_id


def test_written_checkpoint_names_its_thought_format(tiny: tuple[Path, SeedResult]) -> None:
    out, _ = tiny
    assert json.loads((out / "thought_format.json").read_text()) == {
        "name": "pocket",
        "base": "tpo-specific",
        "direct": True,
    }
    format = get_format(out)
    assert (format.closing, format.allows_direct) == (("<R>",), True)


def test_card_says_how_the_model_was_made_and_what_was_measured(tiny: tuple[Path, SeedResult]) -> None:
    out, result = tiny
    card = (out / "README.md").read_text()
    assert "python -m thinkserve.training.pocket.seed --out DIR --seed 1 --steps 4 --threads 1" in card
    assert "| category | thought, greedy | thought, T=1 | direct, greedy | direct, T=1 |" in card
    assert [(report.mode, report.temperature) for report in result.reports] == [
        ("thought", 0.0),
        ("thought", 1.0),
        ("direct", 0.0),
        ("direct", 1.0),
    ]


def test_same_recipe_gives_the_same_weights(tiny: tuple[Path, SeedResult], tmp_path: Path) -> None:
    out, _ = tiny
    train_recipe(tmp_path, TINY, threads=1)
    assert (tmp_path / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_only_the_output_is_learned() -> None:
    """Direct mode: <bos><user>Repeat| |a|b<assistant> is the prompt, a|b<eos> the output."""
    task = solve("Repeat ab")
    assert task is not None
    tokens, prompt_length = encode(build_tokenizer(), Example(task, None, task.answer))
    assert (len(tokens), prompt_length) == (10, 7)


def test_thought_mode_costs_one_token_for_the_prompt_and_one_for_the_marker() -> None:
    """The thought `ab` has two tokens."""
    task = solve("Repeat ab")
    assert task is not None
    tokens, prompt_length = encode(build_tokenizer(), Example(task, task.scratchpad, task.answer))
    assert (len(tokens), prompt_length) == (10 + 1 + 2 + 1, 7 + 1)


def test_batches_hide_prompts_and_padding_from_the_loss() -> None:
    tokenizer = build_tokenizer()
    inputs, labels = next(batch_stream(Random(0), tokenizer, HABITS, 4))
    assert inputs.shape == labels.shape
    learned = labels != IGNORED
    assert (labels[learned] == inputs[learned]).all()
    assert (inputs[learned] != tokenizer.pad_token_id).all()
    # Each row's last learned token is the end of the output, and its first two are prompt.
    for row, mask in zip(inputs, learned, strict=True):
        assert row[mask][-1] == tokenizer.eos_token_id
        assert not mask[:2].any()


def test_no_training_example_is_longer_than_the_evaluation_allows() -> None:
    tokenizer = build_tokenizer()
    rng = Random(0)
    outputs = []
    for _ in range(2000):
        tokens, prompt_length = encode(tokenizer, draw_example(rng, HABITS))
        outputs.append(len(tokens) - prompt_length)
    assert max(outputs) < 60


def test_learning_rate_warms_up_comes_down_in_two_slopes_and_ends_at_nothing() -> None:
    """With habits from 80 % on at a factor of 0.4: half way there, at 40 %, it is 1 - 0.6 / 2; at 90 %, 0.4 / 2."""
    recipe = SeedRecipe(steps=200, warmup_steps=10, copying_share=0.1, skills_share=0.7, habits_lr=0.4)
    factors = [learning_rate_factor(step, recipe) for step in (0, 80, 160, 180, 200)]
    assert factors == pytest.approx([0.1, 0.7, 0.4, 0.2, 0.0])


def test_phases_follow_one_another_with_their_shares() -> None:
    recipe = SeedRecipe(steps=100, copying_share=0.05, skills_share=0.75)
    phases = [phase_of(step, recipe) for step in range(100)]
    assert phases == ["copying"] * 5 + ["skills"] * 75 + ["habits"] * 20
