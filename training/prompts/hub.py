"""Datasets on the Hugging Face Hub, read at a commit that is known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from thinkserve.errors import UsageError
from thinkserve.training.recipe import PromptsRecipe

TIMEOUT = 20.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?(?::(?P<split>\S+))?")


@dataclass(frozen=True, slots=True)
class DatasetName:
    """A dataset, and which part of it."""

    name: str
    revision: str | None
    split: str

    @classmethod
    def parse(cls, text: str, recipe: PromptsRecipe, key: str) -> Self:
        """Read `NAME`, `NAME@REVISION`, `NAME:SPLIT` or `NAME@REVISION:SPLIT`.

        What the text does not say is as the recipe says it; its revision is that of its source's repository alone.

        Args:
            text: the name.
            recipe: of the prompts.
            key: of the recipe's `prompts`, for errors.

        Raises:
            UsageError: it is no name.
        """
        match = _NAME.fullmatch(text)
        if match is None:
            raise UsageError(
                f"prompts.{key} {text!r} is no file, and no dataset on the Hub, whose form is NAME@REVISION:SPLIT"
            )
        source = _NAME.fullmatch(recipe.source)
        same = source is not None and source["name"] == match["name"]
        revision = match["revision"] or (recipe.revision if same else None)
        return cls(match["name"], revision, match["split"] or recipe.split)


def read_dataset(
    dataset: DatasetName, columns: Sequence[str], commit: str | None = None
) -> tuple[dict[str, list[Any]], str]:
    """Read columns of a dataset, from the Hub or from the cache of its library.

    Args:
        dataset: which.
        columns: their names.
        commit: the one to read; None: whichever the revision is now.

    Returns:
        The columns, and the commit that was read.

    Raises:
        UsageError: it cannot be had, has no such split or column, or the cache has another commit.
    """
    import datasets
    import huggingface_hub

    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    wanted = commit or (None if offline else _commit_now(dataset))
    if wanted is None and dataset.revision is not None:
        if not _COMMIT.fullmatch(dataset.revision):
            raise UsageError(
                f"prompts.revision {dataset.revision!r} of {dataset.name}: without the network nobody knows which commit "
                "that is; give the commit, or unset HF_HUB_OFFLINE"
            )
        wanted = dataset.revision
    try:
        found = datasets.load_dataset(dataset.name, revision=wanted, split=dataset.split)
    except Exception as exc:  # it has no error of its own that all come from
        raise _not_to_be_had(dataset, exc) from exc
    read = _commit_of(found) or wanted
    if read is None or (wanted is not None and read != wanted):
        # Without the network the library takes whatever it has, and ignores the revision.
        raise UsageError(
            f"{dataset.name}: commit {wanted} is not in the cache, which has {read}; let it be fetched, or set "
            f"prompts.revision to {read}"
        )
    if missing := [name for name in columns if name not in found.column_names]:
        raise UsageError(
            f"{dataset.name}: split {dataset.split!r} has no column {missing[0]!r}, which `prompts.field` or "
            f"`prompts.category_field` names; it has {', '.join(map(repr, found.column_names))}"
        )
    return {name: list(found[name]) for name in columns}, read


def _commit_now(dataset: DatasetName) -> str:
    import huggingface_hub

    if dataset.revision is not None and _COMMIT.fullmatch(dataset.revision):
        return dataset.revision
    try:
        api = huggingface_hub.HfApi()
        found = api.dataset_info(dataset.name, revision=dataset.revision, timeout=TIMEOUT).sha
    except Exception as exc:  # its releases differ in which HTTP library's errors come through
        raise _not_to_be_had(dataset, exc) from exc
    if found is None:
        raise UsageError(f"{dataset.name}: the Hub does not say which commit it is at; set prompts.revision")
    return str(found)


def _commit_of(found: Any) -> str | None:
    """The commit of a dataset that was read: the folder of its files in the cache is named after it."""
    folders = {Path(file["filename"]).parent.name for file in found.cache_files}
    name = folders.pop() if len(folders) == 1 else ""
    return name if _COMMIT.fullmatch(name) else None


def _not_to_be_had(dataset: DatasetName, exc: Exception) -> UsageError:
    reason = " ".join(str(exc).split()) or type(exc).__name__
    at = f"@{dataset.revision}" if dataset.revision else ""
    return UsageError(
        f"{dataset.name}{at}: split {dataset.split!r} cannot be had from the Hub ({reason[:200]}); check its name, "
        "`prompts.revision`, `prompts.split` and the network, or give a file as `prompts.source`"
    )
