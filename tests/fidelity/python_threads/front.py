"""A thread for each client connection, and for each thread a connection to the back.

With BACK_CERTIFICATE it calls inside TLS and trusts what that file has.
"""

import http.client
import http.server
import os
import ssl
import sys
import threading
import time

PORT, BACK_PORT = map(int, sys.argv[1:])
local = threading.local()
certificate = os.environ.get("BACK_CERTIFICATE")
tls = ssl.create_default_context(cafile=certificate) if certificate else None


def connect():
    if tls:
        return http.client.HTTPSConnection("127.0.0.1", BACK_PORT, context=tls)
    return http.client.HTTPConnection("127.0.0.1", BACK_PORT)


def ask(path):
    if not hasattr(local, "back"):
        local.back = connect()
    local.back.request("GET", path)
    return local.back.getresponse().read()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in writes of their own: without this each would wait 40 ms for an ACK.
    disable_nagle_algorithm = True

    def do_GET(self):
        body = ask(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def background():
    number = 0
    while True:
        try:
            ask(f"/background/{number}")
        except (OSError, http.client.HTTPException):
            del local.back
        number += 1
        time.sleep(0.05)


threading.Thread(target=background, daemon=True).start()
Server(("127.0.0.1", PORT), Handler).serve_forever()
