"""What a checkpoint has beside its weights: configuration, tokenizer, chat template, decoding and thought format.

Every epoch gets them, so that validation measures exactly what would be shipped.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from thinkserve.thoughts import ThoughtFormat, get_format
from thinkserve.thoughts.format import CHECKPOINT_FILE
from thinkserve.training.dpo.start_model import StartModel
from thinkserve.training.recipe import Arm, Recipe, SampleRecipe


def write_companions(out: Path, start: StartModel, recipe: Recipe, arm: Arm) -> None:
    """Write all files of a checkpoint but weights and model card."""
    config = start.config()
    config.dtype = start.dtype()
    config.save_pretrained(out)
    start.tokenizer().save_pretrained(out)
    decoding(start, recipe.sample).save_pretrained(out)
    _write_format(out, start, recipe, arm)
    # transformers writes weights that only their owner may read. A tokenizer with several chat templates has a folder.
    for file in filter(Path.is_file, out.rglob("*")):
        file.chmod(0o644)


def decoding(start: StartModel, sample: SampleRecipe) -> Any:
    """The generation config: the start model's, made to sample.

    Without `do_sample`, transformers decodes greedily at whatever temperature a request names, and says nothing. Where
    the start model names no temperature and no top-p, those of the recipe's samples are what it was trained with.
    """
    config = start.generation_config()
    config.do_sample = True
    if not config.temperature:
        config.temperature = sample.temperature
    if not config.top_p:
        config.top_p = sample.top_p
    return config


def _write_format(out: Path, start: StartModel, recipe: Recipe, arm: Arm) -> None:
    """The recipe's format, else the start model's; a model of the direct arm does not learn a new one."""
    file = start.folder / CHECKPOINT_FILE if start.folder is not None else None
    own = file if file is not None and file.exists() else None
    asked = None if arm == "direct" and own is not None else recipe.thought_format
    named = asked or own
    if named is None:
        return
    format = get_format(named)
    if arm == "direct" and not (format.allows_direct or format.opening_in_prompt):
        # Else nobody could ask it as it was trained: without the thought prompt.
        format = replace(format, direct=True)
    elif own is not None and asked is None:
        shutil.copyfile(own, out / CHECKPOINT_FILE)
        return
    text = json.dumps(_as_dict(format), ensure_ascii=False, indent=2)
    (out / CHECKPOINT_FILE).write_text(text + "\n", encoding="utf-8")


def _as_dict(format: ThoughtFormat) -> dict[str, Any]:
    """As `thought_format.json` has it: what differs from the defaults."""
    values = {field.name: getattr(format, field.name) for field in fields(format)}
    defaults = {field.name: field.default for field in fields(format)}
    return {name: value for name, value in values.items() if value != defaults[name]}
