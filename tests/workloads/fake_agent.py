"""Keeps the agent's command line contract without tracing anything, to test the harness:
creates --ready-file, on SIGINT or SIGTERM sends --spans spans, writes the summary and ends."""

import argparse
import json
import os
import signal
import sys
import threading
import urllib.request

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2


def request(count):
    message = trace_service_pb2.ExportTraceServiceRequest()
    resource_spans = message.resource_spans.add()
    resource_spans.resource.attributes.add(
        key="service.name", value=common_pb2.AnyValue(string_value="fake"))
    for number in range(count):
        span = resource_spans.scope_spans.add().spans.add(
            name="GET", trace_id=os.urandom(16), span_id=os.urandom(8),
            kind=trace_pb2.Span.SPAN_KIND_CLIENT, start_time_unix_nano=1, end_time_unix_nano=2)
        span.attributes.add(
            key="url.full", value=common_pb2.AnyValue(string_value=f"http://test:1/{number}?q#f"))
    return message.SerializeToString()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-file")
    parser.add_argument("--spans", type=int, default=0)
    parser.add_argument("--pid", type=int)
    args, _ = parser.parse_known_args()
    if args.pid is not None and not os.path.exists(f"/proc/{args.pid}"):
        print(f"error: no process {args.pid}; see `ps`", file=sys.stderr)
        sys.exit(2)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    open(args.ready_file, "w").close()
    stop.wait()
    if args.spans:
        endpoint = os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] + "/v1/traces"
        urllib.request.urlopen(urllib.request.Request(endpoint, request(args.spans))).read()
    with open(os.environ["EBPF_AGENT_SUMMARY_FILE"], "w", encoding="utf-8") as file:
        json.dump({"counters": {"spans.exported": args.spans},
                   "losses": [{"reason": "export_failed", "service": "fake", "count": 3},
                              {"reason": "trace_hold_full", "service": "", "count": 5}],
                   "kernel_losses": {"ring_full": 0}}, file)


if __name__ == "__main__":
    main()
