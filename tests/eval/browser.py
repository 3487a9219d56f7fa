"""A headless Chromium, driven over the WebDriver protocol with nothing but the standard library."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

NEEDED = ("chromedriver", "chromium")
MISSING = [name for name in NEEDED if shutil.which(name) is None]
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]


class Browser:
    """One tab."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._open = build_opener(ProxyHandler({})).open
        self._session = ""

    def start(self) -> None:
        """Wait for the driver, then open the tab."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self._call("GET", "/status")
                break
            except (URLError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        options = {"args": ARGUMENTS, "binary": shutil.which("chromium")}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        found = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{found['sessionId']}"

    def show(self, page: Path, *, width: int, dark: bool = False, scripts: bool = True) -> None:
        """Load a page from its file at a width in pixels, a phone's below 600."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.command("Emulation.setScriptExecutionDisabled", value=not scripts)
        # By way of an empty page: the driver takes the old one for loaded where both have one address.
        for address in ("about:blank", page.as_uri()):
            self._call("POST", f"{self._session}/url", {"url": address})
            self._wait_for(address)

    def _wait_for(self, address: str) -> None:
        deadline = time.monotonic() + 30
        while self.evaluate("return [location.href, document.readyState]") != [address, "complete"]:
            assert time.monotonic() < deadline, f"{address} was not loaded"
            time.sleep(0.02)

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._call("POST", f"{self._session}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def evaluate(self, script: str) -> Any:
        """What a function with this body returns."""
        found = self.command("Runtime.evaluate", expression=f"(() => {{ {script} }})()", returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def console(self) -> list[str]:
        """What was written to the console since the last call: errors, and what the page's policy forbade."""
        found = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in found]

    def requested(self) -> list[str]:
        """The addresses that were asked for since the last call."""
        found = self._call("POST", f"{self._session}/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in found]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
            and event["params"]["request"]["url"] != "about:blank"
        ]

    def close(self) -> None:
        """Close the tab and the browser."""
        if self._session:
            self._call("DELETE", self._session)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._base + path, method=method, data=data)
        with self._open(request, timeout=60) as response:
            return json.loads(response.read())["value"]


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser for some tests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    tab = Browser(port)
    try:
        tab.start()
        yield tab
    finally:
        try:
            tab.close()
        finally:
            driver.terminate()
            driver.wait(30)


_OVERFLOW = """
  const wide = document.scrollingElement.scrollWidth - innerWidth;
  return [wide, wide <= 0 ? [] : Array.from(document.querySelectorAll("body *"))
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).slice(0, 5).map((e) => e.outerHTML.slice(0, 120))];
"""
OPEN = "document.querySelectorAll('details').forEach((e) => (e.open = true));"


def check_page(tab: Browser, page: Path) -> None:
    """Everything unfolded, the page is never wider than the screen, and asks for nothing but itself."""
    tab.requested()
    for width, dark in ((360, True), (768, False), (1280, False)):
        tab.show(page, width=width, dark=dark)
        assert tab.evaluate(_OVERFLOW) == [0, []], width
        assert tab.evaluate(OPEN + _OVERFLOW) == [0, []], width
        assert tab.evaluate("return window.hacked ?? null") is None
    assert tab.console() == []
    assert set(tab.requested()) == {page.as_uri()}
