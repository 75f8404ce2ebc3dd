"""HTTP clients with exact counts. Prints a JSON line per answer: path, status, bytes.

    client.py load URL --requests N --connections C     N requests over C keep-alive connections;
                                                        `{}` in the URL is the request's number
    client.py steps URL                                 one keep-alive connection; a request for
                                                        every path read from standard input
"""

import argparse
import http.client
import itertools
import json
import sys
import threading
import urllib.parse


def ask(connection, method, path, headers={}):
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return {"path": path, "status": response.status, "bytes": len(response.read())}


def load(host, path, requests, connections):
    """Shares `requests` evenly; prints how many answers came with which status."""
    statuses, lock, numbers = {}, threading.Lock(), itertools.count()

    def work(count):
        connection = http.client.HTTPConnection(host)
        for _ in range(count):
            status = ask(connection, "GET", path.replace("{}", str(next(numbers))))["status"]
            with lock:
                statuses[status] = statuses.get(status, 0) + 1
        connection.close()

    shares = [requests // connections + (number < requests % connections)
              for number in range(connections)]
    threads = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(statuses), flush=True)


def steps(host):
    connection = http.client.HTTPConnection(host)
    connection.connect()
    print(json.dumps({"port": connection.sock.getsockname()[1]}), flush=True)
    for line in sys.stdin:
        print(json.dumps(ask(connection, "GET", line.strip())), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("load", "steps"))
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--connections", type=int, default=1)
    args = parser.parse_args()
    url = urllib.parse.urlsplit(args.url)
    if args.mode == "load":
        load(url.netloc, url.path, args.requests, args.connections)
    else:
        steps(url.netloc)


if __name__ == "__main__":
    main()
