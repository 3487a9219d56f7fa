"""Values of every kind, for the tests of the tables of fields: what is wrong in a field gets a 400 that names it."""

from __future__ import annotations

import msgspec

from tests.gateway.conftest import Running
from tests.gateway.scripted import JSON

HUGE = b"1" + b"0" * 400
WRONG: dict[str, bytes] = {
    "an empty object": b"{}",
    "an object": b'{"a": {"b": [null, {"c": []}]}}',
    "an empty array": b"[]",
    "an array": b'[[], {}, null, 1, "x"]',
    "strings": b'["a", "b", "c", "d", "e"]',
    "a string": b'"zzz"',
    "an empty string": b'""',
    "a digit string": b'"1"',
    "a null character": b'"\\u0000"',
    "true": b"true",
    "minus five": b"-5",
    "one and a half": b"1.5",
    "a million": b"1000000",
    "a huge integer": HUGE,
    "a huge negative integer": b"-" + HUGE,
    "an absurd integer": b"1" + b"0" * 6000,
    "a huge float": b"1e308",
    "no float": b"1e999",
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "a lone surrogate": b'"\\ud800 and more"',
    "a lone low surrogate": b'"\\udc00\\udc00"',
    "no UTF-8": b'"\xff\xfe"',
    "a deep array": b"[" * 300 + b"]" * 300,
    "a deep object": b'{"a":' * 300 + b"1" + b"}" * 300,
    "a long string": b'"' + b"x" * 100_000 + b'"',
}
TEXTS = {"a string", "an empty string", "a digit string", "a null character", "a long string"}
NO_JSON = {
    "an absurd integer",
    "no float",
    "NaN",
    "Infinity",
    "a lone surrogate",
    "a lone low surrogate",
    "no UTF-8",
}


async def check_wrong_values(running: Running, path: str, name: str, beside: JSON, right: set[str]) -> None:
    """Put every value into one field of an endpoint of OpenAI's.

    Args:
        running: the gateway.
        path: the endpoint.
        name: the field.
        beside: the rest of the body.
        right: those of the values that the field takes.
    """
    rest = {key: value for key, value in beside.items() if key != name}
    members = [b'"%s":%s' % (key.encode(), msgspec.json.encode(value)) for key, value in rest.items()]
    for what, value in WRONG.items():
        body = b"{%s}" % b",".join([*members, b'"%s":' % name.encode() + value])
        async with running.http.post(running.url + path, data=body) as response:
            status, raw = response.status, await response.read()
        if what in right:
            assert status == 200, (what, raw)
            continue
        error = msgspec.json.decode(raw)["error"]
        assert len(error["message"]) < 400, what
        if what in NO_JSON:
            assert (status, error["code"]) == (400, "invalid_json"), what
        elif name == "model" and what in TEXTS:
            assert (status, error["code"], error["param"]) == (404, "model_not_found", "model"), what
        else:
            assert status == 400 and name in error["message"], (what, error)
            assert error["param"].startswith(name), (what, error)
