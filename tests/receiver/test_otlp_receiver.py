"""Unit tests of the receiver. Run: python -m unittest discover -s tests/receiver"""

import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
import unittest

import grpc
import zstandard
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

HERE = os.path.dirname(os.path.abspath(__file__))


def export_request(service="shop", count=2, path="/a", status=200):
    request = trace_service_pb2.ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.add(
        key="service.name", value=common_pb2.AnyValue(string_value=service))
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = "hand"
    for number in range(count):
        span = scope_spans.spans.add(
            trace_id=bytes(range(16)), span_id=bytes([number % 255 + 1] * 8),
            parent_span_id=b"\x09" * 8, flags=0x301, trace_state="a=b", name="GET",
            kind=trace_pb2.Span.SPAN_KIND_SERVER,
            start_time_unix_nano=1_700_000_000_123_456_789,
            end_time_unix_nano=1_700_000_001_000_000_001)
        span.attributes.add(key="url.path", value=common_pb2.AnyValue(string_value=path))
        span.attributes.add(key="http.response.status_code",
                            value=common_pb2.AnyValue(int_value=status))
        span.links.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8)
    return request


class Running(unittest.TestCase):
    """One receiver per test."""

    arguments = ()

    def setUp(self):
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "otlp_receiver.py"), *self.arguments],
            stdout=subprocess.PIPE, text=True)
        self.ports = json.loads(self.process.stdout.readline())

    def tearDown(self):
        self.process.send_signal(signal.SIGINT)
        self.assertEqual(self.process.wait(20), 0)
        self.process.stdout.close()

    def control(self, method, path, body=None):
        return self.http("control", method, path, body and json.dumps(body))

    def http(self, port, method, path, body=None, headers={}):
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[port])
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        payload = response.read()
        connection.close()
        if port == "control":
            return json.loads(payload)
        return response.status, dict(response.getheaders()), payload

    def post(self, request, encoding="", path="/v1/traces"):
        body = request.SerializeToString()
        packed = {"": body, "gzip": gzip.compress(body),
                  "zstd": zstandard.ZstdCompressor().compress(body)}[encoding]
        headers = {"Content-Type": "application/x-protobuf", "X-Team": "red"}
        if encoding:
            headers["Content-Encoding"] = encoding
        return self.http("http", "POST", path, packed, headers)

    def grpc(self, request, compression=None):
        with grpc.insecure_channel(f"127.0.0.1:{self.ports['grpc']}") as channel:
            stub = trace_service_pb2_grpc.TraceServiceStub(channel)
            return stub.Export(request, compression=compression, metadata=(("x-team", "red"),))


class Reception(Running):
    def test_http_keeps_every_field(self):
        for encoding in ("", "gzip", "zstd"):
            self.assertEqual(self.post(export_request(), encoding)[0], 200, encoding)
        self.assertEqual(self.control("GET", "/count"), {"spans": 6, "requests": 3})
        span = self.control("GET", "/spans?service=shop")[1]
        self.assertEqual(span["trace_id"], "000102030405060708090a0b0c0d0e0f")
        self.assertEqual((span["span_id"], span["parent_span_id"]), ("02" * 8, "09" * 8))
        self.assertEqual((span["flags"], span["trace_state"]), (0x301, "a=b"))
        self.assertEqual(span["kind"], "SERVER")
        self.assertEqual(span["start_ns"], 1_700_000_000_123_456_789)
        self.assertEqual(span["attributes"], {"url.path": "/a", "http.response.status_code": 200})
        self.assertEqual(span["links"][0]["span_id"], "02" * 8)
        self.assertEqual(span["status"], {"code": "UNSET", "message": ""})
        headers = self.control("GET", "/requests")[0]["headers"]
        self.assertEqual(headers["x-team"], "red")
        self.assertEqual(self.control("GET", "/spans?service=other"), [])

    def test_grpc_plain_and_gzip(self):
        self.grpc(export_request())
        self.grpc(export_request(), grpc.Compression.Gzip)
        self.assertEqual(self.control("GET", "/count"), {"spans": 4, "requests": 2})
        request = self.control("GET", "/requests")[0]
        self.assertEqual((request["transport"], request["headers"]["x-team"]), ("grpc", "red"))

    def test_wrong_path_and_garbage_are_refused(self):
        self.assertEqual(self.post(export_request(), path="/v1/trace")[0], 404)
        self.assertEqual(self.http("http", "POST", "/v1/traces", b"\xff\xff")[0], 400)
        self.assertEqual(self.control("GET", "/count")["spans"], 0)

    def test_reset_forgets(self):
        self.post(export_request())
        self.control("POST", "/reset")
        self.assertEqual(self.control("GET", "/count"), {"spans": 0, "requests": 0})


class Faults(Running):
    def test_http_unavailable_then_taken(self):
        self.control("POST", "/fault", {"kind": "unavailable", "times": 2, "retry_after_s": 1})
        self.control("POST", "/fault", {"kind": "throttled"})
        status, headers, _ = self.post(export_request())
        self.assertEqual((status, headers["Retry-After"]), (503, "1"))
        self.assertEqual(self.post(export_request())[0], 503)
        status, headers, _ = self.post(export_request())
        self.assertEqual((status, "Retry-After" in headers), (429, False))
        self.assertEqual(self.control("GET", "/count")["spans"], 0)
        self.assertEqual(self.post(export_request())[0], 200)
        answers = [request["answer"] for request in self.control("GET", "/requests")]
        self.assertEqual(answers, ["unavailable", "unavailable", "throttled", "ok"])

    def test_partial_success_names_the_rejected(self):
        for send in (self.partial_http, self.grpc):
            self.control("POST", "/fault", {"kind": "partial", "rejected_spans": 3})
            response = send(export_request(count=5))
            self.assertEqual(response.partial_success.rejected_spans, 3)
        self.assertEqual(self.control("GET", "/count")["spans"], 4)

    def partial_http(self, request):
        return trace_service_pb2.ExportTraceServiceResponse.FromString(self.post(request)[2])

    def test_close_leaves_no_answer(self):
        self.control("POST", "/fault", {"kind": "close", "times": 2})
        with self.assertRaises((http.client.HTTPException, ConnectionError)):
            self.post(export_request())
        with self.assertRaises(grpc.RpcError):
            self.grpc(export_request())
        self.assertEqual(self.control("GET", "/count")["spans"], 0)

    def test_grpc_status_carries_retry_info(self):
        self.control("POST", "/fault", {"kind": "throttled", "retry_after_s": 1.5})
        with self.assertRaises(grpc.RpcError) as caught:
            self.grpc(export_request())
        self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        details = dict(caught.exception.trailing_metadata())["grpc-status-details-bin"]
        # Duration of 1 s and 500,000,000 ns inside RetryInfo inside Any inside Status.
        self.assertTrue(details.endswith(b"\x08\x01\x10\x80\xca\xb5\xee\x01"), details)

    def test_unknown_fault_is_refused(self):
        self.assertIn("none of", self.control("POST", "/fault", {"kind": "earthquake"}))


class CountOnly(Running):
    arguments = ("--count-only",)

    def test_counts_by_service_status_and_path(self):
        self.post(export_request(count=512, path="/a"))
        self.grpc(export_request(count=100, path="/b", status=404))
        counts = {(row["service"], row["kind"], row["status"], row["path"]): row["count"]
                  for row in self.control("GET", "/counts")}
        self.assertEqual(counts, {("shop", "SERVER", 200, "/a"): 512,
                                  ("shop", "SERVER", 404, "/b"): 100})
        self.assertEqual(self.control("GET", "/spans"), [])


if __name__ == "__main__":
    unittest.main()
