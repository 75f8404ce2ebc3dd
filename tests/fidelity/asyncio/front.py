"""One event loop with a task for each request, and one session whose pool all tasks share.

The pool is smaller than the number of clients, so calls wait for a connection.
"""

import asyncio
import itertools
import sys

from aiohttp import ClientSession, TCPConnector, web

PORT, BACK_PORT = map(int, sys.argv[1:])
SESSION = web.AppKey("session", ClientSession)


async def ask(session, path):
    async with session.get(f"http://127.0.0.1:{BACK_PORT}{path}") as response:
        return await response.read()


async def forward(request):
    return web.Response(body=await ask(request.app[SESSION], request.path))


async def background(session):
    for number in itertools.count():
        await ask(session, f"/background/{number}")
        await asyncio.sleep(0.05)


async def with_session(app):
    async with ClientSession(connector=TCPConnector(limit=16)) as session:
        app[SESSION] = session
        job = asyncio.create_task(background(session))
        yield
        job.cancel()


app = web.Application()
app.cleanup_ctx.append(with_session)
app.router.add_get("/{path:.*}", forward)
web.run_app(app, host="127.0.0.1", port=PORT, backlog=512, access_log=None, print=None)
