"""Asks a front for numbered cases by gRPC: PORT CLIENTS COUNT. So many clients at a time share one
connection, as gRPC's do. Prints for each case its number, how long it took in nanoseconds, and the
message of the answer."""

import concurrent.futures
import json
import sys
import time

import grpc

PORT, CLIENTS, COUNT = map(int, sys.argv[1:])
PATIENCE_S = 30


def ask(channel, case):
    call = channel.unary_unary(f"/fidelity/case/{case}")
    start_ns = time.monotonic_ns()
    body = call(b"?", timeout=PATIENCE_S)
    duration_ns = time.monotonic_ns() - start_ns
    return {"case": case, "duration_ns": duration_ns, "body": body.decode()}


with grpc.insecure_channel(f"127.0.0.1:{PORT}") as channel:
    grpc.channel_ready_future(channel).result(PATIENCE_S)
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        for answer in pool.map(lambda case: ask(channel, case), range(COUNT)):
            print(json.dumps(answer))
