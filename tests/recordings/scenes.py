"""Scenes for `cargo xtask record`: real programs and clients, small and bounded, on loopback.

Starts the scene's programs, prints {"pids": [...]} and waits for a line on standard input, which
says that the agent is attached. Then runs the clients, ends the programs and prints "done".
"""

import contextlib
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading

WORKLOADS = pathlib.Path(__file__).parent.parent / "workloads"
PYTHON = "/usr/bin/python3"
DEADLINE = 10


class Scene:
    """The programs of one scene, ended by pid."""

    def __init__(self, directory):
        self.directory = directory
        self.programs = []

    def start(self, *command):
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                   cwd="/", env={"PATH": "/usr/bin:/bin:/usr/sbin"})
        self.programs.append(program)
        return program

    def server(self, program, file, *arguments):
        process = self.start(program, WORKLOADS / file, *map(str, arguments))
        return json.loads(process.stdout.readline())["port"]

    def python(self, *arguments):
        return self.server(PYTHON, "server.py", *arguments)

    def node(self, *arguments):
        return self.server("node", "server.js", *arguments)

    def nginx(self, proxied=None):
        """nginx in front of a port, or for the files below `www`."""
        port = free_port()
        www = self.directory / "www"
        www.mkdir()
        (www / "small.txt").write_bytes(b"small\n")
        (www / "large.bin").write_bytes(bytes(1 << 20))
        upstream = f"upstream back {{ server 127.0.0.1:{proxied}; keepalive 8; }}"
        proxy = ("location / { proxy_pass http://back; proxy_http_version 1.1; "
                 'proxy_set_header Connection ""; }')
        text = (WORKLOADS / "nginx.conf").read_text(encoding="utf-8")
        for name, value in {
            "DIR": str(self.directory), "LISTEN": f"listen 127.0.0.1:{port};", "WORKERS": "1",
            "SENDFILE": "on", "UPSTREAM": upstream if proxied else "",
            "USER": "user root;" if os.getuid() == 0 else "", "PROXY": proxy if proxied else "",
        }.items():
            text = text.replace(f"@{name}@", value)
        configuration = self.directory / "nginx.conf"
        configuration.write_text(text, encoding="utf-8")
        self.start("nginx", "-p", self.directory, "-c", configuration)
        wait_for(port)
        return port

    def end(self):
        for program in self.programs:
            if program.poll() is None:
                program.send_signal(signal.SIGTERM)
        for program in self.programs:
            program.wait(DEADLINE)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port):
    pause = threading.Event()
    for _ in range(DEADLINE * 100):
        with contextlib.suppress(ConnectionError), connect(port):
            return
        pause.wait(0.01)
    raise TimeoutError(f"nothing listens on {port}")


def connect(port):
    return socket.create_connection(("127.0.0.1", port), DEADLINE)


def get(path, *fields, connection="keep-alive"):
    lines = [f"GET {path} HTTP/1.1", "Host: test", f"Connection: {connection}", *fields, "", ""]
    return "\r\n".join(lines).encode()


def read_until(sock, ends):
    """Reads until `ends` bytes have come or the connection has ended."""
    received = b""
    while not received.endswith(ends):
        more = sock.recv(65536)
        if not more:
            break
        received += more
    return received


def curl(*arguments):
    subprocess.run(["curl", "--silent", "--output", "/dev/null", "--max-time", "10", *arguments],
                   check=False, env={"PATH": "/usr/bin:/bin"})


def together(count, work):
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)


# Each scene is a generator: programs, then `yield`, then clients.

def nginx_static(scene):
    """Keep-alive and pipelining."""
    port = scene.nginx()
    yield
    url = f"http://127.0.0.1:{port}"
    curl(f"{url}/small.txt", f"{url}/missing", f"{url}/moved", "--output", "/dev/null",
         "--output", "/dev/null")
    curl("--head", f"{url}/small.txt")
    with connect(port) as sock:
        sock.sendall(get("/hello") + get("/small.txt") + get("/empty", connection="close"))
        read_until(sock, b"never")


def chain(scene):
    """nginx, Python threads, Node; eight clients at once, each with three requests."""
    node = scene.node()
    python = scene.python("--backend", f"127.0.0.1:{node}")
    port = scene.nginx(python)
    yield
    def client(number):
        with connect(port) as sock:
            for turn in range(3):
                sock.sendall(get(f"/call/hello?n={number}-{turn}"))
                read_until(sock, b"hello\n")
    together(8, client)


def background(scene):
    """A thread of the server calls out while another serves."""
    backend = scene.python()
    port = scene.python("--backend", f"127.0.0.1:{backend}", "--background",
                        f"http://127.0.0.1:{backend}/hello", "--background-ms", 15)
    yield
    for _ in range(5):
        curl(f"http://127.0.0.1:{port}/call/slow/20")


def node_front(scene):
    """Overlapping requests in an event loop, which calls out for each."""
    backend = scene.python()
    port = scene.node("--backend", f"127.0.0.1:{backend}", "--sockets", 2)
    yield
    def client(number):
        curl(f"http://127.0.0.1:{port}/call/slow/{5 + 5 * number}")
    together(5, client)


def continue_100(scene):
    port = scene.python()
    yield
    for size in (0, 2000):
        with connect(port) as sock:
            sock.sendall(f"POST /sink HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n"
                         f"Content-Length: {size}\r\n\r\n".encode())
            read_until(sock, b"\r\n\r\n")
            sock.sendall(b"x" * size)
            read_until(sock, b"hello\n")


def chunked(scene):
    """Chunks with trailers, from Python and Node; long and short, kept alive."""
    ports = [scene.python(), scene.node()]
    yield
    for port in ports:
        url = f"http://127.0.0.1:{port}/chunked"
        curl(f"{url}/10", f"{url}/100000", f"{url}/0", "--output", "/dev/null",
             "--output", "/dev/null")


def sendfile(scene):
    port = scene.nginx()
    yield
    url = f"http://127.0.0.1:{port}"
    curl(f"{url}/large.bin", f"{url}/small.txt", "--output", "/dev/null")


def unix(scene):
    path = scene.directory / "server.sock"
    scene.python("--unix", path)
    yield
    for _ in range(2):
        curl("--unix-socket", path, "http://test/hello", "http://test/bytes/30000",
             "--output", "/dev/null")


def attach_late(scene):
    """Connections that are older than the agent: idle, and in the middle of a response."""
    port = scene.python()
    idle, busy = connect(port), connect(port)
    idle.sendall(get("/hello"))
    read_until(idle, b"hello\n")
    busy.sendall(get("/slow/700"))
    yield
    idle.sendall(get("/status/404"))
    read_until(idle, b"status\n")
    read_until(busy, b"slow\n")
    for sock in (busy, idle):
        sock.sendall(get("/bytes/5", connection="close"))
        read_until(sock, b"never")
        sock.close()


def client_killed(scene):
    """A client that closes before the answer, one that resets in the middle of it."""
    port = scene.python()
    front = scene.nginx(port)
    yield
    curl("--max-time", "0.1", f"http://127.0.0.1:{front}/slow/300")
    for server in (port, front):
        sock = connect(server)
        sock.sendall(get("/bytes/8000000"))
        sock.recv(1000)
        # Linger of zero: the close sends a reset.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    curl(f"http://127.0.0.1:{front}/slow/400")


def server_killed(scene):
    """A server that ends before its answer, and one in the middle of it, behind nginx."""
    ports = [scene.python(), scene.python()]
    fronts = [scene.nginx(ports[0])]
    yield
    curl(f"http://127.0.0.1:{ports[1]}/die/40000")
    curl(f"http://127.0.0.1:{fronts[0]}/exit")
    curl(f"http://127.0.0.1:{fronts[0]}/hello")


def http2(scene):
    """Streams side by side on one connection, in front and behind; calls of gRPC among them."""
    back = scene.server("node", "http2.js")
    front = scene.server("node", "http2.js", "--backend", f"127.0.0.1:{back}")
    yield
    url = f"http://127.0.0.1:{front}"
    curl("--http2-prior-knowledge", f"{url}/fan/8")
    curl("--http2-prior-knowledge", f"{url}/status/404")
    def client(number):
        curl("--http2-prior-knowledge", f"{url}/fan/{4 + number}?n={number}")
    together(3, client)


def http2_late(scene):
    """A connection of HTTP/2 that is older than the agent."""
    back = scene.server("node", "http2.js")
    front = scene.server("node", "http2.js", "--backend", f"127.0.0.1:{back}")
    curl("--http2-prior-knowledge", f"http://127.0.0.1:{front}/fan/8")
    yield
    for _ in range(2):
        curl("--http2-prior-knowledge", f"http://127.0.0.1:{front}/fan/4")


SCENES = {scene.__name__: scene for scene in (
    nginx_static, chain, background, node_front, continue_100, chunked, sendfile, unix,
    attach_late, client_killed, server_killed, http2, http2_late)}


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in SCENES:
        sys.exit(f"usage: scenes.py {' | '.join(SCENES)}")
    with tempfile.TemporaryDirectory(prefix="scene-") as directory:
        scene = Scene(pathlib.Path(directory))
        try:
            clients = SCENES[sys.argv[1]](scene)
            next(clients)
            print(json.dumps({"pids": [program.pid for program in scene.programs]}), flush=True)
            sys.stdin.readline()
            next(clients, None)
        finally:
            scene.end()
        print("done", flush=True)


if __name__ == "__main__":
    main()
