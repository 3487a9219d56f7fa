"""Which URLs name an engine, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from thinkserve.engines.engine import Endpoint, Engine
from thinkserve.engines.remote import RemoteEngine
from thinkserve.errors import UsageError


@pytest.mark.parametrize(
    ("url", "base_url"),
    [
        ("http://host:8000", "http://host:8000"),
        ("http://host:8000/", "http://host:8000"),
        ("http://host:8000/v1", "http://host:8000"),
        ("http://host:8000/v1/", "http://host:8000"),
        (" https://api.example.com/v1\n", "https://api.example.com"),
        ("https://example.com/llm/v1/", "https://example.com/llm"),
        ("https://example.com/v1/llm", "https://example.com/v1/llm"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_the_base_url_ends_before_v1_and_slash(url: str, base_url: str) -> None:
    assert RemoteEngine(url).endpoint == Endpoint(base_url=base_url)


def test_a_unix_socket_is_read_from_its_url() -> None:
    endpoint = RemoteEngine("unix:///run/my%20engine.sock").endpoint
    assert endpoint == Endpoint(base_url="http://localhost", uds=Path("/run/my engine.sock"))


def test_the_api_key_is_part_of_the_endpoint() -> None:
    assert RemoteEngine("http://host", api_key="k").endpoint.api_key == "k"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:8000",
        "localhost",
        "ftp://host",
        "http://",
        "http:///v1",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://host/v1?key=1",
        "http://host/#top",
        "unix://engine.sock",
        "unix:///",
        "unix:engine.sock",
    ],
)
def test_anything_else_is_refused_by_name(url: str) -> None:
    with pytest.raises(UsageError) as error:
        RemoteEngine(url)
    assert repr(url) in str(error.value)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="API key") as error:
        RemoteEngine("http://user:secret@host")
    assert "secret" not in str(error.value)


async def test_starting_needs_no_server_and_stopping_stops_nothing() -> None:
    engine: Engine = RemoteEngine("http://127.0.0.1:1")
    await engine.start()
    await engine.stop()
    await engine.stop()
    assert (engine.name, engine.restarts, engine.failed) == ("remote", 0, None)
