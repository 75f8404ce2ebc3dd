//! Real programs in a guest.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::exchange::{CALL, Exchange, NEXT, NEXT_BY_KERNEL_TLS, TLS_COUNTS, Via};
use crate::{
    child::{self, Running},
    steps::{self, capture},
};

/// Guests are up to 50 times slower in what these programs do, more beside compilers; natively they
/// start in 0.2 s.
const START: Duration = Duration::from_mins(3);

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
    server {
        listen 127.0.0.1:@KERNEL_TLS@ ssl;
        ssl_certificate @DIR@/own.crt;
        ssl_certificate_key @DIR@/own.key;
        ssl_conf_command Options KTLS;
        location /files { alias @DIR@/files; sendfile on; }
        location / { default_type text/plain; return 200 'hello\\n'; }
    }
}
";

/// Short connections before the one that counts.
const SHORT: u32 = 20;

/// Connections of which the kernel opened TLS records.
fn opened_by_kernel() -> Result<u64> {
    let counts = fs::read_to_string(TLS_COUNTS)?;
    let count = counts
        .lines()
        .find_map(|line| line.strip_prefix("TlsRxSw")?.trim().parse().ok());
    count.with_context(|| format!("{TLS_COUNTS} has no TlsRxSw"))
}

/// The running servers; they end with it.
pub(super) struct Workload {
    port: u16,
    tls_port: u16,
    kernel_tls_port: u16,
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
        let [port, tls_port, kernel_tls_port, python_port, http2_port] = child::free_ports()?;
        child::make_certificate(directory)?;
        let files = directory.join("files");
        fs::create_dir_all(&files)?;
        for name in ["plain", "proxied", "called"] {
            fs::write(files.join(name), "hello\n")?;
        }
        // More than one call sends.
        for name in ["large", "private"] {
            fs::write(files.join(name), "x".repeat(300_000))?;
        }
        let mut command = Command::new(interpreter);
        command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]);
        command.arg(&files).arg(python_port.to_string());
        let mut python = Running::start("python", directory, &mut command)?;

        let text = NGINX
            .replace("@DIR@", &directory.display().to_string())
            .replace("@TLS@", &tls_port.to_string())
            .replace("@KERNEL_TLS@", &kernel_tls_port.to_string())
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
            kernel_tls_port,
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
            Via::NginxByKernelTls => format!("127.0.0.1:{}", self.kernel_tls_port),
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
            Via::NginxByTls | Via::NginxByKernelTls | Via::Go => "https",
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
        let next = match exchange.via {
            Via::NginxTwice => Some(NEXT),
            Via::NginxByKernelTls => Some(NEXT_BY_KERNEL_TLS),
            _ => None,
        };
        if let Some(next) = next {
            curl.args(["--output", "/dev/null"])
                .arg(format!("{scheme}://{host}{next}"));
            expected = expected.repeat(2);
        }
        let by_kernel = matches!(exchange.via, Via::NginxByKernelTls);
        if by_kernel {
            // OpenSSL 3.0 leaves what a server receives to the kernel up to this version.
            curl.args(["--tls-max", "1.2"]);
        }
        let opened = by_kernel.then(opened_by_kernel).transpose()?;
        let status = capture(&mut curl)?;
        ensure!(
            status == expected,
            "{}: the server answered {status}",
            exchange.path
        );
        if let Some(before) = opened {
            ensure!(opened_by_kernel()? > before, "kTLS was not used");
        }
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
