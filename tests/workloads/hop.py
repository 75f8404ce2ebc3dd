"""Two services, each a blocking thread per connection. Prints a line of JSON when it listens.

    hop.py ADDRESS              answers
    hop.py ADDRESS HOST:PORT    calls HOST:PORT before it answers; a path that begins with
                                /thread from a thread that is started for it, one that begins with
                                /kept over a blocking connection that is kept
"""

import http.client
import http.server
import json
import sys
import threading

BACK = sys.argv[2] if len(sys.argv) > 2 else None
KEPT = http.client.HTTPConnection(BACK) if BACK else None
LOCK = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def call(self):
        connection = http.client.HTTPConnection(BACK, timeout=60)
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


server = http.server.ThreadingHTTPServer((sys.argv[1], 0), Handler)
print(json.dumps({"port": server.server_address[1]}), flush=True)
server.serve_forever()
