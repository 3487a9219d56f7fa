"""The endpoints that generate, one module each: the table of its fields, how it is read, how its answers are written.

All of them are read into the same `Request` and written from the same visible stretches, so none has a way of its own to
what the model wrote.
"""

from __future__ import annotations

from thinkserve.gateway.api.chat import ChatCompletions
from thinkserve.gateway.api.completions import Completions
from thinkserve.gateway.api.messages import Messages
from thinkserve.gateway.api.responses import Responses
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.endpoint import Endpoint


def endpoints(config: GatewayConfig) -> list[Endpoint]:
    """All endpoints that generate."""
    return [ChatCompletions(config), Completions(config), Responses(config), Messages(config)]
