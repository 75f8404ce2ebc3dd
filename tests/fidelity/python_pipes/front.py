"""A thread for each client connection, which hands its calls to worker threads over a pipe, and
waits for the outcome at a pipe, an eventfd or a pair of unix sockets of its own."""

import http.client
import http.server
import os
import queue
import select
import socket
import sys
import threading
import time

PORT, BACK_PORT = map(int, sys.argv[1:])
WORKERS = 16
local = threading.local()
jobs = queue.SimpleQueue()
# A byte for each job: the workers wait for them here.
waiting, posting = os.pipe()
turn = iter(range(1 << 60))


class Box:
    """Where the outcome is told: by turns one of three kinds, and read with and without poll."""

    def __init__(self):
        self.number = next(turn)
        if self.number % 3 == 0:
            self.here, there = os.pipe()
            self.tell = lambda: os.write(there, b"12345678")
        elif self.number % 3 == 1:
            self.here = os.eventfd(0)
            self.tell = lambda: os.eventfd_write(self.here, 1)
        else:
            self.ends = socket.socketpair()
            self.here = self.ends[0].fileno()
            self.tell = lambda: self.ends[1].send(b"12345678")

    def wait(self):
        if self.number % 2:
            poll = select.poll()
            poll.register(self.here, select.POLLIN)
            poll.poll()
        os.read(self.here, 8)


def ask(path):
    if not hasattr(local, "back"):
        local.back = http.client.HTTPConnection("127.0.0.1", BACK_PORT)
    local.back.request("GET", path)
    return local.back.getresponse().read()


def work():
    while True:
        os.read(waiting, 1)
        box, path = jobs.get()
        body = ask(path)
        if box:
            box.body = body
            box.tell()


def post(box, path):
    jobs.put((box, path))
    os.write(posting, b"1")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in writes of their own: without this each would wait 40 ms for an ACK.
    disable_nagle_algorithm = True

    def do_GET(self):
        if not hasattr(local, "box"):
            local.box = Box()
        post(local.box, self.path)
        local.box.wait()
        self.send_response(200)
        self.send_header("Content-Length", str(len(local.box.body)))
        self.end_headers()
        self.wfile.write(local.box.body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def background():
    """Half of its calls by the workers, for which nobody waits."""
    number = 0
    while True:
        path = f"/background/{number}"
        if number % 2:
            post(None, path)
        else:
            ask(path)
        number += 1
        time.sleep(0.05)


for _ in range(WORKERS):
    threading.Thread(target=work, daemon=True).start()
threading.Thread(target=background, daemon=True).start()
Server(("127.0.0.1", PORT), Handler).serve_forever()
