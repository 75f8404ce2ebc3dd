"""The service and its client by grpcio: see README.md."""

import itertools
import json
import os
import socket
import ssl
import sys
import threading
import time
from concurrent import futures

import grpc

KINDS = ["Unary", "Collect", "Watch", "Chat", "Missing", "Broken", "Slow", "Gone"]
UP = {"Collect": 3, "Chat": 3}
LARGE = 20_000
DEADLINE_S = 0.05
OWN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
METADATA = [("traceparent", OWN)] if os.environ.get("SEND_OWN") else None


def kind_of(method):
    return method.rsplit("/", 1)[1].rstrip("0123456789")


class Store(grpc.GenericRpcHandler):
    """Any method of the service: all are streams in both directions, which on the wire are what
    their messages make them."""

    def __init__(self):
        self.seen = {}

    def service(self, details):
        found = [value for name, value in details.invocation_metadata if name == "traceparent"]
        self.seen.setdefault(details.method[1:], []).extend(found)
        return grpc.stream_stream_rpc_method_handler(
            lambda requests, context: serve(kind_of(details.method), requests, context))


def wait_for_end(context):
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait()


def serve(kind, requests, context):
    if kind == "Chat":
        yield from requests
        return
    for _ in requests:
        pass
    if kind == "Missing":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
    if kind == "Slow":
        wait_for_end(context)
        return
    yield b"a" * (LARGE if kind == "Watch" else 5)
    if kind == "Watch":
        for _ in range(2):
            time.sleep(0.01)
            yield b"more"
    elif kind == "Broken":
        context.abort(grpc.StatusCode.INTERNAL, "broken")
    elif kind == "Gone":
        wait_for_end(context)


def call(channel, number, methods):
    kind = KINDS[number % len(KINDS)]
    method = f"/shop.Store/{kind}{number % methods}"
    sent = UP.get(kind, 1)
    deadline = DEADLINE_S if kind == "Slow" else None
    start_ns = time.time_ns()
    received = 0
    if kind in ("Unary", "Missing"):
        future = channel.unary_unary(method).future(b"hello", metadata=METADATA)
        status = future.code()
        received = int(status == grpc.StatusCode.OK)
    elif kind == "Collect":
        requests = iter([b"one", b"two", b"three"])
        status = channel.stream_unary(method).future(requests, metadata=METADATA).code()
        received = int(status == grpc.StatusCode.OK)
    elif kind == "Chat":
        requests = iter([b"one", b"two", b"three"])
        responses = channel.stream_stream(method)(requests, metadata=METADATA)
        received = sum(1 for _ in responses)
        status = responses.code()
    else:
        responses = channel.unary_stream(method)(b"hello", timeout=deadline, metadata=METADATA)
        try:
            for received in itertools.count(1):
                next(responses)
                if kind == "Gone":
                    responses.cancel()
        except (StopIteration, grpc.RpcError):
            received -= 1
        status = responses.code()
    return {"method": method[1:], "status": status.name, "sent": sent, "received": received,
            "start_ns": start_ns, "end_ns": time.time_ns()}


def read(variable):
    with open(os.environ[variable], "rb") as file:
        return file.read()


def listen(server):
    if "TLS_CERTIFICATE" in os.environ:
        pair = (read("TLS_KEY"), read("TLS_CERTIFICATE"))
        return server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    return server.add_insecure_port("127.0.0.1:0")


def talk_of_something_else(sessions):
    """Sessions of MQTT with itself by Python's own ssl, which is not the library of grpcio."""
    if not sessions:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.environ["TLS_CERTIFICATE"], os.environ["TLS_KEY"])
    trusted = ssl.create_default_context(cafile=os.environ["TLS_AUTHORITY"])
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_sessions():
        for _ in range(sessions):
            with context.wrap_socket(listener.accept()[0], server_side=True) as session:
                while session.recv(100):
                    pass

    server = threading.Thread(target=serve_sessions)
    server.start()
    for _ in range(sessions):
        plain = socket.create_connection(listener.getsockname())
        with trusted.wrap_socket(plain, server_hostname="localhost") as session:
            session.sendall(b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0")
    server.join()


def connect(port):
    if "TLS_AUTHORITY" in os.environ:
        trusted = grpc.ssl_channel_credentials(read("TLS_AUTHORITY"))
        return grpc.secure_channel(f"127.0.0.1:{port}", trusted)
    return grpc.insecure_channel(f"127.0.0.1:{port}")


def main():
    if sys.argv[1] == "serve":
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=80))
        store = Store()
        server.add_generic_rpc_handlers([store])
        port = listen(server)
        server.start()
        print(json.dumps({"port": port, "pid": os.getpid()}), flush=True)
        sys.stdin.readline()
        print(json.dumps(store.seen), flush=True)
        server.wait_for_termination()
    else:
        port, count, parallel, *rounds = map(int, sys.argv[2:])
        methods = rounds[0] if rounds else count
        print(json.dumps({"pid": os.getpid()}), flush=True)
        sys.stdin.readline()
        talk_of_something_else(int(os.environ.get("OTHER_SESSIONS", "0")))
        with connect(port) as channel, \
                futures.ThreadPoolExecutor(max_workers=parallel) as pool:
            def calls(numbers):
                for result in pool.map(lambda number: call(channel, number, methods), numbers):
                    print(json.dumps(result), flush=True)

            calls(range(count))
            if rounds:
                sys.stdin.readline()
                calls(range(count, 2 * count))
                sys.stdin.readline()


main()
