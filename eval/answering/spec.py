"""What a model or judge SPEC on the command line means: a checkpoint, a server's model, or a file of answers.

CHECKPOINT     a folder in Hugging Face layout, a name on the Hub (org/model), `pocket` or `pocket-seed`: served for the run alone
URL#MODEL      a model of an OpenAI-compatible server; without #MODEL the first that it lists
answers:FILE   answers that are there already, in the official format of the bench
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answers
from thinkserve.eval.folder import read_answers
from thinkserve.pocket import BY_NAME as POCKET_MODELS

ReadAnswers = Callable[[Path], Answers]

FORMS = "a checkpoint folder (or its name on the Hub, org/model), URL#MODEL, or answers:FILE"
JUDGE_FORMS = "URL#MODEL, or a checkpoint folder (or its name on the Hub, org/model)"
# As the Hub allows them; a path with a dot or a tilde before it is none.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """A checkpoint that is to be served for the run."""

    path: str
    """A folder, or a name on the Hub."""
    name: str


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """A model of a server that runs already."""

    url: str
    """Without `/v1`."""
    model: str | None
    """None: the first that the server lists."""


@dataclass(frozen=True, slots=True)
class AnswersSpec:
    """Answers that were made before."""

    path: Path
    read: ReadAnswers

    def answers(self) -> Answers:
        """Read them.

        Raises:
            UsageError: the file is malformed.
        """
        return self.read(self.path)


ModelSpec = CheckpointSpec | EndpointSpec | AnswersSpec
JudgeSpec = CheckpointSpec | EndpointSpec

DEFAULT_MODEL = EndpointSpec("http://127.0.0.1:8000", None)


def parse_model(spec: str, *, read: ReadAnswers | None = None) -> ModelSpec:
    """Read the SPEC of a model.

    Args:
        spec: as it stands on the command line.
        read: reads a file of answers; None: the format of a run's own folder.

    Raises:
        UsageError: it is none of the forms, or what it names is not there.
    """
    kind, _, rest = spec.partition(":")
    if kind == "answers":
        path = Path(rest).expanduser() if rest.startswith("~/") else Path(rest)
        if not path.is_file():
            raise UsageError(f"model {spec!r}: there is no file {rest!r}; a model is {FORMS}")
        return AnswersSpec(path, read or (lambda file: read_answers(file, _stem(file))))
    return _endpoint_or_checkpoint(spec, "model", FORMS)


def parse_judge(spec: str) -> JudgeSpec:
    """Read the SPEC of a judge that is a model; judges by rule have names of their own, which the caller knows.

    Raises:
        UsageError: it is neither form, or what it names is not there.
    """
    return _endpoint_or_checkpoint(spec, "judge", JUDGE_FORMS)


def _endpoint_or_checkpoint(spec: str, what: str, forms: str) -> CheckpointSpec | EndpointSpec:
    if spec.lower().startswith(("http://", "https://")):
        return _endpoint(spec, what, forms)
    folder = Path(spec)
    if spec.startswith("~/"):
        folder = folder.expanduser()
    if spec and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"{what} {spec!r}: the folder has no config.json; a {what} is {forms}")
        folder = folder.resolve()
        pocket = {path.resolve(): name for name, path in POCKET_MODELS.items()}
        return CheckpointSpec(str(folder), pocket.get(folder, folder.name))
    if spec in POCKET_MODELS:
        return CheckpointSpec(str(POCKET_MODELS[spec]), spec)
    if spec and folder.exists():
        hint = f"; for answers write answers:{spec}" if what == "model" else ""
        raise UsageError(f"{what} {spec!r} is a file and no checkpoint{hint}; a {what} is {forms}")
    if _HUB_NAME.fullmatch(spec):
        return CheckpointSpec(spec, spec)
    raise UsageError(f"{what} {spec!r}: there is no such checkpoint; a {what} is {forms}")


def _endpoint(spec: str, what: str, forms: str) -> EndpointSpec:
    address, _, model = spec.partition("#")
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise UsageError(f"{what} {spec!r}: the URL is malformed ({exc}); a {what} is {forms}") from None
    if parts.username is not None or parts.password is not None:
        # The value holds a secret, so it is not repeated.
        raise UsageError(
            f"{what}: the URL of {host} has a user or a password in it; give keys by the environment or --api-key-file"
        )
    if not host or parts.query:
        problem = "has a query" if parts.query else "names no host"
        raise UsageError(f"{what} {spec!r}: the URL {problem}; a {what} is {forms}")
    return EndpointSpec(address.rstrip("/").removesuffix("/v1").rstrip("/"), model or None)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names of a run's models, no two the same: a name that comes again gets `-2`, `-3` ... behind it."""
    taken = set(names)
    found: list[str] = []
    for name in names:
        unique, number = name, 1
        while unique in found or (number > 1 and unique in taken):
            number += 1
            unique = f"{name}-{number}"
        found.append(unique)
    return tuple(found)
