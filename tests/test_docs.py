"""The pages: every command and option that they show exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRAIN = {"status", "report", "pocket-seed"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands_of(page: Path) -> dict[str, set[str]]:
    """The thinkserve commands in a page's blocks of shell, and the options they are shown with."""
    found: dict[str, set[str]] = {}
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.split("#  ")[0].split("  #")[0].split(" -- ")[0].split()
            if "thinkserve" in words:
                words = words[words.index("thinkserve") + 1 :]
                # `train` has commands of its own, and takes a recipe where no such command stands.
                deep = words[0] == "train" and words[1] in TRAIN
                options = found.setdefault(" ".join(words[: 1 + deep]), set())
                options.update(word for word in words if word.startswith("--"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_of_the_page_exists(page: Path) -> None:
    found = commands_of(page)
    assert found or page.name == "security.md"
    for command, options in found.items():
        shown = subprocess.run(
            [sys.executable, "-m", "thinkserve.cli", *command.split(), "--help"],
            capture_output=True,
            text=True,
            cwd=ROOT.parent,
            check=True,
        ).stdout
        for option in options:
            assert re.search(rf"{option}\b", shown), f"{page.name}: thinkserve {command} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_the_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
