"""A WSGI application for gunicorn's sync workers: a process works for one request at a time.

BACK_PORT is in the environment. Each worker has a background thread, as applications that report
metrics have; `post_fork` in gunicorn.conf.py starts it.
"""

import http.client
import os
import threading
import time

local = threading.local()


def ask(path):
    if not hasattr(local, "back"):
        local.back = http.client.HTTPConnection("127.0.0.1", int(os.environ["BACK_PORT"]))
    local.back.request("GET", path)
    return local.back.getresponse().read()


def application(environment, start_response):
    body = ask(environment["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def background(worker):
    # Numbers of different workers must not meet.
    number = worker * 1_000_000
    while True:
        ask(f"/background/{number}")
        number += 1
        time.sleep(0.05)


def start_background(worker):
    threading.Thread(target=background, args=(worker,), daemon=True).start()
