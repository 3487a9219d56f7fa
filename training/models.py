"""Which model a recipe names, and in which thought format it thinks."""

from __future__ import annotations

from pathlib import Path

from thinkserve.pocket import BY_NAME
from thinkserve.serve import find_format, find_source
from thinkserve.thoughts import ThoughtFormat
from thinkserve.training.recipe import Recipe


def resolve(model: str) -> str:
    """The folder or the Hub name of a model; `pocket` and `pocket-seed` ship with the package.

    A checkpoint of that name in the working directory comes first.
    """
    if model in BY_NAME and not (Path(model) / "config.json").is_file():
        return str(BY_NAME[model])
    return model


def format_of(recipe: Recipe) -> ThoughtFormat:
    """The thought format of a run, the same for all its iterations.

    Raises:
        UsageError: there is no such model, its format is not known, or an arm cannot be run in it.
    """
    return find_format(find_source(resolve(recipe.model), ()), recipe.thought_format)
