"""Judged text goes into templates here, in one pass: what a response says is never taken for a part of the template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values into the `{name}` places of a template.

    A value that itself has `{output_2}` in it stays as it is. Braces around anything but a name are text.

    Raises:
        ValueError: a place has no value, or a value no place.
    """
    names = set(_PLACE.findall(template))
    if missing := sorted(names - values.keys()):
        raise ValueError(f"the template's {_listed(missing)} got no value; it got {_listed(values)}")
    if unknown := sorted(values.keys() - names):
        raise ValueError(f"the template has no {_listed(unknown)}; it has {_listed(sorted(names))}")
    return _PLACE.sub(lambda place: values[place[1]], template)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names) or "nothing"
