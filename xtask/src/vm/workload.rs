//! Real programs in a guest, what is asked of them, and the spans that must come of it.

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    child::{self, Running},
    steps::{self, capture},
};

/// Guests are up to 50 times slower in what these programs do; natively they start in 0.2 s.
const START: Duration = Duration::from_mins(1);

/// One worker; the same server by IPv4, IPv6 and a unix socket.
const NGINX: &str = "
daemon off;
user root;
worker_processes 1;
pid @DIR@/nginx.pid;
error_log @DIR@/error.log warn;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path @DIR@/body;
    proxy_temp_path @DIR@/proxy;
    fastcgi_temp_path @DIR@/fastcgi;
    uwsgi_temp_path @DIR@/uwsgi;
    scgi_temp_path @DIR@/scgi;
    server {
        listen 127.0.0.1:@PORT@;
        listen [::1]:@PORT@;
        listen unix:@DIR@/nginx.socket;
        listen 127.0.0.1:@HTTP2@ http2;
        listen 127.0.0.1:@TLS@ ssl;
        ssl_certificate @DIR@/own.crt;
        ssl_certificate_key @DIR@/own.key;
        location /files { alias @DIR@/files; sendfile on; }
        location / { default_type text/plain; return 200 'hello\\n'; }
        location /proxied { proxy_pass http://127.0.0.1:@PYTHON@; }
    }
}
";

/// One side of a call, as its span names it: kind and executable.
type Hop = (&'static str, &'static str);

const CURL: Hop = ("client", "curl");
const PYTHON: Hop = ("server", "python");
const NGINX_IN: Hop = ("server", "nginx");
const NGINX_OUT: Hop = ("client", "nginx");
const NODE: Hop = ("server", "node");
const GO_IN: Hop = ("server", "go-server");
const GO_OUT: Hop = ("client", "go-server");

/// A request with a path of its own, and the spans it must leave, each the parent of the next.
pub(super) struct Exchange {
    /// What it proves.
    pub(super) name: &'static str,
    path: &'static str,
    method: &'static str,
    status: u64,
    via: Via,
    hops: &'static [Hop],
}

#[derive(Clone, Copy)]
enum Via {
    Python,
    Nginx,
    NginxByIpv6,
    NginxByHttp2,
    /// A method of the server by Node; the path is the method's.
    Grpc,
    NginxByUnixSocket,
    NginxByTls,
    /// The server by Go, by HTTP/2 inside TLS; it calls Python's for the path.
    Go,
    /// The last of [`SHORT`] connections, one after the other: each may get the address of the
    /// one before.
    NginxByShortUnixSockets,
    /// The file server, and then on the same connection what [`Via::SameConnection`] asks for.
    NginxTwice,
    SameConnection,
}

/// Short connections before the one that counts.
const SHORT: u32 = 20;

/// Before a path that the server by Go calls Python's for.
const CALL: &str = "/call";

/// What is asked for on a connection that sent a file before.
const NEXT: &str = "/next";

pub(super) const EXCHANGES: [Exchange; 13] = [
    Exchange {
        name: "IPv4",
        path: "/plain",
        method: "GET",
        status: 200,
        via: Via::Python,
        hops: &[CURL, PYTHON],
    },
    Exchange {
        name: "error status",
        path: "/missing",
        method: "GET",
        status: 404,
        via: Via::Python,
        hops: &[CURL, PYTHON],
    },
    Exchange {
        name: "request body",
        path: "/body",
        method: "POST",
        status: 200,
        via: Via::Nginx,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "IPv6",
        path: "/six",
        method: "GET",
        status: 200,
        via: Via::NginxByIpv6,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "HTTP/2",
        path: "/two",
        method: "GET",
        status: 200,
        via: Via::NginxByHttp2,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "gRPC",
        path: "/test.Store/Find",
        method: "POST",
        status: 200,
        via: Via::Grpc,
        hops: &[CURL, NODE],
    },
    Exchange {
        name: "unix socket",
        path: "/unix",
        method: "GET",
        status: 200,
        via: Via::NginxByUnixSocket,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "short unix sockets",
        path: "/short",
        method: "GET",
        status: 200,
        via: Via::NginxByShortUnixSockets,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "sendfile",
        path: "/files/large",
        method: "GET",
        status: 200,
        via: Via::NginxTwice,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "after sendfile",
        path: NEXT,
        method: "GET",
        status: 200,
        via: Via::SameConnection,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "HTTPS",
        path: "/secret",
        method: "GET",
        status: 200,
        via: Via::NginxByTls,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "proxy",
        path: "/proxied",
        method: "GET",
        status: 200,
        via: Via::Nginx,
        hops: &[CURL, NGINX_IN, NGINX_OUT, PYTHON],
    },
    Exchange {
        name: "Go, HTTP/2 inside TLS",
        path: "/called",
        method: "GET",
        status: 200,
        via: Via::Go,
        hops: &[CURL, GO_IN, GO_OUT, PYTHON],
    },
];

/// The running servers; they end with it.
pub(super) struct Workload {
    port: u16,
    tls_port: u16,
    python_port: u16,
    http2_port: u16,
    grpc_port: u16,
    go_port: u16,
    /// A call's message, as it stands on the wire.
    message: String,
    socket: String,
    _nginx: Running,
    _python: Running,
    _node: Running,
    _go: Running,
}

impl Workload {
    pub(super) fn start(directory: &Path, interpreter: &Path, go: &Path) -> Result<Self> {
        let [port, tls_port, python_port, http2_port] = child::free_ports()?;
        child::make_certificate(directory)?;
        let files = directory.join("files");
        fs::create_dir_all(&files)?;
        for name in ["plain", "proxied", "called"] {
            fs::write(files.join(name), "hello\n")?;
        }
        // More than one call sends.
        fs::write(files.join("large"), "x".repeat(300_000))?;
        let mut command = Command::new(interpreter);
        command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]);
        command.arg(&files).arg(python_port.to_string());
        let mut python = Running::start("python", directory, &mut command)?;

        let text = NGINX
            .replace("@DIR@", &directory.display().to_string())
            .replace("@TLS@", &tls_port.to_string())
            .replace("@PYTHON@", &python_port.to_string())
            .replace("@HTTP2@", &http2_port.to_string())
            .replace("@PORT@", &port.to_string());
        let mut nginx = Running::start_nginx(directory, &text)?;
        wait_for_port(&mut nginx, port)?;
        wait_for_port(&mut python, python_port)?;
        let (node, grpc_port) = start_node(directory)?;
        let (go, go_port) = start_go(directory, go, python_port)?;
        let message = directory.join("message");
        fs::write(&message, b"\0\0\0\0\x03\x0a\x01a")?;
        let socket = directory.join("nginx.socket").display().to_string();
        Ok(Self {
            port,
            tls_port,
            python_port,
            http2_port,
            grpc_port,
            go_port,
            message: format!("@{}", message.display()),
            socket,
            _nginx: nginx,
            _python: python,
            _node: node,
            _go: go,
        })
    }

    /// A connection whose server thread waits for its request.
    pub(super) fn wait_in_receive(&self) -> Result<Waiting> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.python_port))?;
        stream.set_read_timeout(Some(START))?;
        Ok(Waiting(stream))
    }

    pub(super) fn ask(&self, exchange: &Exchange) -> Result<()> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--globoff", "--max-time", "60"]);
        curl.args(["--output", "/dev/null", "--write-out", "%{http_code}"]);
        if matches!(exchange.via, Via::NginxByHttp2 | Via::Grpc) {
            curl.arg("--http2-prior-knowledge");
        }
        if matches!(exchange.via, Via::Grpc) {
            for header in ["Content-Type: application/grpc", "TE: trailers"] {
                curl.args(["--header", header]);
            }
            curl.args(["--data-binary", &self.message]);
        } else if exchange.method == "POST" {
            curl.args(["--data", "a=1"]);
        }
        let host = match exchange.via {
            Via::Python => format!("127.0.0.1:{}", self.python_port),
            Via::SameConnection => return Ok(()),
            Via::Nginx | Via::NginxTwice => format!("127.0.0.1:{}", self.port),
            Via::NginxByTls => format!("127.0.0.1:{}", self.tls_port),
            Via::NginxByIpv6 => format!("[::1]:{}", self.port),
            Via::NginxByHttp2 => format!("127.0.0.1:{}", self.http2_port),
            Via::Grpc => format!("127.0.0.1:{}", self.grpc_port),
            Via::Go => format!("127.0.0.1:{}{CALL}", self.go_port),
            Via::NginxByUnixSocket | Via::NginxByShortUnixSockets => {
                curl.args(["--unix-socket", &self.socket]);
                "localhost".to_owned()
            }
        };
        let scheme = match exchange.via {
            Via::NginxByTls | Via::Go => "https",
            _ => "http",
        };
        let mut expected = exchange.status.to_string();
        if matches!(exchange.via, Via::NginxByShortUnixSockets) {
            curl.args(["--header", "Connection: close"]);
            for number in 0..SHORT {
                curl.arg(format!("http://{host}/before/{number}"))
                    .args(["--output", "/dev/null"]);
            }
            expected = expected.repeat(SHORT as usize + 1);
        }
        if matches!(exchange.via, Via::Go) {
            curl.arg("--http2");
        }
        // The certificate is nobody's.
        curl.arg("--insecure");
        curl.arg(format!("{scheme}://{host}{}", exchange.path));
        if matches!(exchange.via, Via::NginxTwice) {
            curl.args(["--output", "/dev/null"])
                .arg(format!("http://{host}{NEXT}"));
            expected = expected.repeat(2);
        }
        let status = capture(&mut curl)?;
        ensure!(
            status == expected,
            "{}: the server answered {status}",
            exchange.path
        );
        Ok(())
    }
}

/// A server of gRPC by Node's own library, and the port that it says it listens on.
fn start_node(directory: &Path) -> Result<(Running, u16)> {
    let script = steps::workspace().join("tests/workloads/http2.js");
    let mut node = Running::start("node", directory, Command::new("node").arg(script))?;
    let port = node.announced_port(START)?;
    Ok((node, port))
}

/// The server by Go with the certificate of nginx, and its port.
fn start_go(directory: &Path, program: &Path, backend: u16) -> Result<(Running, u16)> {
    let mut command = Command::new(program);
    command.args(["-backend", &format!("127.0.0.1:{backend}")]);
    command.arg("-certificate").arg(directory.join("own.crt"));
    command.arg("-key").arg(directory.join("own.key"));
    let mut go = Running::start("go-server", directory, &mut command)?;
    let port = go.announced_port(START)?;
    Ok((go, port))
}

/// A connection that is yet to say what it wants.
pub(super) struct Waiting(TcpStream);

impl Waiting {
    pub(super) fn finish(mut self) -> Result<()> {
        self.0.write_all(b"GET /plain HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        self.0
            .read_to_string(&mut answer)
            .context("a thread that waited never came back")?;
        ensure!(
            answer.contains(" 200 "),
            "a thread that waited answered {answer:?}"
        );
        Ok(())
    }
}

fn wait_for_port(process: &mut Running, port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    process.wait_until("listening", START, || {
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
    })
}

/// The spans the agent wrote, one JSON object a line; half a line at the end is left out.
pub(super) fn spans(text: &str) -> Vec<Value> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

impl Exchange {
    /// What is wrong with the spans of this request.
    pub(super) fn fault(&self, spans: &[Value]) -> Option<String> {
        let own: Vec<&Value> = spans.iter().filter(|span| self.is_about(span)).collect();
        let mut by_hop: HashMap<Hop, &Value> = HashMap::new();
        for hop in self.hops {
            let (kind, program) = *hop;
            let mut found = own.iter().filter(|span| {
                let executable = text(span, &["resource", "process.executable.name"]);
                text(span, &["kind"]) == kind && executable.starts_with(program)
            });
            let Some(span) = found.next() else {
                return Some(format!("no {kind} span of {program}"));
            };
            if found.next().is_some() {
                return Some(format!("two {kind} spans of {program}"));
            }
            by_hop.insert(*hop, span);
        }
        if own.len() != self.hops.len() {
            return Some(format!(
                "{} spans instead of {}",
                own.len(),
                self.hops.len()
            ));
        }
        let in_order: Vec<_> = self.hops.iter().map(|hop| (hop, by_hop[hop])).collect();
        let wrong = in_order
            .iter()
            .find_map(|(hop, span)| self.wrong_content(**hop, span));
        let apart = in_order
            .windows(2)
            .find(|pair| !is_parent(pair[0].1, pair[1].1));
        wrong.or_else(|| {
            apart.map(|pair| {
                let ((from, client), (to, server)) = (pair[0].0, pair[1].0);
                format!("{to} of {server} is no child of {from} of {client}")
            })
        })
    }

    fn is_about(&self, span: &Value) -> bool {
        let attribute = |key| text(span, &["attributes", key]);
        let is_relayed = || {
            let called = attribute("url.path").strip_prefix(CALL);
            matches!(self.via, Via::Go) && called == Some(self.path)
        };
        attribute("url.path") == self.path
            || is_relayed()
            || attribute("url.full").ends_with(self.path)
            || self.path.strip_prefix('/') == Some(attribute("rpc.method"))
    }

    fn wrong_content(&self, (kind, program): Hop, span: &Value) -> Option<String> {
        if matches!(self.via, Via::Grpc) {
            let status = text(span, &["attributes", "rpc.response.status_code"]);
            return (status != "OK")
                .then(|| format!("{kind} span of {program} says status {status:?}"));
        }
        let method = text(span, &["attributes", "http.request.method"]);
        let status = span["attributes"]["http.response.status_code"].as_u64();
        if method != self.method {
            return Some(format!("{kind} span of {program} says {method}"));
        }
        (status != Some(self.status))
            .then(|| format!("{kind} span of {program} says status {status:?}"))
    }
}

fn is_parent(parent: &Value, child: &Value) -> bool {
    let same_trace = text(parent, &["trace_id"]) == text(child, &["trace_id"]);
    same_trace && text(parent, &["span_id"]) == text(child, &["parent_span_id"])
}

/// A string inside a span; empty where there is none.
fn text<'a>(span: &'a Value, path: &[&str]) -> &'a str {
    let mut value = span;
    for name in path {
        value = &value[*name];
    }
    value.as_str().unwrap_or_default()
}
