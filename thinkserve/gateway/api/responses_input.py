"""The input of `/v1/responses`: its items, read into the messages of a chat.

What one response put out comes back as several items: a reasoning item, a message, function calls. They become one
assistant message. The reasoning item matters only where it holds its thought sealed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.fields import string
from thinkserve.gateway.request import Request

ROLES = ("user", "assistant", "system", "developer")
ITEMS = ("message", "reasoning", "function_call", "function_call_output")
# What an item may hold; what is not read has no meaning here (ids, states, a thought that is not sealed).
_KEYS = {
    "message": frozenset({"type", "id", "status", "role", "content", "phase"}),
    "reasoning": frozenset({"type", "id", "status", "summary", "content", "encrypted_content"}),
    "function_call": frozenset({"type", "id", "status", "call_id", "name", "arguments"}),
    "function_call_output": frozenset({"type", "id", "status", "call_id", "name", "output"}),
}


class ResponsesRequest(Request, frozen=True, kw_only=True):
    """A request to `/v1/responses`."""

    told: dict[str, Any] = msgspec.field(default_factory=dict)
    """What an answer says back of the request."""


@dataclass(slots=True)
class _Turn:
    """The items of one response, as far as they were read."""

    sealed: tuple[str, str] | None = None
    """What names the response, and its sealed thought."""
    message: dict[str, Any] | None = None


class Conversation:
    """The messages that the items of an input add up to.

    Args:
        instructions: what goes before them.
    """

    def __init__(self, instructions: str | None = None) -> None:
        self.messages: list[dict[str, Any]] = []
        self.sealed: dict[int, tuple[str, str]] = {}
        """As in `Request`."""
        self._turn = _Turn()
        if instructions is not None:
            self.messages.append({"role": "system", "content": instructions})

    def add(self, where: str, item: Any) -> None:
        """Take the next item.

        Args:
            where: what to call it in an error.
            item: as the client sent it.

        Raises:
            ApiError: 400, naming what is wrong with it.
        """
        if not isinstance(item, dict):
            raise invalid(where, f"{where} must be an object, not {shown(item)}")
        # The type may be left out of a message.
        kind = "message" if item.get("type") is None and "role" in item else item.get("type")
        if kind == "item_reference":
            raise invalid(
                f"{where}.type",
                f"{where}.type item_reference is refused: nothing is stored here; send the item itself",
            )
        if not isinstance(kind, str) or kind not in ITEMS:
            raise invalid(
                f"{where}.type", f"{where}.type must be one of {', '.join(ITEMS)}, not {shown(kind)}"
            )
        for key, value in item.items():
            if key not in _KEYS[kind] and value is not None:
                raise invalid(
                    f"{where}.{key[:100]}", f"{where}.{key[:100]} is not supported", code="unsupported_field"
                )
        match kind:
            case "message":
                self._add_message(where, item)
            case "reasoning":
                self._turn = _Turn(_sealed(where, item))
            case "function_call":
                self._add_call(where, item)
            case "function_call_output":
                self._turn = _Turn()
                output = _content(f"{where}.output", item.get("output"), "tool")
                call = string(f"{where}.call_id", item.get("call_id"))
                self.messages.append({"role": "tool", "tool_call_id": call, "content": output})

    def _add_message(self, where: str, item: dict[str, Any]) -> None:
        role = item.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise invalid(
                f"{where}.role", f"{where}.role must be one of {', '.join(ROLES)}, not {shown(role)}"
            )
        content = _content(f"{where}.content", item.get("content"), role)
        if role != "assistant":
            self._turn = _Turn()
            self.messages.append({"role": role, "content": content})
            return
        last = self._turn.message
        if last is not None and last["content"] is not None and self._turn.sealed is None:
            # A text of its own, unless it stood behind a call: nothing may come between a call and its result.
            self._turn = self._turn if "tool_calls" in last else _Turn()
        message = self._assistant(where, item)
        if message["content"] is None:
            message["content"] = content
        else:
            message["content"] = _parts(message["content"]) + _parts(content)

    def _add_call(self, where: str, item: dict[str, Any]) -> None:
        name, arguments = (string(f"{where}.{key}", item.get(key)) for key in ("name", "arguments"))
        call = {
            "id": string(f"{where}.call_id", item.get("call_id")),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        self._assistant(where, item).setdefault("tool_calls", []).append(call)

    def _assistant(self, where: str, item: dict[str, Any]) -> dict[str, Any]:
        """The assistant message that an item belongs to."""
        turn = self._turn
        if turn.sealed is not None:
            _check_id(where, item.get("id"), turn.sealed[0])
        if turn.message is None:
            if turn.sealed is not None:
                self.sealed[len(self.messages)] = turn.sealed
            turn.message = {"role": "assistant", "content": None}
            self.messages.append(turn.message)
        return turn.message


def read_input(value: Any, instructions: str | None, most: int) -> Conversation:
    """Read the field `input`.

    Args:
        value: a string, or the items.
        instructions: the field of that name.
        most: how many messages are taken.

    Raises:
        ApiError: 400, naming the item and what is wrong with it.
    """
    items = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise invalid(
            "input", f"input must be a string or an array with at least one item, not {shown(value)}"
        )
    conversation = Conversation(instructions)
    for at, item in enumerate(items):
        conversation.add(f"input[{at}]", item)
    if len(conversation.messages) > most:
        raise invalid("input", f"input holds {len(conversation.messages)} messages, {most} are taken")
    return conversation


def _sealed(where: str, item: dict[str, Any]) -> tuple[str, str] | None:
    """What names the response of a reasoning item, and its sealed thought, if it has one."""
    token = item.get("encrypted_content")
    if token is None:
        return None
    id = item.get("id")
    if not isinstance(id, str) or not id.startswith("rs_"):
        raise _foreign(
            f"{where}.id", f"{where}.id must be the one that its encrypted_content came with, not {shown(id)}"
        )
    return id.removeprefix("rs_"), string(f"{where}.encrypted_content", token)


def _check_id(where: str, id: Any, response: str) -> None:
    """An item that follows a sealed thought must be of the same response: ids are `msg_RESPONSE`, `fc_RESPONSE_0` ..."""
    if id is not None and (not isinstance(id, str) or id.split("_")[1:2] != [response]):
        raise _foreign(
            f"{where}.id",
            f"{where}.id {shown(id)} is of another response than the encrypted reasoning content before it; send items "
            "in the order in which they came, or leave that reasoning item out",
        )


def _foreign(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_encrypted_content")


def _content(where: str, content: Any, role: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if content == [] and role == "assistant":
        return ""
    if not isinstance(content, list) or not content:
        raise invalid(where, f"{where} must be a string or an array of parts, not {shown(content)}")
    texts = [_text(f"{where}[{at}]", part, role) for at, part in enumerate(content)]
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _text(where: str, part: Any, role: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    # What the model said in refusing is in a field of its own.
    key = "refusal" if kind == "refusal" and role == "assistant" else "text"
    if kind in ("input_text", "output_text") or key == "refusal":
        text: str = string(f"{where}.{key}", part.get(key))
        return text
    taken = "output_text" if role == "assistant" else "input_text"
    raise invalid(
        f"{where}.type", f"{where}.type must be {taken}, not {shown(kind)}: this model takes text only"
    )


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
