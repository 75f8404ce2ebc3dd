"""HTTPS clients: asks for each URL by the library named, on one connection where it keeps one.

    tls_clients.py http.client | requests | httpx | httpx2 | aiohttp  URL...
    tls_clients.py late URL...      begins with none of Python's TLS loaded, and loads it when told
                                    by a line on standard input, printing a line when it was

    tls_clients.py endless URL...   asks for them again and again until standard input ends, and
                                    prints how many answers there were, all of them alike

--authority names the certificate that servers' are signed by, --http the plain twin. Prints a JSON
line per answer: status, bytes.
"""

import argparse
import json
import sys
import urllib.parse


def tell(status, body):
    print(json.dumps({"status": status, "bytes": len(body)}), flush=True)


def by_http_client(urls, authority):
    import http.client
    connection = None
    for url in urls:
        parts = urllib.parse.urlsplit(url)
        if connection is None and parts.scheme == "https":
            import ssl
            context = ssl.create_default_context(cafile=authority)
            connection = http.client.HTTPSConnection(parts.netloc, context=context)
        elif connection is None:
            connection = http.client.HTTPConnection(parts.netloc)
        connection.request("GET", parts.path)
        response = connection.getresponse()
        tell(response.status, response.read())


def by_requests(urls, authority):
    import requests
    with requests.Session() as session:
        for url in urls:
            response = session.get(url, verify=authority)
            tell(response.status_code, response.content)


def by_httpx(urls, authority, http2=False):
    import ssl
    import httpx
    context = ssl.create_default_context(cafile=authority)
    with httpx.Client(verify=context, http2=http2) as client:
        for url in urls:
            response = client.get(url)
            tell(response.status_code, response.content)


def by_aiohttp(urls, authority):
    import asyncio
    import ssl
    import aiohttp

    async def ask():
        context = ssl.create_default_context(cafile=authority)
        connector = aiohttp.TCPConnector(ssl=context, limit=1)
        async with aiohttp.ClientSession(connector=connector) as session:
            for url in urls:
                async with session.get(url) as response:
                    tell(response.status, await response.read())

    asyncio.run(ask())


def endless(urls, authority):
    import select
    import requests
    print(json.dumps({"asks": True}), flush=True)
    answers = set()
    count = 0
    with requests.Session() as session:
        while not select.select([sys.stdin], [], [], 0)[0]:
            for url in urls:
                response = session.get(url, verify=authority)
                answers.add((response.status_code, len(response.content)))
                count += 1
    print(json.dumps({"count": count, "answers": sorted(answers)}), flush=True)


def late(urls, authority):
    assert "_ssl" not in sys.modules, "TLS is loaded already"
    print(json.dumps({"loaded": False}), flush=True)
    sys.stdin.readline()
    by_http_client(urls[:1], authority)
    sys.stdin.readline()
    by_http_client(urls[1:], authority)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library")
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--authority")
    args = parser.parse_args()
    by = {
        "http.client": by_http_client,
        "requests": by_requests,
        "httpx": by_httpx,
        "httpx2": lambda urls, authority: by_httpx(urls, authority, http2=True),
        "aiohttp": by_aiohttp,
        "endless": endless,
        "late": late,
    }
    by[args.library](args.urls, args.authority)


if __name__ == "__main__":
    main()
