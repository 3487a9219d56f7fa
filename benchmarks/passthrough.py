"""The yardstick of the gateway benchmark: an aiohttp server and client that relay bytes, and do nothing else.

python benchmarks/passthrough.py UPSTREAM_URL PORT
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web

SESSION = web.AppKey("session", aiohttp.ClientSession)


def _app(upstream: str) -> web.Application:
    async def relay(request: web.Request) -> web.StreamResponse:
        session = request.app[SESSION]
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        body = await request.read()
        async with session.request(
            request.method, upstream + request.path, data=body or None, headers=headers
        ) as answer:
            headers = {"Content-Type": answer.headers["Content-Type"]}
            if answer.content_length is not None:
                return web.Response(status=answer.status, body=await answer.read(), headers=headers)
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            while block := await answer.content.readany():
                await response.write(block)
            await response.write_eof()
            return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", relay)
    return app


async def _serve(upstream: str, port: int) -> None:
    app = _app(upstream)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        app[SESSION] = session
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2])))
