"""Writes the parts of README.md that are made from the code. `python docs/generate.py`, or `--check` to only compare.

The table of fields comes from `thinkserve.gateway.policy.FIELDS`, so the page cannot promise what the gateway does not do.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from thinkserve.gateway.policy import FIELDS

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- fields: written by docs/generate.py -->", "<!-- end of fields -->"
TITLES = {
    "pass": "goes to the engine",
    "rewrite": "done by the gateway",
    "drop": "taken, without effect",
    "refuse": "refused (400)",
}


def field_table() -> str:
    """The table of fields, grouped by what happens to them and why."""
    lines = ["| | fields | |", "|---|---|---|"]
    for action, title in TITLES.items():
        fields = sorted(
            ((name, field.why) for name, field in FIELDS.items() if field.action == action),
            key=lambda item: item[1],
        )
        for why, group in groupby(fields, key=lambda item: item[1]):
            names = ", ".join(f"`{name}`" for name, _ in group)
            lines.append(f"| {title} | {names} | {why} |")
    return "\n".join(lines)


def generated(page: str) -> str:
    """The page with its generated parts made anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{field_table()}\n{END}{after}"


def main() -> None:
    """Rewrite README.md, or with --check exit 1 if it is out of date."""
    page = README.read_text(encoding="utf-8")
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if page == generated(page) else "README.md is out of date; run: python docs/generate.py")
    README.write_text(generated(page), encoding="utf-8")


if __name__ == "__main__":
    main()
