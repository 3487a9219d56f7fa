"""The stage that makes the chosen epoch the iteration's model: a complete checkpoint with its card.

`checkpoint/` is there as a whole or not at all. Its weights are those of `dpo/epoch-E`, not a copy of them where the file
system has hard links; the other epochs go, unless `compute.keep_epochs` says otherwise.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.training.dpo.card import write_card
from thinkserve.training.dpo.disk import explain_full_disk
from thinkserve.training.folder import IterationFolder
from thinkserve.training.stage import StageContext


class _Validation(msgspec.Struct, frozen=True):
    chosen: int


def run(context: StageContext) -> Mapping[str, Any]:
    """Write the iteration's checkpoint.

    Raises:
        UsageError: there is no readable `validation.json`.
        ThinkserveError: the chosen epoch is gone, or the disk is full.
    """
    folder = context.folder
    epoch = _chosen(folder)
    source, out = folder.epoch(epoch), folder.checkpoint
    if not source.is_dir():
        raise ThinkserveError(
            f"{folder.validation} has chosen epoch {epoch}, and {source} is not there; delete {folder.marker('dpo')} and "
            "run again to train it anew"
        )
    draft, old = out.with_name(f".{out.name}"), out.with_name(f".{out.name}.old")
    with explain_full_disk(folder.path, "the checkpoint"):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        for path in source.rglob("*"):
            target = draft / path.relative_to(source)
            if path.is_dir():  # of a tokenizer with several chat templates
                target.mkdir()
            else:
                _link(path, target)
        write_card(draft / "README.md", context, epoch)
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    draft.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    removed = [] if context.recipe.compute.keep_epochs else _remove_other_epochs(folder, epoch)
    files = filter(Path.is_file, out.rglob("*"))
    return {
        "epoch": epoch,
        "gigabytes": sum(file.stat().st_size for file in files) / 1e9,
        "removed_epochs": len(removed),
    }


def _chosen(folder: IterationFolder) -> int:
    try:
        return msgspec.json.decode(folder.validation.read_bytes(), type=_Validation).chosen
    except (OSError, msgspec.DecodeError) as exc:
        raise UsageError(
            f"{folder.validation} does not say which epoch was chosen ({exc}); delete {folder.marker('validate')} and run "
            "again"
        ) from exc


def _link(file: Path, out: Path) -> None:
    try:
        os.link(file, out)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, out)
    out.chmod(0o644)


def _remove_other_epochs(folder: IterationFolder, kept: int) -> list[Path]:
    # Drafts of epochs too, which a killed run may have left.
    others = [path for path in folder.dpo.glob("*epoch-*") if path.is_dir() and path != folder.epoch(kept)]
    for path in others:
        shutil.rmtree(path)
    return others
