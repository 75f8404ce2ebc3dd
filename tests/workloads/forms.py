"""Requests in every form that reaches a socket, and streams that are no requests.

`forms.py tap [ADDRESS]` accepts connections, answers what it reads, and prints a line of JSON for each when
it ends: the client's port, the hash of what arrived without the headers that were added on the
way, and how many those were.

`forms.py send PORT ROUNDS [ADDRESS]` connects and waits for a line on its input. Then it sends every form
so many times, each over a connection of its own, and prints a line of JSON for each: the form,
its port, the hash of what it sent, and how many headers are to be added.

`forms.py before PORT` does the same with connections that are in use before it waits.
"""

import fcntl
import hashlib
import json
import os
import re
import select
import signal
import socket
import struct
import sys
import tempfile
import termios
import threading

# What an injected header looks like, right before the empty line. Those that are sent here by
# themselves have other flags.
ADDED = re.compile(rb"traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-01\r\n(?=\r\n)")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
OWN = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\r\n"
GET = b"GET /plain?a=b HTTP/1.1\r\nHost: tap\r\nAccept: */*\r\n\r\n"


def say(**line):
    print(json.dumps(line), flush=True)


def tap(address="127.0.0.1"):
    listener = socket.create_server((address, 0), backlog=128)
    say(port=listener.getsockname()[1])
    while True:
        connection, peer = listener.accept()
        threading.Thread(target=read, args=(connection, peer[1]), daemon=True).start()


def read(connection, port):
    arrived = bytearray()
    error = None
    try:
        while data := connection.recv(65536):
            arrived += data
            # A request that may end here is answered; what is none gets no answer. Where an early
            # answer matters, the request says how it ends.
            end = b"b\n" if b"X-Ends: b\r\n" in arrived else b"\n"
            if data.endswith(end):
                connection.sendall(ANSWER)
    except OSError as failure:
        error = str(failure)
    rest, added = ADDED.subn(b"", bytes(arrived))
    say(port=port, hash=hashlib.sha256(rest).hexdigest(), added=added, error=error, bytes=len(rest))
    connection.close()


class Sender:
    def __init__(self, address, port):
        # With a time-out Python sets the socket to not blocking, and waits by itself.
        self.socket = socket.create_connection((address, port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.hash = hashlib.sha256()

    def send(self, data):
        self.hash.update(data)
        self.socket.sendall(data)

    def send_file(self, data):
        self.hash.update(data)
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            sent = 0
            while sent < len(data):
                try:
                    sent += os.sendfile(self.socket.fileno(), file.fileno(), sent, len(data) - sent)
                except BlockingIOError:
                    select.select([], [self.socket], [])

    def send_without_blocking(self, data):
        """As event loops do: what does not fit is sent again later."""
        self.hash.update(data)
        self.socket.setblocking(False)
        while data:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                select.select([], [self.socket], [])
        self.socket.settimeout(60)

    def segments(self):
        """Segments with data that were sent: `tcpi_data_segs_out` of `struct tcp_info`."""
        return struct.unpack_from("I", self.socket.getsockopt(socket.IPPROTO_TCP, 11, 160), 156)[0]

    def drain(self):
        """Waits until the peer's machine has everything."""
        while struct.unpack("i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)))[0]:
            select.select([], [], [], 0.001)

    def send_pieces(self, pieces):
        self.hash.update(b"".join(pieces))
        total, sent = sum(map(len, pieces)), self.socket.sendmsg(pieces)
        assert sent == total

    def answer(self):
        assert self.socket.recv(65536), "no answer"

    def end(self):
        self.socket.shutdown(socket.SHUT_WR)
        while self.socket.recv(65536):
            pass
        self.socket.close()


def post(body, *fields, version=b"1.1"):
    head = [b"POST /body HTTP/" + version, b"Host: tap", *fields]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", b""])


def form_plain(to):
    to.send(GET)
    return 1


def form_kept(to):
    for _ in range(3):
        to.send(GET)
        to.answer()
    return 3


def form_one_segment(to):
    """Without TCP_NODELAY a second segment would wait for the acknowledgement of the first."""
    to.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    bodies = [b"b" * length + b"\n" for length in (8999, 39999)]
    for request in [GET, *(post(body) + body for body in bodies)] * 4:
        before = to.segments()
        to.send(request)
        to.drain()
        assert to.segments() - before == 1, to.segments() - before
    return 12


def form_pipelined(to):
    to.send(GET * 5)
    return 5


def form_one_byte_per_send(to):
    for byte in GET + post(b"abc") + b"abc" + GET:
        to.send(bytes([byte]))
    return 3


def form_split_at_every_byte(to):
    for place in range(1, len(GET)):
        to.send(GET[:place])
        to.send(GET[place:])
    return len(GET) - 1


def form_head_and_body_apart(to):
    body = os.urandom(5000)
    to.send(post(body))
    to.send(body)
    to.send(GET)
    return 2


def form_gathered(to):
    body = os.urandom(70000)
    to.send_pieces([GET[:10], GET[10:], post(body), body, GET, GET[:-1]])
    to.send(GET[-1:])
    return 4


def form_file(to):
    body = os.urandom(300000)
    to.send(post(body))
    to.send_file(body)
    to.send(GET)
    return 2


def form_file_with_a_head_in_it(to):
    """A body that reads like a request stays what it is."""
    body = GET * 100
    to.send(post(body) + body[:700])
    to.send_file(body[700:])
    to.send(GET)
    return 2


def form_chunked(to):
    head = b"PUT /chunks HTTP/1.1\r\nHost: tap\r\nTransfer-Encoding: chunked\r\n\r\n"
    inner = GET + b"0\r\n\r\n" + GET
    chunks = [b"%x;name=value\r\n%s\r\n" % (len(inner), inner), b"1\r\nx\r\n" * 40]
    to.send(head + chunks[0])
    to.send(chunks[1])
    for byte in b"0A\r\n0123456789\r\n0\r\nTrailer: value\r\n\r\n":
        to.send(bytes([byte]))
    to.send(GET)
    return 2


def form_long_head(to):
    to.send(GET[:-2] + b"".join(b"X-%d: %s\r\n" % (n, b"v" * 1000) for n in range(64)) + b"\r\n")
    to.send(GET)
    return 2


def form_large_upload_without_blocking(to):
    body = GET * 40000
    to.send_without_blocking(post(body) + body)
    to.drain()
    to.send_without_blocking(GET + GET)
    return 3


def form_upload_to_a_slow_reader(to):
    body = os.urandom(1 << 20) + GET * 1000
    to.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    to.send_without_blocking(post(body))
    for place in range(0, len(body), 100000):
        to.send_without_blocking(body[place : place + 100000])
    to.drain()
    to.send_without_blocking(GET)
    return 2


def form_own_header(to):
    to.send(GET[:-2] + b"traceparent: " + OWN + b"\r\n")
    to.send(GET[:-2] + b"TRACEPARENT:" + OWN + b"X: y\r\n\r\n")
    to.send(b"GET / HTTP/1.1\r\nTraceParent:\t" + OWN + b"tracestate: a=b,c=d\r\nHost: tap\r\n\r\n")
    for byte in GET[:-2] + b"tRaCePaReNt: " + OWN + b"\r\n":
        to.send(bytes([byte]))
    to.send(GET[:-2] + b"tracestate: a=b,c=d\r\nX-Traceparent: " + OWN + b"\r\n")
    return 1


def form_expect(to):
    body = GET * 10
    to.send(post(body, b"Expect: 100-continue"))
    to.answer()
    to.send(body)
    return 1


def form_old_version(to):
    for _ in range(2):
        to.send(GET.replace(b"1.1", b"1.0"))
        to.answer()
    # A body that ends with the connection.
    to.send(b"POST / HTTP/1.0\r\nHost: tap\r\n\r\n")
    to.send(GET)
    return 3


def form_web_socket(to):
    to.send(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    to.answer()
    to.send(b"\x81\x85" + GET)
    to.send(GET)
    return 1


def form_tunnel(to):
    to.send(b"CONNECT tap:80 HTTP/1.1\r\nHost: tap:80\r\n\r\n")
    to.answer()
    to.send(GET)
    return 0


def form_lengths_that_differ(to):
    to.send(b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef" + GET)
    return 0


def form_length_and_chunks(to):
    to.send(b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    to.send(GET)
    return 0


def form_bare_line_feeds(to):
    to.send(GET.replace(b"\r\n", b"\n"))
    to.send(GET)
    return 0


def form_folded_field(to):
    to.send(GET[:-2] + b"X: y\r\n z\r\n\r\n")
    to.send(GET)
    return 0


def form_yamux(to):
    for stream in range(3):
        to.send(bytes([0, 0, 0, 1, 0, 0, 0, 2 * stream + 1]) + len(GET).to_bytes(4, "big") + GET)
    return 0


def form_http2(to):
    to.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
    to.send(GET)
    return 0


def form_tls(to):
    hello = os.urandom(200)
    to.send(b"\x16\x03\x01" + (len(hello) + 4).to_bytes(2, "big") + b"\x01\x00\x00\xc8" + hello)
    to.send(GET)
    return 0


def form_lines(to):
    for line in [b"USER anonymous\r\n", b"PASS me\r\n", b"RETR /x HTTP/1.1\r\n", b"QUIT\r\n", GET]:
        to.send(line)
    return 0


def form_mail(to):
    for line in [b"EHLO me\r\n", b"MAIL FROM:<a@b>\r\n", b"DATA\r\n", GET, b".\r\nQUIT\r\n"]:
        to.send(line)
    return 0


def form_stores(to):
    to.send(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n" if os.urandom(1) > b"\x80" else b"GET a\r\n")
    to.send(b"get key\r\n")
    to.send(GET)
    return 0


def form_streaming_protocol(to):
    to.send(GET.replace(b"HTTP/1.1", b"RTSP/1.0"))
    to.send(GET)
    return 0


def form_bytes(to):
    for _ in range(20):
        to.send(os.urandom(1000))
    to.send(GET)
    return 0


def form_blocking(to):
    """Receiving with a blocking socket must be as ever: the socket leaves the map at once."""
    to.socket.settimeout(None)
    for _ in range(3):
        to.send(GET)
        to.answer()
    return 1


def form_blocking_with_signals(to):
    """A signal while it waits is no error."""
    to.socket.settimeout(None)
    to.send(post(b"abc", b"X-Ends: b") + b"a")
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        ready, _, _ = select.select([to.socket], [], [], 0.1)
        assert not ready
        timer = threading.Timer(0.1, to.send, [b"b\n"])
        timer.start()
        to.answer()
        timer.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 1


def form_nothing_but_a_beginning(to):
    to.send(GET[:-2])
    return 0


FORMS = [
    (name[5:], form) for name, form in sorted(globals().items()) if name.startswith("form_")
]


# What a connection carried before; then, behind `yield`, what it carries under the agent. A request
# is recognised behind bytes that were received under the agent, and the first one gets no header.


def before_idle(to):
    to.send(GET)
    to.answer()
    yield
    for _ in range(4):
        to.send(GET)
        to.answer()
    yield 2


def before_nothing(to):
    yield
    for _ in range(3):
        to.send(GET)
        to.answer()
    yield 1


def before_body(to):
    body = GET * 300
    to.send(post(body) + body[:700])
    yield
    to.send(body[700 : len(GET) * 10])
    to.send(body[len(GET) * 10 :])
    to.answer()
    to.send(GET)
    to.answer()
    to.send(post(b"abc"))
    to.send(b"abc")
    to.drain()
    yield 1


def before_body_that_goes_on_behind_an_answer(to):
    """Each piece of the body reads like a request; and an early answer was read."""
    body = GET * 30
    to.send(post(body) + body[: len(GET) * 3])
    yield
    to.answer()
    for place in range(3, 30):
        to.send(body[len(GET) * place : len(GET) * (place + 1)])
    to.answer()
    for _ in range(3):
        to.send(GET)
        to.answer()
    yield 0


def before_pipelined(to):
    to.send(GET * 2)
    yield
    to.answer()
    to.send(GET * 3)
    to.answer()
    to.send(GET)
    to.answer()
    # Nothing proves that a second request stood behind the first one.
    yield 0


def before_lines(to):
    to.send(b"USER me\r\n")
    to.answer()
    yield
    to.send(b"PASS me\r\n")
    to.answer()
    to.send(GET)
    to.answer()
    yield 0


def before_web_socket(to):
    to.send(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    to.answer()
    yield
    to.send(b"\x81\x85" + GET)
    to.answer()
    to.send(GET)
    yield 0


def before_blocking(to):
    to.socket.settimeout(None)
    to.send(GET)
    to.answer()
    yield
    for _ in range(3):
        to.send(GET)
        to.answer()
    yield 0


BEFORE = [
    (name[7:], form) for name, form in sorted(globals().items()) if name.startswith("before_")
]


def send_before(port):
    begun = []
    for name, form in BEFORE:
        to = Sender("127.0.0.1", port)
        going = form(to)
        next(going)
        begun.append((name, to, going))
    say(ready=True)
    sys.stdin.readline()
    for name, to, going in begun:
        local = to.socket.getsockname()[1]
        error, added = None, -1
        try:
            added = next(going)
            to.end()
        except (OSError, AssertionError) as failure:
            error = repr(failure)
        say(form=name, port=local, hash=to.hash.hexdigest(), added=added, error=error)


def send(port, rounds, address="127.0.0.1"):
    signal.signal(signal.SIGALRM, lambda *_: None)
    say(ready=True)
    sys.stdin.readline()
    for _ in range(rounds):
        for name, form in FORMS:
            to = Sender(address, port)
            local = to.socket.getsockname()[1]
            error, added = None, -1
            try:
                added = form(to)
                to.end()
            except (OSError, AssertionError) as failure:
                error = repr(failure)
            say(form=name, port=local, hash=to.hash.hexdigest(), added=added, error=error)


if __name__ == "__main__":
    if sys.argv[1] == "tap":
        tap(*sys.argv[2:])
    elif sys.argv[1] == "before":
        send_before(int(sys.argv[2]))
    else:
        send(int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
