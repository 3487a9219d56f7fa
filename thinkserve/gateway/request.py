"""A request as the client means it, whichever endpoint it came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from thinkserve.gateway.constraints import Constraint, is_bound, is_closed
from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.tools import Tools

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What an endpoint calls the fields that a request may be refused for, once it is read."""

    messages: str = "messages"
    effort: str = "reasoning_effort"
    thought_tokens: str = "thinking_token_budget"
    logprobs: str = "logprobs"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What every endpoint is read into. Bounds are in tokens; `sampling` and `extra` go to the engine as they are."""

    conversations: tuple[list[Any], ...]
    """The messages, in the form of chat completions; several only where an endpoint takes several prompts."""
    model: str | None = None
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    """How many choices each conversation gets."""
    stops: tuple[str, ...] = ()
    max_tokens: int | None = None
    """Bounds the response."""
    max_completion_tokens: int | None = None
    """Bounds thought and response together."""
    effort: str | None = None
    thought_tokens: int | None = None
    """Bounds the thought, where the client said so in tokens."""
    logprobs: bool = False
    top_logprobs: int = 0
    constraint: Constraint | None = None
    """What binds the response; the thought stays free."""
    tools: Tools | None = None
    seal: bool = False
    """Whether the client wants the thought back, sealed."""
    seed: int | None = None
    sampling: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    sealed: dict[int, tuple[str, str]] = {}
    """Past thoughts that the client brought back sealed: from the index of their message in the first conversation to
    what names the response, and the sealed thought."""
    echo: tuple[str, ...] = ()
    """What the client wants repeated before its responses: one text for each conversation, or none."""
    names: Names = Names()

    @property
    def bound(self) -> bool:
        """Whether a grammar binds the response from its first character."""
        return is_bound(self.constraint, self.tools)

    @property
    def closed(self) -> bool:
        """Whether that grammar leaves no room for a thought, so that a marker in the response is none."""
        return is_closed(self.constraint, self.tools)

    @property
    def choices(self) -> int:
        """How many outputs are generated in all."""
        return len(self.conversations) * self.n

    def conversation(self, index: int) -> int:
        """Which conversation a choice answers."""
        return index // self.n

    def check_model(self, served: str) -> None:
        """Hold the model's name against what is served ("": whatever clients call it passes to the engine).

        Raises:
            ApiError: 404, there is no such model.
        """
        if self.model is not None and served and self.model != served:
            raise ApiError(
                404,
                f"the model {shown(self.model)} does not exist; this server has {served!r}",
                param="model",
                code="model_not_found",
            )


def check_choices(name: str, choices: int, most: int) -> None:
    """Refuse more choices than the operator lets one request have.

    Raises:
        ApiError: 400.
    """
    if choices > most:
        raise invalid(name, f"{name} must be from 1 to {most}, not {choices}")
