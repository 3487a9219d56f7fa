"""What is served: a checkpoint and what can be read in its folder, or other servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from thinkserve.errors import UsageError
from thinkserve.pocket import BY_NAME as POCKET_MODELS
from thinkserve.pocket import CHECKPOINT as POCKET
from thinkserve.thoughts import ThoughtFormat, get_format


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be served: a checkpoint (a folder or a name on the Hub), or other servers."""

    checkpoint: str | None
    upstreams: tuple[str, ...]

    @property
    def folder(self) -> Path | None:
        """The checkpoint's folder, if it is one."""
        path = None if self.checkpoint is None else Path(self.checkpoint)
        return path if path is not None and path.is_dir() else None


def find_source(checkpoint: str | None, upstreams: Sequence[str]) -> Source:
    """Hold what was asked for against what there is; the pocket model where nothing was.

    `pocket` and `pocket-seed` name the models that ship with the package, unless there is a checkpoint of that name.

    Raises:
        UsageError: both were asked for, or the checkpoint is not there.
    """
    if upstreams:
        if checkpoint is not None:
            raise UsageError(f"both a checkpoint ({checkpoint}) and --upstream were given; give one of them")
        return Source(None, tuple(upstreams))
    if checkpoint is None:
        return Source(str(POCKET), ())
    path = Path(checkpoint).expanduser()
    if checkpoint in POCKET_MODELS and not (path / "config.json").is_file():
        path = POCKET_MODELS[checkpoint]
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(
                f"{checkpoint} is no checkpoint: it has no config.json; give a folder in Hugging Face layout"
            )
        return Source(str(path), ())
    named_on_hub = checkpoint.count("/") == 1 and not checkpoint.startswith((".", "/", "~"))
    if path.exists() or not named_on_hub:
        raise UsageError(
            f"no checkpoint {checkpoint!r}; give a folder, or a name on the Hub such as org/model"
        )
    return Source(checkpoint, ())


def find_format(source: Source, name: str | None) -> ThoughtFormat:
    """The thought format: as asked for, or as the checkpoint names it.

    Raises:
        ThoughtFormatError: there is none, or it is malformed.
        UsageError: none was asked for, and there is no checkpoint that could name one.
    """
    if name is not None:
        return get_format(name)
    if source.folder is None:
        what = source.checkpoint or "another server"
        raise UsageError(
            f"the thought format of {what} is not known; name it with --thought-format (tpo-generic, tpo-specific, "
            "think-tags, think-tags-in-prompt, granite, or a file)"
        )
    return get_format(source.folder)


def default_model_name(source: Source) -> str:
    """What a checkpoint is called unless the operator says otherwise: the last part of its name."""
    for name, folder in POCKET_MODELS.items():
        if source.checkpoint == str(folder):
            return name
    return (
        Path(source.checkpoint or "").expanduser().resolve().name
        if source.folder
        else source.checkpoint or ""
    )


def template_knows_tools(source: Source) -> bool:
    """Whether the chat template tells the model its tools; taken for granted where the template is not at hand."""
    if source.folder is None:
        return True
    template = source.folder / "chat_template.jinja"
    if not template.is_file():
        template = source.folder / "tokenizer_config.json"  # where older checkpoints have it
    try:
        return "tools" in template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


class _AddedToken(msgspec.Struct):
    content: str
    special: bool = False


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_AddedToken] = []


def markers_are_special(tokenizer: Path, format: ThoughtFormat) -> bool:
    """Whether a marker is a special token, which engines leave out of their text unless asked not to."""
    try:
        added = msgspec.json.decode(tokenizer.read_bytes(), type=_Tokenizer).added_tokens
    except (OSError, msgspec.DecodeError):
        return False
    special = {token.content for token in added if token.special}
    return not special.isdisjoint((*format.opening, *format.closing))
