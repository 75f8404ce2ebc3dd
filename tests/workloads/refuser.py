"""Refuses requests that carry a `traceparent`, with 431. Prints its port, then for each line of
input how many requests were refused and how many were not."""

import http.server
import json
import sys
import threading

COUNTS = {"refused": 0, "served": 0}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        is_refused = "traceparent" in self.headers
        COUNTS["refused" if is_refused else "served"] += 1
        self.send_response(431 if is_refused else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(json.dumps({"port": server.server_address[1]}), flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
for _ in sys.stdin:
    print(json.dumps(COUNTS), flush=True)
