"""API keys: who may call, and who of them is an operator.

A key file has one key a line, with its role behind it: `sk-abc` or `sk-abc client` for a client, `sk-xyz operator` for an
operator, who may ask for thoughts (`operator:sk-xyz` is read too). Empty lines and lines that begin with `#` are passed over.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thinkserve.errors import UsageError
from thinkserve.gateway.errors import ApiError

Role = Literal["client", "operator"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling. `cache_salt` keeps the engine's prefix cache apart between keys, so none can probe another's."""

    role: Role
    cache_salt: str


def _digest(key: str) -> bytes:
    return hashlib.sha256(b"thinkserve key:" + key.encode("utf-8", errors="surrogateescape")).digest()


def _caller(key: str, role: Role) -> Caller:
    salt = hashlib.sha256(
        b"thinkserve cache salt:" + key.encode("utf-8", errors="surrogateescape")
    ).hexdigest()
    return Caller(role, salt[:32])


class Keys:
    """The keys that are known; with none at all, everybody is a client."""

    def __init__(self, roles: dict[str, Role]) -> None:
        self._known = [(_digest(key), _caller(key, role)) for key, role in roles.items()]
        self._anyone = None if roles else _caller("", "client")

    @property
    def required(self) -> bool:
        """Whether a caller must have a key."""
        return self._anyone is None

    def caller(self, authorization: str | None) -> Caller:
        """Who sent this `Authorization` header.

        Raises:
            ApiError: 401, the header is missing or holds no known key.
        """
        if self._anyone is not None:
            return self._anyone
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        found = None
        # All are compared, and digests of one length are: the time tells nothing about any key.
        for known, caller in self._known:
            if hmac.compare_digest(digest, known):
                found = caller
        if found is None or scheme.lower() != "bearer":
            raise ApiError(
                401,
                "this server wants an API key: send the header `Authorization: Bearer KEY` with one it knows",
                type="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found


def read_keys(api_key: str | None, path: Path | None) -> Keys:
    """The keys of `--api-key` (a client's) and of `--api-keys FILE`.

    Raises:
        UsageError: the file cannot be read, or a line of it is no key with a role.
    """
    roles: dict[str, Role] = {api_key: "client"} if api_key else {}
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(f"cannot read the key file {path}: {exc}") from exc
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            key, *rest = line.split()
            if not rest and key.startswith(("client:", "operator:")):
                role, _, key = key.partition(":")
                rest = [role]
            match rest:
                case [] | ["client"]:
                    roles[key] = "client"
                case ["operator"]:
                    roles[key] = "operator"
                case _:
                    # The line holds a secret, so it is not quoted.
                    raise UsageError(f"{path}, line {number}: write a key, then nothing, client or operator")
        if not roles:
            raise UsageError(f"the key file {path} holds no key; write one a line, or leave --api-keys out")
    return Keys(roles)
