"""The protocol every engine keeps: an endpoint to talk to, a start that returns when it answers, and a stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens: HTTP at `base_url`, over the Unix socket `uds` where one is given.

    `model` is the name the engine serves the checkpoint under; None means: ask its `/v1/models`.
    `api_key` is sent as a bearer token (remote engines only). `thinking_budgets` tells that it takes vLLM's
    `thinking_token_budget`.
    """

    base_url: str
    uds: Path | None = None
    model: str | None = None
    api_key: str | None = None
    thinking_budgets: bool = False


class Engine(Protocol):
    """Something that generates, started and stopped by whoever made it."""

    @property
    def name(self) -> str:
        """`vllm`, `transformers` or `remote`; with a number behind it where there are several replicas."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens; fixed for the life of the engine, also across restarts."""

    @property
    def restarts(self) -> int:
        """How often the process died and was started again."""

    @property
    def failed(self) -> str | None:
        """Why the process is not started again any more, with the last lines of its log; None while it is."""

    async def start(self) -> None:
        """Start it and return when it answers.

        Raises:
            EngineError: it ended before it answered; the message holds the last lines of its log.
        """

    async def stop(self) -> None:
        """Stop it (politely, then for good) and return when it is gone; does nothing on a stopped engine."""
