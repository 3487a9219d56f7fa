"""The official files of the benches: from the user's folder, or fetched once, checked, and kept in a cache.

A bench asks for a file by its name in `--data` without the ending (`arena_hard_v2.0/question`). Nothing is used before
its sum is what `sources.py` says. Where it says none, the sum of what first came is written to `FILE.sha256`, and what
is there later must have it: that shows a change, not a wrong first download.
"""

from __future__ import annotations

import logging
import tempfile
import urllib.request
from collections.abc import Callable
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

from thinkserve.errors import UsageError
from thinkserve.eval.records import write_whole
from thinkserve.eval.sources import GITHUB, HUB, Source, source_of

logger = logging.getLogger(__name__)

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz")
CACHE = Path("~/.cache/thinkserve/eval")
TIMEOUT = 60.0
CONNECT_TIMEOUT = 10.0


class EvalData:
    """Finds official files.

    Args:
        folder: where the user has them; None: they are fetched.
        cache: what was fetched is kept here; None: `~/.cache/thinkserve/eval`.
        sources: where a file of a name comes from.
        hub: the Hugging Face hub; None: as its library is set up.
        github: where GitHub serves raw files.
    """

    def __init__(
        self,
        folder: Path | None = None,
        cache: Path | None = None,
        *,
        sources: Callable[[str], Source | None] = source_of,
        hub: str | None = None,
        github: str = GITHUB,
    ) -> None:
        self.folder = folder
        self._cache = (CACHE if cache is None else cache).expanduser()
        self._sources = sources
        self._hub, self._github = hub, github

    def find(self, name: str) -> Path:
        """The file of a name.

        Args:
            name: as in `--data`, without the ending.

        Raises:
            UsageError: it is not there and cannot be fetched, or has another sum than it must have. The message says
                which file, and where to put it.
        """
        if self.folder is None:
            return self._cached(name)
        if not self.folder.is_dir():
            raise UsageError(f"--data {self.folder}: there is no such folder")
        found = _in_folder(self.folder, name)
        if found is None:
            raise UsageError(f"{self.folder / name}.jsonl is missing ({_or_endings()}){self._hint(name)}")
        return found

    def find_if_given(self, name: str) -> Path | None:
        """The file of a name in the user's folder, if there is a folder and the file is in it; nothing is fetched."""
        return None if self.folder is None else _in_folder(self.folder, name)

    def _hint(self, name: str) -> str:
        source = self._sources(name)
        if source is None:
            return "; put it there"
        return f"; put {self._url(source)} there, or leave --data out to have it fetched"

    def _url(self, source: Source) -> str:
        return source.url(self._hub or HUB, self._github)

    def _cached(self, name: str) -> Path:
        source = self._sources(name)
        if source is None:
            raise UsageError(
                f"{name} is published nowhere; give a folder that has {name}.jsonl in it with --data"
            )
        path = self._cache / source.place
        before = self._checked(path, source)
        if before is None:
            return path
        content = self._fetch(name, path, source, before)
        found = sha256(content).hexdigest()
        expected = source.sha256 or _recorded(path)
        if expected is not None and found != expected:
            raise UsageError(
                f"{self._url(source)}: its sha256 is {found}, and must be {expected}; it was not kept. Is a proxy in "
                f"between? Else put the right file at {path}, or give a folder with --data"
            )
        if expected is None:
            _record(path, found)
        write_whole(path, content)
        return path

    def _checked(self, path: Path, source: Source) -> str | None:
        """None where a good file is there; else what is to be said of it. A bad one is removed."""
        try:
            found = sha256(path.read_bytes()).hexdigest()
        except FileNotFoundError:
            return ""
        except OSError as exc:
            raise UsageError(f"{path}: cannot be read: {exc.strerror}") from exc
        expected = source.sha256 or _recorded(path)
        if expected is None:
            _record(path, found)
        elif found != expected:
            path.unlink(missing_ok=True)
            logger.warning("%s: removed: its sha256 is %s, and must be %s", path, found, expected)
            return f"; what was there had the sha256 {found} instead of {expected}, and was removed"
        return None

    def _fetch(self, name: str, path: Path, source: Source, before: str) -> bytes:
        url = self._url(source)
        logger.info("fetching %s", url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return self._from_hub(source, path.parent) if source.origin == "hub" else _from_web(url)
        except (OSError, HTTPException, ValueError, _HubError) as exc:
            raise UsageError(
                f"{name} is not at hand, and {url} cannot be fetched ({_reason(exc)}); put that file at {path}, or "
                f"give a folder that has {name}.jsonl in it with --data{before}"
            ) from exc

    def _from_hub(self, source: Source, near: Path) -> bytes:
        import huggingface_hub

        known = huggingface_hub.try_to_load_from_cache(
            source.repository, source.path, revision=source.commit, repo_type="dataset"
        )
        if isinstance(known, str) and source.sha256 is not None:  # others may have fetched it before
            content = Path(known).read_bytes()
            if sha256(content).hexdigest() == source.sha256:
                return content
        if not huggingface_hub.constants.HF_HUB_OFFLINE:
            _reach(self._hub or huggingface_hub.constants.ENDPOINT)
        with tempfile.TemporaryDirectory(prefix=".hub", dir=near) as draft:
            try:
                fetched = huggingface_hub.hf_hub_download(
                    source.repository,
                    source.path,
                    repo_type="dataset",
                    revision=source.commit,
                    local_dir=draft,
                    force_download=True,  # else it copies from its own cache, whatever is there
                    endpoint=self._hub,
                )
            except Exception as exc:  # its releases differ in which HTTP library's errors come through
                # What it says of a refusal is that the network may be down; the refusal is the cause.
                raise _HubError(_reason(exc.__cause__ or exc)) from exc
            return Path(fetched).read_bytes()


class _HubError(Exception):
    """Whatever the hub's library raised."""


def _in_folder(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}{ending}" for ending in ENDINGS)
    return next((path for path in candidates if path.is_file()), None)


def _or_endings() -> str:
    return f"or with {', '.join(ENDINGS[1:-1])} or {ENDINGS[-1]}"


def _from_web(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        content: bytes = response.read()
    return content


def _reach(url: str) -> None:
    """Fail at once where there is no network: the hub's library tries for 23 s, and prints a line each time."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=CONNECT_TIMEOUT).close()
    except HTTPError as answer:
        answer.close()


def _reason(exc: BaseException) -> str:
    """In one line, and short: the hub's messages are paragraphs."""
    if isinstance(exc, URLError) and isinstance(exc.reason, OSError):
        exc = exc.reason
    line = " ".join(str(exc).split()) or type(exc).__name__
    return line if len(line) <= 200 else f"{line[:200]}..."


def _sum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str | None:
    try:
        return _sum_file(path).read_text("ascii", "replace").split()[0]
    except (FileNotFoundError, IndexError):
        return None


def _record(path: Path, found: str) -> None:
    """Before the file itself is written, so that no kill leaves a file whose sum was not kept."""
    logger.warning("%s: no sum of it is known; from now on it must stay %s", path, found)
    write_whole(_sum_file(path), f"{found}  {path.name}\n".encode())
