"""Recipes as YAML files: read with clear errors, written with all their keys, compared."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import yaml

from thinkserve.errors import UsageError
from thinkserve.eval.records import read_bytes
from thinkserve.thoughts.format import BUILT_IN as BUILT_IN_FORMATS
from thinkserve.training.recipe import Recipe
from thinkserve.training.recipe_checks import check, check_files, value_of
from thinkserve.training.recipe_values import Origin, convert, hint_of, show

BUILT_IN = Path(str(files("thinkserve.training"))) / "recipes"
# They change how fast a run is, what its report shows or what it is called, but what comes out of it only by the order of
# float sums. So a run that ended for want of memory goes on with a smaller `dpo.device_batch` (which with `dpo.nll_weight`
# shifts a little how much each token counts: `recipe.py`).
WITHOUT_EFFECT = (
    "name",
    "notes",
    "compute",
    "sample.concurrency",
    "judge.concurrency",
    "judge.devices",
    "judge.batch_tokens",
    "dpo.device_batch",
    "dpo.gradient_checkpointing",
    "dpo.processes",
    "dpo.accelerate_config",
    "evaluate.examples",
    "evaluate.judge.concurrency",
    "evaluate.judge.devices",
    "evaluate.judge.batch_tokens",
)
# What may be a path, and the file that is there if it is one ("": itself). A value that is no path stays as it is: it is a
# name on the Hub or a built-in one, or an error of whoever opens it.
PATHS: Mapping[str, tuple[str, ...]] = {
    "model": ("config.json",),
    "chat_template": ("",),
    "thought_format": ("", "thought_format.json"),
    "prompts.source": ("",),
    "prompts.evaluation_source": ("",),
    "judge.model": ("config.json",),
    "judge.template": ("",),
    "dpo.accelerate_config": ("",),
    "evaluate.judge.model": ("config.json",),
    "evaluate.judge.template": ("",),
}
# Names that are never a path, even where there is a file that is called so.
RESERVED: Mapping[str, Collection[str]] = {
    "thought_format": BUILT_IN_FORMATS,
    "prompts.source": ("pocket",),
    "prompts.evaluation_source": ("pocket",),
}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Safe, without dates (they are text), and strict: a key that comes twice is an error."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, Any]]]] = {
        first: [(tag, expression) for tag, expression in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Hashable] = set()
        for name, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if name.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(name, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused by the line below
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {show(key)} comes twice", name.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Relative paths in it are looked for beside the file, then in the working directory (those of `overrides` the other
    way round), and become absolute.

    Args:
        path: of the YAML file.
        overrides: `key=value` with dotted keys and values in YAML, as in `dpo.beta=0.2`, `dpo.lora=null`; of two with
            the same key the later one counts. A mapping replaces the whole section.

    Raises:
        UsageError: the file cannot be read; a key is unknown or comes twice; a value is of the wrong type, impossible or
            does not fit another one. One line with file, key, value and what is expected.
    """
    data = _parse(read_bytes(path), str(path))
    if data is None:
        raise UsageError(f"{path}: is empty; give a recipe, at least `name: ...`")
    if not isinstance(data, dict):
        raise UsageError(f"{path}: is no recipe: it has {show(data)} where keys and values are expected")
    origin = Origin(path)
    for override in overrides:
        key, sign, text = override.partition("=")
        key = key.strip()
        if not sign or not key:
            raise UsageError(f"--set {override!r}: give key=value, as in --set dpo.beta=0.2")
        origin = Origin(path, origin.overridden | {key})
        hint_of(key, Recipe, origin)
        _place(data, key, _parse(text.encode(), f"--set {override!r}"), origin)
    recipe: Recipe = convert(data, Recipe, "", origin)
    check(recipe, origin)
    recipe = _with_absolute_paths(recipe, origin)
    check_files(recipe, origin)
    return recipe


def kept_recipe(path: Path) -> Recipe:
    """The recipe in a run's folder, as `dump_recipe` wrote it; the files that it names need not be there any more.

    Raises:
        UsageError: the file cannot be read, or is no recipe.
    """
    recipe: Recipe = convert(_parse(read_bytes(path), str(path)), Recipe, "", Origin(path))
    return recipe


def _parse(text: bytes, place: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise UsageError(f"{place}{line}: {exc.problem or exc.context or 'is no YAML'}") from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        reason = " ".join(str(exc).split())
        raise UsageError(f"{place}: is no YAML: {reason}") from exc


def _place(data: dict[str, Any], key: str, value: Any, origin: Origin) -> None:
    *sections, name = key.split(".")
    for depth, section in enumerate(sections):
        # A section that is null or missing comes into being by what is set in it.
        if data.get(section) is None:
            data[section] = {}
        data = data[section]
        if not isinstance(data, dict):
            where = ".".join(sections[: depth + 1])
            raise Origin(origin.path).wrong(where, data, "give keys and values")
    data[name] = value


def _with_absolute_paths(recipe: Recipe, origin: Origin) -> Recipe:
    for key in PATHS:
        value = value_of(recipe, key)
        if value is None or value in RESERVED.get(key, ()):
            continue
        folders = [origin.path.resolve().parent, Path.cwd()]
        for folder in reversed(folders) if origin.is_overridden(key) else folders:
            found = folder / Path(value).expanduser()
            if any((found / inside).is_file() for inside in PATHS[key]):
                recipe = _replaced(recipe, key, str(found.resolve()))
                break
    return recipe


def _replaced(part: Any, key: str, value: Any) -> Any:
    name, _, rest = key.partition(".")
    return replace(part, **{name: _replaced(getattr(part, name), rest, value) if rest else value})


def built_in_recipes() -> tuple[str, ...]:
    """The names of the recipes that ship with the package."""
    return tuple(sorted(path.stem for path in BUILT_IN.glob("*.yaml")))


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe: a built-in name first, then a path.

    Raises:
        UsageError: it is neither; the message has the built-in names.
    """
    names = built_in_recipes()
    if name_or_path in names:
        return BUILT_IN / f"{name_or_path}.yaml"
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        inside = path / "recipe.yaml"
        hint = f"give {inside}" if inside.is_file() else "give a YAML file"
        raise UsageError(f"{name_or_path} is a folder and no recipe; {hint}")
    near = difflib.get_close_matches(Path(name_or_path).stem, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"no recipe {name_or_path!r}; {hint}give a YAML file, or one of the built-in {', '.join(names)}"
    )


def dump_recipe(recipe: Recipe) -> str:
    """A recipe as YAML with all its keys, so that a run's folder needs nothing else; `load_recipe` gives it back."""
    text: str = yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True, width=100)
    return text


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def differing_keys(a: Recipe, b: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ such that their results do; none: a run of `a` goes on as `b`.

    Left out is what changes no result (`WITHOUT_EFFECT`), and `iterations` where `b` has more: what `a` has made is the
    beginning of what `b` will make.
    """
    found = [
        key
        for key in _differing(a, b, "")
        if not any(f"{key}.".startswith(f"{one}.") for one in WITHOUT_EFFECT)
    ]
    if b.iterations > a.iterations:
        found.remove("iterations")
    return found


def _differing(a: Any, b: Any, section: str) -> Iterator[str]:
    for field in fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if is_dataclass(one) and is_dataclass(other):
            yield from _differing(one, other, f"{section}{field.name}.")
        elif one != other:
            yield f"{section}{field.name}"
