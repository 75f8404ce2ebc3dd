"""A client of HTTP/2 by httpx, which knows that its server speaks it: waits for a URL on standard
input and makes its requests on one connection, one after the other. The last but one has a
`traceparent` of its own.
"""

import sys

import httpx

ROUNDS = 25

url = sys.stdin.readline().strip()
with httpx.Client(http1=False, http2=True, trust_env=False) as client:
    def ask(method, path, **more):
        answer = client.request(method, url + path, **more)
        assert (answer.status_code, answer.text) == (200, "hello"), answer

    for number in range(ROUNDS):
        ask("GET", "/plain")
        ask("GET", f"/plain/{number}", headers={"x-number": str(number)})
        ask("POST", "/content", content=b"c" * 40_000)
        ask("GET", "/long", headers={"x-long": "b" * 2_000})
    ask("GET", "/own", headers={"traceparent": "own"})
    ask("GET", "/plain")
