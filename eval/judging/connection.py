"""The `openai` client that calls go through, set up to be quick.

Its retries are off, since they know nothing of each other; its HTTP runs on aiohttp; and as all calls of a client go to
one place with one set of headers, a request is made from the first one. Together 0.7 ms of CPU a call instead of 2, which
is what a judge nearby or a large concurrency needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import openai

from thinkserve.eval.config import is_openai

# Shorter than the 5 s after which uvicorn (so vLLM) closes an idle connection, perhaps just as a request is written.
IDLE_SECONDS = 4.0
NO_KEY = "none"


def connect(
    base_url: str,
    api_key: str | None,
    concurrency: int,
    headers: Mapping[str, str] | None,
    uds: Path | None = None,
) -> Connection:
    """A client for so many calls at once.

    Args:
        base_url: up to and with `/v1`.
        api_key: None where the server wants none.
        concurrency: connections that are kept.
        headers: sent with every call.
        uds: the Unix socket that the server listens on, where it is not reached by its address.
    """
    connection = Connection(
        base_url=base_url,
        api_key=api_key or NO_KEY,  # without one, it would take OPENAI_API_KEY and send that to any server
        default_headers=headers,
        max_retries=0,
        timeout=None,
        http_client=_http_client(concurrency, uds),
    )
    if not is_openai(
        base_url
    ):  # the package takes these from the environment, and would tell them to any server
        connection.organization = connection.project = None
    return connection


def _http_client(concurrency: int, uds: Path | None) -> Any:
    # Its releases differ in which httpx they are built on, and take objects of that one.
    httpx = import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])
    limits = httpx.Limits(
        max_connections=concurrency, max_keepalive_connections=concurrency, keepalive_expiry=IDLE_SECONDS
    )
    # A proxy of the environment knows nothing of this machine's sockets.
    options = {"limits": limits, "trust_env": uds is None}
    try:
        http: Any = openai.DefaultAioHttpClient(**options)
    except (AttributeError, RuntimeError):  # not in this release, or an extra that is not installed
        transport = None if uds is None else httpx.AsyncHTTPTransport(uds=str(uds), limits=limits)
        return openai.DefaultAsyncHttpxClient(**options, transport=transport)
    if uds is not None:
        http._transport.uds = str(uds)  # read when it first connects
    return http


class Connection(openai.AsyncOpenAI):
    """Makes requests from the first one to the same path, where the package would make headers and URL anew.

    `_build_request` is the package's own hook (its Azure client has it too). Should it go one day, calls only get slower.
    """

    async def ask(self, body: Mapping[str, Any]) -> bytes:
        """Ask for a chat completion, and give the body of the answer.

        Raises:
            openai.APIError: the connection or the server failed.
        """
        return await self.post("/chat/completions", body=body, cast_to=bytes, options=_NOTHING)

    def _build_request(self, options: Any, **given: Any) -> Any:
        first = self.__dict__.setdefault("_first_requests", {}).get(options.url)
        if first is None:
            first = super()._build_request(options, **given)
            self.__dict__["_first_requests"][options.url] = first
            return first
        headers = [(name, value) for name, value in first.headers.raw if name.lower() != b"content-length"]
        return type(first)(
            first.method,
            first.url,
            headers=headers,
            content=msgspec.json.encode(options.json_data),
            extensions=first.extensions,
        )


# Said outright, since working out the defaults takes longer than the call.
_NOTHING: Any = {
    "max_retries": 0,
    "timeout": None,
    "params": {},
    "follow_redirects": None,
    "extra_json": None,
}
