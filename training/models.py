"""Which model a recipe names, and in which thought format it thinks."""

from __future__ import annotations

from pathlib import Path

from thinkserve.errors import UsageError
from thinkserve.pocket import BY_NAME
from thinkserve.source import find_format, find_source
from thinkserve.thoughts import BUILT_IN, ThoughtFormat
from thinkserve.thoughts.format import CHECKPOINT_FILE
from thinkserve.training.recipe import Recipe


def resolve(model: str) -> str:
    """The folder or the Hub name of a model; `pocket` and `pocket-seed` ship with the package.

    A checkpoint of that name in the working directory comes first.
    """
    if model in BY_NAME and not (Path(model) / "config.json").is_file():
        return str(BY_NAME[model])
    return model


def revision_of(recipe: Recipe, model: str) -> str | None:
    """Of the start model on the Hub; the other models are folders of the run, and have none."""
    return recipe.revision if model == recipe.model else None


def format_of(recipe: Recipe) -> ThoughtFormat:
    """The thought format of a run, the same for all its iterations.

    Raises:
        UsageError: there is no such model, or its format is not known.
    """
    source = find_source(resolve(recipe.model), ())
    if recipe.thought_format is None and not (source.folder and (source.folder / CHECKPOINT_FILE).is_file()):
        raise UsageError(
            f"thought_format is null, and model {recipe.model} names none ({CHECKPOINT_FILE}); set it to one of "
            f"{', '.join(BUILT_IN)}, or to a file"
        )
    return find_format(source, recipe.thought_format)
