"""An engine that somebody else runs: any OpenAI-compatible server, by its URL.

Nothing is started or stopped, and the server need not be up yet: the gateway checks the health of each engine of its
pool anyway.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from thinkserve.engines.engine import Endpoint
from thinkserve.errors import UsageError


class RemoteEngine:
    """A server at a URL; keeps the `Engine` protocol."""

    name = "remote"
    restarts = 0
    failed: str | None = None

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Read the URL.

        Args:
            url: `http(s)://host[:port][/prefix]` or `unix:///path.sock`; a `/v1` at its end is not needed.
            api_key: sent to the server as a bearer token.

        Raises:
            UsageError: the URL is none of these.
        """
        base_url, uds = _read_url(url)
        self.endpoint = Endpoint(base_url=base_url, uds=uds, api_key=api_key)

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""


def _read_url(url: str) -> tuple[str, Path | None]:
    """The base URL, without `/v1` and slash at its end, and the Unix socket if it is one."""
    try:
        parts = urlsplit(url.strip())
        parts.port  # noqa: B018  (reading it is what checks it)
    except ValueError as exc:
        raise UsageError(f"{url!r} is not the URL of an engine: {exc}") from exc
    if parts.query or parts.fragment:
        raise UsageError(f"{url!r} is not the URL of an engine: leave out what follows `?` or `#`")
    if parts.scheme == "unix":
        return "http://localhost", _read_socket(url, parts)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is not the URL of an engine: give http://HOST:PORT or unix:///PATH")
    if "@" in parts.netloc:
        raise UsageError(
            f"the URL of the engine at {parts.hostname} holds a password: give it as the API key"
        )
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), None


def _read_socket(url: str, parts: SplitResult) -> Path:
    path = Path(unquote(parts.path))
    if parts.netloc or not path.is_absolute() or path == Path("/"):
        raise UsageError(f"{url!r} is not the URL of an engine: a Unix socket is unix:///ABSOLUTE/PATH")
    return path
