"""Two services, each a blocking thread per connection. Prints a line of JSON when it listens.

    hop.py ADDRESS              answers
    hop.py ADDRESS HOST:PORT    calls HOST:PORT before it answers; a path that begins with
                                /thread from a thread that is started for it, one that begins with
                                /kept over a blocking connection that is kept

Either may be the path of a unix socket instead.

With HOP_CERTIFICATE and HOP_KEY in the environment, what it answers is over TLS.
"""

import http.client
import http.server
import json
import os
import socket
import socketserver
import ssl
import sys
import threading

BACK = sys.argv[2] if len(sys.argv) > 2 else None
KEPT = http.client.HTTPConnection(BACK) if BACK else None
LOCK = threading.Lock()


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def connection_to(place):
    if place.startswith("/"):
        return UnixConnection(place)
    return http.client.HTTPConnection(place, timeout=60)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def call(self):
        connection = connection_to(BACK)
        connection.request("GET", "/back" + self.path)
        self.body = connection.getresponse().read()
        connection.close()

    def call_kept(self):
        with LOCK:
            KEPT.request("GET", "/back" + self.path)
            self.body = KEPT.getresponse().read()

    def do_GET(self):
        self.body = b"ok"
        if BACK and self.path.startswith("/kept"):
            self.call_kept()
        elif BACK and self.path.startswith("/thread"):
            thread = threading.Thread(target=self.call)
            thread.start()
            thread.join()
        elif BACK:
            self.call()
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


class Server6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self):
        # The handler expects an address with two parts.
        accepted, _ = super().get_request()
        return accepted, ("unix", 0)


ADDRESS = sys.argv[1]
if ADDRESS.startswith("/"):
    server, port = UnixServer(ADDRESS, Handler), 0
else:
    of_family = Server6 if ":" in ADDRESS else http.server.ThreadingHTTPServer
    server = of_family((ADDRESS, 0), Handler)
    port = server.server_address[1]
if certificate := os.environ.get("HOP_CERTIFICATE"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, os.environ["HOP_KEY"])
    # The handshake is made by the thread that serves the connection.
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
print(json.dumps({"port": port}), flush=True)
server.serve_forever()
