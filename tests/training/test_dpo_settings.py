"""A recipe's `dpo` in TRL's words, and the traps of TRL 1.16 and transformers 5 that the words hide."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as changed
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

import thinkserve.training.dpo
from tests.training.dpo_run import SMALL, context, pocket_pairs, write_pairs
from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.training.dpo.job import prepare
from thinkserve.training.dpo.settings import dpo_config, lora_config
from thinkserve.training.dpo.trainer import make_trainer
from thinkserve.training.recipe import DpoRecipe, LoraRecipe


def config_of(recipe: DpoRecipe, out: Path, *, steps: int = 100, processes: int = 1) -> Any:
    return dpo_config(recipe, out=out, steps=steps, seed=1, processes=processes)


def test_what_trl_turns_on_by_itself_follows_the_recipe(tmp_path: Path) -> None:
    config = config_of(SMALL, tmp_path)
    assert (config.bf16, config.gradient_checkpointing) == (False, False)
    assert DPOConfig(str(tmp_path), use_cpu=True).bf16
    assert DPOConfig(str(tmp_path), use_cpu=True).gradient_checkpointing
    config = config_of(replace(SMALL, bf16=True, gradient_checkpointing=True), tmp_path)
    assert (config.bf16, config.gradient_checkpointing) == (True, True)


def test_losses_are_a_list_with_the_likelihood_as_one_of_them(tmp_path: Path) -> None:
    config = config_of(replace(SMALL, loss="ipo", nll_weight=0.25), tmp_path)
    assert (config.loss_type, config.loss_weights) == (["ipo", "sft"], [1.0, 0.25])
    config = config_of(replace(SMALL, nll_weight=0.0), tmp_path)
    assert (config.loss_type, config.loss_weights) == (["sigmoid"], [1.0])


@pytest.mark.parametrize(
    "removed",
    [
        "rpo_alpha",
        "max_prompt_length",
        "max_completion_length",
        "label_pad_token_id",
        "reference_free",
        "warmup_ratio",
        "evaluation_strategy",
        "no_cuda",
        "group_by_length",
        "save_safetensors",
        "overwrite_output_dir",
    ],
)
def test_arguments_that_are_gone_are_not_taken_silently(removed: str, tmp_path: Path) -> None:
    """Were one of them back, settings would have to say what becomes of it."""
    with pytest.raises(TypeError, match=removed):
        DPOConfig(str(tmp_path), **{removed: 1})


def test_reference_is_computed_beforehand_and_nothing_is_cut(tmp_path: Path) -> None:
    config = config_of(SMALL, tmp_path)
    assert config.precompute_ref_log_probs and config.max_length is None and config.disable_dropout
    assert not config.sync_ref_model and not config.logging_nan_inf_filter


def test_trl_would_cut_the_end_of_a_long_output() -> None:
    """And keep the start: what was judged, the response, would be gone."""
    rows = [{"prompt_ids": [1, 2], "chosen_ids": [3, 4, 5], "rejected_ids": [6]}]
    cut = DataCollatorForPreference(pad_token_id=0, max_length=3)(rows)
    assert cut["input_ids"].tolist() == [[1, 2, 3], [1, 2, 6]]
    whole = DataCollatorForPreference(pad_token_id=0, max_length=None)(rows)
    assert whole["input_ids"].tolist() == [[1, 2, 3, 4, 5], [1, 2, 6, 0, 0]]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_every_schedule_warms_up_for_its_share_of_all_steps(schedule: Any, tmp_path: Path) -> None:
    """0.05 of 61 steps is 3.05: 4 steps. The schedule that transformers calls constant would not warm up."""
    config = config_of(replace(SMALL, schedule=schedule, warmup_share=0.05), tmp_path, steps=61)
    assert config.warmup_steps == 4
    assert config.lr_scheduler_type != "constant"


@pytest.mark.parametrize(
    ("batch", "device_batch", "processes", "size", "accumulated"),
    [(128, 1, 1, 1, 128), (128, 4, 8, 4, 4), (16, 64, 1, 16, 1), (16, 64, 2, 8, 1)],
)
def test_batch_is_spread_over_devices_and_accumulated(
    batch: int, device_batch: int, processes: int, size: int, accumulated: int, tmp_path: Path
) -> None:
    config = config_of(replace(SMALL, batch=batch, device_batch=device_batch), tmp_path, processes=processes)
    assert config.per_device_train_batch_size == size
    assert config.gradient_accumulation_steps == accumulated
    assert size * accumulated * processes == batch


def test_batch_that_cannot_be_spread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dpo\.batch is 16 .* 3 processes .* a multiple of 12"):
        config_of(replace(SMALL, batch=16, device_batch=4), tmp_path, processes=3)


def test_unknown_optimizer_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^dpo: adamx is not a valid OptimizerNames.*$"):
        config_of(replace(SMALL, optimizer="adamx"), tmp_path)


def test_lora_takes_one_name_or_several() -> None:
    assert lora_config(LoraRecipe()).target_modules == "all-linear"
    assert lora_config(LoraRecipe(target_modules=("q_proj", "v_proj"))).target_modules == {"q_proj", "v_proj"}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_adapter_on_the_output_layer_is_refused(tmp_path: Path) -> None:
    """TRL multiplies with its weight directly, so an adapter there would never be trained."""
    stage = context(tmp_path, dpo={"lora": LoraRecipe(r=2, alpha=2, target_modules=("lm_head",))})
    write_pairs(stage, pocket_pairs(2))
    with pytest.raises(UsageError, match="adapter to `lm_head` is not supported"):
        make_trainer(prepare(stage))


def test_batches_have_the_ids_of_the_pairs_and_all_of_them(tmp_path: Path) -> None:
    """What the model reads: prompt, output, one end; and no end where the token limit cut the output off."""
    stage = context(tmp_path)
    pairs = pocket_pairs(3)
    write_pairs(stage, pairs, cut=["1"])
    job = prepare(stage)
    trainer = make_trainer(job)
    (batch,) = trainer.get_train_dataloader()
    tokenizer = job.start.tokenizer()
    texts = set()
    for ids, attended, trained in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        ids, trained = ids[attended.bool()], trained[attended.bool()]
        prompt, output = tokenizer.decode(ids[trained == 0]), tokenizer.decode(ids[trained == 1])
        assert prompt.count("<user>") == 1 and prompt.endswith("<assistant>")
        texts.add((prompt, output))
    expected = set()
    for pair in pairs:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": pair.prompt}], add_generation_prompt=True, tokenize=False
        )
        expected |= {(prompt, pair.chosen + "<eos>")}
        expected |= {(prompt, pair.rejected + ("" if pair.id == "1" else "<eos>"))}
    assert texts == expected


def test_pairs_with_a_side_that_is_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    stage = context(tmp_path, dpo={"max_length": 60})
    pairs = pocket_pairs(4)
    long = changed(pairs[0], chosen="Let me see " * 20 + "<R>x")
    write_pairs(stage, [long, *pairs[1:]])
    counts = prepare(stage).counts
    assert (counts.pairs, counts.too_long) == (3, 1)
    assert counts.longest <= 60


def test_nothing_left_to_train_on_is_an_error_that_says_why(tmp_path: Path) -> None:
    stage = context(tmp_path, dpo={"max_length": 5})
    write_pairs(stage, pocket_pairs(4))
    with pytest.raises(ThinkserveError, match=r"all 4 pairs .* longer than dpo\.max_length = 5 tokens"):
        prepare(stage)
    write_pairs(stage, [])
    with pytest.raises(ThinkserveError, match="has no pairs"):
        prepare(stage)


def test_the_other_tpo_is_not_used() -> None:
    """trl.experimental.tpo is Triple Preference Optimization, which shares no more than three letters."""
    spec = find_spec("trl")
    assert spec is not None and spec.origin is not None
    other = Path(spec.origin).parent / "experimental" / "tpo" / "tpo_trainer.py"
    assert "Triple Preference Optimization" in other.read_text(encoding="utf-8")
    (folder,) = thinkserve.training.dpo.__path__
    imports = [
        line
        for file in Path(folder).glob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if "import" in line
    ]
    assert not [line for line in imports if "experimental" in line or "TPOTrainer" in line]
