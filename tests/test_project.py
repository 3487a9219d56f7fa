"""The project keeps its own rules: what is shipped, what is imported, what the README says."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import thinkserve
from thinkserve import engines, gateway, thoughts

ROOT = Path(__file__).parent.parent


def test_every_package_of_the_tree_is_in_the_wheel() -> None:
    """A package that is missing from `packages` works in an editable install and is absent from the wheel."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"thinkserve": "thinkserve", "training": "thinkserve.training", "eval": "thinkserve.eval"}
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for folder, package in folders.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(tool["packages"])


def test_every_file_that_is_no_code_is_package_data() -> None:
    """A prompt that is missing from the wheel is found out when a judge is to be asked."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name: ROOT / folder for name, folder in tool["package-dir"].items()}
    for package in tool["packages"]:
        folders.setdefault(package, _folder_of(package, folders))
    shipped = {
        path
        for package, patterns in tool["package-data"].items()
        for pattern in patterns
        for path in folders[package].glob(pattern)
    }
    roots = [ROOT / "thinkserve", ROOT / "eval", ROOT / "training"]
    there = {path for root in roots for path in root.rglob("*") if path.is_file() and path.suffix != ".py"}
    assert {path for path in there if "__pycache__" not in path.parts} <= shipped


def _folder_of(package: str, folders: dict[str, Path]) -> Path:
    parent, _, name = package.rpartition(".")
    return folders[parent] / name if parent in folders else ROOT.joinpath(*package.split("."))


@pytest.mark.parametrize("module", [thinkserve, thoughts, gateway, engines])
def test_all_names_what_there_is(module: ModuleType) -> None:
    for name in getattr(module, "__all__", []):
        assert hasattr(module, name)
    assert getattr(module, "__all__", []) == sorted(getattr(module, "__all__", []))


@pytest.mark.parametrize(
    "module", ["thinkserve.gateway.app", "thinkserve.gateway.server", "thinkserve.cli", "thinkserve.serve"]
)
def test_the_gateway_imports_no_engine(module: str) -> None:
    """Engines are processes of their own; torch in the gateway would cost hundreds of megabytes."""
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'vllm', 'tokenizers'}} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=True
    )
    assert run.stdout.strip() == "[]"


def test_the_generated_parts_of_the_readme_are_up_to_date() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_every_command_of_the_makefile_that_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("serve", "test", "lint", "bench"):
        assert f"make {target}" in (ROOT / "README.md").read_text()
        assert f"\n{target}:" in makefile


def test_the_changelog_and_the_version_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == thinkserve.__version__
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
