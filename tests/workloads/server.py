"""An HTTP server on Python's http.server: one blocking thread per connection, keep-alive.

Prints {"port": N, "pid": N} when it listens. With --log, writes one JSON line per request with
what the server itself counted: method, path, status, request_body, response_body, port.

    /hello  /bytes/N  /status/N  /slow/MS     answers with that
    /chunked/N                                N bytes in chunks, with a trailer field
    /close/N                                  N bytes delimited by the end of the connection
    POST /sink  /echo                         reads the body (either framing); echo sends it back
    /call/PATH                                asks the backend for PATH, passes on status and body
      ?traceparent=forward | own              with the inbound header, or with one of its own
    /command/PATH  /helpers/PATH  /pool/PATH  the same by curl, by two threads of its own that are
                                              joined, or by a pool of threads that grows and stays
    /sum/N                                    waits for that pool to count to N, without a call
    /die/N                                    promises N bytes, sends half, ends the process
    /exit                                     ends the process without an answer

With --certificate and --key it speaks TLS, with --authority its calls do.
"""

import argparse
import concurrent.futures
import http.client
import http.server
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import urllib.parse

# What the application's own tracing library would send.
OWN_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CHUNK = 16 * 1024


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in writes of their own: without this each would wait 40 ms for an ACK.
    disable_nagle_algorithm = True
    local = threading.local()

    def log_message(self, *_):
        pass

    def setup(self):
        if self.request.family == socket.AF_UNIX:
            self.disable_nagle_algorithm = False
        super().setup()

    def address_string(self):
        return "unix" if isinstance(self.client_address, str) else str(self.client_address[0])

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return bytes(body)

    def answer(self, status, body=b"", chunked=False):
        bare = self.command == "HEAD" or status in (204, 304)
        self.send_response(status)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Trailer", "X-Sum")
        elif status != 204:
            self.send_header("Content-Length", str(len(body)))
        # Logged before the last byte leaves, so that a client that has its answer finds the line.
        self.record(status, 0 if bare else len(body))
        self.end_headers()
        if bare:
            return
        if not chunked:
            self.wfile.write(body)
            return
        for start in range(0, len(body), CHUNK):
            piece = body[start:start + CHUNK]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\nX-Sum: %d\r\n\r\n" % len(body))

    def record(self, status, response_body):
        port = 0 if isinstance(self.client_address, str) else self.client_address[1]
        self.server.record({"method": self.command, "path": self.path.split("?")[0],
                            "status": status, "request_body": len(self.body),
                            "response_body": response_body, "port": port})

    def handle_request(self):
        self.body = self.read_body()
        url = urllib.parse.urlsplit(self.path)
        _, name, *rest = url.path.split("/")
        argument = "/".join(rest)
        if name in ("hello", "sink"):
            self.answer(200, b"hello\n")
        elif name == "echo":
            self.answer(200, self.body)
        elif name == "bytes":
            self.answer(200, b"x" * int(argument))
        elif name == "status":
            self.answer(int(argument), b"status\n")
        elif name == "slow":
            threading.Event().wait(int(argument) / 1000)
            self.answer(200, b"slow\n")
        elif name == "chunked":
            self.answer(200, b"x" * int(argument), chunked=True)
        elif name == "close":
            self.answer_until_close(int(argument))
        elif name == "call":
            self.call(f"/{argument}", urllib.parse.parse_qs(url.query))
        elif name == "command":
            url = f"http://{self.server.backend}/{argument}"
            subprocess.run(["curl", "--silent", "--output", "/dev/null", url], check=True)
            self.answer(200, b"done\n")
        elif name == "helpers":
            helpers = [threading.Thread(target=ask, args=(self.server.backend, f"/{argument}"))
                       for _ in range(2)]
            for helper in helpers:
                helper.start()
            for helper in helpers:
                helper.join()
            self.answer(200, b"done\n")
        elif name == "pool":
            self.server.pool.submit(ask, self.server.backend, f"/{argument}").result()
            self.answer(200, b"done\n")
        elif name == "sum":
            self.server.pool.submit(sum, range(int(argument))).result()
            self.answer(200, b"done\n")
        elif name == "die":
            self.die(int(argument))
        elif name == "exit":
            os._exit(1)
        else:
            self.answer(404, b"no such route\n")

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_request

    def answer_until_close(self, length):
        self.record(200, length)
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"x" * length)

    def die(self, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(b"x" * (length // 2))
        os._exit(1)

    def call(self, path, query):
        headers = {}
        if query.get("traceparent") == ["forward"] and "traceparent" in self.headers:
            headers["traceparent"] = self.headers["traceparent"]
        elif query.get("traceparent") == ["own"]:
            headers["traceparent"] = OWN_TRACEPARENT
        connection = getattr(self.local, "backend", None)
        if connection is None:
            connection = self.local.backend = self.server.connect()
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        self.answer(response.status, response.read())


def ask(backend, path):
    connection = http.client.HTTPConnection(backend)
    connection.request("GET", path)
    connection.getresponse().read()
    connection.close()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, args):
        self.backend = args.backend
        self.pool = concurrent.futures.ThreadPoolExecutor(8)
        self.log = open(args.log, "a", encoding="utf-8") if args.log else None
        self.log_lock = threading.Lock()
        if args.unix:
            self.address_family = socket.AF_UNIX
        elif ":" in args.host:
            self.address_family = socket.AF_INET6
        self.authority = args.authority
        super().__init__(args.unix or (args.host, args.port), Handler)
        self.tls = None
        if args.certificate:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(args.certificate, args.key)
            if args.tls_max:
                self.tls.maximum_version = ssl.TLSVersion[args.tls_max]

    def finish_request(self, request, client_address):
        # In the connection's own thread: a slow handshake must not keep others waiting.
        if self.tls:
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def connect(self):
        if not self.authority:
            return http.client.HTTPConnection(self.backend)
        context = ssl.create_default_context(cafile=self.authority)
        return http.client.HTTPSConnection(self.backend, context=context)

    def server_bind(self):
        # The stock one looks up the host's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        if self.address_family != socket.AF_UNIX:
            self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "test", 0

    def record(self, line):
        if self.log:
            with self.log_lock:
                self.log.write(json.dumps(line) + "\n")
                self.log.flush()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def call_in_background(url, every_ms):
    """What a metrics pusher or cache warmer does: calls that belong to no request."""
    target = urllib.parse.urlsplit(url)
    while True:
        connection = http.client.HTTPConnection(target.netloc)
        connection.request("GET", target.path)
        connection.getresponse().read()
        connection.close()
        threading.Event().wait(every_ms / 1000)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--unix", help="listen on this path instead")
    parser.add_argument("--log")
    parser.add_argument("--backend", help="HOST:PORT for /call")
    parser.add_argument("--authority", help="certificate that the backend's is signed by")
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--tls-max", help="TLSv1_2 or TLSv1_3")
    parser.add_argument("--background", help="URL that a thread of its own calls again and again")
    parser.add_argument("--background-ms", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0, help="fork so many, all accepting")
    args = parser.parse_args()
    server = Server(args)
    port = 0 if args.unix else server.server_address[1]
    print(json.dumps({"port": port, "pid": os.getpid()}), flush=True)
    if args.background:
        threading.Thread(target=call_in_background, daemon=True,
                         args=(args.background, args.background_ms)).start()
    for _ in range(args.workers):
        if os.fork() == 0:
            server.serve_forever()
    if args.workers:
        os.wait()
    server.serve_forever()


if __name__ == "__main__":
    main()
