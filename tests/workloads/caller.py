"""Calls a server (PORT [HOST]) in the ways Python programs do, when told.

For each line of input, `MODE COUNT`, it sends so many requests and prints a line of JSON: how
many failed, and the first failure.

    kept       http.client with a time-out, one connection for all; GET and POST in turn
    single     http.client without a time-out, a connection for each; head and body apart
    urllib     urllib.request, a connection for each
    until      as kept, on four threads, until the next line of input
"""

import http.client
import json
import sys
import threading
import time
import urllib.request

PORT = int(sys.argv[1])
HOST = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
BODY = b"b" * 3000
STOP = threading.Event()
# Four threads with six connections a round: at most 20,000 in the minute for which a closed one
# keeps its port, of the 28,000 that there are.
PAUSE_SECONDS = 0.07


def connect(timeout):
    if timeout is None:
        return http.client.HTTPConnection(HOST, PORT)
    return http.client.HTTPConnection(HOST, PORT, timeout=timeout)


def ask(connection, path, body=None):
    connection.request("POST" if body else "GET", path, body=body)
    response = connection.getresponse()
    assert response.status == 200 and response.read() == b"ok", response.status


def kept(count, path="/kept"):
    connection = connect(60)
    for number in range(count):
        ask(connection, path + ("/body" if number % 2 else ""), BODY if number % 2 else None)
        yield
    connection.close()


def single(count):
    for number in range(count):
        connection = connect(None)
        ask(connection, "/single", BODY)
        connection.close()
        yield


def with_urllib(count):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(count):
        with opener.open(f"http://{HOST}:{PORT}/urllib", timeout=60) as response:
            assert response.read() == b"ok"
        yield


def count_failures(requests):
    failures, done, first = 0, 0, None
    try:
        for _ in requests:
            done += 1
    except (OSError, http.client.HTTPException, AssertionError) as failure:
        failures, first = 1, repr(failure)
    return {"done": done, "failed": failures, "first": first}


def until(_):
    results = []

    def work():
        while not STOP.is_set():
            results.append(count_failures(kept(20, "/until")))
            results.append(count_failures(single(5)))
            time.sleep(PAUSE_SECONDS)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    STOP.set()
    for thread in threads:
        thread.join()
    failed = [result for result in results if result["failed"]]
    return {
        "done": sum(result["done"] for result in results),
        "failed": len(failed),
        "first": failed[0]["first"] if failed else None,
    }


MODES = {"kept": kept, "single": single, "urllib": with_urllib}
print(json.dumps({"ready": True}), flush=True)
while line := sys.stdin.readline():
    mode, count = line.split()
    result = until(0) if mode == "until" else count_failures(MODES[mode](int(count)))
    print(json.dumps(result), flush=True)
