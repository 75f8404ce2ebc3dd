#!/usr/bin/env python3
"""Makes the `.txt` vectors of real peers: a relay between a real client and a real server writes
down what flowed, in order. Expected spans are not written by this script: see vector_tests.rs.

Usage: capture.py [NAME...]   Needs nghttp, nghttpd and h2load (nghttp2), curl, nginx, apache2, node with
@grpc/grpc-js (NODE_PATH), go 1.24 or newer, and for Python h2, httpx and grpcio; loopback only.
Vectors of hyper and tonic need a program of theirs, named by RUST_PEER; see the README.
"""
import contextlib, os, pathlib, select, shutil, socket, subprocess, sys, tempfile, threading, time

HERE = pathlib.Path(__file__).parent
TEMP = pathlib.Path(tempfile.mkdtemp())
PORT = 18080  # Of the relay: it stands in coded fields, so it cannot be replaced afterwards.
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

NODE_SERVER = r"""
const http2 = require('http2');
const server = http2.createServer({settings: {enableConnectProtocol: true}});
server.on('stream', (stream, headers) => {
  const path = headers[':path'].split('?')[0];
  stream.on('error', () => {});
  if (headers[':protocol'] === 'websocket') { stream.respond({':status': 200}); stream.write('frame'); return; }
  if (path === '/hints') { stream.additionalHeaders({':status': 103, link: '</s.css>; rel=preload'}); stream.respond({':status': 200}); stream.end('hi'); }
  else if (path === '/push') { stream.pushStream({':path': '/pushed'}, (e, pushed) => { pushed.respond({':status': 200}); pushed.end('pushed'); });
    stream.respond({':status': 200}); stream.end('page'); }
  else if (path === '/trailers') { stream.respond({':status': 200}, {waitForTrailers: true}); stream.on('wantTrailers', () => stream.sendTrailers({'x-sum': '17'})); stream.end('body'); }
  else if (path === '/reset') { stream.respond({':status': 200}); stream.write('half'); setTimeout(() => stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR), 20); }
  else if (path === '/refuse') { stream.close(http2.constants.NGHTTP2_REFUSED_STREAM); }
  else if (path === '/silent') { }
  else if (path === '/early') { stream.respond({':status': 413}); stream.end('no'); }
  else if (path === '/goaway') { stream.session.goaway(http2.constants.NGHTTP2_ENHANCE_YOUR_CALM, 0); setTimeout(() => stream.session.destroy(), 50); }
  else if (path === '/close') { stream.respond({':status': 200}); stream.write('half'); setTimeout(() => stream.session.socket.destroy(), 30); }
  else if (path === '/events') { stream.respond({':status': 200, 'content-type': 'text/event-stream'}); let n = 0;
    const t = setInterval(() => { if (++n > 3) { clearInterval(t); stream.end(); } else stream.write('data: ' + n + '\n\n'); }, 10); }
  else if (path === '/big') { stream.respond({':status': 200}); stream.end(Buffer.alloc(60000, 'b')); }
  else { let n = 0; stream.on('data', d => n += d.length); stream.on('end', () => { stream.respond({':status': path === '/error' ? 503 : 200, 'x-long': 'v'.repeat(30)}); stream.end('got ' + n); }); }
});
server.listen(+process.argv[2], '127.0.0.1');
"""

NODE_CLIENT = r"""
const http2 = require('http2');
const session = http2.connect('http://127.0.0.1:' + process.argv[2]);
session.on('error', () => {});
let open = 0;
const done = () => { if (--open === 0) setTimeout(() => session.close(), 30); };
const go = (headers, body, act) => { open++; const r = session.request(headers, {endStream: body === undefined});
  r.on('error', () => {}); r.on('close', done); r.resume(); if (body !== undefined && body !== null) r.end(body); if (act) act(r); return r; };
session.once('remoteSettings', () => {
  const what = process.argv[3];
  if (what === 'mixed') { go({':path': '/hints', traceparent: 'TRACEPARENT', tracestate: 'a=1'}); go({':path': '/trailers'}); go({':path': '/up', ':method': 'POST'}, 'x'.repeat(100)); go({':path': '/error?sig=secret&a=1'}); go({':path': '/none', ':method': 'BREW'}); }
  else if (what === 'push') go({':path': '/push'});
  else if (what === 'reset') { go({':path': '/reset'}); go({':path': '/refuse'}); }
  else if (what === 'cancel') go({':path': '/silent'}, undefined, r => setTimeout(() => r.close(8), 30));
  else if (what === 'goaway') { go({':path': '/silent'}); go({':path': '/goaway'}); }
  else if (what === 'close') go({':path': '/close'});
  else if (what === 'events') go({':path': '/events'});
  else if (what === 'early') { const r = go({':path': '/early', ':method': 'POST'}, null); r.write('part'); r.on('end', () => setTimeout(() => r.end('rest'), 20)); }
  else if (what === 'big') { go({':path': '/big'}); go({':path': '/up', ':method': 'PUT'}, Buffer.alloc(40000, 'u')); }
  else if (what === 'websocket') { const r = go({':method': 'CONNECT', ':protocol': 'websocket', ':path': '/chat'}, null); r.on('data', () => { r.write('reply'); setTimeout(() => r.close(), 30); }); }
});
""".replace("TRACEPARENT", TRACEPARENT)

GO = r"""
package main

import ("bytes"; "context"; "fmt"; "io"; "net/http"; "os"; "strings"; "time")

func serve(address string) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hints": w.Header().Set("Link", "</s.css>; rel=preload"); w.WriteHeader(103); fmt.Fprint(w, "hi")
		case "/trailers": w.Header().Set("Trailer", "X-Sum"); fmt.Fprint(w, "body"); w.Header().Set("X-Sum", "17")
		case "/flush": for n := 0; n < 3; n++ { fmt.Fprintf(w, "part %d\n", n); w.(http.Flusher).Flush(); time.Sleep(10 * time.Millisecond) }
		case "/missing": http.NotFound(w, r)
		case "/panic": panic(http.ErrAbortHandler)
		default: body, _ := io.ReadAll(r.Body); fmt.Fprintf(w, "got %d", len(body))
		}
	})
	server := &http.Server{Addr: address, Handler: handler, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	panic(server.ListenAndServe())
}

func main() {
	if os.Args[1] == "serve" { serve("127.0.0.1:" + os.Args[2]) }
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: transport}
	do := func(method, path string, body io.Reader, timeout time.Duration) {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		request, _ := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:"+os.Args[2]+path, body)
		request.Header.Set("traceparent", "TRACEPARENT")
		response, err := client.Do(request)
		if err != nil { return }
		io.ReadAll(response.Body)
		response.Body.Close()
	}
	do("GET", "/hints", nil, time.Second)
	do("GET", "/trailers?q=1", nil, time.Second)
	do("POST", "/up", bytes.NewReader([]byte("hello")), time.Second)
	do("POST", "/chunked", io.MultiReader(strings.NewReader("one"), strings.NewReader("two")), time.Second)
	do("GET", "/flush", nil, time.Second)
	do("GET", "/missing", nil, time.Second)
	do("GET", "/panic", nil, time.Second)
	do("GET", "/flush", nil, 15*time.Millisecond)
	transport.CloseIdleConnections()
}
""".replace("TRACEPARENT", TRACEPARENT)

GRPC_SERVER = r"""
import sys, time, grpc
from concurrent import futures
class Greeter(grpc.GenericRpcHandler):
    def service(self, details):
        name = details.method
        def say(request, context):
            if b'missing' in request: context.abort(grpc.StatusCode.NOT_FOUND, 'no such name')
            if b'broken' in request: raise ValueError('broken')
            return b'\n\x05hello'
        def listing(request, context):
            for n in range(3): yield b'\n\x02n%d' % n
        def collect(requests, context): return b'\n\x01%d' % sum(1 for _ in requests)
        def chat(requests, context):
            for request in requests: yield request
        def slow(request, context):
            while context.is_active(): time.sleep(0.01)
            return b''
        table = {'Say': grpc.unary_unary_rpc_method_handler(say), 'List': grpc.unary_stream_rpc_method_handler(listing),
                 'Collect': grpc.stream_unary_rpc_method_handler(collect), 'Chat': grpc.stream_stream_rpc_method_handler(chat),
                 'Slow': grpc.unary_unary_rpc_method_handler(slow)}
        return table.get(name.rsplit('/', 1)[1]) if name.startswith('/hello.Greeter/') else None
server = grpc.server(futures.ThreadPoolExecutor(8)); server.add_generic_rpc_handlers((Greeter(),))
server.add_insecure_port('127.0.0.1:' + sys.argv[1]); server.start(); server.wait_for_termination()
"""

GRPC_CLIENT = r"""
import sys, time, grpc
channel = grpc.insecure_channel('127.0.0.1:' + sys.argv[1])
trace = [('traceparent', 'TRACEPARENT')]
def quiet(call):
    try: return call()
    except grpc.RpcError as error: return error.code()
say = channel.unary_unary('/hello.Greeter/Say')
if sys.argv[2] == 'kinds':
    say(b'\n\x01a', metadata=trace)
    say(b'\n\x01a', metadata=trace, timeout=5)
    quiet(lambda: say(b'\n\x07missing'))
    quiet(lambda: say(b'\n\x06broken'))
    list(channel.unary_stream('/hello.Greeter/List')(b'', metadata=trace))
    channel.stream_unary('/hello.Greeter/Collect')(iter([b'\n\x01a'] * 4))
    list(channel.stream_stream('/hello.Greeter/Chat')(iter([b'\n\x01a'] * 3)))
    quiet(lambda: channel.unary_unary('/hello.Greeter/None')(b''))
elif sys.argv[2] == 'deadline':
    quiet(lambda: channel.unary_unary('/hello.Greeter/Slow')(b'', timeout=0.1))
    call = channel.unary_unary('/hello.Greeter/Slow').future(b''); time.sleep(0.1); call.cancel(); time.sleep(0.05)
elif sys.argv[2] == 'parallel':
    calls = [say.future(b'\n\x01a', metadata=[('x-n', str(n))]) for n in range(12)]
    [call.result() for call in calls]
channel.close()
""".replace("TRACEPARENT", TRACEPARENT)

GRPC_JS = r"""
const grpc = require('@grpc/grpc-js');
const client = new grpc.Client('127.0.0.1:' + process.argv[2], grpc.credentials.createInsecure());
const same = x => x, metadata = new grpc.Metadata();
metadata.set('traceparent', 'TRACEPARENT');
client.makeUnaryRequest('/hello.Greeter/Say', same, same, Buffer.from('\n\x01a'), metadata, {deadline: Date.now() + 5000}, () => {
  client.makeUnaryRequest('/hello.Greeter/Say', same, same, Buffer.from('\n\x07missing'), metadata, () => {
    const chat = client.makeBidiStreamRequest('/hello.Greeter/Chat', same, same, metadata);
    chat.on('data', () => {}); chat.on('end', () => { client.close(); setTimeout(() => process.exit(0), 50); });
    chat.write(Buffer.from('\n\x01a')); chat.write(Buffer.from('\n\x01b')); chat.end();
  });
});
""".replace("TRACEPARENT", TRACEPARENT)

HTTPX = f"""
import sys, httpx
with httpx.Client(http1=False, http2=True, trust_env=False) as client:
    base = 'http://127.0.0.1:' + sys.argv[1]
    for path in ('/a', '/a', '/b?x=1'): client.get(base + path, headers={{'traceparent': '{TRACEPARENT}'}})
    client.post(base + '/up', content=b'c' * 300)
"""

PYTHON_H2 = r"""
# An h2 server, one connection; paddings and a small header table.
import contextlib, sys, socket, h2.connection, h2.config, h2.events, h2.settings
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
def serve(peer):
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    connection.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: int(sys.argv[2])})
    peer.sendall(connection.data_to_send())
    while data := peer.recv(65536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                connection.send_headers(event.stream_id, [(':status', '200'), ('server', 'python-h2')])
                connection.send_data(event.stream_id, b'padded content', end_stream=True, pad_length=20)
        peer.sendall(connection.data_to_send())
while True:
    with contextlib.suppress(OSError): serve(listener.accept()[0])
"""

def write(name, text):
    path = TEMP / name
    path.write_text(text)
    return str(path)

def nghttpd(*options):
    def run(port):
        root = TEMP / "www"; root.mkdir(exist_ok=True)
        for name in ("index.html", "a", "b", "style.css"): (root / name).write_text(f"hello from {name}\n")
        return ["nghttpd", "--no-tls", "-d", str(root), *options, str(port)]
    run.source = "nghttpd " + " ".join(options)
    return run

def nginx(port):
    root = TEMP / "www"; root.mkdir(exist_ok=True); (root / "index.html").write_text("hello from nginx\n")
    os.chmod(TEMP, 0o755)
    return ["nginx", "-c", write("nginx.conf", f"""daemon off; master_process off; pid {TEMP}/nginx.pid; error_log /dev/null;
events {{}} http {{ access_log off; client_body_temp_path {TEMP}/b; proxy_temp_path {TEMP}/p; fastcgi_temp_path {TEMP}/f;
uwsgi_temp_path {TEMP}/u; scgi_temp_path {TEMP}/s; server {{ listen 127.0.0.1:{port} http2; root {root}; }} }}""")]
nginx.source = "nginx"

def apache(port):
    root = TEMP / "www"; root.mkdir(exist_ok=True)
    for name in ("a", "b"): (root / name).write_text(f"hello from {name}\n")
    return ["apache2", "-X", "-f", write("apache.conf", f"""ServerName localhost
ServerRoot {TEMP}
PidFile {TEMP}/apache.pid
Listen 127.0.0.1:{port}
ErrorLog /dev/null
DocumentRoot {root}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule http2_module /usr/lib/apache2/modules/mod_http2.so
Protocols h2c http/1.1
""")]
apache.source = "apache2 with mod_http2"

def go_program():
    binary = TEMP / "go-peer"
    if not binary.exists():
        (TEMP / "go").mkdir(); (TEMP / "go/main.go").write_text(GO); (TEMP / "go/go.mod").write_text("module peer\n\ngo 1.24\n")
        subprocess.run(["go", "build", "-o", str(binary), "."], cwd=TEMP / "go", check=True)
    return str(binary)

def server(source, *command):
    def run(port): return [str(port) if part == "PORT" else part() if callable(part) else part for part in command]
    run.source = source
    return run

def client(source, *command):
    def run(port):
        subprocess.run([part() if callable(part) else part.replace("PORT", str(port)) for part in command],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=20, check=False)
    run.source = source
    return run

def node_server(): return write("server.js", NODE_SERVER)
def node_client(what): return client(f"node http2 client ({what})", "node", lambda: write("client.js", NODE_CLIENT), "PORT", what)
def grpc_client(what): return client(f"grpcio client ({what})", sys.executable, lambda: write("client.py", GRPC_CLIENT), "PORT", what)
def nghttp(*arguments): return client("nghttp " + " ".join(arguments), "nghttp", *arguments)
def curl(*arguments): return client("curl " + " ".join(arguments), "curl", "-sS", "--noproxy", "*", "-m", "3", *arguments)

def raw(source, *pieces):
    def run(port):
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.settimeout(0.3)
            for piece in pieces:
                peer.sendall(piece)
                with contextlib.suppress(OSError):
                    while peer.recv(65536): pass
    run.source = source
    return run

NODE = server("node http2", "node", node_server, "PORT")
GO_SERVER = server("Go net/http", go_program, "serve", "PORT")
GRPC = server("grpcio", sys.executable, lambda: write("server.py", GRPC_SERVER), "PORT")
RUST = server("hyper", os.environ.get("RUST_PEER", "rust-peer"), "serve", "PORT")
def python_h2(table): return server(f"Python h2, header table {table}", sys.executable, lambda: write("h2_server.py", PYTHON_H2), "PORT", str(table))

class Relay(threading.Thread):
    """One connection; what flowed, in order."""
    def __init__(self, upstream):
        super().__init__(daemon=True)
        self.upstream, self.log = upstream, []
        self.listener = socket.create_server(("127.0.0.1", PORT))
        self.start()

    def run(self):
        with contextlib.suppress(OSError):
            client, _ = self.listener.accept()
            server = socket.create_connection(("127.0.0.1", self.upstream))
            for end in (client, server): end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = {client: (">", server), server: ("<", client)}
            while pair:
                for end in select.select(list(pair), [], [], 3)[0] or list(pair):
                    flow, other = pair[end]
                    try: data = end.recv(65536)
                    except ConnectionError:
                        self.log.append((flow, "reset")); other.close(); end.close()
                        return
                    if data:
                        self.log.append((flow, data))
                        with contextlib.suppress(OSError): other.sendall(data)
                    else:
                        self.log.append((flow, "closed"))
                        del pair[end]
                        with contextlib.suppress(OSError): other.shutdown(socket.SHUT_WR)

def budgeted(log, limit):
    """Only the first bytes of each piece are captured; the rest is counted, with its last eight."""
    for flow, data in log:
        if isinstance(data, str): yield flow, data
        else:
            yield flow, data[:limit]
            if len(data) > limit: yield flow, (len(data) - limit, data[limit:][-8:])

def capture(name, server, client, kind="server", limit=None, note=""):
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
        client(PORT)
        relay.join(6)
        log = relay.log
        relay.listener.close()
    finally:
        process.terminate(); process.wait(5)
    text = [f"# {client.source}, answered by {server.source}; captured by capture.py.{note}", f"kind: {kind}"]
    for index, (flow, data) in enumerate(budgeted(log, limit or 1 << 30)):
        at = (index + 1) * 100
        if isinstance(data, str): text.append(f"{flow} {at} end {data}")
        elif isinstance(data, tuple): text.append(f"{flow} {at} skip {data[0]} {data[1].hex()}")
        else: text += [f"{flow} {at}"] + ["  " + data[start:start + 48].hex() for start in range(0, len(data), 48)]
    old = HERE / f"{name}.txt"
    expected = old.read_text().partition("\nexpect\n")[2] if old.exists() else ""
    old.write_text("\n".join(text) + "\nexpect\n" + expected)
    print(name, len(log))

URL = f"http://127.0.0.1:{PORT}"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CASES = {
    "nghttp2_concurrent": (nghttpd(), nghttp(URL + "/", URL + "/a", URL + "/b", URL + "/missing")),
    "nghttp2_client": (nghttpd(), nghttp("-H", "traceparent: " + TRACEPARENT, URL + "/a", URL + "/b"), "client"),
    "nghttp2_upgrade": (apache, nghttp("-u", URL + "/a", URL + "/b")),
    "nghttp2_push": (nghttpd("-p/=/style.css"), nghttp(URL + "/")),
    "nghttp2_padding_trailers": (nghttpd("-b", "16", "--trailer", "x-sum: 17"), nghttp("-b", "24", "--trailer", "x-up: 1", "-d", "/etc/hostname", URL + "/a")),
    "nghttp2_table_size": (nghttpd("-c", "0"), nghttp("-c", "0", "-c", "8192", "-m", "3", URL + "/a")),
    "h2load": (nghttpd(), client("h2load -n 30 -c 1 -m 10", "h2load", "-n", "30", "-c", "1", "-m", "10", URL + "/a")),
    "h2load_client": (nginx, client("h2load -n 20 -c 1 -m 5", "h2load", "-n", "20", "-c", "1", "-m", "5", URL + "/"), "client"),
    "curl_nginx": (nginx, curl("--http2-prior-knowledge", URL + "/", URL + "/missing?a=1")),
    "curl_upgrade": (apache, curl("--http2", URL + "/a", URL + "/b"), "client"),
    "go": (GO_SERVER, client("Go net/http", go_program, "get", "PORT")),
    "go_client": (GO_SERVER, client("Go net/http", go_program, "get", "PORT"), "client"),
    "httpx_node": (NODE, client("Python httpx", sys.executable, lambda: write("x.py", HTTPX), "PORT")),
    "httpx_python_h2": (python_h2(0), client("Python httpx", sys.executable, lambda: write("x.py", HTTPX), "PORT")),
    "node_mixed": (NODE, node_client("mixed")),
    "node_mixed_client": (NODE, node_client("mixed"), "client"),
    "node_push": (NODE, node_client("push"), "client"),
    "node_reset": (NODE, node_client("reset"), "client"),
    "node_cancel": (NODE, node_client("cancel")),
    "node_goaway": (NODE, node_client("goaway"), "client"),
    "node_close": (NODE, node_client("close"), "client"),
    "node_events": (NODE, node_client("events")),
    "node_early": (NODE, node_client("early")),
    "node_websocket": (NODE, node_client("websocket")),
    "node_big_small_capture": (NODE, node_client("big"), "server", 512),
    "node_big_capture": (NODE, node_client("big"), "client", 2048),
    "grpcio": (GRPC, grpc_client("kinds")),
    "grpcio_client": (GRPC, grpc_client("kinds"), "client"),
    "grpcio_deadline": (GRPC, grpc_client("deadline")),
    "grpcio_deadline_client": (GRPC, grpc_client("deadline"), "client"),
    "grpcio_parallel": (GRPC, grpc_client("parallel")),
    "grpc_js_client": (GRPC, client("grpc-js", "node", lambda: write("grpc.js", GRPC_JS), "PORT"), "client"),
    "hyper": (RUST, client("hyper", os.environ.get("RUST_PEER", "rust-peer"), "get", "PORT")),
    "tonic_client": (GRPC, client("tonic", os.environ.get("RUST_PEER", "rust-peer"), "grpc", "PORT"), "client"),
    "not_a_server": (server("Python http.server", sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "PORT"),
                     curl("--http2-prior-knowledge", URL + "/"), "client"),
}

def main():
    for name, case in CASES.items():
        if not sys.argv[1:] or name in sys.argv[1:]: capture(name, *case)
    shutil.rmtree(TEMP)

main()
