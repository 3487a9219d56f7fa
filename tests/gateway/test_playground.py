"""The playground in a real browser, in front of a real gateway and a scripted engine."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.resources import files
from typing import Any

import pytest
from aiohttp import web

from tests.eval.browser import MISSING, Browser, browser
from tests.gateway.conftest import StartGateway
from tests.gateway.scripted import (
    ErrorEvent,
    Recorded,
    Script,
    ScriptedUpstream,
    Stall,
    Status,
    Step,
    Wait,
    chunked,
)
from thinkserve.gateway.keys import Role
from thinkserve.gateway.playground import add_playground

in_browser = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} on the path")
KEYS: dict[str, Role] = {"sk-client": "client", "sk-operator": "operator"}
THOUGHT = "Here is my thought process:\nFirst I look at it.\n"
MARKER = "Here is my response:\n"
TEXT = "log.querySelector('.prose')?.textContent"
FOOT = "log.querySelector('.lane footer').textContent"
STATUS = "document.getElementById('status').textContent"


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as found:
        yield found


class Page:
    """The page in a tab; the driver blocks, so every call runs in a thread beside the gateway."""

    def __init__(self, tab: Browser) -> None:
        self._tab = tab
        self.url = ""

    async def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return await asyncio.to_thread(self._tab.command, name, **parameters)

    async def look(
        self, width: int = 1280, height: int = 900, *, dark: bool = False, still: bool = False
    ) -> None:
        """Set the screen, the colours and whether things may move."""
        phone = width < 600
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )  # fmt: skip
        await self.command("Emulation.setTouchEmulationEnabled", enabled=phone)
        features = {"color-scheme": "dark" if dark else "light", "reduced-motion": "reduce" if still else ""}
        await self.command(
            "Emulation.setEmulatedMedia",
            features=[{"name": f"prefers-{name}", "value": value} for name, value in features.items()],
        )

    async def open(self, url: str) -> None:
        """Load the page and wait until it has asked for the models."""
        self.url = url
        await asyncio.to_thread(self.forget)
        await self.command("Page.navigate", url=f"{url}/")
        await self.until(
            "document.readyState === 'complete' && window.model?.options.length + hint().length > 0"
        )

    def forget(self) -> None:
        """Forget what was logged and asked for."""
        self._tab.console()
        self._tab.requested()

    async def js(self, expression: str) -> Any:
        """The value of an expression; promises are waited for."""
        helpers = "const hint = () => document.getElementById('model-hint')?.textContent ?? '';"
        found = await self.command(
            "Runtime.evaluate",
            expression=f"{{ {helpers} {expression} }}",
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        for _ in range(400):
            if await self.js(expression):
                return
            await asyncio.sleep(0.02)
        raise AssertionError(
            f"never true: {expression}; the page: {await self.js('document.body.innerText')}"
        )

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key where the focus is."""
        text = {"Enter": "\r"}.get(key, "")
        code = {"Enter": 13, "Tab": 9, "Escape": 27}[key]
        known = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        await self.command("Input.dispatchKeyEvent", type="keyDown", text=text, **known)
        await self.command("Input.dispatchKeyEvent", type="keyUp", **known)

    async def write(self, text: str) -> None:
        """Write where the focus is."""
        await self.command("Input.insertText", text=text)

    async def send(self, text: str = "Hello?") -> None:
        """Write a message and send it with Enter."""
        await self.js("message.focus()")
        await self.write(text)
        await self.press("Enter")

    async def fill(self, name: str, value: str) -> None:
        """Set a field of the settings as its user would."""
        await self.js(
            f"const field = document.getElementById({name!r}); field.value = {value!r}; "
            "field.dispatchEvent(new Event('change'))"
        )

    async def done(self) -> None:
        """Wait until nothing runs."""
        await self.until("send.textContent === 'Send' && document.querySelector('.lane') !== null")

    async def named(self) -> list[tuple[str, str]]:
        """The roles and names of what a screen reader tells; no control is without a name."""
        roles = {"button", "textbox", "combobox", "spinbutton", "checkbox", "link", "form", "log", "article"}
        nodes = (await self.command("Accessibility.getFullAXTree"))["nodes"]
        found = [(node["role"]["value"], node["name"]["value"]) for node in nodes if not node["ignored"]]
        found = [(role, name) for role, name in found if role in roles]
        assert all(name for _, name in found), found
        return found

    async def allow_clipboard(self) -> None:
        """Let the tests read what was copied."""
        await self.command(
            "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
        )  # fmt: skip

    def logged(self) -> list[str]:
        """What the page wrote to the console: the browser's own lines about refused requests aside."""
        return [line for line in self._tab.console() if "Failed to load resource" not in line]

    def asked(self) -> set[str]:
        """Where the page's requests went to: scheme and host."""
        return {
            re.sub(r"(?<=\w)/.*", "", url) for url in self._tab.requested() if not url.startswith("data:")
        }


async def eventually(true: Callable[[], bool]) -> None:
    """Wait until something is true on the side of the engine."""
    for _ in range(200):
        if true():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("never true")


@pytest.fixture
async def page(tab: Browser) -> AsyncIterator[Page]:
    """A page; whatever a test does, it writes nothing to the console, breaks no policy and asks nobody else."""
    found = Page(tab)
    await found.look()
    yield found
    logged, asked = await asyncio.to_thread(lambda: (found.logged(), found.asked()))
    await found.command("Page.navigate", url="about:blank")
    assert logged == []
    assert asked <= {found.url}


Serve = Callable[[web.Application], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serves an application of the test's own beside the page."""
    runners = []

    async def models(http: web.Request) -> web.Response:
        key = http.headers.get("Authorization", "").removeprefix("Bearer ")
        await asyncio.sleep(0.3 if key == "slow" else 0)
        return web.json_response({"data": [{"id": f"made for {key or 'all'}"}]})

    async def start(app: web.Application) -> str:
        add_playground(app)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


def answering(*choices: dict[str, Any], end: bytes = b"data: [DONE]\n\n") -> web.Application:
    """An application that answers every chat completion with these choices of a stream."""
    events = [{"choices": [choice]} for choice in choices]
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\r\n\r\n" for event in events) + end

    async def answer(http: web.Request) -> web.Response:
        return web.Response(body=b": thinking\n\n" + body, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    return app


# The files


async def test_the_page_and_its_files_are_served_and_nothing_else(start_gateway: StartGateway) -> None:
    """Without a key, with types and policy, to GET and HEAD, and again only when they have changed."""
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url, keys=KEYS)
        names = {path.name for path in files("thinkserve.web").iterdir() if path.name[0] not in "._"}
        paths = {"/": "text/html"} | {f"/playground/{name}": "" for name in names - {"index.html"}}
        assert len(paths) >= 8
        for path, kind in paths.items():
            async with running.http.get(running.url + path) as response:
                body = await response.read()
                assert response.status == 200 and body
                assert response.headers["Content-Type"].startswith(kind)
                tag, policy = response.headers["ETag"], response.headers["Content-Security-Policy"]
                assert "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'" in policy
                assert "unsafe" not in policy
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Referrer-Policy"] == "no-referrer"
                assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                assert response.headers["Cache-Control"] == "no-cache"
            async with running.http.head(running.url + path) as response:
                assert response.status == 200 and await response.read() == b""
                assert int(response.headers["Content-Length"]) == len(body)
                assert response.headers["ETag"] == tag
            for known, status in ((tag, 304), (f'"old", W/{tag}', 304), ('"old"', 200)):
                async with running.http.get(running.url + path, headers={"If-None-Match": known}) as response:
                    assert response.status == status
                    assert response.headers["ETag"] == tag
        for path in (
            "/playground/__init__.py",
            "/playground/index.html",
            "/playground/",
            "/playground/../app.py",
        ):
            async with running.http.get(running.url + path) as response:
                assert response.status == 404
        async with running.http.post(running.url + "/") as response:
            assert response.status == 404 and (await response.json())["error"]["code"] == "unknown_url"


def test_no_file_can_turn_text_into_markup_or_ask_somebody_else() -> None:
    """Nor has the page a script or style of its own that a policy would have to let pass."""
    sources = {
        path.name: path.read_text() for path in files("thinkserve.web").iterdir() if path.name[0] not in "._"
    }
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|setHTML|srcdoc|"
        r"createContextualFragment|localStorage|document\.cookie|<script>|<style|style=|\son\w+=|@import|https?:(?!//www\.w3\.org/2000/svg)"
    )
    assert sum(name.endswith(".js") for name in sources) >= 3
    for name, source in sources.items():
        assert forbidden.search(source) is None, (name, forbidden.search(source))


# A response


@in_browser
async def test_a_response_streams_below_the_time_of_its_thought(
    page: Page, start_gateway: StartGateway
) -> None:
    """The time counts up and stops with the first word; the text comes piece by piece, the counts at the end."""
    begin, go_on = asyncio.Event(), asyncio.Event()
    chunks: list[Step] = [*chunked(THOUGHT, 9), Wait(begin), MARKER, "One ", "two ", Wait(go_on), "three."]
    async with ScriptedUpstream(Script(chunks)) as upstream:
        running = await start_gateway(upstream.url, keepalive_seconds=0.1)
        await page.open(running.url)
        await page.send("Count!")
        await page.until(
            "/^thinking [1-9]|^thinking 0.[3-9] s$/.test(log.querySelector('.pace')?.textContent)"
        )
        assert await page.js(TEXT) == ""
        assert await page.js("send.textContent") == "Stop"
        assert await page.js("log.querySelector('.lane').getAttribute('aria-busy')") == "true"
        begin.set()
        await page.until(f"{TEXT} === 'One two '")
        pace = await page.js("log.querySelector('.pace').textContent")
        assert re.fullmatch(r"thought for \d+\.\d s", pace)
        await asyncio.sleep(0.25)
        assert await page.js("log.querySelector('.pace').textContent") == pace
        assert await page.js(STATUS) == "Waiting for the response"
        go_on.set()
        await page.done()
        assert await page.js(TEXT) == "One two three."
        reasoning = len(chunked(THOUGHT, 9)) + 1  # the marker belongs to what no client sees
        assert await page.js("log.querySelector('.pace').textContent") == f"{pace} · {reasoning} tokens"
        assert (await page.js(FOOT)).startswith("response · 3 tokens")
        assert await page.js("log.querySelector('.lane').getAttribute('aria-busy')") == "false"
        assert await page.js(STATUS) == "One two three."
        assert upstream.requests[0].body["messages"][-1]["content"].endswith("Count!")


@in_browser
async def test_a_conversation_goes_on_and_a_new_one_begins_empty(
    page: Page, start_gateway: StartGateway
) -> None:
    """A turn that failed is no part of it."""

    def script(recorded: Recorded) -> Script:
        if recorded.body["messages"][-1]["content"] == "Fail":
            return Script([Status(400, {"error": {"message": "no"}})])
        return Script(["<think>", "x", "</think>", "Yes."])

    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, format="think-tags")
        await page.open(running.url)
        for text in ("First", "Fail", "Second"):
            await page.send(text)
            await page.done()
        sent = [(message["role"], message["content"]) for message in upstream.requests[-1].body["messages"]]
        assert sent == [("user", "First"), ("assistant", "Yes."), ("user", "Second")]
        await page.js("document.getElementById('new-chat').click()")
        assert await page.js("document.querySelectorAll('.turn').length") == 0
        assert await page.js("document.activeElement === message && log.innerText.includes('Ask it')") is True
        await page.send("Third")
        await page.done()
        assert [message["content"] for message in upstream.requests[-1].body["messages"]] == ["Third"]


@in_browser
@pytest.mark.parametrize("thinking", [False, True])
async def test_stop_keeps_what_came_and_ends_the_engines_work(
    page: Page, start_gateway: StartGateway, thinking: bool
) -> None:
    """With Escape and with the button, in the response and in the thought; the next turn knows the part."""
    chunks: list[Step] = (
        ["<think>hm", Wait(asyncio.Event())]
        if thinking
        else ["<think>hm</think>", "A part", Wait(asyncio.Event())]
    )
    async with ScriptedUpstream([Script(chunks), Script(["<think>", "</think>", "Yes."])]) as upstream:
        running = await start_gateway(upstream.url, format="think-tags")
        await page.open(running.url)
        await page.send()
        await page.until(
            f"{TEXT} === 'A part'" if not thinking else "document.querySelector('.pace') !== null"
        )
        await eventually(lambda: upstream.running == 1)
        if thinking:
            await page.js("send.click()")
        else:
            await page.press("Escape")
        await page.done()
        assert await page.js(TEXT) == ("" if thinking else "A part")
        assert await page.js("log.querySelector('.note p').textContent") == (
            "Stopped before a response began." if thinking else "Stopped here."
        )
        await eventually(lambda: (upstream.cancelled, upstream.running) == (1, 0))
        await page.send("And?")
        await page.done()
        sent = [message["content"] for message in upstream.requests[-1].body["messages"]]
        assert sent == (["And?"] if thinking else ["Hello?", "A part", "And?"])


@in_browser
async def test_settings_go_into_the_request_and_empty_ones_do_not(
    page: Page, start_gateway: StartGateway
) -> None:
    """What no server would take is not sent: the field is shown instead, though the settings were folded."""
    async with ScriptedUpstream(Script([THOUGHT, MARKER, "Yes."])) as upstream:
        running = await start_gateway(upstream.url)
        await page.look(390, 800)
        await page.open(running.url)
        assert await page.js("Array.from(model.options, (option) => option.value)") == ["thinker"]
        await page.send()
        await page.done()
        plain = upstream.requests[0].body
        assert not {"temperature", "top_p", "seed"} & set(plain)
        for name, value in (("temperature", "0"), ("top_p", "0.5"), ("seed", "7"), ("max_tokens", "1")):
            await page.fill(name, value)
        await page.send()
        await page.until("document.querySelectorAll('.lane').length === 2 && send.textContent === 'Send'")
        body = upstream.requests[1].body
        assert (body["temperature"], body["top_p"], body["seed"]) == (0, 0.5, 7)
        assert "Max tokens" in await page.js("log.querySelector('.turn:last-child .note').textContent")
        await page.fill("temperature", "7")
        await page.send("Not sent")
        await page.until("document.activeElement.id === 'temperature'")
        assert await page.js("temperature.checkVisibility() && message.value") == "Not sent"
        assert len(upstream.requests) == 2


@in_browser
async def test_side_by_side_asks_twice_and_each_side_has_its_own_conversation(
    page: Page, start_gateway: StartGateway
) -> None:
    """Effort `none` on one side, whatever was chosen on the other."""

    def script(recorded: Recorded) -> Script:
        thinks = "thought process" in recorded.body["messages"][-1]["content"]
        return Script([THOUGHT, MARKER, "With."] if thinks else ["Direct."])

    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url)
        await page.open(running.url)
        await page.js("compare.click()")
        await page.fill("effort", "low")
        for text in ("One", "Two"):
            await page.send(text)
            await page.done()
        said = await page.js("Array.from(document.querySelectorAll('.lane'), (lane) => lane.innerText)")
        assert len(said) == 4
        for with_thought, without in (said[:2], said[2:]):
            assert re.match(
                r"With a thought\s+thought for .* tokens\s+With\.\s+response · 1 token\b", with_thought
            )
            assert re.match(r"Without\s+no thought · first word after \d\.\d s\s+Direct\.", without)
        sides = sorted(
            tuple(m["content"] for m in request.body["messages"]) for request in upstream.requests[2:]
        )
        assert [side[1] for side in sides] == ["Direct.", "With."]
        tops = "Array.from(log.querySelectorAll('.lane'), (lane) => lane.getBoundingClientRect().top).slice(0, 2)"
        left, right = await page.js(tops)
        assert left == right
        await page.look(390, 800)
        upper, lower = await page.js(tops)
        assert upper < lower


@in_browser
async def test_a_side_that_the_server_refuses_says_why(page: Page, start_gateway: StartGateway) -> None:
    """A format that has no responses without a thought: the other side goes on, and the conversation on both."""
    async with ScriptedUpstream(Script(["hm<R>", "With."])) as upstream:
        running = await start_gateway(upstream.url, format="tpo-specific")
        await page.open(running.url)
        await page.js("compare.click()")
        await page.send()
        await page.done()
        first, second = await page.js("Array.from(log.querySelectorAll('.lane'), (lane) => lane.innerText)")
        assert "With." in first and "Refused" not in first
        assert "Refused (400)" in second and "reasoning_effort none is not offered" in second
        assert await page.js("log.querySelectorAll('.pace').length") == 1


@in_browser
async def test_thoughts_are_revealed_to_operators_only(page: Page, start_gateway: StartGateway) -> None:
    """A client's key is refused in the server's words; the operator's thought is folded until it is asked for."""
    async with ScriptedUpstream(Script([*chunked(THOUGHT, 7), MARKER, "Yes."])) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS)
        await page.open(running.url)
        assert await page.js("hint()") == "A key is needed (401). The key goes into the field “API key”."
        await page.fill("key", "sk-client")
        await page.until("model.value === 'thinker' && hint() === ''")
        await page.js("reveal.click()")
        await page.send()
        await page.done()
        refused = await page.js("log.querySelector('.error').innerText")
        assert "Not allowed (403)" in refused and "thinkserve-reveal is for operator keys only" in refused
        assert not upstream.requests
        await page.fill("key", "sk-operator")
        await page.js("log.querySelector('.error button').click()")
        await page.until(f"{TEXT} === 'Yes.'")
        await page.done()
        assert await page.js("log.querySelectorAll('.error').length") == 0
        assert await page.js("document.activeElement.className") == "lane"
        assert await page.js("log.querySelector('.thought').checkVisibility()") is False
        await page.js("log.querySelector('summary').click()")
        await page.until("log.querySelector('.thought').checkVisibility()")
        assert "First I look at it." in await page.js("log.querySelector('.thought').textContent")
        assert "First I look" not in await page.js(STATUS)
        await page.js("reveal.click()")
        await page.send("Again")
        await page.until("log.querySelectorAll('.lane').length === 2")
        await page.done()
        assert await page.js("log.querySelectorAll('.thought').length") == 1


@in_browser
async def test_a_key_stays_in_its_tab(page: Page, start_gateway: StartGateway) -> None:
    """Through a reload, and in no other place than the tab's own storage; no curl line holds it."""
    async with ScriptedUpstream(Script([THOUGHT, MARKER, "Yes."])) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS)
        await page.open(running.url)
        await page.fill("key", "sk-client")
        await page.until("model.value === 'thinker'")
        await page.open(running.url)
        await page.until("model.value === 'thinker'")
        assert await page.js("[Object.values(sessionStorage), localStorage.length, document.cookie, key.type]") == [
            ["sk-client"], 0, "", "password",
        ]  # fmt: skip
        await page.send("It's")
        await page.done()
        await page.allow_clipboard()
        await page.js("log.querySelector('.lane footer button:last-child').click()")
        await page.until("log.querySelector('.lane footer button:last-child').textContent === 'Copied'")
        line = await page.js("navigator.clipboard.readText()")
        assert "sk-client" not in line and line.startswith(f"curl -N '{running.url}/v1/chat/completions'")
        shell = await asyncio.create_subprocess_exec("bash", "-c", line, env={"API_KEY": "sk-client", "PATH": "/usr/bin:/bin"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)  # fmt: skip
        out, _ = await shell.communicate()
        assert b'"content":"Yes."' in out
        assert upstream.requests[1].body["messages"] == upstream.requests[0].body["messages"]
        await page.js("log.querySelector('.lane footer button').click()")
        await page.until("log.querySelector('.lane footer button').textContent === 'Copied'")
        assert await page.js("navigator.clipboard.readText()") == "Yes."


@in_browser
async def test_the_models_are_those_of_the_last_key(page: Page, serve: Serve) -> None:
    """Though the answer for the key before it comes later."""
    await page.open(await serve(answering()))
    assert await page.js("model.value") == "made for all"
    await page.fill("key", "slow")
    await page.fill("key", "fast")
    await page.until("model.value === 'made for fast'")
    await asyncio.sleep(0.5)
    assert await page.js("Array.from(model.options, (option) => option.value)") == ["made for fast"]


@in_browser
async def test_a_response_is_copied_where_the_clipboard_is_closed(page: Page, serve: Serve) -> None:
    """As it is over plain HTTP: by way of the selection."""
    text = "One\n\n`two`"
    await page.open(await serve(answering({"delta": {"content": text}, "finish_reason": "stop"})))
    await page.send()
    await page.done()
    await page.js("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    await page.js(
        "document.addEventListener('copy', () => (window.copied = document.activeElement.value), { once: true });"
        "log.querySelector('.lane footer button').focus(); document.activeElement.click()"
    )
    await page.until("document.activeElement.textContent === 'Copied'")
    assert await page.js("window.copied") == text
    assert await page.js("document.querySelectorAll('textarea').length") == 1


# What goes wrong


@in_browser
async def test_an_error_in_the_middle_of_a_response_stands_below_it(
    page: Page, start_gateway: StartGateway
) -> None:
    """And the response can be asked for again, in its place."""
    scripts = [
        Script(["<think>x</think>", "Half of", ErrorEvent()]),
        Script(["<think>x</think>", "All of it."]),
    ]
    async with ScriptedUpstream(scripts) as upstream:
        running = await start_gateway(upstream.url, format="think-tags")
        await page.open(running.url)
        await page.send()
        await page.done()
        assert await page.js(TEXT) == "Half of"
        assert "The response broke off" in await page.js("log.querySelector('.error').innerText")
        assert "The response broke off" in await page.js(STATUS)
        await page.js("log.querySelector('.error button').click()")
        await page.until(f"{TEXT} === 'All of it.'")
        await page.done()
        assert await page.js("log.querySelectorAll('.error').length") == 0
        assert [len(request.body["messages"]) for request in upstream.requests] == [1, 1]


@in_browser
async def test_an_engine_that_is_away_is_told_with_the_time_to_wait(
    page: Page, start_gateway: StartGateway
) -> None:
    """503 with Retry-After."""
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url)
        await page.open(running.url)
        await upstream.stop()
        await page.send()
        await page.done()
        told = await page.js("log.querySelector('.error').innerText")
        assert "Not available right now (503)" in told and "the engine is not available" in told
        assert "The server asks to wait 2 s" in told


@in_browser
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "7"}),
         ["Too many requests (429)", "slow down", "The server asks to wait 7 s"]),
        (web.Response(text="<b>bad</b> gateway", status=502), ["The server failed (502)", "Bad Gateway"]),
        (web.json_response([], status=400), ["Refused (400)"]),
    ],
)  # fmt: skip
async def test_a_refusal_is_shown_as_it_is(
    page: Page, serve: Serve, answer: web.Response, told: list[str]
) -> None:
    """Too many requests; what a proxy says; a body of another form."""

    async def refuse(http: web.Request) -> web.Response:
        return web.Response(body=answer.body, status=answer.status, headers=answer.headers)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", refuse)
    await page.open(await serve(app))
    await page.send()
    await page.done()
    shown = await page.js("log.querySelector('.error').innerText")
    assert all(part in shown for part in told), shown


@in_browser
@pytest.mark.parametrize(
    ("end", "told"),
    [(b"", "ended before the response was complete"), (b"data: {torn\n\n", "could not be read")],
)
async def test_a_stream_that_just_ends_is_no_whole_response(
    page: Page, serve: Serve, end: bytes, told: str
) -> None:
    """A proxy's time limit looks like that."""
    await page.open(await serve(answering({"delta": {"content": "Half"}}, end=end)))
    await page.send()
    await page.done()
    assert await page.js(TEXT) == "Half"
    assert told in await page.js("log.querySelector('.error').innerText")


@in_browser
@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"finish_reason": "length"}, "end of the model’s context"),
        (
            {"finish_reason": "length", "incomplete_details": {"reason": "max_thought_tokens"}},
            "The thought used up",
        ),
        ({"finish_reason": "length", "incomplete_details": {"reason": "other"}}, "not finished (other)"),
        ({"finish_reason": "content_filter"}, "content filter"),
        ({"finish_reason": "stop"}, "The response is empty."),
        ({"finish_reason": "odd"}, "Ended early (odd)."),
    ],
)
async def test_an_early_end_is_explained(page: Page, serve: Serve, choice: dict[str, Any], told: str) -> None:
    """In words, where the response would be."""
    await page.open(await serve(answering({"delta": {}, **choice})))
    await page.send()
    await page.done()
    assert told in await page.js("log.querySelector('.note').innerText")
    assert told in await page.js(STATUS)


@in_browser
async def test_tool_calls_are_shown_as_json(page: Page, serve: Serve) -> None:
    """Put together from their pieces."""
    calls: list[dict[str, Any]] = [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city": "Bern", '}},
        {"index": 0, "function": {"arguments": '"days": [1, 2]}'}},
        {"index": 1, "id": "call_2", "function": {"name": "<b>", "arguments": '{"x'}},
    ]
    choices = [{"delta": {"tool_calls": [call]}} for call in calls]
    await page.open(await serve(answering(*choices, {"delta": {}, "finish_reason": "tool_calls"})))
    await page.send()
    await page.done()
    first, second = (await page.js("log.querySelector('.calls').textContent")).split("\n}\n")
    assert json.loads(first + "}") == {
        "id": "call_1", "name": "weather", "arguments": {"city": "Bern", "days": [1, 2]},
    }  # fmt: skip
    assert json.loads(second) == {"id": "call_2", "name": "<b>", "arguments": '{"x'}
    assert await page.js("log.querySelectorAll('.note').length") == 0


# What a model writes


@in_browser
async def test_what_a_model_writes_is_text_wherever_it_stands(
    page: Page, start_gateway: StartGateway
) -> None:
    """In paragraphs, code, thoughts and announcements; and so is what the user writes."""
    hostile = (
        '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
        "<svg/onload=window.hacked=1>[a](javascript:window.hacked=1)<iframe srcdoc='<script>top.hacked=1</script>'>"
    )
    response = f"{hostile}\n\n```{hostile}\n{hostile}\n```\n"
    chunks = chunked(THOUGHT + hostile + "\n" + MARKER + response, 11)
    async with ScriptedUpstream(Script(chunks)) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS)
        await page.open(running.url)
        await page.fill("key", "sk-operator")
        await page.js("reveal.click()")
        await page.send(hostile)
        await page.done()
        await page.js("log.querySelector('summary').click()")
        for query in (".asked", ".prose p", ".prose pre", ".thought"):
            assert hostile in await page.js(f"log.querySelector({query!r}).textContent")
        count = "document.querySelectorAll('img, script, svg, iframe, main a').length"
        assert await page.js(count) == 1  # the page's own script
        await asyncio.sleep(0.1)
        assert await page.js("window.hacked ?? null") is None


@in_browser
async def test_the_browser_itself_refuses_what_the_page_never_does(page: Page, serve: Serve) -> None:
    """Markup from a string, a script or style in the page, a request to somebody else: the policy is in force."""
    await page.open(await serve(answering()))
    tried = """const tries = [
        () => { log.innerHTML = "<b>x</b>"; },
        () => { document.write("<b>x</b>"); },
        () => { const script = document.createElement("script"); script.text = "window.hacked = 1"; document.body.append(script); },
        () => { log.setAttribute("onfocus", "window.hacked = 1"); },
      ];
      tries.map((attempt) => { try { attempt(); return "done"; } catch (error) { return error.name; } })"""
    assert await page.js(tried) == ["TypeError"] * 4
    assert (
        await page.js("fetch('http://127.0.0.2:9/').then(() => 'sent', (error) => error.name)") == "TypeError"
    )
    styled = (
        "const e = document.createElement('style'); e.append('body{margin:9px}'); document.head.append(e);"
    )
    assert await page.js(styled + "getComputedStyle(document.body).marginTop") == "0px"
    assert await page.js("[window.hacked ?? null, document.querySelectorAll('b').length]") == [None, 0]
    refused = [line for line in await asyncio.to_thread(page.logged) if "Content Security Policy" in line]
    assert len(refused) >= 3, refused
    await asyncio.to_thread(page.forget)


@in_browser
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A\nb\n\n\n  - c\n", '<p dir="auto">A\nb\n</p><p dir="auto">  - c\n</p>'),
        ("```py\nif x:\n\n  ``y``\n```\nz", '<pre dir="auto"><code>if x:\n\n  ``y``\n</code></pre><p dir="auto">z</p>'),
        ("````\n``` `\n```\nopen", '<pre dir="auto"><code>``` `\n```\nopen</code></pre>'),
        ("```\nx\n```", '<pre dir="auto"><code>x\n</code></pre>'),
        ("``` no ` fence\n`` x\n``", '<p dir="auto">``` no ` fence\n`` x\n``</p>'),
    ],
)  # fmt: skip
async def test_text_in_any_pieces_gives_the_same_page(
    page: Page, serve: Serve, text: str, shown: str
) -> None:
    """Paragraphs and fenced code; nothing but fences and empty lines is left out."""
    await page.open(await serve(answering()))
    script = f"""
      const text = {json.dumps(text)};
      const show = (size) => {{
        const root = document.createElement("div");
        const prose = new Prose(root);
        for (let at = 0; at < text.length; at += size) prose.feed(text.slice(at, at + size));
        prose.flush();
        return root.cloneNode(true).innerHTML;
      }};
      return [1, 2, 3, 4, 5, 7, 100].map(show);
    """
    found = await page.js(f"import('/playground/prose.js').then(({{ Prose }}) => {{ {script} }})")
    assert set(found) == {shown}


@in_browser
async def test_events_are_read_in_any_pieces(page: Page, serve: Serve) -> None:
    """Line ends of all kinds, comments, several lines of data, and a character cut in two."""
    await page.open(await serve(answering()))
    stream = (
        ": hi\r\ndata: a\r\ndata: A\r\n\r\ndata:b\ndata: ü\n\nevent: x\nid: 1\n\ndata: c\r\rdata: not ended"
    )
    script = f"""
      const bytes = new TextEncoder().encode({json.dumps(stream)});
      const read = async (size) => {{
        const pieces = [];
        for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.slice(at, at + size));
        const events = [];
        const body = new ReadableStream({{ pull: (to) => pieces.length ? to.enqueue(pieces.shift()) : to.close() }});
        for await (const event of readEvents(body)) events.push(event);
        return events.join("|");
      }};
      return Promise.all([1, 2, 3, 5, 1000].map(read));
    """
    found = await page.js(f"import('/playground/events.js').then(({{ readEvents }}) => {{ {script} }})")
    assert set(found) == {"a\nA|b\nü|c"}


# Hands and eyes


@in_browser
async def test_everything_can_be_done_with_the_keyboard(page: Page, start_gateway: StartGateway) -> None:
    """Shift+Enter and an input method's Enter do not send; the focus goes through the page in its order."""
    async with ScriptedUpstream(Script([THOUGHT, MARKER, "Yes."])) as upstream:
        running = await start_gateway(upstream.url)
        await page.open(running.url)
        assert await page.js("document.activeElement.id") == "message"
        await page.press("Enter")
        await page.write("One")
        await page.press("Enter", shift=True)
        await page.js(
            "message.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true }))"
        )
        await page.write("Two")
        assert await page.js("[message.value, log.querySelectorAll('.turn').length]") == ["One\nTwo", 0]
        await page.press("Enter")
        await page.done()
        assert upstream.requests[0].body["messages"][-1]["content"].endswith("One\nTwo")
        await page.press("Enter")
        assert len(upstream.requests) == 1
        await page.js("document.querySelector('.skip').focus()")
        order = ["Skip to the message"]
        for _ in range(15):
            await page.press("Tab")
            order.append(await page.js("document.activeElement.id || document.activeElement.textContent"))
            ring = "getComputedStyle(document.activeElement.closest('.box:has(textarea:focus)') ?? document.activeElement)"
            assert await page.js(f"{ring}.outlineStyle") != "none", order
        assert order == [
            "Skip to the message", "new-chat", "model", "effort", "compare", "reveal", "temperature", "top_p", "max_tokens",
            "seed", "key", "log", "Copy", "Copy as curl", "message", "send",
        ]  # fmt: skip


@in_browser
async def test_every_control_has_a_name(page: Page, start_gateway: StartGateway) -> None:
    """For those who hear the page; of every state that it can be in."""
    async with ScriptedUpstream(Script(["<think>x</think>", "Half", ErrorEvent()])) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", keys=KEYS)
        await page.open(running.url)
        await page.fill("key", "sk-operator")
        await page.js("reveal.click(); compare.click()")
        await page.send()
        await page.done()
        named = await page.named()
        assert {("log", "Conversation"), ("textbox", "Message"), ("spinbutton", "Temperature")} <= set(named)
        assert {("article", "With a thought"), ("article", "Without"), ("button", "Try again")} <= set(named)
        await page.look(390, 800)
        await page.js("toggle.click()")
        assert ("button", "Close") in await page.named()
        assert await page.js("toggle.getAttribute('aria-expanded')") == "true"
        await page.js("toggle.click()")
        assert ("button", "Settings") in await page.named()


LONG = "word " * 80 + "x" * 400 + "\n\n```\n" + "code " * 90 + "\n```\n" + "line\n\n" * 30


@in_browser
async def test_nothing_is_wider_than_the_screen(page: Page, start_gateway: StartGateway) -> None:
    """From small phones on, with long words, code and errors, side by side, and with the settings unfolded."""
    wide = """const width = document.documentElement.clientWidth;
      [document.scrollingElement.scrollWidth - width, log.scrollWidth - log.clientWidth,
       Math.round(document.querySelector('.side').scrollWidth - document.querySelector('.side').clientWidth),
       Math.max(...Array.from(document.querySelectorAll("button"), (e) => e.getBoundingClientRect().right)) <= width, document.scrollingElement.scrollHeight <= innerHeight]"""
    async with ScriptedUpstream(Script(["<think>" + "t" * 300 + "</think>", LONG, ErrorEvent()])) as upstream:
        running = await start_gateway(
            upstream.url, format="think-tags", keys=KEYS, model_name="a-long-name-" * 12
        )
        await page.open(running.url)
        await page.fill("key", "sk-operator")
        await page.until("model.value !== ''")
        await page.js("reveal.click(); compare.click()")
        await page.send("y" * 300)
        await page.done()
        await page.js("log.querySelector('summary').click()")
        await page.js("message.value = 'z'.repeat(500)")
        for size in ((320, 640), (360, 740), (390, 800), (844, 390), (768, 1024), (1280, 900), (1920, 1080)):
            for open in (False, True):
                await page.look(*size)
                await page.js(f"settings.classList.toggle('open', {json.dumps(open)})")
                assert await page.js(wide) == [0, 0, 0, True, True], (size, open)


@in_browser
async def test_light_and_dark_can_be_read(page: Page, start_gateway: StartGateway) -> None:
    """WCAG AA: 4.5 between every text and what it lies on; 3 for the borders of fields."""
    contrast = """
      const parse = (c) => c.match(/[\\d.]+/g).map(Number);
      const light = (c) => parse(c).slice(0, 3).map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
      const below = (e) => { const c = getComputedStyle(e).backgroundColor;
        return (parse(c)[3] ?? 1) === 0 ? below(e.parentElement) : c; };
      const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
      const texts = Array.from(document.querySelectorAll("body *"))
        .filter((e) => e.checkVisibility() && !e.closest(".unseen") &&
          (e.value || e.placeholder || Array.from(e.childNodes).some((n) => n.nodeType === 3 && n.data.trim())));
      const fields = Array.from(document.querySelectorAll("input:not([type=checkbox]), select, .box"));
      [light(getComputedStyle(document.body).backgroundColor), texts.length,
       texts.map((e) => [ratio(getComputedStyle(e).color, below(e)), e.className || e.id || e.tagName]).sort((a, b) => a[0] - b[0])[0],
       Math.min(...fields.map((e) => ratio(getComputedStyle(e).borderTopColor, below(e.parentElement))))]
    """
    async with ScriptedUpstream(
        Script(["<think>x</think>", "Half\n```\ncode\n```\n", ErrorEvent()])
    ) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", keys=KEYS)
        await page.open(running.url)
        await page.fill("key", "sk-operator")
        await page.js("reveal.click()")
        await page.send()
        await page.done()
        await page.js("log.querySelector('summary').click()")
        papers = []
        for dark in (False, True):
            await page.look(dark=dark)
            paper, count, least, border = await page.js(contrast)
            assert count > 30 and least[0] >= 4.5 and border >= 3, (dark, least, border)
            papers.append(paper)
        assert papers[0] > 0.9 and papers[1] < 0.05


@in_browser
async def test_whoever_wants_no_motion_gets_none(page: Page, start_gateway: StartGateway) -> None:
    """The dot of a thought breathes for the others."""
    async with ScriptedUpstream(Script([Wait(asyncio.Event())])) as upstream:
        running = await start_gateway(upstream.url)
        await page.open(running.url)
        await page.send()
        await page.until("log.querySelector('.dot') !== null")
        moving = "document.getAnimations().length"
        assert await page.js(moving) == 1
        await page.look(still=True)
        assert await page.js(moving) == 0
        await page.press("Escape")
        await page.done()


@in_browser
async def test_the_view_follows_only_at_its_end(page: Page, start_gateway: StartGateway) -> None:
    """Whoever has scrolled up to read is left there, and followed again once back at the end."""
    first, second, third = asyncio.Event(), asyncio.Event(), asyncio.Event()
    chunks: list[Step] = [
        "<think>x</think>",
        "line\n\n" * 60,
        Wait(first),
        "more\n\n" * 9,
        Stall(0.3),
        "again\n\n" * 9,
        Wait(second),
        "last\n\n" * 9,
        Wait(third),
    ]
    left = "Math.round(log.scrollHeight - log.clientHeight - log.scrollTop)"
    async with ScriptedUpstream(Script(chunks)) as upstream:
        running = await start_gateway(upstream.url, format="think-tags")
        await page.open(running.url)
        await page.send()
        await page.until(f"{TEXT}.endsWith('line\\n') && log.scrollTop > 0 && {left} <= 1")
        # In the frame in which the view is taken to its new end, its reader goes back.
        await page.js(
            "new MutationObserver((_, all) => { all.disconnect(); requestAnimationFrame(() => {"
            "log.scrollBy(0, -30); window.top_then = log.scrollTop; }); }).observe(log, { subtree: true, childList: true })"
        )
        first.set()
        await page.until(f"{TEXT}.endsWith('again\\n')")
        await asyncio.sleep(0.1)
        assert await page.js("log.scrollTop === window.top_then")
        await page.js("log.scrollTo(0, log.scrollHeight)")
        await asyncio.sleep(0.1)
        second.set()
        await page.until(f"{TEXT}.endsWith('last\\n') && {left} <= 1")
        third.set()
        await page.done()
        await page.until(f"{left} <= 1")


@in_browser
async def test_the_page_works_below_a_prefix(page: Page, start_gateway: StartGateway) -> None:
    """As behind a proxy that puts the gateway below a path."""
    async with ScriptedUpstream(Script([THOUGHT, MARKER, "Yes."])) as upstream:
        running = await start_gateway(upstream.url)

        async def forward(http: web.Request) -> web.StreamResponse:
            path = http.match_info["path"]
            async with running.http.request(
                http.method,
                f"{running.url}/{path}",
                data=await http.read(),
                headers={"Content-Type": http.content_type},
            ) as found:
                return web.Response(
                    body=await found.read(), headers={"Content-Type": found.headers["Content-Type"]}
                )

        app = web.Application()
        app.router.add_route("*", "/llm/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            page.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            await page.command("Page.navigate", url=f"{page.url}/llm/")
            await page.until("document.readyState === 'complete' && window.model?.value === 'thinker'")
            await page.send()
            await page.until(f"log.querySelector('.prose') && {TEXT} === 'Yes.'")
        finally:
            await runner.cleanup()
