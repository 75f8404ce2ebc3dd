"""An HTTPS server on asyncio: the program moves the encrypted bytes itself. Prints {"port", "pid"}.

Answers every GET with as many bytes as the path's last part says, and /call/N with what the backend
answers to /bytes/N, which is asked over a connection of its own.
"""

import argparse
import asyncio
import json
import os
import ssl


async def read_head(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    return head.split(b" ", 2)[1].decode()


async def ask(host, port, path, context):
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n")
                  if line.lower().startswith(b"content-length:"))
    body = await reader.readexactly(length)
    writer.close()
    return body


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--authority", required=True)
    parser.add_argument("--backend")
    args = parser.parse_args()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(args.certificate, args.key)
    calling = ssl.create_default_context(cafile=args.authority)

    async def serve(reader, writer):
        try:
            while True:
                path = await read_head(reader)
                length = int(path.rsplit("/", 1)[1])
                body = b"x" * length
                if path.startswith("/call/"):
                    host, port = args.backend.split(":")
                    body = await ask(host, int(port), f"/bytes/{length}", calling)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=serving)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"port": port, "pid": os.getpid()}), flush=True)
    await server.serve_forever()


asyncio.run(main())
