"""A server of HTTP/2 in clear text by the strict library h2: counts what requests carried.

Prints {"port": N} first. At a line on standard input prints
{"requests": N, "carried": {COUNT: REQUESTS}, "own": N, "errors": [TEXT]}: requests by how many
fields `traceparent` they had, how many of those had the value `own`, and what broke a connection
or changed something else.

Every request must have the fields that its client always sends: those of the first request with
the same path, but for `traceparent`.
"""

import collections
import json
import select
import socket
import sys

import h2.config
import h2.connection
import h2.events
import h2.exceptions


class Counts:
    def __init__(self):
        self.requests = 0
        self.carried = collections.Counter()
        self.own = 0
        self.errors = []
        self.fields = {}

    def take(self, headers):
        self.requests += 1
        found = [value for name, value in headers if name == b"traceparent"]
        self.carried[len(found)] += 1
        self.own += found.count(b"own")
        others = [field for field in headers if field[0] != b"traceparent"]
        path = dict(headers)[b":path"]
        if self.fields.setdefault(path, others) != others:
            self.errors.append(f"other fields: {others}")


class Client:
    def __init__(self, peer, counts):
        self.peer = peer
        self.counts = counts
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self.connection = h2.connection.H2Connection(config=config)
        self.connection.initiate_connection()
        self.flush()

    def flush(self):
        self.peer.sendall(self.connection.data_to_send())

    def handle(self):
        """False when the connection is over."""
        try:
            data = self.peer.recv(65536)
            if not data:
                return False
            for event in self.connection.receive_data(data):
                self.answer(event)
            self.flush()
        except h2.exceptions.ProtocolError as error:
            self.counts.errors.append(repr(error))
            return False
        except OSError:
            return False
        return True

    def answer(self, event):
        if isinstance(event, h2.events.RequestReceived):
            self.counts.take(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.connection.acknowledge_received_data(
                event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.connection.send_headers(event.stream_id, [(b":status", b"200")])
            self.connection.send_data(event.stream_id, b"hello", end_stream=True)


def main():
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    counts = Counts()
    clients = {}
    while True:
        ready, _, _ = select.select([listener, sys.stdin, *clients], [], [])
        for one in ready:
            if one is listener:
                peer, _ = listener.accept()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[peer] = Client(peer, counts)
            elif one is sys.stdin:
                if not sys.stdin.readline():
                    return
                print(json.dumps({"requests": counts.requests, "carried": counts.carried,
                                  "own": counts.own, "errors": counts.errors[:20]}), flush=True)
            elif not clients[one].handle():
                del clients[one]
                one.close()


main()
