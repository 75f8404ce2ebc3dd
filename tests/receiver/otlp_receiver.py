"""An OTLP trace receiver for tests, built on nothing the agent is built on.

Listens for gRPC and HTTP/protobuf (identity, gzip; zstd over HTTP only: grpcio has no zstd),
plain, with TLS or with mutual TLS. Prints one JSON line with its ports when ready, appends one
JSON line per span to --output, and answers on a control port:

    GET  /count      {"spans": N, "requests": M}
    GET  /counts     [{"service", "kind", "status", "path", "count"}]
    GET  /spans      all spans, or those of ?service=NAME (none with --count-only)
    GET  /requests   what each export call looked like: transport, headers, encoding, answer
    POST /fault      {"kind": K, "times": N, ...} for the next N export calls, see Fault
    POST /reset      forget all of the above
"""

import argparse
import collections
import dataclasses
import gzip
import http.server
import json
import signal
import socket
import ssl
import sys
import threading
import urllib.parse
from concurrent import futures

import grpc
import zstandard
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_service
from opentelemetry.proto.trace.v1 import trace_pb2

KINDS = {value: name.removeprefix("SPAN_KIND_")
         for name, value in trace_pb2.Span.SpanKind.items()}
CODES = {value: name.removeprefix("STATUS_CODE_")
         for name, value in trace_pb2.Status.StatusCode.items()}
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclasses.dataclass
class Fault:
    """What the next export calls meet instead of success.

    unavailable  HTTP 503, gRPC UNAVAILABLE; with retry_after_s a Retry-After or RetryInfo
    throttled    HTTP 429, gRPC RESOURCE_EXHAUSTED; with retry_after_s likewise
    refused      HTTP 400, gRPC INVALID_ARGUMENT: not to be tried again
    slow         the spans are taken, the answer comes delay_s late
    close        the connection ends without an answer (gRPC: the call is cancelled)
    partial      success, but rejected_spans of the spans are not taken
    """

    kind: str
    times: int = 1
    retry_after_s: float | None = None
    delay_s: float = 1.0
    rejected_spans: int = 1
    message: str = "fault asked for by the test"

    KINDS = ("unavailable", "throttled", "refused", "slow", "close", "partial")

    def __post_init__(self):
        if self.kind not in self.KINDS:
            raise ValueError(f"fault {self.kind!r} is none of {', '.join(self.KINDS)}")


def plain_value(value):
    """An AnyValue as what JSON would say; bytes as hexadecimal."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    inner = getattr(value, kind)
    if kind == "array_value":
        return [plain_value(item) for item in inner.values]
    if kind == "kvlist_value":
        return plain_attributes(inner.values)
    return inner.hex() if kind == "bytes_value" else inner


def plain_attributes(pairs):
    plain = {}
    for pair in pairs:
        if pair.key in plain:
            # Keys must be unique: the test sees the violation instead of one of the values.
            plain.setdefault("receiver.duplicate_keys", []).append(pair.key)
        plain[pair.key] = plain_value(pair.value)
    return plain


def plain_span(span):
    return {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_span_id": span.parent_span_id.hex(),
        "flags": span.flags,
        "trace_state": span.trace_state,
        "name": span.name,
        "kind": KINDS.get(span.kind, str(span.kind)),
        "start_ns": span.start_time_unix_nano,
        "end_ns": span.end_time_unix_nano,
        "attributes": plain_attributes(span.attributes),
        "status": {"code": CODES.get(span.status.code, str(span.status.code)),
                   "message": span.status.message},
        "links": [{"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex(),
                   "trace_state": link.trace_state, "flags": link.flags,
                   "attributes": plain_attributes(link.attributes)} for link in span.links],
        "events": [{"name": event.name, "time_ns": event.time_unix_nano,
                    "attributes": plain_attributes(event.attributes)} for event in span.events],
    }


def plain_request(message):
    """Every span of an ExportTraceServiceRequest with its resource and scope, in order."""
    for resource_spans in message.resource_spans:
        resource = plain_attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            scope = {"name": scope_spans.scope.name, "version": scope_spans.scope.version,
                     "schema_url": scope_spans.schema_url}
            for span in scope_spans.spans:
                yield {"service": resource.get("service.name", ""), "resource": resource,
                       "resource_schema_url": resource_spans.schema_url, "scope": scope,
                       **plain_span(span)}


class Store:
    """Everything received, shared by the listeners and the control port."""

    def __init__(self, output=None, count_only=False):
        self.lock = threading.Lock()
        self.output = output
        self.count_only = count_only
        self.faults = collections.deque()
        self.reset()

    def reset(self):
        with self.lock:
            self.total = 0
            self.spans = []
            self.requests = []
            self.counts = collections.Counter()
            self.faults.clear()

    def add_fault(self, fault):
        with self.lock:
            self.faults.extend([fault] * fault.times)

    def begin(self, transport, headers, **facts):
        """Notes one export call; gives its fault, if one is due."""
        with self.lock:
            fault = self.faults.popleft() if self.faults else None
            request = {"index": len(self.requests), "transport": transport, "headers": headers,
                       "answer": fault.kind if fault else "ok", "spans": 0, **facts}
            self.requests.append(request)
        return request, fault

    def take(self, message, request, rejected=0):
        spans = list(plain_request(message))
        spans = spans[:len(spans) - rejected] if rejected else spans
        with self.lock:
            self.total += len(spans)
            request["spans"] = len(spans)
            for span in spans:
                attributes = span["attributes"]
                self.counts[(span["service"], span["kind"],
                             attributes.get("http.response.status_code"),
                             attributes.get("url.path", attributes.get("url.full")))] += 1
                if not self.count_only:
                    span["request"] = request["index"]
                    self.spans.append(span)
            if self.output and not self.count_only:
                self.output.writelines(json.dumps(span) + "\n" for span in spans)
                self.output.flush()

    def answer(self, path, query):
        with self.lock:
            if path == "/count":
                return {"spans": self.total, "requests": len(self.requests)}
            if path == "/counts":
                keys = ("service", "kind", "status", "path")
                return [{**dict(zip(keys, key)), "count": count}
                        for key, count in self.counts.items()]
            if path == "/spans":
                service = query.get("service", [None])[0]
                return [span for span in self.spans if service in (None, span["service"])]
            if path == "/requests":
                return list(self.requests)
        return None


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def retry_info(code, message, delay_s):
    """google.rpc.Status with a RetryInfo, made by hand to need no further package."""
    duration = b"\x08" + varint(int(delay_s)) + b"\x10" + varint(int(delay_s % 1 * 1e9))
    detail = field(1, b"type.googleapis.com/google.rpc.RetryInfo") + field(2, field(1, duration))
    return b"\x08" + varint(code) + field(2, message.encode()) + field(3, detail)


class GrpcListener:
    STATUS = {"unavailable": grpc.StatusCode.UNAVAILABLE,
              "throttled": grpc.StatusCode.RESOURCE_EXHAUSTED,
              "refused": grpc.StatusCode.INVALID_ARGUMENT}
    METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

    def __init__(self, store, host, port, tls):
        self.store = store
        self.server = grpc.server(futures.ThreadPoolExecutor(8), options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)])
        self.server.add_generic_rpc_handlers((self,))
        address = f"{host}:{port}"
        if tls:
            credentials = grpc.ssl_server_credentials(
                [(tls.key, tls.certificate)], tls.client_ca, tls.client_ca is not None)
            self.port = self.server.add_secure_port(address, credentials)
        else:
            self.port = self.server.add_insecure_port(address)
        self.server.start()

    def service(self, call):
        if call.method != self.METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(
            self.export, trace_service.ExportTraceServiceRequest.FromString,
            trace_service.ExportTraceServiceResponse.SerializeToString)

    def export(self, message, context):
        headers = {key: value if isinstance(value, str) else value.hex()
                   for key, value in context.invocation_metadata()}
        peer = context.auth_context().get("x509_common_name", [b""])[0].decode()
        request, fault = self.store.begin("grpc", headers, client_certificate=peer)
        kind = fault.kind if fault else None
        if kind == "close":
            context.cancel()
            return trace_service.ExportTraceServiceResponse()
        if kind in self.STATUS:
            status = self.STATUS[kind]
            if fault.retry_after_s is not None:
                details = retry_info(status.value[0], fault.message, fault.retry_after_s)
                context.set_trailing_metadata((("grpc-status-details-bin", details),))
            context.abort(status, fault.message)
        return finish(self.store, message, request, fault)


def finish(store, message, request, fault):
    """Takes the spans of a call that succeeds, late or in part if the fault says so."""
    response = trace_service.ExportTraceServiceResponse()
    rejected = fault.rejected_spans if fault and fault.kind == "partial" else 0
    store.take(message, request, rejected)
    if rejected:
        response.partial_success.rejected_spans = rejected
        response.partial_success.error_message = fault.message
    if fault and fault.kind == "slow":
        threading.Event().wait(fault.delay_s)
    return response


def decoded(body, encoding):
    if encoding in ("", "identity"):
        return body
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    raise ValueError(f"content encoding {encoding!r} is not known")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return bytes(body)

    def reply(self, status, body, content_type, headers=()):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers:
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


class OtlpHandler(Handler):
    STATUS = {"unavailable": 503, "throttled": 429, "refused": 400}
    PATH = "/v1/traces"

    def do_POST(self):
        body = self.read_body()
        headers = {key.lower(): value for key, value in self.headers.items()}
        certificate = getattr(self.connection, "getpeercert", dict)() or {}
        names = dict(pair for part in certificate.get("subject", ()) for pair in part)
        request, fault = self.server.store.begin(
            "http", headers, path=self.path, client_certificate=names.get("commonName", ""))
        if self.path != self.server.otlp_path:
            request["answer"] = "wrong path"
            return self.reply(404, b"no such path", "text/plain")
        kind = fault.kind if fault else None
        if kind == "close":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        if kind in self.STATUS:
            after = []
            if fault.retry_after_s is not None:
                after = [("Retry-After", f"{fault.retry_after_s:g}")]
            return self.reply(self.STATUS[kind], fault.message.encode(), "text/plain", after)
        try:
            plain = decoded(body, headers.get("content-encoding", ""))
            message = trace_service.ExportTraceServiceRequest.FromString(plain)
        except Exception as error:  # Whatever the body's decoders raise, the sender erred.
            request["answer"] = f"undecodable: {error}"
            return self.reply(400, str(error).encode(), "text/plain")
        response = finish(self.server.store, message, request, fault)
        return self.reply(200, response.SerializeToString(), "application/x-protobuf")


class ControlHandler(Handler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        answer = self.server.store.answer(url.path, urllib.parse.parse_qs(url.query))
        status = 404 if answer is None else 200
        self.reply(status, json.dumps(answer).encode(), "application/json")

    def do_POST(self):
        body = self.read_body()
        try:
            if self.path == "/fault":
                self.server.store.add_fault(Fault(**json.loads(body)))
            elif self.path == "/reset":
                self.server.store.reset()
            else:
                return self.reply(404, b"null", "application/json")
        except (TypeError, ValueError) as error:
            return self.reply(400, json.dumps(str(error)).encode(), "application/json")
        return self.reply(200, b"true", "application/json")


class HttpListener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, store, host, port, handler, tls=None, otlp_path=OtlpHandler.PATH):
        self.store = store
        self.otlp_path = otlp_path
        self.tls = tls.context() if tls else None
        super().__init__((host, port), handler)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def finish_request(self, request, client_address):
        if self.tls:
            # In the connection's own thread, so that a stuck handshake stops nobody else.
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, ssl.SSLError, OSError)):
            super().handle_error(request, client_address)


class Tls:
    def __init__(self, certificate_path, key_path, client_ca_path):
        self.paths = certificate_path, key_path, client_ca_path
        read = lambda path: open(path, "rb").read()
        self.certificate, self.key = read(certificate_path), read(key_path)
        self.client_ca = read(client_ca_path) if client_ca_path else None

    def context(self):
        certificate_path, key_path, client_ca_path = self.paths
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate_path, key_path)
        if client_ca_path:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(client_ca_path)
        return context


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument("--http-port", type=int, default=0)
    parser.add_argument("--otlp-path", default=OtlpHandler.PATH, help="where HTTP expects traces")
    parser.add_argument("--output", help="file that gets one JSON line per span")
    parser.add_argument("--count-only", action="store_true", help="keep counts, not spans")
    parser.add_argument("--tls-certificate")
    parser.add_argument("--tls-key")
    parser.add_argument("--tls-client-ca", help="demand client certificates of this authority")
    parser.add_argument("--fault", action="append", default=[], type=json.loads, metavar="JSON")
    return parser.parse_args()


def main():
    args = arguments()
    # Blocked before any thread begins: a signal that another thread gets would not wake this one.
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    tls = None
    if args.tls_certificate:
        tls = Tls(args.tls_certificate, args.tls_key, args.tls_client_ca)
    output = open(args.output, "a", encoding="utf-8") if args.output else None
    store = Store(output, args.count_only)
    for fault in args.fault:
        store.add_fault(Fault(**fault))
    grpc_listener = GrpcListener(store, args.host, args.grpc_port, tls)
    http_listener = HttpListener(store, args.host, args.http_port, OtlpHandler, tls, args.otlp_path)
    control = HttpListener(store, "127.0.0.1", 0, ControlHandler)
    print(json.dumps({"grpc": grpc_listener.port, "http": http_listener.port,
                      "control": control.port}), flush=True)
    signal.sigwait(ends)
    grpc_listener.server.stop(0).wait()


if __name__ == "__main__":
    main()
