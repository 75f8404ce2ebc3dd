"""The shop's orders: asks the inventory for every item. Plain Python, no tracing library.

Usage: orders.py PORT INVENTORY_PORT
"""

import http.client
import http.server
import json
import sys


class Orders(http.server.BaseHTTPRequestHandler):
    """GET /orders/ITEM answers whether ITEM can be ordered."""

    protocol_version = "HTTP/1.1"
    # Head and body leave together; apart, the second waits for the first to be acknowledged.
    wbufsize = -1
    inventory_port = 0

    def do_GET(self):
        kind, _, item = self.path.lstrip("/").partition("/")
        if kind != "orders" or not item:
            return self.answer(404, {"error": "no such page"})
        status, stock = self.ask_inventory(item)
        if status == 200:
            return self.answer(200, {"item": item, "ordered": stock["count"] > 0})
        # The inventory's failure is this service's failure, said in its own words.
        return self.answer(502, {"error": f"the inventory answered {status}"})

    def ask_inventory(self, item):
        connection = http.client.HTTPConnection("127.0.0.1", self.inventory_port, timeout=5)
        try:
            connection.request("GET", f"/stock/{item}")
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def answer(self, status, body):
        content = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    Orders.inventory_port = int(sys.argv[2])
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Orders).serve_forever()
