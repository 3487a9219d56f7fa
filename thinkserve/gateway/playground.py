"""The playground: serves the page of `thinkserve.web`, and nothing else, from the package.

The page is at `/` and its files under `/playground/`. It needs no key to load, since it holds nothing: what it asks of
the API needs one as any client does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import PurePath

from aiohttp import web

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # Makes a browser refuse every way to turn a string into markup: what a model wrote cannot become it by mistake.
    "require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, but asked about each time: after an upgrade no old script meets a new page.
    "Cache-Control": "no-cache",
}


def add_playground(app: web.Application) -> None:
    """Add the routes of the page; before any route that takes every path."""
    for file in sorted(files("thinkserve.web").iterdir(), key=lambda file: file.name):
        suffix = PurePath(file.name).suffix
        if suffix in TYPES:
            path = "/" if file.name == "index.html" else f"/playground/{file.name}"
            app.router.add_get(path, _handler(file.read_bytes(), TYPES[suffix]))  # HEAD with it


def _handler(content: bytes, content_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Serves one file, or says that the browser's copy is still good."""
    tag = hashlib.sha256(content).hexdigest()[:32]
    headers = {**HEADERS, "ETag": f'"{tag}"'}

    async def handle(http: web.Request) -> web.Response:
        if any(known.value in (tag, "*") for known in http.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=content, headers={**headers, "Content-Type": content_type})

    return handle
