"""A thread for each client connection, which hands its calls to a pool of threads and waits."""

import concurrent.futures
import http.client
import http.server
import sys
import threading
import time

PORT, BACK_PORT = map(int, sys.argv[1:])
local = threading.local()
# Fewer than the clients: work waits for a thread, and no thread for work.
pool = concurrent.futures.ThreadPoolExecutor(16)


def ask(path):
    if not hasattr(local, "back"):
        local.back = http.client.HTTPConnection("127.0.0.1", BACK_PORT)
    local.back.request("GET", path)
    return local.back.getresponse().read()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in writes of their own: without this each would wait 40 ms for an ACK.
    disable_nagle_algorithm = True

    def do_GET(self):
        body = pool.submit(ask, self.path).result()
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
    """Half of its calls in the pool, for which nobody waits."""
    number = 0
    while True:
        path = f"/background/{number}"
        if number % 2:
            pool.submit(ask, path)
        else:
            ask(path)
        number += 1
        time.sleep(0.05)


threading.Thread(target=background, daemon=True).start()
Server(("127.0.0.1", PORT), Handler).serve_forever()
