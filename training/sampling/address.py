"""A server that is not ours: where it is, and whether it serves the model of the iteration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec

from thinkserve.errors import EngineError, UsageError
from thinkserve.eval.config import key_from

API_KEY = "THINKSERVE_MODEL_API_KEY"
ANSWER_SECONDS = 30.0
# Who calls themselves so knows vLLM's fields beside OpenAI's.
WITH_EXTENSIONS = ("vllm", "thinkserve")
_ITERATION = re.compile(r"iter-\d+")


@dataclass(frozen=True, slots=True)
class Address:
    """A server, as a recipe names it."""

    url: str
    """Up to and with `/v1`."""
    model: str | None
    """Its name there; None: the first one that the server lists."""
    api_key: str | None


def parse(engine: str, environment: Mapping[str, str]) -> Address:
    """Read `URL` or `URL#model`; the key, if the server wants one, comes from the environment.

    Raises:
        UsageError: there is no host in it.
    """
    url, _, model = engine.partition("#")
    if not urlsplit(url).hostname:
        raise UsageError(f"sample.engine: {engine!r} has no host; give http://HOST:PORT/v1, or with #MODEL")
    base = url.rstrip("/").removesuffix("/v1").rstrip("/")
    return Address(f"{base}/v1", model or None, key_from(environment, API_KEY))


class _Card(msgspec.Struct):
    id: str
    owned_by: str | None = None
    root: str | None = None
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


@dataclass(frozen=True, slots=True)
class Served:
    """A model that a server lists."""

    name: str
    root: str | None
    """The checkpoint, where the server tells it (vLLM does)."""
    extensions: bool
    context: int | None

    def check_serves(self, model: str, address: Address) -> None:
        """Make sure that it is the checkpoint to sample from, as far as the server tells.

        Folders are compared by their last parts, since another machine may have them elsewhere.

        Raises:
            UsageError: it is another one, or the server does not tell; after each iteration, and for each epoch that is
                validated, the server must be started anew with another checkpoint.
        """
        if self.root is None:
            raise UsageError(
                f"sample.engine: {address.url} does not tell which checkpoint {self.name!r} is (vLLM does), and a run "
                "samples from another one each time; nobody would notice the wrong one. Set sample.engine to vllm"
            )
        if self.root != model and _end(self.root) != _end(model):
            raise UsageError(
                f"sample.engine: {address.url} serves {self.root}, and this iteration samples from {model}; start that "
                f"server with it (vllm serve {model}) and run again, or set sample.engine to vllm, which swaps models itself"
            )


def _end(path: str) -> tuple[str, ...]:
    """The last two parts of a path; of what a run made, all from the part before its iteration on.

    `iter-1/checkpoint` alone may be either arm's, and `dpo/epoch-1` that of any iteration.
    """
    folder = Path(path).expanduser()
    parts = (folder.resolve() if folder.is_dir() else folder).parts
    iterations = [place for place, part in enumerate(parts) if _ITERATION.fullmatch(part)]
    return parts[max(0, iterations[-1] - 1) :] if iterations else parts[-2:]


async def served(
    url: str, model: str | None, *, api_key: str | None = None, uds: Path | None = None
) -> Served:
    """Ask a server for its models.

    Args:
        url: up to and with `/v1`.
        model: which one; None: the first.
        api_key: None where it wants none.
        uds: the Unix socket that it listens on, where it is not reached by its URL.

    Raises:
        EngineError: it does not answer, or with something else.
        UsageError: it does not list the model.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    connector = None if uds is None else aiohttp.UnixConnector(str(uds))
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session,
            session.get(f"{url}/models") as response,
        ):
            status, body = response.status, await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        reason = str(exc) or type(exc).__name__
        raise EngineError(
            f"{url}: cannot be reached ({reason}); is the server running, and is this its address?"
        ) from exc
    if status in (401, 403):
        raise UsageError(
            f"{url}: refused the API key (HTTP {status}); set {API_KEY} to the one for this server"
        )
    try:
        cards = msgspec.json.decode(body, type=_Cards).data
    except (msgspec.DecodeError, UnicodeDecodeError):
        cards = []
    if status != 200 or not cards:
        raise EngineError(
            f"{url}/models: lists no model (HTTP {status}); is this the base URL of a server that speaks OpenAI's API?"
        )
    for card in cards:
        if model is None or card.id == model:
            return Served(card.id, card.root, card.owned_by in WITH_EXTENSIONS, card.max_model_len)
    names = ", ".join(card.id for card in cards)
    raise UsageError(
        f"sample.engine: {url} does not list the model {model!r}; it has {names}: give URL#MODEL"
    )
