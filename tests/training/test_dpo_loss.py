"""The loss that is minimized, against the formula of DPO and independent log-probabilities; and its reference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from tests.training.dpo_run import context, log_lines, pocket_pairs, write_pairs
from thinkserve.pocket import CHECKPOINT
from thinkserve.training.dpo.checkpoint_stage import run as make_checkpoint
from thinkserve.training.dpo.data import CHOSEN, PROMPT, REJECTED
from thinkserve.training.dpo.job import prepare
from thinkserve.training.dpo.stage import run
from thinkserve.training.dpo.trainer import make_trainer
from thinkserve.training.recipe import LoraRecipe
from thinkserve.training.stage import StageContext

PAIRS = 6
# All pairs in one step an epoch; the second loss is that of the weights after the first.
ONE_STEP = {"batch": 8, "device_batch": 8, "learning_rate": 1e-3, "schedule": "constant"}


@pytest.fixture(scope="module")
def precise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket model in float32, so that the weights of an epoch are those that the next one begins with."""
    out = tmp_path_factory.mktemp("start") / "precise"
    shutil.copytree(CHECKPOINT, out)
    AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).save_pretrained(out)
    return out


def token_log_probabilities(model: Any, prompt: Sequence[int], output: Sequence[int]) -> list[float]:
    """One sequence at a time, without padding, by the textbook: log softmax of the logits before each token."""
    ids = torch.tensor([[*prompt, *output]])
    with torch.no_grad():
        logits = model(ids).logits[0].double()
    picked = logits.log_softmax(-1)[range(len(prompt) - 1, ids.size(1) - 1), list(output)]
    return [float(value) for value in picked]


def expected_line(
    policy: Any, reference: Any, rows: Any, *, beta: float, nll_weight: float
) -> dict[str, float]:
    """By hand: d = log p(output) - log p_reference(output), loss = mean of -log sigmoid(beta (d_chosen - d_rejected)),
    which is log(1 + exp(-beta (d_chosen - d_rejected))), plus the weight times the mean over all chosen tokens of -log p."""
    losses, chosen_rewards, rejected_rewards, chosen_tokens = [], [], [], []
    for row in rows:
        found = {}
        for side in (CHOSEN, REJECTED):
            tokens = token_log_probabilities(policy, row[PROMPT], row[side])
            found[side] = sum(tokens) - sum(token_log_probabilities(reference, row[PROMPT], row[side]))
            chosen_tokens += tokens if side == CHOSEN else []
        chosen_rewards.append(beta * found[CHOSEN])
        rejected_rewards.append(beta * found[REJECTED])
        losses.append(log(1 + exp(rejected_rewards[-1] - chosen_rewards[-1])))
    likelihood = -sum(chosen_tokens) / len(chosen_tokens)
    margins = [a - b for a, b in zip(chosen_rewards, rejected_rewards, strict=True)]
    return {
        "loss": sum(losses) / len(losses) + nll_weight * likelihood,
        "rewards/chosen": sum(chosen_rewards) / len(rows),
        "rewards/rejected": sum(rejected_rewards) / len(rows),
        "rewards/margins": sum(margins) / len(rows),
        "rewards/accuracies": sum(margin > 0 for margin in margins) / len(rows),
    }


def load(folder: Path | str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(("beta", "nll_weight"), [(0.1, 0.0), (0.5, 0.7)])
def test_loss_is_that_of_the_formula(beta: float, nll_weight: float, precise: Path, tmp_path: Path) -> None:
    """At first policy and reference are the same, so the DPO term is -log sigmoid(0) = log 2 = 0.693147. The second step is
    measured after one update, so its log-ratios are those of epoch-1 over the start model. Outputs have different
    lengths, so a mean over outputs of the likelihood would come out different from the mean over tokens."""
    stage = context(tmp_path, model=str(precise), dpo={**ONE_STEP, "beta": beta, "nll_weight": nll_weight})
    write_pairs(stage, pocket_pairs(PAIRS))
    rows = list(Dataset.load_from_disk(str(prepare(stage).pairs)))
    assert len({len(row[CHOSEN]) for row in rows}) > 1
    run(stage)
    first, second = log_lines(stage)
    reference = load(precise)
    expected = expected_line(reference, reference, rows, beta=beta, nll_weight=nll_weight)
    assert first["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    if not nll_weight:
        assert first["loss"] == pytest.approx(0.693147, abs=1e-4)
    trained = load(stage.folder.epoch(1))
    expected = expected_line(trained, reference, rows, beta=beta, nll_weight=nll_weight)
    assert expected["rewards/margins"] > 0.1  # something has been learned that could be wrong
    assert {name: second[name] for name in expected} == pytest.approx(expected, abs=1e-3)


def test_reference_of_an_iteration_is_the_model_it_starts_from(tmp_path: Path) -> None:
    """Of the second iteration that is M_1, also with the pairs of the first: then the first rewards are zero. Had the first
    one's log-probabilities been used again, they would be those at the end of the first iteration."""
    first = context(tmp_path, dpo={**ONE_STEP, "epochs": 1})
    write_pairs(first, pocket_pairs(PAIRS))
    run(first)
    first.folder.validation.write_text('{"chosen": 1}')
    make_checkpoint(first)
    second = StageContext(first.run, first.recipe, first.arm, 2, "dpo")
    write_pairs(second, pocket_pairs(PAIRS))
    run(second)
    (line,) = log_lines(second)
    assert line["rewards/chosen"] == pytest.approx(0, abs=1e-4)
    assert line["rewards/rejected"] == pytest.approx(0, abs=1e-4)
    trained, start = (
        load_file(second.folder.epoch(1) / "model.safetensors"),
        load_file(first.folder.checkpoint / "model.safetensors"),
    )
    assert any(not torch.equal(trained[name], start[name]) for name in start)


def test_other_weights_or_pairs_in_the_same_folder_begin_anew(precise: Path, tmp_path: Path) -> None:
    """The reference's log-probabilities lie beside the pairs, and go with them."""
    model = tmp_path / "model"
    shutil.copytree(precise, model)
    stage = context(tmp_path / "run", model=str(model), dpo={**ONE_STEP, "epochs": 1, "nll_weight": 0.0})
    write_pairs(stage, pocket_pairs(PAIRS))
    run(stage)
    assert not (stage.folder.dpo / "work").exists()
    before = (stage.folder.epoch(1) / "model.safetensors").read_bytes()
    changed = load(model)
    with torch.no_grad():
        changed.model.embed_tokens.weight.mul_(1.01)
    changed.save_pretrained(model)
    run(stage)
    (line,) = log_lines(stage)
    assert line["loss"] == pytest.approx(0.693147, abs=1e-4)
    again = (stage.folder.epoch(1) / "model.safetensors").read_bytes()
    assert again != before
    write_pairs(stage, pocket_pairs(PAIRS, seed=6))
    run(stage)
    assert (stage.folder.epoch(1) / "model.safetensors").read_bytes() != again


def test_reference_log_probabilities_stay_in_the_folder_of_the_iteration(tmp_path: Path) -> None:
    stage = context(tmp_path)
    write_pairs(stage, pocket_pairs(PAIRS))
    job = prepare(stage)
    dataset = make_trainer(job).train_dataset
    files = {Path(file["filename"]).parent for file in dataset.cache_files}
    assert files == {job.pairs}
    assert "ref_chosen_logps" in dataset.column_names


def test_trl_would_take_the_reference_from_the_path_of_a_model_that_was_trained_since(tmp_path: Path) -> None:
    """The trap that starting from a path, and log-probabilities computed before, keep us out of. TRL also leaves a model that
    it was given with another forward, so nothing is done with one but writing files."""
    model = load(CHECKPOINT)
    forward = model.forward
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2.0)
    args = DPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, report_to=[], dataloader_pin_memory=False, max_length=None
    )
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    rows = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    trainer = DPOTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    reference = trainer.ref_model.model.embed_tokens.weight
    assert torch.allclose(2.0 * reference, model.model.embed_tokens.weight)
    assert model.forward != forward


def test_epochs_are_models_that_transformers_loads_and_that_were_trained(tmp_path: Path) -> None:
    """In the precision of the start model, with all that a server needs."""
    stage = context(tmp_path, dpo={"learning_rate": 1e-3})
    write_pairs(stage, pocket_pairs(8))
    numbers = run(stage)
    weights = [load_file(stage.folder.epoch(epoch) / "model.safetensors") for epoch in (1, 2)]
    start = load_file(CHECKPOINT.parent / "seed" / "model.safetensors")
    assert set(weights[0]) == set(start)
    assert {tensor.dtype for tensor in weights[1].values()} == {torch.bfloat16}
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in start)
    config = json.loads((stage.folder.epoch(1) / "config.json").read_bytes())
    assert (config["dtype"], config["pad_token_id"]) == ("bfloat16", 0)
    assert numbers["steps"] == 2
    assert numbers["tokens"] == 2 * sum(
        2 * len(row[PROMPT]) + len(row[CHOSEN]) + len(row[REJECTED]) for row in tokens_of(stage)
    )


def tokens_of(stage: StageContext) -> Any:
    """Made again: they are gone with the work of the stage."""
    (stage.folder.dpo / "result.json").unlink()
    return Dataset.load_from_disk(str(prepare(stage).pairs))


def test_lora_is_merged_when_an_epoch_is_written(precise: Path, tmp_path: Path) -> None:
    """An epoch is a whole model whose loss is the one that the trainer goes on with."""
    lora = LoraRecipe(r=4, alpha=8)
    stage = context(tmp_path, model=str(precise), dpo={**ONE_STEP, "lora": lora, "nll_weight": 0.0})
    write_pairs(stage, pocket_pairs(PAIRS))
    rows = list(Dataset.load_from_disk(str(prepare(stage).pairs)))
    run(stage)
    first, second = log_lines(stage)
    assert first["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert not list(stage.folder.dpo.rglob("adapter*"))
    expected = expected_line(load(stage.folder.epoch(1)), load(precise), rows, beta=0.1, nll_weight=0.0)
    assert {name: second[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert second["loss"] < first["loss"] - 0.01


def test_autocast_and_gradient_checkpointing_work_on_a_cpu_too(tmp_path: Path) -> None:
    """With the 8 bits of bfloat16 the first loss is log 2 to about a hundredth."""
    settings = {"bf16": True, "gradient_checkpointing": True, "nll_weight": 0.0, "epochs": 1}
    stage = context(tmp_path, dpo={**ONE_STEP, **settings})
    write_pairs(stage, pocket_pairs(2))
    run(stage)
    (line,) = log_lines(stage)
    assert line["loss"] == pytest.approx(0.693, abs=0.02)
    assert line["grad_norm"] > 0
