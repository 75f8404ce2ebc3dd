"""A thread for each client connection of HTTP/1, and one gRPC channel to the back for all: what a
call writes may leave by another thread."""

import http.server
import sys
import threading
import time

import grpc

PORT, BACK_PORT = map(int, sys.argv[1:])
channel = grpc.insecure_channel(f"127.0.0.1:{BACK_PORT}")


def ask(path):
    answer = channel.unary_unary(f"/fidelity{path}")(b"?")
    return answer.removeprefix(b"/fidelity")


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
        ask(f"/background/{number}")
        number += 1
        time.sleep(0.05)


threading.Thread(target=background, daemon=True).start()
Server(("127.0.0.1", PORT), Handler).serve_forever()
