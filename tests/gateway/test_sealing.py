"""Sealed thoughts: only the gateway opens them, for the client and the response that they were made for, in time."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from thinkserve.errors import UsageError
from thinkserve.gateway import sealing
from thinkserve.gateway.errors import ApiError
from thinkserve.gateway.sealing import LIFETIME_SECONDS, Sealer, new_seal_key, read_seal_keys

OLD, NEW = bytes(range(32)), bytes(range(100, 132))
SEALER = Sealer({"old": OLD})
THOUGHT = "SECRET: seven times six.\n"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def seal(thought: str = THOUGHT, sealer: Sealer = SEALER) -> str:
    """A token for the client and the response of these tests."""
    return sealer.seal(thought, client="client-1", response="42")


def refusal(token: str, sealer: Sealer = SEALER, *, client: str = "client-1", response: str = "42") -> str:
    """The message that a token is refused with."""
    with pytest.raises(ApiError) as refused:
        sealer.open(token, client=client, response=response)
    assert (refused.value.status, refused.value.code) == (400, "invalid_encrypted_content")
    assert "SECRET" not in refused.value.message and "client-1" not in refused.value.message
    assert len(token) < 20 or token[:20] not in refused.value.message
    return refused.value.message


NOT_OURS = refusal("")


def raw_of(token: str) -> bytes:
    """A token's bytes."""
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def spelled(raw: bytes) -> str:
    """Bytes as a token."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


# Tokens


def test_what_is_sealed_opens_again_and_cannot_be_read_meanwhile() -> None:
    """Twice the same thought gives two tokens that share nothing but their heads."""
    one, two = seal(), seal()
    for token in (one, two):
        assert set(token) <= set(ALPHABET)
        assert b"SECRET" not in raw_of(token)
        assert SEALER.open(token, client="client-1", response="42") == THOUGHT
    head = 2 + len("old")
    assert raw_of(one)[:head] == raw_of(two)[:head]
    assert raw_of(one)[head : head + 12] != raw_of(two)[head : head + 12]
    assert raw_of(one)[head + 12 :] != raw_of(two)[head + 12 :]


ANY = st.text(st.characters(min_codepoint=0, exclude_categories=()), max_size=2000)


@given(ANY, ANY, ANY)
@example("half a pair: \ud83d", "\udfff", "\ud800")
def test_any_thought_comes_back_for_any_client_and_response(thought: str, client: str, response: str) -> None:
    """Half surrogate pairs, which JSON can carry, and NULs included."""
    token = SEALER.seal(thought, client=client, response=response)
    assert SEALER.open(token, client=client, response=response) == thought


def test_every_bit_that_is_flipped_is_refused() -> None:
    raw = raw_of(seal())
    for at in range(len(raw)):
        for bit in range(8):
            flipped = bytearray(raw)
            flipped[at] ^= 1 << bit
            assert refusal(spelled(bytes(flipped))) == NOT_OURS


def test_every_character_that_is_changed_is_refused() -> None:
    """The last one too, whose last bits a decoder passes over: else one token would have several spellings."""
    for length in range(3):  # tokens that end in each way that base64 can
        sealer = Sealer({"k" * (length + 1): OLD})
        token = seal(sealer=sealer)
        for at, character in enumerate(token):
            for other in ALPHABET if at == len(token) - 1 else ("A", "B"):
                if other != character:
                    assert refusal(token[:at] + other + token[at + 1 :], sealer) == NOT_OURS


@pytest.mark.parametrize("extra", ["=", "==", "A", "AAAA", "\n", " ", "+", "\u00e9", "\x00", "\ud800"])
def test_a_token_with_anything_added_is_refused(extra: str) -> None:
    token = seal()
    for changed in (token + extra, extra + token, token[:9] + extra + token[9:]):
        assert refusal(changed) == NOT_OURS


def test_a_token_of_the_other_base64_alphabet_is_refused() -> None:
    token = next(token for token in iter(seal, "") if "-" in token or "_" in token)
    assert refusal(token.replace("-", "+").replace("_", "/")) == NOT_OURS


def test_every_truncation_is_refused() -> None:
    token = seal()
    for length in range(len(token)):
        assert refusal(token[:length]) == NOT_OURS


@given(
    st.one_of(st.text(max_size=200), st.text(ALPHABET, max_size=2000), st.binary(max_size=900).map(spelled))
)
def test_garbage_is_refused(garbage: str) -> None:
    assert refusal(garbage) == NOT_OURS


@given(st.binary(max_size=900))
def test_garbage_under_a_known_key_is_refused(body: bytes) -> None:
    assert refusal(spelled(b"\x01\x03old" + body)) == NOT_OURS


def test_another_version_is_refused_though_all_else_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of a later gateway, with the same key: what it means is not known here."""
    monkeypatch.setattr(sealing, "_VERSION", 2)
    token = seal()
    monkeypatch.undo()
    assert raw_of(token)[0] == 2
    assert refusal(token) == NOT_OURS


def test_a_token_that_is_too_large_is_refused_though_all_else_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = seal()
    monkeypatch.setattr(sealing, "MAX_TOKEN_CHARACTERS", len(token))
    assert SEALER.open(token, client="client-1", response="42") == THOUGHT
    monkeypatch.setattr(sealing, "MAX_TOKEN_CHARACTERS", len(token) - 1)
    assert refusal(token) == NOT_OURS


def test_a_thought_has_a_largest_size_which_still_opens() -> None:
    most = "x" * sealing.MAX_THOUGHT_BYTES
    sealer = Sealer({"k" * 32: OLD})
    token = seal(most, sealer)
    assert len(token) == sealing.MAX_TOKEN_CHARACTERS
    assert sealer.open(token, client="client-1", response="42") == most
    with pytest.raises(ValueError, match="at most"):
        seal(most + "x", sealer)


# Whom and what a token is for


@pytest.mark.parametrize("client", ["", "client-2", "client-1 ", "CLIENT-1", "client-142", "42"])
def test_another_client_is_refused(client: str) -> None:
    assert refusal(seal(), client=client) == NOT_OURS


@pytest.mark.parametrize("response", ["", "43", "42 ", "client-142", "42\n", "4"])
def test_another_response_is_refused(response: str) -> None:
    assert refusal(seal(), response=response) == NOT_OURS


def test_no_part_of_the_client_passes_for_a_part_of_the_response() -> None:
    """Joined texts would be the same."""
    token = SEALER.seal(THOUGHT, client="ab", response="c")
    assert refusal(token, client="a", response="bc") == NOT_OURS
    assert refusal(token, client="abc", response="") == NOT_OURS
    assert refusal(token, client="c", response="ab") == NOT_OURS


# Rotation


def test_a_new_key_seals_while_the_old_one_still_opens() -> None:
    token = seal()
    rotated = Sealer({"new": NEW, "old": OLD})
    assert rotated.open(token, client="client-1", response="42") == THOUGHT
    fresh = seal(sealer=rotated)
    assert raw_of(fresh)[2:5] == b"new"
    assert refusal(fresh) == NOT_OURS
    assert rotated.open(fresh, client="client-1", response="42") == THOUGHT


def test_a_key_that_was_removed_opens_nothing() -> None:
    assert refusal(seal(), Sealer({"new": NEW})) == NOT_OURS


def test_another_key_of_the_same_name_opens_nothing() -> None:
    assert refusal(seal(), Sealer({"old": NEW})) == NOT_OURS


def test_a_token_does_not_open_under_the_name_of_another_key() -> None:
    """The id is authenticated: also where both names stand for one key."""
    both = Sealer({"old": OLD, "new": OLD})
    assert refusal(spelled(raw_of(seal()).replace(b"\x03old", b"\x03new", 1)), both) == NOT_OURS


# Time


def test_a_token_expires() -> None:
    """To the second, and in words that differ; but only its owner is told."""
    now = 1_000_000.0
    sealer = Sealer({"old": OLD}, lifetime=60, clock=lambda: now)
    token = seal(sealer=sealer)
    now += 59.9
    assert sealer.open(token, client="client-1", response="42") == THOUGHT
    now += 0.1
    assert "expired" in refusal(token, sealer)
    assert refusal(token, sealer, client="client-2") == NOT_OURS
    assert "expired" not in NOT_OURS


def test_a_token_is_good_for_seven_days_by_default() -> None:
    now = 1_000_000.0
    sealer = Sealer({"old": OLD}, clock=lambda: now)
    token = seal(sealer=sealer)
    now += 7 * 24 * 3600 - 1
    assert sealer.open(token, client="client-1", response="42") == THOUGHT
    now += 1
    assert "expired" in refusal(token, sealer)
    assert LIFETIME_SECONDS == 7 * 24 * 3600


# Length


def test_thoughts_of_about_one_length_have_tokens_of_one_length() -> None:
    """The smallest has 512 bytes inside: 12 of them are not the thought's."""
    assert len({len(seal("x" * length)) for length in range(501)}) == 1
    assert len(seal("x" * 501)) > len(seal("x" * 500))


def test_a_long_thought_is_padded_by_at_most_a_quarter_and_tells_little() -> None:
    lengths = [len(raw_of(seal("x" * length))) for length in range(4096, 65536, 97)]
    assert len(set(lengths)) <= 4 * 4 + 1
    for length, sealed in zip(range(4096, 65536, 97), lengths, strict=True):
        assert length < sealed < length * 1.26 + 100


# Key files


def write(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    """A key file."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def line(id: str, key: bytes) -> str:
    """A line of it."""
    return f"{id} {base64.b64encode(key).decode()}\n"


def test_a_key_file_has_the_sealing_key_first(tmp_path: Path) -> None:
    """Comments, empty lines, tabs and both base64 alphabets are fine."""
    other = b"\xff\xef\xbe" * 10 + b"\xfb\xff"
    urlsafe = base64.urlsafe_b64encode(other).decode()
    assert "_" in urlsafe and "-" in urlsafe
    text = f"# ours\n\n  {line('new', NEW)}{line('old', OLD)}third.3_-\t {urlsafe} \r\n"
    sealer = read_seal_keys(write(tmp_path / "keys", text))
    assert raw_of(seal(sealer=sealer))[2:5] == b"new"
    for key in (Sealer({"new": NEW}), Sealer({"old": OLD}), Sealer({"third.3_-": other})):
        assert sealer.open(seal(sealer=key), client="client-1", response="42") == THOUGHT


def test_a_key_file_takes_the_lifetime_and_the_clock(tmp_path: Path) -> None:
    now = 0.0
    sealer = read_seal_keys(write(tmp_path / "keys", line("a", OLD)), lifetime=5, clock=lambda: now)
    token = seal(sealer=sealer)
    now = 5.0
    assert "expired" in refusal(token, sealer)


def test_new_keys_make_a_key_file(tmp_path: Path) -> None:
    """Each is another, and their ids are too."""
    lines = [new_seal_key() for _ in range(50)]
    assert len({text.split()[0] for text in lines}) == len({text.split()[1] for text in lines}) == 50
    sealer = read_seal_keys(write(tmp_path / "keys", "\n".join(lines)))
    assert raw_of(seal(sealer=sealer))[2:].startswith(lines[0].split()[0].encode())
    assert sealer.open(seal(sealer=sealer), client="client-1", response="42") == THOUGHT


SECRET = base64.b64encode(OLD).decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("# nothing\n\n", "holds no key"),
        (SECRET, "line 1"),
        (f"a {SECRET}\n{SECRET}\n", "line 2"),
        (f"a {SECRET[:-4]}", "line 1"),
        (f"a {SECRET}{SECRET}", "line 1"),
        (f"a {SECRET} {SECRET}", "line 1"),
        (f"a {base64.b64encode(OLD[:31]).decode()}", "32 bytes"),
        (f"a {base64.b64encode(OLD + OLD).decode()}", "32 bytes"),
        (f"a {SECRET[:-1]}", "line 1"),
        (f"a !{SECRET}", "line 1"),
        ("a", "line 1"),
        (f"a:b {SECRET}", "line 1"),
        (f"{'a' * 33} {SECRET}", "line 1"),
        (f"\u00e9 {SECRET}", "line 1"),
        (f"a {SECRET}\nb {SECRET}\na {SECRET}", "line 3"),
        (f"a {SECRET}\n".encode() + b"\xff", "no text"),
        ("a " + SECRET + "\n" + "#" * 2**16, "more than 65536 bytes"),
    ],
)
def test_a_key_file_that_is_wrong_is_refused_without_quoting_a_key(
    text: str | bytes, words: str, tmp_path: Path
) -> None:
    """In one line that names the file; nothing of a line, whose every part may be the key."""
    path = write(tmp_path / "keys", text)
    with pytest.raises(UsageError) as refused:
        read_seal_keys(path)
    message = str(refused.value)
    assert words in message and str(path) in message and "\n" not in message
    assert SECRET[:10] not in message and refused.value.__cause__ is None


def test_a_key_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="cannot read the seal key file"):
            read_seal_keys(path)


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o601, 0o660, 0o620, 0o777])
def test_a_key_file_that_others_can_use_is_refused(mode: int, tmp_path: Path) -> None:
    """With the command that mends it; also behind a link, where the link's own mode would say nothing."""
    path = write(tmp_path / "keys", line("a", OLD), mode)
    (tmp_path / "link").symlink_to(path)
    for name in (path, tmp_path / "link"):
        with pytest.raises(UsageError, match=f"chmod 600 {name}"):
            read_seal_keys(name)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_a_key_file_that_a_group_may_read_is_taken(mode: int, tmp_path: Path) -> None:
    """Kubernetes mounts a Secret for a container that is not root so: owned by root, readable by a group, behind a link."""
    path = write(tmp_path / "keys", line("a", OLD), mode)
    (tmp_path / "link").symlink_to(path)
    assert read_seal_keys(path)
    assert read_seal_keys(tmp_path / "link")


# The package


def test_without_cryptography_the_message_has_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(UsageError, match="pip install"):
        read_seal_keys(write(tmp_path / "keys", line("a", OLD)))


def test_cryptography_is_imported_only_where_there_are_keys() -> None:
    code = "import sys, thinkserve.gateway.sealing; print('cryptography' in sys.modules)"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
