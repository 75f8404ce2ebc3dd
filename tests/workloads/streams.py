"""Connections that stay open: WebSockets and server-sent events, by libraries that speak them.

    serve aiohttp | uvicorn | websockets   prints {"port", "pid"} and serves
    talk aiohttp | websockets URL          prints {"pid"}; for a line on standard input opens a
                                           WebSocket and prints {"open": true}; for another says
                                           what MESSAGES has, closes, and prints {"echoed": N}

Paths: /socket is a WebSocket that echoes; /events a stream with one event at once and one for each
/publish, until /finish (not of `websockets`). What is said looks like HTTP, and is not.
"""

import asyncio
import json
import os
import sys

MESSAGES = [
    "GET /inside HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/1.1 500 Inside\r\nContent-Length: 0\r\n\r\n",
    "x" * 100_000,
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


def tell(**what):
    print(json.dumps(what), flush=True)


class Board:
    """What listeners to events wait for."""

    def __init__(self):
        self.published = 0
        self.finished = False
        self.changed = asyncio.Condition()

    async def change(self, finished):
        async with self.changed:
            self.published += not finished
            self.finished |= finished
            self.changed.notify_all()

    async def events(self):
        sent = self.published
        yield b"data: 0\n\n"
        while True:
            async with self.changed:
                await self.changed.wait_for(lambda: self.finished or self.published > sent)
                if self.published == sent:
                    return
                sent += 1
            yield f"data: {sent}\n\n".encode()


async def serve_aiohttp():
    from aiohttp import WSMsgType, web

    board = Board()

    async def socket(request):
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        async for message in answer:
            if message.type == WSMsgType.TEXT:
                await answer.send_str(message.data)
        return answer

    async def events(request):
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        async for event in board.events():
            await answer.write(event)
        return answer

    async def change(request):
        await board.change(request.path == "/finish")
        return web.Response(text="ok\n")

    app = web.Application()
    app.add_routes([web.get("/socket", socket), web.get("/events", events),
                    web.get("/publish", change), web.get("/finish", change)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    tell(port=runner.addresses[0][1], pid=os.getpid())
    await asyncio.Event().wait()


async def serve_uvicorn():
    import socket as sockets

    import uvicorn

    board = Board()

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": message["text"]})
            return
        is_stream = scope["path"] == "/events"
        kind = b"text/event-stream; charset=utf-8" if is_stream else b"text/plain"
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"content-type", kind), (b"x-accel-buffering", b"no")]})
        if is_stream:
            async for event in board.events():
                await send({"type": "http.response.body", "body": event, "more_body": True})
        else:
            await board.change(scope["path"] == "/finish")
        await send({"type": "http.response.body", "body": b""})

    listener = sockets.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_level="warning")
    tell(port=listener.getsockname()[1], pid=os.getpid())
    await uvicorn.Server(config).serve([listener])


async def serve_websockets():
    from websockets.asyncio.server import serve

    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0) as server:
        tell(port=server.sockets[0].getsockname()[1], pid=os.getpid())
        await server.serve_forever()


async def told():
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def talk_aiohttp(url):
    from aiohttp import ClientSession

    async with ClientSession() as session, session.ws_connect(url) as socket:
        tell(open=True)
        await told()
        for message in MESSAGES:
            await socket.send_str(message)
            assert await socket.receive_str() == message


async def talk_websockets(url):
    from websockets.asyncio.client import connect

    async with connect(url, proxy=None) as socket:
        tell(open=True)
        await told()
        for message in MESSAGES:
            await socket.send(message)
            assert await socket.recv() == message


async def talk(library, url):
    tell(pid=os.getpid())
    await told()
    await {"aiohttp": talk_aiohttp, "websockets": talk_websockets}[library](url)
    tell(echoed=len(MESSAGES))


async def main():
    what, library, *rest = sys.argv[1:]
    if what == "serve":
        await {"aiohttp": serve_aiohttp, "uvicorn": serve_uvicorn,
               "websockets": serve_websockets}[library]()
    else:
        await talk(library, *rest)


asyncio.run(main())
