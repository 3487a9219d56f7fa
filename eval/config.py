"""What a run was asked, in one place; written as `run.json` beside what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from thinkserve.errors import UsageError
from thinkserve.eval.bench import Compat
from thinkserve.eval.records import read_bytes, write_whole

EngineName = Literal["auto", "vllm", "transformers"]

Mode = Literal["thought", "direct", "both"]
OPENAI = "https://api.openai.com/v1"

# A change of these makes another run, whose files must not be mixed with those of the old one.
IDENTITY = (
    "bench",
    "models",
    "judges",
    "baseline",
    "categories",
    "limit",
    "seed",
    "mode",
    "verdicts",
    "topics",
    "thought_format",
)

# Where one of these is and no `run.json`, the folder is not ours to write to.
OF_A_RUN = ("answers", "judgments", "scores.json", "report.html", "report.md")


@dataclass(frozen=True, slots=True)
class Keys:
    """API keys, for whom they are. Never shown and never written: `repr` has none of them."""

    judge: str | None = field(default=None, repr=False)
    model: str | None = field(default=None, repr=False)
    openai: str | None = field(default=None, repr=False)
    """`OPENAI_API_KEY`: goes to OpenAI alone, so that no other server gets to see it."""
    by_url: Mapping[str, str] = field(default_factory=dict, repr=False)

    def of(self, url: str, role: Literal["judge", "model"]) -> str | None:
        """The key for a server in a role, if there is one; with or without `/v1` it is the same server."""
        for start, key in self.by_url.items():
            if f"{_bare(url)}/".startswith(f"{_bare(start)}/" if start else ""):
                return key
        named = self.judge if role == "judge" else self.model
        if named is not None:
            return named
        return self.openai if is_openai(url) else None


def is_openai(url: str) -> bool:
    """Whether a server is OpenAI's own, who alone gets what the environment has for OpenAI."""
    return urlsplit(url).hostname == urlsplit(OPENAI).hostname


def key_from(environment: Mapping[str, str], name: str) -> str | None:
    """The key in an environment variable; None where it is not set, or empty.

    Raises:
        UsageError: it is no key; names the variable and never what is in it.
    """
    key = environment.get(name, "").strip()
    if not _sendable(key):
        raise UsageError(f"{name}: the key in it has characters that no API key has")
    return key or None


def _sendable(key: str) -> bool:
    """Whether it can stand in a header."""
    return key.isascii() and (key.isprintable() and " " not in key)


def _bare(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def read_key_file(path: Path) -> dict[str, str]:
    """Read API keys from a file: a line with one key for every server, or lines of `URL KEY`.

    Raises:
        UsageError: a line is malformed; names the line and never what is in it.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(read_bytes(path).decode("utf-8-sig", "replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2 or (len(words) == 2 and not words[0].startswith(("http://", "https://"))):
            raise UsageError(f"{path}:{number}: give one key, or a URL and its key")
        if not _sendable(words[-1]):
            raise UsageError(
                f"{path}:{number}: the key has characters that no API key has; is this a file of keys?"
            )
        keys[words[0] if len(words) == 2 else ""] = words[-1]
    if not keys:
        raise UsageError(f"{path}: there is no key in it; write one key, or lines of URL and KEY")
    return dict(sorted(keys.items(), reverse=True))  # the longest beginning of a URL first, "" last


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What `thinkserve eval` was asked."""

    bench: str
    models: tuple[str, ...]
    """SPECs: a checkpoint, `URL#model` or `answers:FILE`."""
    judges: tuple[str, ...]
    """SPECs; empty: the bench's official judge, or its rule."""
    out: Path
    baseline: str | None = None
    """A SPEC; None: the bench's own."""
    categories: tuple[str, ...] = ()
    """Of the instructions that are asked; empty: all."""
    limit: int | None = None
    """How many instructions are asked; None: all."""
    concurrency: int = 16
    """Requests at once, to models and to judges."""
    data: Path | None = None
    seed: int = 0
    mode: Mode = "thought"
    yes: bool = False
    compat: Compat = "aligned"
    verdicts: Literal["logprobs", "text"] = "logprobs"
    """How AlpacaEval's judge tells its verdict."""
    topics: bool = False
    """Whether instructions are sorted into the paper's 20 topics too."""
    thought_format: str | None = None
    """Of servers that show their thoughts, and of checkpoints that do not name theirs."""
    engine: EngineName = "auto"
    """What serves checkpoints."""
    engine_args: tuple[str, ...] = ()
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float = 600.0
    """Seconds for one request."""
    cost_limit: float = 5.0
    """Dollars above which a run asks before it goes on."""
    keys: Keys = field(default_factory=Keys)


def identity(config: RunConfig) -> dict[str, Any]:
    """What makes a run this one and no other."""
    data = {name: getattr(config, name) for name in IDENTITY}
    return dict(msgspec.json.decode(msgspec.json.encode(data)))


def claim(path: Path, config: RunConfig) -> None:
    """Write `run.json`, or hold the one that is there against what is asked now.

    Raises:
        UsageError: the folder has the files of another run, or of somebody else, or cannot be written to.
    """
    asked = identity(config)
    if path.is_file():
        try:
            before = msgspec.json.decode(read_bytes(path))["asked"]
            differing = [name for name in IDENTITY if before.get(name) != asked[name]]
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as exc:
            raise UsageError(f"{path}: is no run.json of thinkserve; choose another --out") from exc
        if differing:
            name = differing[0]
            raise UsageError(
                f"{path.parent} holds another run (its {name} is {before.get(name)!r}, and {asked[name]!r} is asked "
                "for now); choose another --out, or ask the same to go on with it"
            )
        return
    for name in OF_A_RUN:
        if (path.parent / name).exists():
            raise UsageError(f"{path.parent} has {name} in it and is no run's folder; choose another --out")
    try:
        write_whole(path, msgspec.json.format(msgspec.json.encode({"asked": asked}), indent=2) + b"\n")
    except OSError as exc:
        raise UsageError(f"--out {path.parent}: cannot be written to: {exc.strerror}") from exc
