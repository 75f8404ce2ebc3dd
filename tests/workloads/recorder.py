"""A raw HTTP/1 server that remembers what it was sent, byte by byte, as hashes.

Prints its port. Then, for each line of input, a line of JSON: for each path the hashes of what
arrived (without the headers that were added on the way), each with the count of requests by the
number of headers that were added; and how many connections broke. It then begins anew.
"""

import hashlib
import json
import re
import socket
import sys
import threading

ADDED = re.compile(rb"traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-01\r\n(?=\r\n)")
LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.I)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.I)
CLOSE = re.compile(rb"\r\nconnection: *close\r\n|HTTP/1\.0\r\n", re.I)
LOCK = threading.Lock()
SEEN = {}
BROKEN = [0]


def note(raw):
    path = raw.split(b" ", 2)[1].split(b"?")[0].decode()
    rest, added = ADDED.subn(b"", raw)
    digest = hashlib.sha256(rest).hexdigest()
    with LOCK:
        counts = SEEN.setdefault(path, {}).setdefault(digest, {})
        counts[added] = counts.get(added, 0) + 1


class Reader:
    def __init__(self, connection):
        self.connection, self.data = connection, b""

    def more(self):
        data = self.connection.recv(65536)
        self.data += data
        return data

    def until(self, end, start=0):
        """Place behind `end`; None when the stream ends."""
        while (place := self.data.find(end, start)) < 0:
            if not self.more():
                return None
        return place + len(end)

    def fill(self, length):
        while len(self.data) < length:
            if not self.more():
                return None
        return length

    def request(self):
        """The bytes of one request; None at the end of the stream."""
        end = self.until(b"\r\n\r\n")
        if end is None:
            return None
        head = self.data[:end]
        if CHUNKED.search(head):
            while True:
                line = self.until(b"\r\n", end)
                size = int(self.data[end : line - 2].split(b";")[0], 16)
                end = self.fill(line + size + 2)
                if not size:
                    break
        elif found := LENGTH.search(head):
            end = self.fill(end + int(found[1]))
        if end is None:
            return None
        raw, self.data = self.data[:end], self.data[end:]
        return raw


def serve(connection):
    reader = Reader(connection)
    try:
        while raw := reader.request():
            note(raw)
            close = CLOSE.search(raw.split(b"\r\n\r\n")[0] + b"\r\n")
            kept = b"Connection: close\r\n" if close else b""
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n%s\r\nok" % kept)
            if close:
                break
        broken = bool(reader.data)
    except (OSError, ValueError, TypeError):
        broken = True
    connection.close()
    if broken:
        with LOCK:
            BROKEN[0] += 1


def accept(listener):
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


listener = socket.create_server((sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1", 0), backlog=512)
print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
threading.Thread(target=accept, args=(listener,), daemon=True).start()
for _ in sys.stdin:
    with LOCK:
        print(json.dumps({"paths": SEEN, "broken": BROKEN[0]}), flush=True)
        SEEN.clear()
        BROKEN[0] = 0
