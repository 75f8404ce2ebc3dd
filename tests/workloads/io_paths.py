"""One request per way of moving bytes through a socket: both ends use the system call named in
the path, the client for its request and the server for its response.

Prints {"pid"}, waits for a line on standard input, then prints one JSON line per path.
"""

import ctypes
import json
import os
import socket
import sys
import tempfile
import threading

LIBC = ctypes.CDLL(None, use_errno=True)


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class Header(ctypes.Structure):
    """struct msghdr"""
    _fields_ = [("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32),
                ("iov", ctypes.POINTER(Iovec)), ("iov_length", ctypes.c_size_t),
                ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
                ("flags", ctypes.c_int)]


class Message(ctypes.Structure):
    """struct mmsghdr"""
    _fields_ = [("header", Header), ("moved", ctypes.c_uint32)]


def messages(buffers):
    batch = (Message * len(buffers))()
    for message, buffer in zip(batch, buffers):
        message.header.iov = ctypes.pointer(Iovec(ctypes.addressof(buffer), len(buffer)))
        message.header.iov_length = 1
    return batch


def halves(data):
    middle = len(data) // 2
    return [data[:middle], data[middle:]]


def sendmmsg(connection, data):
    buffers = [ctypes.create_string_buffer(half, len(half)) for half in halves(data)]
    batch = messages(buffers)
    if LIBC.sendmmsg(connection.fileno(), batch, len(buffers), 0) != len(buffers):
        raise OSError(ctypes.get_errno(), "sendmmsg")


def recvmmsg(connection):
    buffers = [ctypes.create_string_buffer(4096)]
    batch = messages(buffers)
    if LIBC.recvmmsg(connection.fileno(), batch, 1, 0, None) != 1:
        raise OSError(ctypes.get_errno(), "recvmmsg")
    return buffers[0].raw[:batch[0].moved]


def sendfile(connection, data):
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        os.sendfile(connection.fileno(), file.fileno(), 0, len(data))


def recv_into(connection):
    data = bytearray(4096)
    return bytes(data[:connection.recv_into(data)])


def readv(connection):
    # A small first buffer, so that a request always spans both.
    first, second = bytearray(7), bytearray(4096)
    moved = os.readv(connection.fileno(), [first, second])
    return bytes((first + second)[:moved])


PATHS = {
    "write-read": (lambda s, data: os.write(s.fileno(), data), lambda s: os.read(s.fileno(), 4096)),
    "writev-readv": (lambda s, data: os.writev(s.fileno(), halves(data)), readv),
    "sendto-recvfrom": (lambda s, data: s.send(data), lambda s: s.recvfrom(4096)[0]),
    "sendto-recv_into": (lambda s, data: s.sendall(data), recv_into),
    "sendmsg-recvmsg": (lambda s, data: s.sendmsg(halves(data)), lambda s: s.recvmsg(4096)[0]),
    "sendmmsg-recvmmsg": (sendmmsg, recvmmsg),
}


def receive_until(connection, receive, end):
    data = b""
    while not data.endswith(end):
        piece = receive(connection)
        if not piece:
            raise EOFError(f"connection ended after {data!r}")
        data += piece
    return data


def serve_one(listener, send, receive):
    connection, _ = listener.accept()
    with connection:
        receive_until(connection, receive, b"\r\n\r\n")
        send(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
        connection.recv(1)


def exchange(name, send, receive):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve_one, args=(listener, send, receive))
        server.start()
        with socket.create_connection(listener.getsockname()) as connection:
            send(connection, f"GET /{name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            answer = receive_until(connection, receive, b"hello\n")
        server.join()
    print(json.dumps({"path": f"/{name}", "status": int(answer.split()[1])}), flush=True)


def exchange_with_sendfile():
    """The bodies go by sendfile, which no one reads: heads are seen, bodies only counted."""
    body = b"z" * 100_000

    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            receive_until(connection, lambda s: s.recv(65536), body)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            sendfile(connection, body)
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(b"POST /sendfile HTTP/1.1\r\nHost: test\r\n"
                               b"Content-Length: %d\r\n\r\n" % len(body))
            sendfile(connection, body)
            answer = receive_until(connection, lambda s: s.recv(65536), body)
        server.join()
    print(json.dumps({"path": "/sendfile", "status": int(answer.split()[1])}), flush=True)


def main():
    print(json.dumps({"pid": os.getpid()}), flush=True)
    sys.stdin.readline()
    for name, (send, receive) in PATHS.items():
        exchange(name, send, receive)
    exchange_with_sendfile()


if __name__ == "__main__":
    main()
