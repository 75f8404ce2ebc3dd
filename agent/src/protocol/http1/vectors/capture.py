#!/usr/bin/env python3
"""Makes the `.txt` vectors of real peers: a relay between a real client and a real server writes
down what flowed, in order. Expected spans are not written by this script: see vector_tests.rs.

Usage: capture.py [NAME...]   Needs curl, wget, nginx, apache2, lighttpd, haproxy, tinyproxy, node,
php, ruby-webrick, and of Python requests, aiohttp and websockets; loopback only.
"""
import contextlib, os, pathlib, select, shutil, socket, struct, subprocess, sys, tempfile, threading, time

HERE = pathlib.Path(__file__).parent
TEMP = pathlib.Path(tempfile.mkdtemp())
MAX_LINE = 88

NODE = r"""
const http = require('http');
const server = http.createServer((req, res) => {
  const path = req.url.split('?')[0];
  if (path === '/early-hints') { res.writeEarlyHints({link: '</s.css>; rel=preload'}); res.end('hi'); }
  else if (path === '/processing') { res.writeProcessing(); res.writeProcessing(); res.end('ok'); }
  else if (path === '/trailers') {
    res.writeHead(200, {Trailer: 'X-Sum'}); res.write('part one,'); res.write('part two');
    res.addTrailers({'X-Sum': '17'}); res.end();
  }
  else if (path === '/empty') { res.writeHead(204); res.end(); }
  else if (path === '/cut-length') {
    res.writeHead(200, {'Content-Length': 1000}); res.write('only this'); setTimeout(() => res.destroy(), 50);
  }
  else if (path === '/cut-chunked') { res.write('only this'); setTimeout(() => res.destroy(), 50); }
  else if (path === '/cut-before') { req.socket.destroy(); }
  else if (path === '/reset') { req.socket.resetAndDestroy(); }
  else if (path === '/silent') { }
  else if (path === '/slow-body') { res.writeHead(200, {'Content-Length': 100}); res.write('begin'); }
  else if (path === '/early') { res.writeHead(413, {Connection: 'close'}); res.end('no'); }
  else if (path === '/long') { res.writeHead(200, {'Content-Length': 300000}); res.end(Buffer.alloc(300000, 'x')); }
  else if (path === '/long-chunked') {
    res.write(Buffer.alloc(150000, 'y')); setTimeout(() => res.end(Buffer.alloc(150000, 'z')), 20);
  }
  else if (path === '/chunks') { let n = 0; const t = setInterval(() => {
      if (++n > 4) { clearInterval(t); res.end(); } else res.write('chunk ' + n + '\n'); }, 10); }
  else if (path === '/error') { res.writeHead(503); res.end('later'); }
  else { let n = 0; req.on('data', d => n += d.length); req.on('end', () => res.end('got ' + n + '\n')); }
});
server.on('upgrade', (req, socket) => socket.end(
  'HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\nraw bytes'));
server.on('checkExpectation', (req, res) => { res.writeHead(417); res.end(); });
server.on('checkContinue', (req, res) => {
  if (req.url === '/refuse') { res.writeHead(413); res.end('too much'); }
  else { res.writeContinue(); server.emit('request', req, res); } });
server.listen(+process.argv[2], '127.0.0.1');
"""

AIOHTTP = r"""
import asyncio, sys
from aiohttp import web
async def socket(request):
    answer = web.WebSocketResponse(compress=False)
    await answer.prepare(request)
    await answer.send_str('HTTP/1.1 500 Inside')
    async for message in answer: await answer.send_str(message.data)
    return answer
async def events(request):
    answer = web.StreamResponse(headers={'Content-Type': 'text/event-stream; charset=utf-8'})
    await answer.prepare(request)
    for number in range(int(request.query.get('count', 1000))):
        await answer.write(b'data: %d\n\n' % number)
        await asyncio.sleep(0.05)
    return answer
app = web.Application()
app.add_routes([web.get('/socket', socket), web.get('/events', events)])
web.run_app(app, host='127.0.0.1', port=int(sys.argv[1]), print=None)
"""

WEBSOCKETS = r"""
from websockets.sync.client import connect
with connect('ws://127.0.0.1:PORT/socket', compression=None, proxy=None) as socket:
    socket.recv(); socket.send('GET /inside HTTP/1.1\r\nHost: a\r\n\r\n'); socket.recv()
"""

def write(name, text):
    path = TEMP / name
    path.write_text(text)
    return str(path)

def nginx(port):
    (TEMP / "www").mkdir(exist_ok=True)
    (TEMP / "www/index.html").write_text("hello from nginx\n")
    (TEMP / "www/big").write_bytes(b"n" * 200000)
    os.chmod(TEMP, 0o755)
    config = write("nginx.conf", f"""daemon off; master_process off; pid {TEMP}/nginx.pid; error_log /dev/null;
events {{}} http {{ access_log off; client_body_temp_path {TEMP}/b; proxy_temp_path {TEMP}/p;
fastcgi_temp_path {TEMP}/f; uwsgi_temp_path {TEMP}/u; scgi_temp_path {TEMP}/s; server {{ listen 127.0.0.1:{port};
root {TEMP}/www; location /refuse {{ client_max_body_size 10; }} }} }}""")
    return ["nginx", "-c", config]

def apache(port):
    (TEMP / "www").mkdir(exist_ok=True)
    (TEMP / "www/index.html").write_text("hello\n")
    config = write("apache.conf", f"""ServerName localhost
ServerRoot {TEMP}
PidFile {TEMP}/apache.pid
Listen 127.0.0.1:{port}
ErrorLog /dev/null
DocumentRoot {TEMP}/www
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
""")
    return ["apache2", "-X", "-f", config]

def lighttpd(port):
    (TEMP / "www").mkdir(exist_ok=True)
    (TEMP / "www/index.html").write_text("hello from lighttpd\n")
    return ["lighttpd", "-D", "-f", write("lighttpd.conf",
        f'server.port={port}\nserver.bind="127.0.0.1"\nserver.document-root="{TEMP}/www"\nindex-file.names=("index.html")\n')]

def haproxy(port):
    return ["haproxy", "-db", "-f", write("haproxy.cfg", f"""defaults
 mode http
 timeout client 1s
 timeout server 1s
 timeout connect 1s
frontend f
 bind 127.0.0.1:{port}
 http-request return status 200 content-type text/plain string "from haproxy" if {{ path /direct }}
 http-request redirect location /elsewhere
""")]

def tinyproxy(port):
    return ["tinyproxy", "-d", "-c", write("tinyproxy.conf",
        f'Port {port}\nListen 127.0.0.1\nTimeout 5\nMaxClients 5\nLogFile "/dev/null"\n')]

def aiohttp(port): return [sys.executable, write("streams.py", AIOHTTP), str(port)]
def node(port): return ["node", write("server.js", NODE), str(port)]
def python(port): return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", str(TEMP / "www"), str(port)]
def python11(port): return python(port)[:3] + ["-p", "HTTP/1.1"] + python(port)[3:]
def php(port): return ["php", "-S", f"127.0.0.1:{port}", write("r.php", "<?php echo 'hello ', $_SERVER['REQUEST_METHOD'];")]
def webrick(port): return ["ruby", "-rwebrick", "-e",
    f"s=WEBrick::HTTPServer.new(Port:{port},BindAddress:'127.0.0.1',AccessLog:[],Logger:WEBrick::Log.new('/dev/null'));"
    "s.mount_proc('/'){|q,r| r.chunked=true; r.body=proc{|o| o.write('one'); o.write('two')}}; s.start"]

def curl(*arguments):
    def run(port):
        subprocess.run(["curl", "-sS", "--noproxy", "*", "-m", "3", *[a.replace("PORT", str(port)) for a in arguments]],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    run.source = "curl " + " ".join(arguments)
    return run

def command(*arguments):
    def run(port):
        subprocess.run([a.replace("PORT", str(port)) for a in arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10, check=False)
    run.source = " ".join(arguments)
    return run

def websockets():
    run = command(sys.executable, "-c", WEBSOCKETS)
    run.source = "websockets ws://127.0.0.1:PORT/socket"
    return run

def raw(*pieces, half_close=False, reset=False, wait=0.3):
    """A socket: what a client library would not send, to a real server."""
    def run(port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                client.sendall(piece)
                time.sleep(wait)
            if half_close: client.shutdown(socket.SHUT_WR)
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            with contextlib.suppress(OSError):
                while half_close and client.recv(65536): pass
    run.source = "a Python socket with hand-written requests"
    return run

class Relay(threading.Thread):
    """One connection at a time; what flowed, in order."""
    def __init__(self, upstream):
        super().__init__(daemon=True)
        self.upstream, self.log = upstream, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        with contextlib.suppress(OSError):
            client, _ = self.listener.accept()
            server = socket.create_connection(("127.0.0.1", self.upstream))
            pair = {client: (">", server), server: ("<", client)}
            while pair:
                for end in select.select(list(pair), [], [], 3)[0] or list(pair):
                    flow, other = pair[end]
                    try: data = end.recv(65536)
                    except ConnectionError:
                        self.log.append((flow, "reset"))
                        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        other.close(); end.close()
                        return
                    if data:
                        self.log.append((flow, data))
                        with contextlib.suppress(OSError): other.sendall(data)
                    else:
                        self.log.append((flow, "closed"))
                        del pair[end]
                        with contextlib.suppress(OSError): other.shutdown(socket.SHUT_WR)

def quote(data):
    """Lines of at most MAX_LINE: split after line feeds; escapes are those of the runner."""
    line = ""
    for byte in data:
        if byte in b'"\\': line += "\\" + chr(byte)
        elif byte == 10: line += "\\n"
        elif byte == 13: line += "\\r"
        elif 32 <= byte < 127: line += chr(byte)
        else: line += f"\\x{byte:02x}"
        if byte == 10 or len(line) >= MAX_LINE:
            yield line
            line = ""
    if line: yield line

def budgeted(log):
    """The budget of the kernel side: 2 KiB of the first call of a response turn, 512 of others."""
    last = None
    for flow, data in log:
        if flow == ">" or isinstance(data, str): yield flow, data
        else:
            limit = 2048 if flow != last else 512
            yield flow, data[:limit]
            if len(data) > limit: yield flow, (len(data) - limit, data[-8:] if len(data) - limit >= 8 else data[limit:])
        last = flow

def capture(name, server, client, kind="server", budget=False, note=""):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    process = subprocess.Popen(server(port), cwd=TEMP, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close(); break
            if time.monotonic() > deadline: raise SystemExit(f"{name}: the server did not start")
            time.sleep(0.05)
        relay = Relay(port)
        client(relay.port)
        relay.join(6)
        log = relay.log
    finally:
        process.terminate(); process.wait(5)
    text = [f"# {client.source.replace('PORT', 'port')}, answered by {server.__name__}; captured by capture.py.{note}",
            f"kind: {kind}"]
    for index, (flow, data) in enumerate(budgeted(log) if budget else log):
        at = (index + 1) * 100
        if isinstance(data, str): text.append(f"{flow} {at} end {data}")
        elif isinstance(data, tuple): text += [f"{flow} {at} skip {data[0]}"] + [f'  "{line}"' for line in quote(data[1])]
        else: text += [f"{flow} {at}"] + [f'  "{line}"' for line in quote(data)]
    replaced = "\n".join(text).replace(str(relay.port), "4" + "8" * (len(str(relay.port)) - 1))
    old = HERE / f"{name}.txt"
    expected = old.read_text().partition("\nexpect\n")[2] if old.exists() else ""
    old.write_text(replaced + "\nexpect\n" + expected)
    print(name, len(log))

URL = "http://127.0.0.1:PORT"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
BYE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
CASES = {
    "keep_alive": (nginx, curl(URL + "/?a=1&sig=secret", URL + "/missing")),
    "keep_alive_client": (node, command(sys.executable, "-c",
        "import requests; s=requests.Session(); [s.request(m,'http://localhost:PORT/echo?q=1',data=d) for m,d in (('GET',None),('POST','abc'),('DELETE',None))]"), "client"),
    "pipelining": (nginx, raw(GET + HEAD + GET + BYE)),
    "pipelining_node": (node, raw(GET + GET, BYE), "client"),
    "chunked_trailers": (node, curl("--raw", URL + "/trailers"), "client"),
    "chunked_slow": (node, curl(URL + "/chunks")),
    "chunked_webrick": (webrick, command("wget", "-q", "-O", "/dev/null", URL + "/w")),
    "chunked_request": (node, curl("-X", "POST", "-H", "Transfer-Encoding: chunked", "-d", "hello chunks", URL + "/up")),
    "chunked_extensions": (node, raw(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5;name=\"v\";x\r\nhello\r\n0;last\r\nX-T: 1\r\n\r\n")),
    "close_delimited": (php, raw(b"GET /x HTTP/1.0\r\n\r\n")),
    "http10_python": (python, curl("-0", URL + "/")),
    "http10_keep_alive": (apache, raw(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n")),
    "http11_python": (python11, curl(URL + "/", URL + "/none")),
    "head": (nginx, curl("-I", URL + "/", URL + "/big")),
    "no_content": (node, curl(URL + "/empty", URL + "/empty")),
    "not_modified": (python11, raw(b"GET /index.html HTTP/1.1\r\nHost: a\r\nIf-Modified-Since: Fri, 01 Jan 2038 00:00:00 GMT\r\n\r\n", BYE)),
    "continue": (node, curl("-H", "Expect: 100-continue", "-d", "twelve bytes", URL + "/up")),
    "continue_refused": (node, raw(b"POST /refuse HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n", BYE)),
    "expectation_failed": (apache, curl("-H", "Expect: the-unexpected", "-d", "x=1", URL + "/")),
    "early_hints": (node, curl(URL + "/early-hints")),
    "processing": (node, curl(URL + "/processing"), "client"),
    "early_response": (node, raw(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nfirst part", b"second part")),
    "upgrade": (node, raw(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", half_close=True)),
    "websocket": (aiohttp, websockets()),
    "websocket_client": (aiohttp, websockets(), "client"),
    "events": (aiohttp, curl("-N", URL + "/events?count=3")),
    "events_left": (aiohttp, curl("-N", "-m", "0.3", URL + "/events"), "client"),
    "connect": (tinyproxy, None, "client"),
    "proxy_absolute": (tinyproxy, None, "client"),
    "one_byte_first": (node, raw(b"G", b"ET /one HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", wait=0.1)),
    "many_packets": (node, raw(*[bytes([b]) for b in b"POST /m?x=y HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody"], wait=0.01)),
    "large_upload": (node, curl("-H", "Expect:", "-d", "@" + str(TEMP / "upload"), URL + "/big")),
    "long_response": (node, curl(URL + "/long", URL + "/empty"), "server", True),
    "long_response_client": (node, curl(URL + "/long", URL + "/empty"), "client", True),
    "long_chunked": (node, curl(URL + "/long-chunked", URL + "/empty"), "server", True),
    "large_headers": (nginx, curl("-H", "X-Large: " + "h" * 9000, URL + "/")),
    "cut_length": (node, curl(URL + "/cut-length")),
    "cut_chunked_client": (node, curl(URL + "/cut-chunked"), "client"),
    "cut_before_response": (node, curl(URL + "/cut-before"), "client"),
    "reset_by_server": (node, curl(URL + "/reset"), "client"),
    "client_gives_up": (node, curl("-m", "1", URL + "/silent")),
    "client_gives_up_in_body": (node, curl("-m", "1", URL + "/slow-body")),
    "client_cut_in_head": (node, raw(b"GET /never HTTP/1.1\r\nHost: a\r\nX-")),
    "client_cut_in_body": (python, raw(b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\npart")),
    "client_reset": (node, raw(b"GET /silent HTTP/1.1\r\nHost: a\r\n\r\n", reset=True)),
    "half_close": (node, raw(b"POST /h HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", half_close=True)),
    "options_asterisk": (apache, curl("-X", "OPTIONS", "--request-target", "*", URL)),
    "methods": (nginx, raw(b"PROPFIND /d HTTP/1.1\r\nHost: a\r\n\r\nget / HTTP/1.1\r\nHost: a\r\n\r\n", b"BREW /pot HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")),
    "bare_line_feeds": (nginx, raw(b"GET / HTTP/1.1\nHost: a\nUser-Agent: lf\nConnection: close\n\n")),
    "empty_lines_before": (nginx, raw(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n" + BYE)),
    "folded_field": (lighttpd, raw(b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: one\r\n two\r\nConnection: close\r\n\r\n")),
    "ipv6_host": (nginx, raw(b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\nConnection: close\r\n\r\n")),
    "traceparent": (node, curl("-H", "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "-H", "tracestate: a=1", "-H", "tracestate: b=2", URL + "/t")),
    "two_traceparents": (node, curl("-H", "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "-H", "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01", URL + "/t")),
    "duplicate_fields": (node, raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nUser-Agent: x\r\nUser-Agent: y\r\nConnection: close\r\n\r\nok")),
    "forwarded": (haproxy, curl("-H", "X-Forwarded-For: 203.0.113.7, 10.0.0.1", "-H", "X-Forwarded-Proto: https", "-H", "Host: shop.example", URL + "/direct", URL + "/x")),
    "server_error": (node, curl(URL + "/error"), "server"),
    "bad_request": (nginx, raw(b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n")),
    "tls_hello": (nginx, curl("-k", "https://127.0.0.1:PORT/")),
    "not_http_line": (nginx, raw(b"get x\r\n")),
}

def through_proxy(name):
    """A proxy needs a server behind it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    process = subprocess.Popen(node(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    tunnel = ["-p"] if name == "connect" else []
    def run(proxy):
        subprocess.run(["curl", "-sS", "-m", "3", *tunnel, "-x", f"http://127.0.0.1:{proxy}", f"http://u:p@localhost:{port}/through?sig=1"],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    run.source = "curl " + ("-p " if tunnel else "") + "-x proxy http://u:p@localhost/through?sig=1"
    try: capture(name, tinyproxy, run, "client")
    finally: process.terminate(); process.wait(5)

def main():
    (TEMP / "www").mkdir(exist_ok=True)
    (TEMP / "www/index.html").write_text("hello\n")
    (TEMP / "upload").write_text("u" * 5000)
    for name, case in CASES.items():
        if sys.argv[1:] and name not in sys.argv[1:]: continue
        if case[1] is None: through_proxy(name)
        else: capture(name, *case)
    shutil.rmtree(TEMP)

main()
