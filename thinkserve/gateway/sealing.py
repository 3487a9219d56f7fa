"""Sealed thoughts, for clients that keep a conversation themselves: they carry a thought they cannot read.

A client that asks for `reasoning.encrypted_content` gets the thought of each response as a token, and sends it back
with the next turn. Only a gateway that has the key opens it, so no gateway needs a store, and none needs to trust what
comes back: a token that was changed, moved to another client or another response, or kept too long is refused.

    token   base64url( version | length of key id | key id | nonce | AES-256-GCM( expiry | length | thought | padding ) )

The version, the key's id, the client and the response are authenticated with it. The padding hides the thought's
length but for its rough size.

The key file has one key a line, `ID BASE64KEY`. The first seals and all open: to rotate, put a new line on top, and take
the old one out once what it sealed has expired. A key is good for 2**32 seals: its nonces are random.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
import stat
import struct
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from thinkserve.errors import UsageError
from thinkserve.gateway.errors import ApiError

LIFETIME_SECONDS = 7 * 86400.0
MAX_THOUGHT_BYTES = 4 * 2**20
KEY_BYTES = 32

_VERSION = 1
_NONCE_BYTES = 12
_TAG_BYTES = 16
_INNER = struct.Struct(">dI")  # when it expires (seconds since 1970), the thought's length in bytes
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
_MAX_FILE_BYTES = 64 * 2**10
_SMALLEST_BUCKET = 512


class Sealer:
    """Seals thoughts and opens them again.

    Args:
        keys: the keys by their ids; the first seals, all open.
        lifetime: how long a token is good for, in seconds.
        clock: tells the time, in seconds since 1970.

    Raises:
        UsageError: the package `cryptography` is not installed.
    """

    __slots__ = ("_ciphers", "_clock", "_invalid_tag", "_lifetime", "_sealing_id")

    def __init__(
        self,
        keys: Mapping[str, bytes],
        *,
        lifetime: float = LIFETIME_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as exc:
            raise UsageError("sealing thoughts needs a package; run: pip install cryptography") from exc
        self._invalid_tag = InvalidTag
        self._ciphers = {id.encode("ascii"): AESGCM(key) for id, key in keys.items()}
        self._sealing_id = next(iter(self._ciphers))
        self._lifetime = lifetime
        self._clock = clock

    def seal(self, thought: str, *, client: str, response: str) -> str:
        """A token that holds the thought, good for this client and in front of this response only.

        Args:
            thought: what is hidden.
            client: who may send it back: the caller's id.
            response: what followed the thought, tool calls included, as one string.

        Raises:
            ValueError: the thought has more than `MAX_THOUGHT_BYTES`.
        """
        plain = _bytes(thought)
        if len(plain) > MAX_THOUGHT_BYTES:
            raise ValueError(f"a thought of {len(plain)} bytes; at most {MAX_THOUGHT_BYTES} can be sealed")
        inner = _INNER.pack(self._clock() + self._lifetime, len(plain)) + plain
        inner += bytes(_bucket(len(inner)) - len(inner))
        head = bytes([_VERSION, len(self._sealing_id)]) + self._sealing_id
        nonce = secrets.token_bytes(_NONCE_BYTES)
        cipher = self._ciphers[self._sealing_id]
        return _encode(head + nonce + cipher.encrypt(nonce, inner, _bound_to(head, client, response)))

    def open(self, sealed: str, *, client: str, response: str) -> str:
        """The thought that a token holds.

        Raises:
            ApiError: 400, the token was not made by `seal` for this client and response, or it has expired.
        """
        raw = _decode(sealed)
        head, body = raw[: 2 + raw[1]], raw[2 + raw[1] :]
        cipher = self._ciphers.get(head[2:])
        if head[0] != _VERSION or cipher is None or len(body) < _NONCE_BYTES + _TAG_BYTES + _INNER.size:
            raise _not_ours()
        nonce, data = body[:_NONCE_BYTES], body[_NONCE_BYTES:]
        try:
            inner = cipher.decrypt(nonce, data, _bound_to(head, client, response))
        except self._invalid_tag:
            raise _not_ours() from None
        expiry, length = _INNER.unpack_from(inner)
        # Only now: whether a token has expired is nobody's business but its owner's.
        if self._clock() >= expiry:
            raise _refused("the encrypted reasoning content has expired; leave this reasoning item out")
        return inner[_INNER.size : _INNER.size + length].decode("utf-8", errors="surrogatepass")


def new_seal_key() -> str:
    """A line for a key file: a new key; its id is the time and a random part."""
    id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    return f"{id} {base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode('ascii')}"


def read_seal_keys(
    path: Path, *, lifetime: float = LIFETIME_SECONDS, clock: Callable[[], float] = time.time
) -> Sealer:
    """The sealer with the keys of a file (`--seal-keys FILE`).

    Args:
        path: the key file; empty lines and lines that begin with `#` are passed over.
        lifetime: how long a token is good for, in seconds.
        clock: tells the time, in seconds since 1970.

    Raises:
        UsageError: the file cannot be read, others can read it, or a line of it is no key. No message quotes a key.
    """
    keys: dict[str, bytes] = {}
    for number, line in enumerate(_read_private(path).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path}, line {number}"
        id, *text = line.split(maxsplit=1)
        key = _key("".join(text).strip())
        # The line holds a secret, so it is not quoted: its first word may be the key where the id was forgotten.
        if _KEY_ID.fullmatch(id) is None or key is None:
            raise UsageError(
                f"{where}: write `ID KEY`: an id of at most 32 letters, digits, dots, dashes and underscores, and {KEY_BYTES} bytes "
                "in base64; `thinkserve seal-key` makes such a line"
            )
        if id in keys:
            raise UsageError(f"{where}: a line above has the same id; give each key an id of its own")
        keys[id] = key
    if not keys:
        raise UsageError(f"the seal key file {path} holds no key; `thinkserve seal-key` makes a line for it")
    return Sealer(keys, lifetime=lifetime, clock=clock)


def _read_private(path: Path) -> str:
    """The text of a file that must be nobody else's to read or write."""
    try:
        with path.open("rb") as file:
            # Of what was opened, not of what the path names by now. A group may read: Kubernetes mounts secrets so.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise UsageError(f"cannot read the seal key file {path}: {exc.strerror or exc}") from exc
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise UsageError(
            f"the seal key file {path} is open to others (mode {mode:04o}); run: chmod 600 {path}"
        )
    if len(raw) > _MAX_FILE_BYTES:
        raise UsageError(
            f"the seal key file {path} has more than {_MAX_FILE_BYTES} bytes; is it another file?"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        # The error would quote a byte of it.
        raise UsageError(f"the seal key file {path} is no text; is it another file?") from None


def _key(text: str) -> bytes | None:
    """The key that a line gives in base64, of either alphabet."""
    try:
        key = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == KEY_BYTES else None


def _bound_to(head: bytes, client: str, response: str) -> bytes:
    """What is authenticated with a thought. Digests have one length, so no two cases look alike."""
    digests = (hashlib.sha256(_bytes(text)).digest() for text in (client, response))
    return b"thinkserve sealed thought" + head + b"".join(digests)


def _bucket(size: int) -> int:
    """The size to pad to: a multiple of 512 bytes, and above 4 KiB one of four sizes a doubling."""
    step = max(_SMALLEST_BUCKET, 1 << max(0, size.bit_length() - 3))
    return -(-size // step) * step


# The longest token that `seal` makes: base64 has four characters for three bytes.
MAX_TOKEN_CHARACTERS = -(
    -4 * (2 + 32 + _NONCE_BYTES + _TAG_BYTES + _bucket(_INNER.size + MAX_THOUGHT_BYTES)) // 3
)


def _bytes(text: str) -> bytes:
    # A model's text may hold half a surrogate pair; it must neither fail here nor come back as something else.
    return text.encode("utf-8", errors="surrogatepass")


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _decode(sealed: str) -> bytes:
    """The bytes of a token, at least a version and the length of an id.

    Only the spelling that `seal` writes is taken: a decoder passes over foreign characters, and over the last bits
    of the last one, so that one token would have many spellings.
    """
    if len(sealed) > MAX_TOKEN_CHARACTERS:
        raise _not_ours()
    try:
        raw = base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
    except (binascii.Error, ValueError):
        raise _not_ours() from None
    if len(raw) < 2 or _encode(raw) != sealed:
        raise _not_ours()
    return raw


def _not_ours() -> ApiError:
    """One message for whatever is wrong with a token: it tells nobody whose it is, or which keys there are."""
    return _refused(
        "the encrypted reasoning content could not be verified; send it back unchanged, with the key of the client "
        "that got it and in front of the same response, or leave this reasoning item out"
    )


def _refused(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_encrypted_content", param="input")
