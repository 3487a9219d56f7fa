"""The model that an iteration starts from, without its weights: tokenizer, configuration, decoding, and who it is.

It is the reference of DPO as well: M_t is trained away from M_(t-1) and held to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from thinkserve.errors import UsageError
from thinkserve.training.models import resolve
from thinkserve.training.recipe import Recipe
from thinkserve.training.stage import StageContext

WEIGHTS = "*.safetensors"


class StartModel(msgspec.Struct, frozen=True):
    """A checkpoint folder or a model on the Hub."""

    path: str
    revision: str | None
    """Of a model on the Hub."""
    chat_template: str | None
    """The file to use instead of the tokenizer's own, if any."""

    @classmethod
    def of(cls, context: StageContext) -> StartModel:
        """That of a stage's iteration."""
        path = resolve(context.start_model)
        return cls(path, _revision(context.recipe, path), context.recipe.chat_template)

    @property
    def folder(self) -> Path | None:
        """None: it is on the Hub."""
        return Path(self.path) if Path(self.path).is_dir() else None

    def tokenizer(self) -> Any:
        """Its tokenizer, with the chat template that is to be used.

        Raises:
            UsageError: it cannot be loaded, or there is no chat template.
        """
        with self._loading("tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(self.path, revision=self.revision)
        # How it was loaded, which transformers would write down as if it belonged to the tokenizer.
        for key in ("is_local", "local_files_only"):
            tokenizer.init_kwargs.pop(key, None)
        if self.chat_template is not None:
            tokenizer.chat_template = _read(Path(self.chat_template))
        if not tokenizer.chat_template:
            raise UsageError(
                f"{self.path} has no chat template, so nobody knows how its prompts look; set `chat_template: FILE` in the "
                "recipe, a Jinja file"
            )
        return tokenizer

    def config(self) -> Any:
        """Its configuration."""
        with self._loading("configuration"):
            return AutoConfig.from_pretrained(self.path, revision=self.revision)

    def generation_config(self) -> Any:
        """How it is decoded unless a request says otherwise; made from the configuration where there is no such file."""
        try:
            return GenerationConfig.from_pretrained(self.path, revision=self.revision)
        except OSError:
            return GenerationConfig.from_model_config(self.config())

    def dtype(self) -> torch.dtype:
        """The precision of its files."""
        named = getattr(self.config(), "dtype", None)
        if isinstance(named, torch.dtype):
            return named
        for file in sorted(self.folder.glob(WEIGHTS)) if self.folder else ():
            with safe_open(file, "pt") as tensors:
                return next((tensors.get_tensor(name).dtype for name in tensors.keys()), torch.float32)  # noqa: SIM118 - no dict
        return torch.float32

    def fingerprint(self) -> str:
        """Changes when the weights do; of a model on the Hub its name and revision."""
        if self.folder is None:
            return f"{self.path}@{self.revision}"
        digest = hashlib.sha256()
        for file in sorted(self.folder.glob(WEIGHTS)):
            with open(file, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()

    @contextmanager
    def _loading(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as exc:
            reason = str(exc).strip().partition("\n")[0]
            raise UsageError(f"the {what} of {self.path} cannot be loaded: {reason}") from exc


def _revision(recipe: Recipe, path: str) -> str | None:
    return recipe.revision if path == recipe.model and not Path(path).is_dir() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"chat_template: {path} cannot be read: {exc}") from exc
