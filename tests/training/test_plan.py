"""The plan of a run: counts and hours against numbers derived by hand, memory of known models, and how it looks."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from thinkserve.errors import UsageError
from thinkserve.training.cost import HOUR, Speed
from thinkserve.training.lengths import Lengths, lengths_of
from thinkserve.training.memory import adapter_weights, sharding
from thinkserve.training.model_size import Shape, size_of
from thinkserve.training.models import format_of
from thinkserve.training.plan import Plan, plan
from thinkserve.training.planned_judge import PlannedJudge
from thinkserve.training.recipe import (
    ComputeRecipe,
    DpoRecipe,
    EvaluateRecipe,
    JudgeRecipe,
    LoraRecipe,
    PromptsRecipe,
    Recipe,
    SampleRecipe,
)
from thinkserve.training.recipe_file import built_in_recipes, find_recipe, load_recipe

LENGTHS = Lengths(
    instruction=100,
    thought_prompt=50,
    thought=200,
    response=300,
    direct_response=400,
    source="the test",
)
SPEED = Speed(device="T", peak=1e15, reading=0.5, writing=0.1, steps=100, training=0.25)
RECIPE = Recipe(
    name="small",
    model="org/model-1B",
    thought_format="tpo-generic",
    iterations=2,
    prompts=PromptsRecipe(per_iteration=10, validation=5, evaluation=3),
    sample=SampleRecipe(k=4),
    judge=JudgeRecipe(model="org/judge-2B"),
    dpo=DpoRecipe(epochs=2, batch=4),
)
LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
}
QWEN_1B = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
}


@pytest.fixture(autouse=True)
def nothing_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the Hub, empty whatever this machine has in its own."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def write_model(folder: Path, config: dict[str, int], weights: int | None) -> Path:
    """A checkpoint of which only the configuration and the header of the weights are there."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if weights is not None:
        tensors = {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "BF16", "shape": [weights], "data_offsets": [0, 0]},
        }
        header = json.dumps(tensors).encode()
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder


def small(recipe: Recipe = RECIPE) -> Plan:
    return plan(recipe, speed=SPEED, lengths=LENGTHS)


def test_sampling_and_scoring_are_counted() -> None:
    """10 instructions x 4 outputs = 40 outputs, each prompt of 150 tokens read once, 200 + 300 written each.

    Reading: 2 x 1e9 x 1,500 / 5e14 = 0.006 s. Writing: 1e14 / 2e9 = 50,000 tokens/s, but 256 outputs at once get 100 a
    second each, so 25,600: 20,000 / 25,600 = 0.78125 s. The judge reads 100 + 300 tokens for each of 40 responses:
    2 x 2e9 x 16,000 / 5e14 = 0.128 s.
    """
    sample, score, _, _ = small().training["thought"]
    assert (sample.outputs, sample.read_tokens, sample.written_tokens) == (40, 1500, 20_000)
    assert sample.gpu_hours == pytest.approx((0.006 + 0.78125) / HOUR)
    assert (score.judge_calls, score.read_tokens, score.written_tokens) == (40, 16_000, 0)
    assert score.gpu_hours == pytest.approx(0.128 / HOUR)


def test_a_large_model_is_slowed_by_its_size_and_not_by_its_steps() -> None:
    """10e9 weights: 1e14 / 2e10 = 5,000 tokens a second, less than 25,600."""
    assert SPEED.tokens_written(10e9, 256) == 5000
    assert SPEED.tokens_written(1e9, 256) == 25_600


def test_training_is_counted() -> None:
    """10 pairs x 2 sides x (150 + 500) = 13,000 tokens, twice; 2 epochs of 3 steps (4 + 4 + 2 pairs).

    Reference: 2 x 1e9 x 13,000 / 5e14 = 0.052 s. Training: 6 x 1e9 x 26,000 / 2.5e14 = 0.624 s; adapters 4/6 of it.
    """
    dpo = small().training["thought"][2]
    assert (dpo.read_tokens, dpo.trained_tokens, dpo.steps) == (13_000, 26_000, 6)
    assert dpo.gpu_hours == pytest.approx((0.052 + 0.624) / HOUR)
    adapters = small(replace(RECIPE, dpo=replace(RECIPE.dpo, lora=LoraRecipe()))).training["thought"][2]
    assert adapters.gpu_hours == pytest.approx((0.052 + 0.416) / HOUR)


def test_outputs_and_sequences_end_at_their_limits() -> None:
    """Outputs of 500 tokens are cut at 120, responses of 300 too; 150 + 120 tokens a side, cut at 200."""
    recipe = replace(
        RECIPE, sample=replace(RECIPE.sample, max_tokens=120), dpo=replace(RECIPE.dpo, max_length=200)
    )
    sample, score, dpo, _ = small(recipe).training["thought"]
    assert sample.written_tokens == 40 * 120
    assert score.read_tokens == 40 * (100 + 120)
    assert dpo.trained_tokens == 2 * 2 * 10 * 200


def test_validation_and_evaluation_are_counted() -> None:
    """Validation: 5 instructions x (2 epochs + the start model) = 15 outputs, each scored.

    Evaluation: 3 instructions x 2 decodings = 6 outputs, each scored (1) and compared with the baseline's (2 responses).
    """
    planned = small()
    validate, evaluate = planned.training["thought"][3], planned.evaluation["thought"]
    assert (validate.outputs, validate.judge_calls) == (15, 15)
    assert validate.written_tokens == 15 * 500
    assert validate.read_tokens == 15 * 150 + 15 * 400
    assert (evaluate.outputs, evaluate.judge_calls) == (6, 18)
    assert planned.baseline is not None
    assert (planned.baseline.outputs, planned.baseline.written_tokens) == (6, 6 * 400)


def test_the_whole_run_is_the_sum_of_its_iterations() -> None:
    """2 iterations of 40 + 15 outputs, 3 models of 6, the baseline's 6; 2 x (40 + 15) + 3 x 18 judge calls."""
    whole = small().total
    assert whole.outputs == 2 * 55 + 3 * 6 + 6 == 134
    assert whole.judge_calls == 2 * 55 + 3 * 18 == 164
    assert whole.steps == 2 * 6
    assert whole.trained_tokens == 2 * 26_000


def test_both_arms_share_the_baseline_and_nothing_else() -> None:
    """The direct arm reads 100 and writes 400 tokens an output."""
    planned = small(replace(RECIPE, mode="both"))
    assert list(planned.training) == ["thought", "direct"]
    direct = planned.training["direct"][0]
    assert (direct.read_tokens, direct.written_tokens) == (1000, 16_000)
    assert planned.total.outputs == 2 * (2 * 55 + 3 * 6) + 6


def llm(folder: Path, kind: Literal["pairwise", "pointwise"]) -> JudgeRecipe:
    """A judge with a prompt of 60 tokens, at 4 characters each, that writes at most 30."""
    template = folder / "judge.txt"
    template.write_text("x" * 240, encoding="utf-8")
    model = "http://127.0.0.1:8001#org/judge-2B"
    return JudgeRecipe(kind=kind, model=model, template=str(template), max_tokens=30)


def test_a_pairwise_judge_compares_all_pairs_in_both_orders(tmp_path: Path) -> None:
    """4 responses: 4 x 3 = 12 calls an instruction, 60 + 100 + 2 x 300 tokens read and 30 written in each.

    Validation: each of 2 epochs against the start model, 2 calls: 5 x 2 x 2. Evaluation: 6 outputs x 2.
    """
    planned = small(replace(RECIPE, judge=llm(tmp_path, "pairwise")))
    _, score, _, validate = planned.training["thought"]
    assert (score.judge_calls, score.read_tokens, score.written_tokens) == (120, 120 * 760, 120 * 30)
    assert validate.judge_calls == 20
    assert planned.evaluation["thought"].judge_calls == 12
    assert planned.judge.size is not None and planned.judge.size.parameters == 2e9
    # Its memory is that of another machine.
    assert [need.name for need in planned.memory] == ["sample", "dpo"]


def test_a_pointwise_judge_grades_each_response(tmp_path: Path) -> None:
    """60 + 100 + 300 tokens read and 30 written for each of 40 responses.

    Reading: 2 x 2e9 x 18,400 / 5e14 = 0.1472 s. Writing: 64 calls at once get 100 tokens a second each: 1,200 / 6,400 s.
    """
    score = small(replace(RECIPE, judge=llm(tmp_path, "pointwise"))).training["thought"][1]
    assert (score.judge_calls, score.read_tokens, score.written_tokens) == (40, 18_400, 1200)
    assert score.gpu_hours == pytest.approx((0.1472 + 0.1875) / HOUR)


def test_the_evaluation_may_have_a_judge_of_its_own(tmp_path: Path) -> None:
    """6 outputs, each compared with the baseline's in both orders; training keeps its reward model."""
    evaluate = EvaluateRecipe(judge=llm(tmp_path, "pairwise"))
    planned = small(replace(RECIPE, evaluate=evaluate))
    assert planned.training["thought"][1].judge_calls == 40
    assert planned.evaluation["thought"].judge_calls == 12
    assert [need.name for need in planned.memory] == ["sample", "score", "dpo"]
    other = small(replace(RECIPE, evaluate=EvaluateRecipe(judge=JudgeRecipe(model="org/other-3B"))))
    assert sizes(other, "evaluate") == {"weights": 6e9}


def test_eight_outputs_take_56_comparisons() -> None:
    """The paper's K: 8 x 7, for 5,000 instructions 280,000."""
    score = plan(load_recipe(find_recipe("tpo-llama3-8b-pairwise"))).training["thought"][1]
    assert score.judge_calls == 280_000


def test_a_function_costs_calls_and_no_gpu() -> None:
    judge = JudgeRecipe(kind="function", function="a:b", model=None)
    evaluate = EvaluateRecipe(metric="accuracy")
    planned = small(replace(RECIPE, judge=judge, evaluate=evaluate))
    score = planned.training["thought"][1]
    assert (score.judge_calls, score.read_tokens, score.gpu_hours) == (40, 0, 0)
    assert planned.baseline is None
    assert planned.evaluation["thought"].judge_calls == 6


def test_hours_of_a_model_of_unknown_size_are_unknown() -> None:
    planned = small(replace(RECIPE, judge=JudgeRecipe(model="org/judge")))
    assert planned.training["thought"][0].gpu_hours is not None
    assert planned.training["thought"][1].gpu_hours is None
    assert planned.total.gpu_hours is None
    assert planned.total.judge_calls == 164


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8e9),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.5e9),
        ("HuggingFaceTB/SmolLM2-135M", 135e6),
        ("facebook/Self-taught-evaluator-llama3.1-70B", 70e9),
        ("Qwen/Qwen3-30B-A3B", 30e9),
        ("openai/gpt-oss-20b", 20e9),
        ("mistralai/Mixtral-8x7B-v0.1", None),
        ("org/model-4bit", None),
        ("7B-org/model", None),
        ("microsoft/phi-2", None),
    ],
)
def test_a_size_is_read_from_a_name(name: str, parameters: float | None) -> None:
    found = size_of(name)
    assert found.parameters == parameters
    assert found.source == ("its name" if parameters else "unknown")
    assert found.shape is None


def test_a_size_is_counted_in_files(tmp_path: Path) -> None:
    """2 x 32 blocks x 8 heads x 128 numbers are cached for a token: 65,536, so 128 KiB in bf16."""
    folder = write_model(tmp_path / "a-1B", LLAMA_8B, 8_030_261_248)
    found = size_of(str(folder))
    assert (found.parameters, found.source) == (8_030_261_248, "its files")
    assert found.shape is not None and found.shape.cached_numbers == 65_536


def test_the_shipped_seed_model_is_counted() -> None:
    """Word table 295 x 128, 4 blocks of 4 x 128 x 128 + 3 x 128 x 384 + 2 norms of 128, and a last norm of 128."""
    expected = 295 * 128 + 4 * (4 * 128 * 128 + 3 * 128 * 384 + 2 * 128) + 128
    assert plan(load_recipe(find_recipe("pocket"))).model.parameters == expected == 890_880


def test_what_was_downloaded_before_is_found(nothing_downloaded: Path) -> None:
    """The Hub's cache: refs/main has the commit, snapshots/COMMIT the files."""
    repository = nothing_downloaded / "models--org--model"
    write_model(repository / "snapshots" / "abc", QWEN_1B, None)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    found = size_of("org/model")
    assert found.shape == Shape(28, 1536, 8960, 12, 2, 128)
    assert found.parameters is None


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"hidden_size": 1}'])
def test_a_folder_that_cannot_be_understood_is_of_unknown_size(tmp_path: Path, damage: str) -> None:
    folder = write_model(tmp_path / "model", {}, None)
    (folder / "config.json").write_text(damage, encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"\xff" * 8)
    assert size_of(str(folder)).parameters is None
    assert size_of(str(folder)).shape is None


def test_adapters_are_counted() -> None:
    """r for each input and output: q (8 + 8), k and v (8 + 4 each), o (8 + 8), gate and up (8 + 20 each), down (20 + 8)."""
    shape = Shape(layers=3, hidden=8, intermediate=20, heads=2, key_value_heads=1, head_size=4)
    assert adapter_weights(LoraRecipe(r=5), shape) == 3 * 5 * (16 + 12 + 12 + 16 + 28 + 28 + 28)
    assert adapter_weights(LoraRecipe(r=5, target_modules=("q_proj", "v_proj")), shape) == 3 * 5 * (16 + 12)
    assert adapter_weights(LoraRecipe(target_modules=("other",)), shape) is None
    assert adapter_weights(LoraRecipe(target_modules="q.*"), shape) is None
    assert adapter_weights(LoraRecipe(), None) is None


def sizes(planned: Plan, name: str) -> dict[str, float | None]:
    (need,) = (one for one in planned.memory if one.name == name)
    return {part.name: part.size for part in need.parts}


def test_memory_of_training_all_weights(tmp_path: Path) -> None:
    """1e9 weights on one device: 4 bytes each and 2 for the bf16 copy, gradients 4, Adam 8."""
    assert sizes(small(), "dpo") == {
        "weights": 6e9,
        "gradients": 4e9,
        "Adam's moments": 8e9,
        "activations": None,
    }
    assert sizes(small(), "sample")["weights"] == 2e9
    assert sizes(small(), "score") == {"weights": 4e9}


def test_memory_is_shared_by_the_devices_that_shard_it(tmp_path: Path) -> None:
    """FSDP shares everything, DeepSpeed's stage 1 the optimizer, 2 gradients too; without either each has all."""

    def planned(text: str) -> list[float | None]:
        file = tmp_path / "accelerate.yaml"
        file.write_text(text, encoding="utf-8")
        recipe = replace(RECIPE, dpo=replace(RECIPE.dpo, accelerate_config=str(file)))
        return list(sizes(small(recipe), "dpo").values())[:3]

    assert planned("{distributed_type: FSDP, num_processes: 4}") == [1e9, 1e9, 2e9]
    deepspeed = "{distributed_type: DEEPSPEED, num_processes: 4, deepspeed_config: {zero_stage: %d}}"
    assert planned(deepspeed % 1) == [6e9, 4e9, 2e9]
    assert planned(deepspeed % 2) == [6e9, 1e9, 2e9]
    assert planned(deepspeed % 3) == [1e9, 1e9, 2e9]
    assert planned("{distributed_type: MULTI_GPU, num_processes: 4}") == [6e9, 4e9, 8e9]


@pytest.mark.parametrize("text", ["[", "- a", ""])
def test_an_accelerate_configuration_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=rf"^dpo\.accelerate_config: {re.escape(str(file))} "):
        sharding(DpoRecipe(accelerate_config=str(file)))


def test_memory_of_sampling_has_keys_and_values(tmp_path: Path) -> None:
    """128 KiB a token x (150 + 500) tokens x 256 outputs at once."""
    folder = write_model(tmp_path / "model", LLAMA_8B, 8_000_000_000)
    found = sizes(small(replace(RECIPE, model=str(folder))), "sample")
    assert found == {"weights": 16e9, "keys and values": 131_072 * 650 * 256}


def test_sampling_elsewhere_takes_no_memory_here() -> None:
    recipe = replace(RECIPE, sample=replace(RECIPE.sample, engine="http://127.0.0.1:8000"))
    assert [need.name for need in small(recipe).memory] == ["score", "dpo"]


def test_gradient_checkpointing_keeps_one_input_a_block(tmp_path: Path) -> None:
    """Of 2 x 1 x 4,096 tokens: 4 bytes x 4,096 x 32 blocks, and a block of 2 bytes x (10 x 4,096 + 4 x 14,336)."""
    folder = write_model(tmp_path / "model", LLAMA_8B, 8_000_000_000)
    recipe = replace(RECIPE, model=str(folder))
    block = 2 * (10 * 4096 + 4 * 14_336)
    assert sizes(small(recipe), "dpo")["activations"] == 8192 * (4 * 4096 * 32 + block)
    without = replace(recipe, dpo=replace(RECIPE.dpo, gradient_checkpointing=False))
    assert sizes(small(without), "dpo")["activations"] == 8192 * 32 * block


def test_the_recipe_for_a_small_gpu_fits_24_gigabytes(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", QWEN_1B, 1_543_714_304)
    planned = plan(load_recipe(find_recipe("tpo-small-gpu"), [f"model={folder}"]))
    assert [need.name for need in planned.memory] == ["sample", "score", "dpo"]
    for need in planned.memory:
        assert need.complete
        assert need.known < 0.8 * 24e9, need


def test_the_papers_recipe_fits_8_gpus_of_80_gigabytes_and_not_one(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", LLAMA_8B, 8_030_261_248)
    recipe = load_recipe(find_recipe("tpo-llama3-8b"), [f"model={folder}"])
    for need in plan(recipe).memory:
        assert need.complete
        assert need.known < 0.8 * 80e9, need
    alone = plan(replace(recipe, dpo=replace(recipe.dpo, accelerate_config=None, processes=1)))
    assert alone.memory[-1].known > 80e9


def test_disk_holds_all_epochs_of_the_iteration_that_is_trained() -> None:
    """1e9 weights: 2 iterations x 2 GB; 2 epochs x 2 GB; two states of 12 GB; text 3 x 4 x 40,000 tokens."""
    assert {part.name: part.size for part in small().disk} == {
        "checkpoints": 4e9,
        "epochs": 4e9,
        "trainer's state": 24e9,
        "outputs and pairs": 480_000,
    }
    assert small().disk_bytes == 4e9 + 4e9 + 24e9 + 480_000


def test_disk_of_arms_side_by_side_of_kept_epochs_and_of_adapters() -> None:
    """Both arms: 4 checkpoints, and twice the epochs and states if they run at once; kept: 2 epochs x 2 x 2."""

    def disk(compute: ComputeRecipe, lora: LoraRecipe | None = None) -> list[float | None]:
        recipe = replace(RECIPE, mode="both", compute=compute, dpo=replace(RECIPE.dpo, lora=lora))
        return [part.size for part in small(recipe).disk][:-1]

    assert disk(ComputeRecipe()) == [8e9, 4e9, 24e9]
    assert disk(ComputeRecipe(parallel_arms=True)) == [8e9, 8e9, 48e9]
    assert disk(ComputeRecipe(keep_epochs=True)) == [8e9, 16e9, 24e9]
    assert disk(ComputeRecipe(), LoraRecipe()) == [8e9, 4e9]


def test_lengths_are_the_papers_with_the_format_of_the_recipe() -> None:
    """1,500 and 1,900 characters at 4 a token; the generic prompt has 268 characters, 13 of them the place."""
    found = lengths_of(RECIPE, format_of(RECIPE))
    assert (found.thought, found.response, found.direct_response) == (375, 475, 725)
    assert found.thought_prompt == (268 - len("{instruction}")) / 4


def test_an_llm_judge_is_taken_to_read_its_prompt() -> None:
    """The built-in one, at 4 characters a token, and judgments of 400 tokens."""
    judge = PlannedJudge.of(JudgeRecipe(kind="pairwise", model="http://127.0.0.1:8001#m"))
    text = (files("thinkserve.training.judges") / "prompts" / "pairwise.txt").read_text("utf-8")
    assert (judge.prompt, judge.judgment) == (len(text) / 4, 400)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", built_in_recipes())
def test_a_plan_fits_the_terminal_and_names_what_it_assumes(name: str, width: int) -> None:
    recipe = load_recipe(find_recipe(name))
    console = Console(width=width, file=io.StringIO())
    plan(recipe).render(console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    # Nothing is cut off.
    assert "…" not in text
    words = " ".join(text.split())
    for arm in recipe.arms:
        assert f"{arm} arm, each iteration" in words
    for stage in ("sample", "split", "score", "pairs", "dpo", "validate", "checkpoint", "evaluate"):
        assert f"\n{stage} " in text
    assert "an H100 with 989 TFLOP/s" in words
    assert "counts are upper bounds" in words


def test_a_plan_says_what_it_does_not_know() -> None:
    console = Console(width=100, file=io.StringIO())
    small(replace(RECIPE, model="org/model", name="[bold]x")).render(console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "[bold]x: 2 iterations of TPO" in text
    assert "org/model, size unknown: its name does not say it, and its files are not here" in text
    assert re.search(r"^GPU hours \(T\) +unknown$", text, re.MULTILINE)
    assert re.search(r"^sample +weights \(2 bytes a weight\) +unknown$", text, re.MULTILINE)
