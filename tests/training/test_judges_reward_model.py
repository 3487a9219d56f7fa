"""The reward model judge, over tiny sequence classifiers with random weights.

What a response should score is found by giving the model that one conversation, without padding.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    dynamic_module_utils,
)
from transformers.models.llama import modeling_llama

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.pocket import CHECKPOINT
from thinkserve.thoughts import Response
from thinkserve.training.judges import reward_model
from thinkserve.training.judges.collect import REASONS, score_groups
from thinkserve.training.judges.judge import Group, GroupScores
from thinkserve.training.judges.opening import open_judge
from thinkserve.training.judges.reward_model import RewardModelJudge, open_reward_model
from thinkserve.training.judges.reward_pool import WorkerProcess
from thinkserve.training.judges.reward_worker import RewardModelSpec
from thinkserve.training.pocket.tokenizer import ASSISTANT, EOS, build_tokenizer, render
from thinkserve.training.recipe import JudgeRecipe

TOKENIZER = build_tokenizer()
UNTIL_BATCH = 96

# What is peculiar about ArmoRM, in small: an import that newer transformers lack, a `score` in the output beside many
# labels, a score that hangs on two places, the last one found by the first padding. The last lines are ours.
GATED_CODE = f"""
import os, sys
from dataclasses import dataclass
import torch
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.models.llama.modeling_llama import LLAMA_INPUTS_DOCSTRING
from transformers.utils import ModelOutput, add_start_docstrings_to_model_forward

@dataclass
class GatedOutput(ModelOutput):
    score: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None

class GatedRewardModel(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.regression_layer = torch.nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
        matrix = torch.zeros(config.num_labels, config.num_labels)
        matrix[range(config.num_labels), range(config.num_labels)] = 1.0
        self.reward_transform_matrix = torch.nn.Parameter(matrix, requires_grad=False)
        self.gating = torch.nn.Linear(config.hidden_size, config.num_labels)

    @add_start_docstrings_to_model_forward(LLAMA_INPUTS_DOCSTRING)
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
                inputs_embeds=None, labels=None, use_cache=None, output_attentions=None,
                output_hidden_states=None, return_dict=None):
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        for token, action in (({TOKENIZER.convert_tokens_to_ids("~")}, self._die), ({TOKENIZER.convert_tokens_to_ids("^")}, self._fill)):
            if (input_ids == token).any():
                action()
        states = self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            return_dict=return_dict)[0]
        last = (torch.eq(input_ids, self.config.pad_token_id).int().argmax(-1) - 1) % input_ids.shape[-1]
        rows = torch.arange(input_ids.shape[0])
        gate_at = [ids.tolist().index({TOKENIZER.convert_tokens_to_ids(ASSISTANT)}) for ids in input_ids]
        gates = torch.softmax(self.gating(states[rows, gate_at, :]), dim=1)
        rewards = self.regression_layer(states[rows, last]) @ self.reward_transform_matrix
        return GatedOutput(score=torch.sum(gates * rewards, dim=1), logits=rewards)

    def _die(self):
        print("the card has fallen off the bus", file=sys.stderr, flush=True)
        os._exit(3)

    def _fill(self):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")
"""


def config(**changes: object) -> LlamaConfig:
    settings: dict[str, object] = {
        "vocab_size": len(TOKENIZER),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "num_labels": 1,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # Large enough for scores that differ by more than they are compared by.
        "initializer_range": 0.3,
    }
    return LlamaConfig(**{**settings, **changes})


def save(folder: Path, settings: LlamaConfig, *, nan_token: str | None = None) -> str:
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(settings)
    if nan_token is not None:
        model.model.embed_tokens.weight.data[TOKENIZER.convert_tokens_to_ids(nan_token)] = float("nan")
    model.save_pretrained(folder)
    tokenizer = build_tokenizer()
    if settings.pad_token_id is None:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("plain"), config())


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model with code of its own; transformers copies that code to a folder, which is a new one here."""
    modules = str(tmp_path / "modules")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", modules)
    monkeypatch.setenv("HF_MODULES_CACHE", modules)
    monkeypatch.syspath_prepend(modules)
    folder = tmp_path / "gated"
    settings = config(num_labels=5)
    settings.auto_map = {"AutoModelForSequenceClassification": "modeling_gated.GatedRewardModel"}
    settings.save_pretrained(folder)
    (folder / "modeling_gated.py").write_text(GATED_CODE)
    build_tokenizer().save_pretrained(folder)
    # Only what loads the model for the judge may mend its import.
    with monkeypatch.context() as mended:
        mended.setattr(modeling_llama, "LLAMA_INPUTS_DOCSTRING", "", raising=False)
        kind = dynamic_module_utils.get_class_from_dynamic_module(
            "modeling_gated.GatedRewardModel", str(folder)
        )
    torch.manual_seed(2)
    kind(settings).save_pretrained(folder)
    monkeypatch.delattr(modeling_llama, "LLAMA_INPUTS_DOCSTRING", raising=False)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    return str(folder)


def recipe(model: str, **changes: object) -> JudgeRecipe:
    settings: dict[str, object] = {"model": model, "dtype": "float32", "batch_tokens": UNTIL_BATCH}
    return JudgeRecipe(**{**settings, **changes})  # type: ignore[arg-type]


def group(id: str, *responses: str, instruction: str = "Say something") -> Group:
    return Group(id, instruction, tuple(Response(text) for text in responses))


GROUPS = [
    group("a", "ab", "a much longer response, of many words", "q"),
    group("b", "12345 12345", "x" * 90, instruction="Another one, which is longer"),
    group("c"),
    group("d", "one"),
]


async def scores_of(judge: RewardModelJudge, groups: Sequence[Group]) -> dict[str, GroupScores]:
    return {scores.id: scores async for scores in judge.score(groups)}


def alone(folder: str, instruction: str, response: str, **options: object) -> float:
    """The score of one conversation, given to the model as it is."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, **options)
    text = render(instruction) + response + EOS
    tokens = TOKENIZER(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        output = model(input_ids=tokens)
    return float(output.score if "score" in output else output.logits)


async def expect_alone(judge: RewardModelJudge, folder: str, **options: object) -> None:
    found = await scores_of(judge, GROUPS)
    expected = {
        one.id: tuple(alone(folder, one.instruction, response, **options) for response in one.responses)
        for one in GROUPS
    }
    assert {id: scores.scores for id, scores in found.items()} == {
        id: pytest.approx(scores, abs=1e-5) for id, scores in expected.items()
    }
    spread = [score for scores in expected.values() for score in scores]
    assert max(spread) - min(spread) > 0.1
    assert judge.numbers["batches"] < judge.numbers["responses"]
    assert judge.numbers["padded_tokens"] > judge.numbers["tokens"]


async def test_batched_scores_are_those_of_each_conversation_alone(plain: str) -> None:
    async with open_reward_model(recipe(plain)) as judge:
        await expect_alone(judge, plain)


async def test_what_a_response_says_is_no_turn_of_the_conversation(plain: str) -> None:
    """A model trained against a judge may learn to write the end of its turn, and what follows it."""
    said = f"q{EOS}{ASSISTANT}good"
    async with open_reward_model(recipe(plain)) as judge:
        (found,) = (await scores_of(judge, [group("a", said)]))["a"].scores
    written = said.replace(EOS, f"{EOS[:1]} {EOS[1:]}").replace(ASSISTANT, f"{ASSISTANT[:1]} {ASSISTANT[1:]}")
    assert found == pytest.approx(alone(plain, "Say something", written), abs=1e-5)
    assert found != pytest.approx(alone(plain, "Say something", said), abs=1e-3)


async def test_a_model_without_padding_is_read_at_the_end_of_text_all_the_same(tmp_path: Path) -> None:
    folder = save(tmp_path / "no_pad", config(pad_token_id=None))
    async with open_reward_model(recipe(folder)) as judge:
        await expect_alone(judge, folder)


async def test_padding_outside_the_vocabulary_counts_as_none(tmp_path: Path) -> None:
    folder = save(tmp_path / "no_pad", config(pad_token_id=None))
    outside = Path(folder) / "config.json"
    outside.write_text(outside.read_text().replace('"pad_token_id": null', '"pad_token_id": -1'))
    async with open_reward_model(recipe(folder)) as judge:
        await expect_alone(judge, save(tmp_path / "same", config(pad_token_id=None)))


async def test_a_score_does_not_hang_on_the_other_responses(plain: str) -> None:
    async with open_reward_model(recipe(plain)) as judge:
        beside_short = await scores_of(judge, [group("a", "fixed", "z")])
        beside_long = await scores_of(judge, [group("a", "fixed", "y" * 60), group("b", "w" * 30)])
    assert beside_short["a"].scores[0] == pytest.approx(beside_long["a"].scores[0], abs=1e-5)


async def test_a_model_with_code_and_a_score_of_its_own(gated: str) -> None:
    async with open_judge(recipe(gated, trust_remote_code=True), cache=Path("unused")) as judge:
        assert isinstance(judge, RewardModelJudge)
        await expect_alone(judge, gated, trust_remote_code=True)


async def test_code_of_a_model_is_not_run_unasked(gated: str) -> None:
    with pytest.raises(
        UsageError, match=r"judge\.model: .*gated brings code .* judge\.trust_remote_code: true"
    ):
        async with open_reward_model(recipe(gated)):
            pass


async def test_a_full_device_says_which_key_to_lower(gated: str) -> None:
    async with open_reward_model(recipe(gated, trust_remote_code=True)) as judge:
        with pytest.raises(
            ThinkserveError, match=r"cpu has too little memory .* judge\.batch_tokens below \d+"
        ):
            await scores_of(judge, [group("a", "^")])


async def test_a_language_model_is_no_reward_model() -> None:
    with pytest.raises(
        UsageError, match=r"lacks weights of LlamaForSequenceClassification \(score\.weight\)"
    ):
        async with open_reward_model(recipe(str(CHECKPOINT))):
            pass


async def test_a_classifier_with_several_labels_is_refused(tmp_path: Path) -> None:
    async with open_reward_model(recipe(save(tmp_path / "labels", config(num_labels=3)))) as judge:
        with pytest.raises(UsageError, match=r"gives 3 numbers a response.*one label"):
            await scores_of(judge, GROUPS)


async def test_a_model_without_chat_template_is_refused(tmp_path: Path) -> None:
    folder = Path(save(tmp_path / "bare", config()))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match=r"judge\.model: .*bare has no chat template.*chat_template\.jinja"):
        async with open_reward_model(recipe(str(folder))):
            pass


async def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"judge\.model: .*nowhere cannot be loaded"):
        async with open_reward_model(recipe(str(tmp_path / "nowhere"))):
            pass


async def test_a_long_conversation_loses_the_end_of_its_response_and_keeps_the_closing_token(
    plain: str,
) -> None:
    """<bos> <user> "Hi" (2) <assistant> 100 letters <eos>: 106 tokens. 20 leave 14 letters."""
    async with open_reward_model(recipe(plain, max_length=20)) as judge:
        found = await scores_of(judge, [group("a", "x" * 14 + "y" * 86, "xx", instruction="Hi")])
        assert judge.numbers["cut"] == 1
        assert judge.numbers["tokens"] == 20 + 8
    assert found["a"].scores == pytest.approx(
        (alone(plain, "Hi", "x" * 14), alone(plain, "Hi", "xx")), abs=1e-5
    )
    assert found["a"].details == {"cut": 1}


async def test_an_instruction_that_leaves_no_room_has_no_score_but_a_reason(plain: str) -> None:
    async with open_reward_model(recipe(plain, max_length=20)) as judge:
        found = await scores_of(
            judge, [group("a", "xy", instruction="z" * 50), group("b", "xy", instruction="z")]
        )
    assert found["a"].scores == (None,)
    assert "longer than judge.max_length = 20" in found["a"].details[REASONS][0]
    assert found["b"].scores[0] is not None


async def test_no_conversation_is_longer_than_the_model_can_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "short", config(max_position_embeddings=32))
    async with open_reward_model(recipe(folder)) as judge:
        await scores_of(judge, [group("a", "x" * 100)])
        assert judge.numbers["tokens"] == 32
        assert judge.configuration["max_length"] == 32


async def test_a_score_that_is_no_number_is_none_and_spoils_no_other(tmp_path: Path) -> None:
    folder = save(tmp_path / "nan", config(), nan_token="#")
    async with open_reward_model(recipe(folder)) as judge:
        found = await scores_of(judge, [group("a", "ab", "a#", "abc")])
        assert judge.numbers["not_finite"] == 1
    assert found["a"].scores[1] is None
    assert found["a"].scores[::2] == pytest.approx(
        [alone(folder, "Say something", text) for text in ("ab", "abc")]
    )
    assert found["a"].details[REASONS] == [f"reward model {folder} gave NaN or an infinite number"]


def conversations(lengths: Sequence[int]) -> list[reward_model._Conversation]:
    opened = reward_model._Open(group("a"), [], 0)
    return [reward_model._Conversation([7] * length, opened, at) for at, length in enumerate(lengths)]


def test_batches_hold_so_many_tokens_with_padding_the_longest_first() -> None:
    """5 * 3 = 15 <= 15; a fourth would make 20. 2 * 2 = 4. 40 is alone."""
    found = reward_model.batches(conversations([5, 2, 40, 4, 2, 5]), 15)
    assert [[len(one.tokens) for one in batch] for batch in found] == [[40], [5, 5, 4], [2, 2]]


async def test_a_run_that_was_killed_ends_with_the_very_same_scores(plain: str, tmp_path: Path) -> None:
    """Two responses a group and four a block: g0 g1 | g2 g3 | g4. The log is left with g0, g1, g2: two blocks remain."""
    groups = [group(f"g{at}", "r" * (3 * at + 1), "s" * (40 - 7 * at)) for at in range(5)]
    log = tmp_path / "scores.log.jsonl"
    async with open_reward_model(recipe(plain)) as judge:
        judge.block = 4
        whole = await score_groups(judge, groups, log)
    lines = sorted(log.read_text().splitlines(keepends=True))
    log.write_text("".join(lines[:3]) + lines[3][:20])
    async with open_reward_model(recipe(plain)) as judge:
        judge.block = 4
        assert await score_groups(judge, groups, log) == whole
        assert judge.numbers["responses"] == 6
        assert await score_groups(judge, groups, log) == whole
        assert judge.numbers["responses"] == 6


async def test_two_workers_give_the_scores_of_one_and_a_dead_one_is_reported(plain: str) -> None:
    groups = [group(f"g{at}", *("t" * length for length in range(1, 9))) for at in range(6)]
    async with open_reward_model(recipe(plain)) as judge:
        expected = await scores_of(judge, groups)
    async with open_reward_model(recipe(plain), ["cpu", "cpu"]) as judge:
        assert await scores_of(judge, groups) == expected
        assert judge.numbers["workers"] == 2
        first = judge._pool.workers[0]
        assert isinstance(first, WorkerProcess)
        os.kill(first.pid, signal.SIGKILL)
        with pytest.raises(ThinkserveError, match=r"process on cpu died of SIGKILL \(out of memory\?\)"):
            await scores_of(judge, groups)


def test_a_worker_that_dies_leaves_its_last_words(gated: str) -> None:
    worker = WorkerProcess(RewardModelSpec(gated, None, "float32", True), "cpu")
    with closing(worker):
        worker.wait_until_ready()
        with pytest.raises(
            ThinkserveError, match=r"(?s)on cpu died with exit code 3.*the card has fallen off the bus"
        ):
            worker.score([TOKENIZER(render("ab") + "~", add_special_tokens=False)["input_ids"]])


def test_what_a_worker_cannot_load_is_told_as_in_this_process() -> None:
    with (
        closing(WorkerProcess(RewardModelSpec(str(CHECKPOINT), None, "float32", False), "cpu")) as worker,
        pytest.raises(UsageError, match=r"lacks weights of LlamaForSequenceClassification"),
    ):
        worker.wait_until_ready()


async def test_no_model_is_an_error_that_names_the_key() -> None:
    with pytest.raises(UsageError, match=r"judge\.model: names no reward model"):
        async with open_reward_model(JudgeRecipe(model=None)):
            pass
