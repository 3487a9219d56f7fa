"""From what YAML says to the values that a recipe's types ask for; the types themselves are the list of keys.

YAML 1.1, which PyYAML reads, takes `5e-7` for text and `no` for false: the first is read as the number it is, the second
is refused where text is wanted, since what was meant cannot be known.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from thinkserve.errors import UsageError
from thinkserve.training.recipe import Recipe

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_STEP = re.compile(r"[.\[]")
_LONGEST_SHOWN = 80
_DEEPEST = 20
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a recipe's values come from, for messages."""

    path: Path
    overridden: frozenset[str] = frozenset()
    """Dotted keys that came from `--set`."""

    def is_overridden(self, key: str) -> bool:
        """Whether the value of a key, or of what it is part of, came from `--set`."""
        return any(f"{key}.".startswith(f"{one}.") for one in self.overridden)

    def error(self, key: str, problem: str) -> UsageError:
        """An error that names the place, then the key and the problem."""
        return UsageError(f"{'--set' if self.is_overridden(key) else self.path}: {problem}")

    def wrong(self, key: str, value: Any, expected: str) -> UsageError:
        """An error about a value."""
        return self.error(key, f"{key} is {show(value)}; {expected}")

    def unknown(self, key: str, kind: type) -> UsageError:
        """An error about a key that is none, with the nearest one.

        Args:
            key: dotted.
            kind: the dataclass that has no such field.
        """
        section, _, name = key.rpartition(".")
        names = {field.name: f"{section}.{field.name}" if section else field.name for field in fields(kind)}
        near = [names[one] for one in difflib.get_close_matches(name, names, n=1)]
        near = near or [one for one in leaves(Recipe) if one.rpartition(".")[2] == name]
        hint = (
            f"did you mean {near[0]}?" if near else f"{section or 'a recipe'} has the keys {', '.join(names)}"
        )
        return self.error(key, f"there is no key {key}; {hint}")


def show(value: Any) -> str:
    """A value as YAML would have it, on one line and not too long."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 4]} ..."


def leaves(kind: type, section: str = "") -> Iterator[str]:
    """The dotted keys of a dataclass, those of its parts in their place."""
    for name, hint in get_type_hints(kind).items():
        part = _dataclass_in(hint)
        if part is None:
            yield f"{section}{name}"
        else:
            yield from leaves(part, f"{section}{name}.")


def _dataclass_in(hint: Any) -> type | None:
    return next((one for one in (hint, *get_args(hint)) if isinstance(one, type) and is_dataclass(one)), None)


def hint_of(key: str, kind: type, origin: Origin) -> Any:
    """The type of a dotted key; `Any` inside a free mapping.

    Raises:
        UsageError: there is no such key.
    """
    hint: Any = kind
    for depth, name in enumerate(parts := key.split(".")):
        part = _dataclass_in(hint)
        if part is None:
            if get_origin(hint) is not None and is_mapping(hint):
                return Any
            raise origin.error(
                key, f"there is no key {key}; {'.'.join(parts[:depth])} has no keys of its own"
            )
        hints = get_type_hints(part)
        if name not in hints:
            raise origin.unknown(".".join(parts[: depth + 1]), part)
        hint = hints[name]
    return hint


def is_mapping(hint: Any) -> bool:
    """Whether a type is a mapping of any kind."""
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def describe(hint: Any) -> str:
    """What a value of a type looks like, to be read after "give"."""
    if hint in _NAMES:
        return _NAMES[hint]
    if get_origin(hint) is Literal:
        *others, last = map(str, get_args(hint))
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(describe(one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        item, *rest = get_args(hint)
        what = {str: "texts", float: "numbers", int: "whole numbers"}[item]
        return f"a list of {what}" if rest == [...] else f"a list of {len(rest) + 1} {what}"
    part = _dataclass_in(hint)
    return f"keys and values ({', '.join(one.name for one in fields(part))})" if part else "keys and values"


def convert(value: Any, hint: Any, key: str, origin: Origin, *, whole: Any = None) -> Any:
    """A value of a type.

    Args:
        value: as YAML has it.
        hint: the type.
        key: dotted, for messages.
        origin: for messages.
        whole: the type that messages describe, where `hint` is a part of it.

    Raises:
        UsageError: the value is of another type.
    """
    wrong = origin.wrong(key, value, f"give {describe(whole or hint)}")
    if get_origin(hint) in (Union, UnionType):
        return _convert_union(value, get_args(hint), key, origin, wrong, hint)
    if get_origin(hint) is Literal:
        # `1 == True`, so the type counts too.
        found = [one for one in get_args(hint) if one == value and type(one) is type(value)]
        if not found:
            raise wrong
        return found[0]
    if get_origin(hint) is tuple:
        return _convert_tuple(value, get_args(hint), key, origin, wrong)
    if hint is float:
        return _convert_float(value, wrong)
    if is_mapping(hint):
        if not isinstance(value, Mapping):
            raise wrong
        return plain(value, key, origin)
    if (part := _dataclass_in(hint)) is not None:
        return _convert_dataclass(value, part, key, origin, wrong)
    if type(value) is not hint:  # a bool is an int, but not where an int is wanted
        if hint is str and isinstance(value, int | float):
            raise origin.wrong(key, value, f"give {describe(whole or hint)}: if it is text, put it in quotes")
        raise wrong
    if hint is str and not value.strip():
        raise origin.wrong(key, value, "give a text that is not empty")
    return value


def _convert_union(
    value: Any, members: Sequence[Any], key: str, origin: Origin, wrong: UsageError, whole: Any
) -> Any:
    if value is None:
        if NoneType not in members:
            raise wrong
        return None
    others = [one for one in members if one is not NoneType]
    if len(others) == 1:
        return convert(value, others[0], key, origin, whole=whole)
    for member in others:
        try:
            return convert(value, member, key, origin)
        except UsageError:
            continue
    raise wrong


def _convert_tuple(value: Any, items: Sequence[Any], key: str, origin: Origin, wrong: UsageError) -> Any:
    if not isinstance(value, list | tuple):
        raise wrong
    kinds = [items[0]] * len(value) if items[-1] is ... else list(items)
    if len(kinds) != len(value):
        raise wrong
    pairs = zip(value, kinds, strict=True)
    return tuple(convert(item, kind, f"{key}[{place}]", origin) for place, (item, kind) in enumerate(pairs))


def _convert_float(value: Any, wrong: UsageError) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, str) and _NUMBER.fullmatch(value)):
        raise wrong
    try:
        number = float(value)
    except OverflowError:
        raise wrong from None
    if not math.isfinite(number):
        raise wrong
    return number


def _convert_dataclass(value: Any, kind: type, key: str, origin: Origin, wrong: UsageError) -> Any:
    if not isinstance(value, Mapping):
        raise wrong
    section = f"{key}." if key else ""
    hints = get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise origin.unknown(f"{section}{name if isinstance(name, str) else show(name)}", kind)
    found = {}
    for field in fields(kind):
        if field.name in value:
            found[field.name] = convert(
                value[field.name], hints[field.name], f"{section}{field.name}", origin
            )
        elif field.default is MISSING and field.default_factory is MISSING:
            raise origin.error(
                section + field.name,
                f"{section}{field.name} is missing; give {describe(hints[field.name])}",
            )
    return kind(**found)


def plain(value: Any, key: str, origin: Origin) -> Any:
    """A value of a free mapping: what JSON can hold, so that it reaches every report as it is.

    Raises:
        UsageError: it is something else.
    """
    if len(_STEP.findall(key)) > _DEEPEST:  # an anchor may hold itself
        raise origin.error(
            key, f"{key.partition('.')[0]} is nested more than {_DEEPEST} deep; make it flatter"
        )
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise origin.error(key, f"{key} has the key {show(name)}; write it in quotes")
        return {name: plain(one, f"{key}.{name}", origin) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, f"{key}[{place}]", origin) for place, one in enumerate(value)]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise origin.wrong(key, value, "give text, numbers, true, false, null, lists or keys and values")
