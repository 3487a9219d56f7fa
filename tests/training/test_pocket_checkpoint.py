"""The checkpoint that ships as package data: it is there, it loads, and it does what its card says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from thinkserve.pocket import BY_NAME, CHECKPOINT, SEED_CHECKPOINT
from thinkserve.source import default_model_name, find_source
from thinkserve.thoughts import get_format
from thinkserve.training.models import resolve
from thinkserve.training.pocket.evaluation import Mode, evaluate, generate
from thinkserve.training.pocket.tokenizer import THOUGHT_PROMPT, build_tokenizer
from thinkserve.training.pocket.world import draw_distinct, examples

# Two and a half standard errors of a share measured on 104 instructions.
SLACK = 0.12


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def card_accuracy(checkpoint: Path, column: str) -> float:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (checkpoint / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    header = next(row for row in rows if row[0] == "category")
    return float(next(row for row in rows if row[0] == "all")[header.index(column)])


def test_checkpoints_are_small_enough_to_ship() -> None:
    for checkpoint in BY_NAME.values():
        assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 8e6


@pytest.mark.parametrize(("name", "folder"), BY_NAME.items())
def test_pocket_models_are_served_by_their_names_unless_a_checkpoint_is_called_so(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = find_source(name, ())
    assert (source.folder, default_model_name(source), resolve(name)) == (folder, name, str(folder))
    (tmp_path / name).mkdir()  # a run's folder, for example
    assert find_source(name, ()).folder == folder
    (tmp_path / name / "config.json").write_text("{}")
    assert find_source(name, ()).checkpoint == resolve(name) == name


def test_finding_the_checkpoint_imports_nothing_heavy() -> None:
    code = "import sys, thinkserve.pocket; print(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_shipped_tokenizer_is_the_one_the_code_builds(tokenizer: PreTrainedTokenizerFast) -> None:
    built = build_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab()
    assert tokenizer.chat_template == built.chat_template


def test_shipped_checkpoint_names_the_published_thought_prompt() -> None:
    format = get_format(CHECKPOINT)
    assert format.thought_prompt("X") == THOUGHT_PROMPT + "X"
    assert format.allows_direct


@pytest.mark.parametrize("mode", ["thought", "direct"])
@pytest.mark.parametrize("checkpoint", BY_NAME.values(), ids=BY_NAME)
def test_shipped_checkpoints_are_as_good_as_their_cards_say(
    tokenizer: PreTrainedTokenizerFast, checkpoint: Path, mode: Mode
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    report = evaluate(model, tokenizer, draw_distinct(99, 104, held_out=True), mode)
    assert report.accuracy["all"] >= card_accuracy(checkpoint, f"{mode}, greedy") - SLACK
    assert report.broken <= 0.05


def test_cards_show_that_untrained_thoughts_do_not_help_and_trained_ones_do() -> None:
    for decoding in ("greedy", "T=1"):
        of_seed, of_model = (
            {mode: card_accuracy(checkpoint, f"{mode}, {decoding}") for mode in ("thought", "direct")}
            for checkpoint in (SEED_CHECKPOINT, CHECKPOINT)
        )
        assert of_seed["thought"] < of_seed["direct"]
        # Twice the difference at which the two could still be the same, with 800 instructions each.
        assert of_model["thought"] > of_model["direct"] + 0.1


def test_a_long_prompt_is_answered_all_the_same(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    (output,) = generate(model, tokenizer, ["Repeat " + "ab" * 480], "direct")
    assert isinstance(output.response, str)


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_and_transformers_decode_the_same(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    instructions = examples(4)
    prompts = [THOUGHT_PROMPT + text for text in instructions] + instructions
    # vLLM registers its own processes, signals and warnings filters: it gets an interpreter of its own.
    code = (
        "import json, sys\n"
        "from vllm import LLM, SamplingParams\n"
        "if __name__ == '__main__':\n"
        "    llm = LLM(sys.argv[1], enforce_eager=True, dtype='float32', max_model_len=1024, seed=0)\n"
        "    chats = [[{'role': 'user', 'content': text}] for text in json.load(sys.stdin)]\n"
        "    done = llm.chat(chats, SamplingParams(temperature=0, max_tokens=72), use_tqdm=False)\n"
        "    print('RESULT ' + json.dumps([one.outputs[0].text for one in done]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(CHECKPOINT)],
        input=json.dumps(prompts),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    from_vllm = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT ")
    )
    texts = [output.response for output in generate(model, tokenizer, prompts, "direct")]
    assert from_vllm == texts
