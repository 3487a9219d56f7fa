"""API keys: who may call, who of them is an operator, which models they may use and how much.

A key file is read in one of two forms. One key a line, with its role behind it: `sk-abc` or `sk-abc client` for a
client, `sk-xyz operator` for an operator, who may ask for thoughts (`operator:sk-xyz` is read too); empty lines and
lines that begin with `#` are passed over. Or, if the file's name ends in `.toml`, with more to say about each:

    [[keys]]
    sha256 = "2c26b4..."            # of the key, as `printf %s KEY | sha256sum` prints it; or: key = "sk-..."
    name = "billing"                # what logs call it; without one, key- and the first 8 digits of the SHA-256
    role = "client"                 # or "operator"
    models = ["thinker"]            # all models, if left out
    requests_per_minute = 60        # no limit, if left out
    tokens_per_minute = 100000

No error quotes a value of the file: each may be a key that was put in the wrong place.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from thinkserve.errors import UsageError
from thinkserve.gateway.errors import ApiError, shown

Role = Literal["client", "operator"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling. `cache_salt` keeps the engine's prefix cache apart between keys, so none can probe another's."""

    role: Role
    cache_salt: str
    id: str
    """The public name, for logs and limits; never the key. It stays the same over a reload of the keys."""
    models: frozenset[str] | None = None
    """The models it may use; None: all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def require_model(self, model: str) -> None:
        """Refuse a model that this caller may not use, in the words for one that is not there at all.

        Raises:
            ApiError: 404.
        """
        if self.models is not None and model not in self.models:
            raise ApiError(
                404,
                f"the model {shown(model)} does not exist, or your key may not use it; yours are: "
                f"{', '.join(sorted(self.models))}",
                param="model",
                code="model_not_found",
            )


@dataclass(frozen=True, slots=True)
class _Known:
    digest: bytes
    caller: Caller


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()


def _known(digest: bytes, role: Role = "client", name: str | None = None, **rights: Any) -> _Known:
    salt = hashlib.sha256(b"thinkserve cache salt:" + digest).hexdigest()
    return _Known(digest, Caller(role, salt[:32], name or f"key-{digest.hex()[:8]}", **rights))


class Keys:
    """The keys that are known; with none at all, everybody is a client.

    Args:
        roles: keys that are given outright, with their roles.
        path: a file with more of them, which `reload` reads again.

    Raises:
        UsageError: as for `reload`.
    """

    def __init__(self, roles: Mapping[str, Role], path: Path | None = None) -> None:
        self._given = [_known(_digest(key), role) for key, role in roles.items()]
        self._path = path
        self._known: list[_Known] = []
        self._anyone = None if roles or path else Caller("client", _known(b"").caller.cache_salt, "anyone")
        self.reload()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def required(self) -> bool:
        """Whether a caller must have a key."""
        return self._anyone is None

    def reload(self) -> None:
        """Read the file again. If it is wrong, the keys stay as they were.

        Raises:
            UsageError: the file cannot be read, or is wrong; names the line or the entry.
        """
        known = {entry.digest: entry for entry in self._given}
        if self._path is not None:
            entries = _read(self._path)
            if not entries:
                raise UsageError(
                    f"the key file {self._path} holds no key; write one a line ([[keys]] in a .toml), or leave "
                    "--api-keys out"
                )
            known |= {entry.digest: entry for entry in entries}
        names: set[str] = set()
        for entry in known.values():
            if _digest(entry.caller.id) in known:
                raise UsageError(f"{self._path}: a name is itself a key; names are public, so choose another")
            # Limits and logs tell callers apart by their names.
            if entry.caller.id in names:
                raise UsageError(
                    f"{self._path}: two keys have the name {entry.caller.id}; give each its own with name = ..."
                )
            names.add(entry.caller.id)
        self._known = list(known.values())

    def caller(self, authorization: str | None, x_api_key: str | None = None) -> Caller:
        """Who sent these headers: `Authorization: Bearer KEY`, or Anthropic's `X-Api-Key: KEY`.

        Where both are there, one that is known is enough: clients send along keys that are for others.

        Raises:
            ApiError: 401, neither holds a known key.
        """
        if self._anyone is not None:
            return self._anyone
        scheme, _, bearer = (authorization or "").partition(" ")
        keys = [bearer] if scheme.lower() == "bearer" else []
        keys += [x_api_key] if x_api_key is not None else []
        found = None
        for digest in [_digest(key.strip()) for key in keys]:
            # All are compared, and digests of one length are: the time tells nothing about any key.
            for known in self._known:
                if hmac.compare_digest(digest, known.digest):
                    found = found or known.caller
        if found is None:
            raise ApiError(
                401,
                "this server wants an API key: send the header `Authorization: Bearer KEY` (or `X-Api-Key: KEY`) "
                "with one it knows",
                type="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found


def read_keys(api_key: str | None, path: Path | None) -> Keys:
    """The keys of `--api-key` (a client's) and of `--api-keys FILE`.

    Raises:
        UsageError: the file cannot be read, or is wrong.
    """
    if api_key is not None:
        api_key = api_key.strip()
        if not api_key:
            raise UsageError("--api-key is empty; give a key, or leave the option out")
    return Keys({} if api_key is None else {api_key: "client"}, path)


def _read(path: Path) -> list[_Known]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise UsageError(f"cannot read the key file {path}: it is not UTF-8") from exc
    except OSError as exc:
        raise UsageError(f"cannot read the key file {path}: {exc.strerror}") from exc
    return _toml(path, text) if path.suffix == ".toml" else _lines(path, text)


def _lines(path: Path, text: str) -> list[_Known]:
    known = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, *rest = line.split()
        if not rest and key.startswith(("client:", "operator:")):
            role, _, key = key.partition(":")
            rest = [role]
        match rest:
            case [] | ["client"]:
                known.append(_known(_digest(key)))
            case ["operator"]:
                known.append(_known(_digest(key), "operator"))
            case _:
                raise UsageError(f"{path}, line {number}: write a key, then nothing, client or operator")
    return known


def _toml(path: Path, text: str) -> list[_Known]:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # endless numbers and nesting are no TOMLDecodeError
        # The words of the error may quote the file; where it stands is all that is taken of them.
        where = re.search(r"\(at ([a-z0-9, ]+)\)$", str(exc))
        raise UsageError(f"{path} is no TOML: see {where[1] if where else 'its syntax'}") from None
    entries = data.pop("keys", [])
    if data or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{path}: write the keys as [[keys]] tables, and nothing beside them")
    known: dict[bytes, _Known] = {}
    for number, entry in enumerate(entries, start=1):
        where_ = f"{path}, entry {number}"
        name = entry.get("name")
        if isinstance(name, str) and NAME.fullmatch(name) and name != entry.get("key"):
            where_ += f" ({name})"
        one = _entry(where_, entry)
        if one.digest in known:
            raise UsageError(f"{where_}: the same key is in the file above; keep one of them")
        known[one.digest] = one
    return list(known.values())


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


# What an entry may hold: when a value is right, and how that is said.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "key": (
        lambda value: isinstance(value, str) and value.isprintable() and value.split() == [value],
        "a text without spaces",
    ),
    "sha256": (
        lambda value: isinstance(value, str) and SHA256.fullmatch(value) is not None,
        "the 64 hexadecimal digits of the key's SHA-256",
    ),
    "name": (
        lambda value: isinstance(value, str) and NAME.fullmatch(value) is not None,
        "at most 64 letters, digits and . _ @ -",
    ),
    "role": (lambda value: value in ("client", "operator"), '"client" or "operator"'),
    "models": (_texts, "a list of at least one model's name"),
    "requests_per_minute": (_positive, "a whole number above 0"),
    "tokens_per_minute": (_positive, "a whole number above 0"),
}


def _entry(where: str, entry: dict[str, Any]) -> _Known:
    """One `[[keys]]` table; `where` names it in errors."""
    for field, value in entry.items():
        if field not in _FIELDS:
            called = f"a field {field!r}" if re.fullmatch("[a-z_]{1,30}", field) else "an unknown field"
            raise UsageError(f"{where}: there is {called}; the fields are {', '.join(_FIELDS)}")
        right, wanted = _FIELDS[field]
        if not right(value):
            raise UsageError(f"{where}: {field} must be {wanted}")
    rights = dict(entry)
    key, sha256 = rights.pop("key", None), rights.pop("sha256", None)
    if (key is None) == (sha256 is None):
        raise UsageError(f"{where}: give the key itself or its sha256, one of them")
    if "models" in rights:
        rights["models"] = frozenset(rights["models"])
    return _known(_digest(key) if key is not None else bytes.fromhex(sha256), **rights)
