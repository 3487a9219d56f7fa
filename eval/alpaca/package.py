"""What is taken from the `alpaca-eval` package: its judge's configuration, its leaderboard and its GLM.

The package is never imported as a whole. `import alpaca_eval` reads a `.env` file into the environment of the process,
and its `utils` pulls in `datasets` (0.4 s; the GLM needs it for one isinstance) and `pkg_resources` (gone from current
setuptools). Nothing here writes into the package's folder or asks a network for anything.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from thinkserve.errors import UsageError

logger = logging.getLogger(__name__)

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
PACKAGE = "alpaca_eval"


def folder() -> Path:
    """Where the package is installed.

    Raises:
        UsageError: it is not.
    """
    spec = find_spec(PACKAGE)  # of a top-level name: finds, and runs nothing of it
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("AlpacaEval needs the alpaca-eval package: pip install 'thinkserve[eval]'")
    return Path(spec.submodule_search_locations[0])


@cache
def annotator() -> Mapping[str, Any]:
    """The configuration of the official annotator: `prompt_template`, `completions_kwargs`, the tokens ..."""
    import yaml

    path = folder() / "evaluators_configs" / ANNOTATOR / "configs.yaml"
    configuration: Mapping[str, Any] = yaml.safe_load(path.read_text("utf-8"))[ANNOTATOR]
    return configuration


@cache
def prompt_template() -> str:
    """The annotator's prompt: ChatML with the places `{instruction}`, `{output_1}` and `{output_2}`."""
    path = folder() / "evaluators_configs" / str(annotator()["prompt_template"])
    return path.read_text("utf-8")


def leaderboard() -> Path:
    """The published leaderboard of AlpacaEval 2, as a csv."""
    return folder() / "leaderboards" / "data_AlpacaEval_2" / f"{ANNOTATOR}_leaderboard.csv"


@cache
def glm_winrate() -> Any:
    """The package's module `alpaca_eval.metrics.glm_winrate`: its code as it is, in a copy of our own.

    Its parents are bare packages for the time of the import, so that their `__init__` does not run, and what it
    imports but does not use here is a stub. `sys.modules` is then as it was: whoever imports alpaca_eval in this
    process gets it whole, and what we set in our copy (`glm.py`) is not seen there.
    """
    # Before the stubs are in place, so that none of these libraries can come to see one.
    for name in (
        "pandas",
        "scipy.special",
        "sklearn.linear_model",
        "sklearn.metrics",
        "patsy",
        "tqdm",
        "yaml",
    ):
        importlib.import_module(name)
    stubs = {
        PACKAGE: _bare(PACKAGE, folder()),
        f"{PACKAGE}.metrics": _bare(f"{PACKAGE}.metrics", folder() / "metrics"),
        "datasets": _stub("datasets", Dataset=type("Dataset", (), {})),
        "huggingface_hub": _stub("huggingface_hub", hf_hub_download=None),
        "pkg_resources": _stub("pkg_resources"),
    }
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name in stubs or _of_package(name)}
    sys.modules.update(stubs)
    try:
        found = importlib.import_module(f"{PACKAGE}.metrics.glm_winrate")
        for name in filter(_of_package, sys.modules):
            # It logs by `logging.info`, which would put a handler on the root logger of the host.
            vars(sys.modules[name])["logging"] = logger
        return found
    finally:
        for name in [name for name in sys.modules if name in stubs or _of_package(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _of_package(name: str) -> bool:
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


def _bare(name: str, path: Path) -> ModuleType:
    module = _stub(name)
    module.__path__ = [str(path)]
    return module


def _stub(name: str, **members: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module
