//! The programs that are traced, and the load on each.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    condition::Condition,
    load::{self, Load, Streams},
};
use crate::{
    child::{self, Running},
    golang::{self, Packages},
    setup,
    steps::{self, Privilege},
};

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// One worker and a small static reply, asked by wrk.
    Nginx,
    /// As `nginx`, by HTTP/2 in clear text: ten streams at a time on each connection, by h2load.
    Http2,
    /// Unary calls of a service by grpc-js, as many at a time as `http2`, by h2load.
    Grpc,
    /// As `nginx`, over TLS.
    NginxTls,
    /// As `nginx`, in front of another one, which is not traced, over kept connections.
    Proxy,
    /// A small reply of Go's `net/http`, asked by wrk.
    Go,
    /// As `go`, over its own TLS.
    GoTls,
    /// As `grpc`, by grpc-go.
    GoGrpc,
    /// A blocking thread for each connection, in Python's http.server, asked by wrk.
    Python,
    /// One request at a time on each connection, by redis-benchmark.
    Redis,
}

impl Subject {
    pub(super) const ALL: [Self; 10] = [
        Self::Nginx,
        Self::NginxTls,
        Self::Http2,
        Self::Grpc,
        Self::Proxy,
        Self::Go,
        Self::GoTls,
        Self::GoGrpc,
        Self::Python,
        Self::Redis,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Http2 => "nginx, HTTP/2",
            Self::Grpc => "Node, gRPC",
            Self::NginxTls => "nginx, HTTPS",
            Self::Proxy => "nginx, proxy",
            Self::Go => "Go",
            Self::GoTls => "Go, HTTPS",
            Self::GoGrpc => "Go, gRPC",
            Self::Python => "Python",
            Self::Redis => "Redis",
        }
    }

    /// Whether the agent knows the protocol, so that each request becomes a span.
    pub(super) const fn is_understood(self) -> bool {
        !matches!(self, Self::Redis)
    }

    /// Whether requests share connections at the same time: then the load generator sends and
    /// receives several at once, and how many of all hits are its own is not known.
    pub(super) const fn is_multiplexed(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GoGrpc)
    }

    /// Headers can be injected only where the program sends requests itself.
    pub(super) fn is_measured_with(self, condition: Condition) -> bool {
        condition != Condition::Injecting || self == Self::Proxy
    }

    pub(super) fn start(self, directory: &Path, connections: u32) -> Result<Served> {
        let [port] = child::free_ports()?;
        let mut upstream = None;
        let (program, port) = match self {
            Self::Nginx => (start_nginx(directory, port, "", None)?, port),
            Self::Http2 => (start_nginx(directory, port, " http2", None)?, port),
            Self::NginxTls => (start_nginx_tls(directory, port)?, port),
            Self::Proxy => {
                let [behind] = child::free_ports()?;
                let place = directory.join("upstream");
                fs::create_dir_all(&place).context("cannot make a directory")?;
                let mut server = start_nginx(&place, behind, "", None)?;
                server.wait_for_port(behind)?;
                upstream = Some(server);
                (start_nginx(directory, port, "", Some(behind))?, port)
            }
            Self::Grpc => start_grpc(directory)?,
            Self::Go => start_go(directory, &[])?,
            Self::GoTls => start_go_tls(directory)?,
            Self::GoGrpc => start_go_grpc(directory)?,
            Self::Python => start_python(directory)?,
            Self::Redis => (start_redis(directory, port)?, port),
        };
        let mut served = Served {
            subject: self,
            program,
            port,
            connections,
            directory: directory.to_owned(),
            _upstream: upstream,
            rate: FIRST_RATE,
        };
        served.program.wait_for_port(port)?;
        // Page cache, CPU frequency and branch predictors settle before the first run that counts.
        served.rate = served.load(1)?.rate;
        Ok(served)
    }
}

/// Requests per second that redis-benchmark is given before any rate is known.
const FIRST_RATE: f64 = 20_000.0;

/// A program under test that answers.
pub(super) struct Served {
    pub(super) subject: Subject,
    pub(super) program: Running,
    port: u16,
    connections: u32,
    /// For the files of a load generator.
    directory: PathBuf,
    /// What the program asks. Ends after it.
    _upstream: Option<Running>,
    /// Requests per second: redis-benchmark takes a number of requests and not a time.
    rate: f64,
}

impl Served {
    /// Load for so many seconds.
    pub(super) fn load(&self, seconds: u32) -> Result<Load> {
        let url = |path: &str| format!("http://127.0.0.1:{}{path}", self.port);
        match self.subject {
            Subject::Nginx | Subject::Proxy => load::wrk(&url("/"), self.connections, seconds),
            Subject::Http2 => self.streams(seconds).get(&url("/")),
            Subject::Grpc | Subject::GoGrpc => self.streams(seconds).call(&url(METHOD)),
            Subject::NginxTls | Subject::GoTls => {
                let url = url("/hello").replace("http:", "https:");
                load::wrk(&url, self.connections, seconds)
            }
            Subject::Python | Subject::Go => load::wrk(&url("/hello"), self.connections, seconds),
            Subject::Redis => {
                let requests = self.rate * f64::from(seconds);
                load::redis_benchmark(self.port, self.connections, requests as u64)
            }
        }
    }

    fn streams(&self, seconds: u32) -> Streams<'_> {
        Streams {
            connections: self.connections,
            seconds,
            directory: &self.directory,
        }
    }

    pub(super) const fn port(&self) -> u16 {
        self.port
    }
}

/// One worker, a small static reply, and an access log, as a busy real one has.
const NGINX: &str = "
daemon off;
@USER@
worker_processes 1;
pid @DIR@/nginx.pid;
error_log @DIR@/error.log warn;
events { worker_connections 512; }
http {
    access_log @DIR@/access.log;
    client_body_temp_path @DIR@/body;
    proxy_temp_path @DIR@/proxy;
    fastcgi_temp_path @DIR@/fastcgi;
    uwsgi_temp_path @DIR@/uwsgi;
    scgi_temp_path @DIR@/scgi;
    keepalive_requests 1000000000;
    @UPSTREAM@
    server {
        listen 127.0.0.1:@PORT@@OPTIONS@;
        location / { @LOCATION@ }
    }
}
";

/// With a certificate that wrk does not look at.
fn start_nginx_tls(directory: &Path, port: u16) -> Result<Running> {
    child::make_certificate(directory)?;
    let directory_text = directory.display();
    let tls = format!(
        " ssl; ssl_certificate {directory_text}/own.crt; ssl_certificate_key \
         {directory_text}/own.key"
    );
    start_nginx(directory, port, &tls, None)
}

/// With a small static reply, or with that of another server, asked over kept connections;
/// `options` follow the port that it listens on.
fn start_nginx(
    directory: &Path,
    port: u16,
    options: &str,
    upstream: Option<u16>,
) -> Result<Running> {
    let location = match upstream {
        None => "default_type text/plain; return 200 'hello\\n';",
        Some(_) => {
            "proxy_pass http://upstream; proxy_http_version 1.1; proxy_set_header Connection '';"
        }
    };
    let upstream = upstream.map_or_else(String::new, |port| {
        format!("upstream upstream {{ server 127.0.0.1:{port}; keepalive 64; }}")
    });
    // Workers of a root nginx would otherwise become a user who may not enter the directory.
    let user = if Privilege::detect() == Privilege::Root {
        "user root;"
    } else {
        ""
    };
    let text = NGINX
        .replace("@USER@", user)
        .replace("@UPSTREAM@", &upstream)
        .replace("@LOCATION@", location)
        .replace("@DIR@", &directory.display().to_string())
        .replace("@OPTIONS@", options)
        .replace("@PORT@", &port.to_string());
    Running::start_nginx(directory, &text)
}

/// The server of the tests, and the port that it listens on.
fn start_python(directory: &Path) -> Result<(Running, u16)> {
    let script = steps::workspace().join("tests/workloads/server.py");
    start_announced("python", directory, Command::new("python3").arg(script))
}

/// A unary method of the service of the tests.
const METHOD: &str = "/shop.Store/Unary0";

/// The service of the tests, and the port that it listens on.
fn start_grpc(directory: &Path) -> Result<(Running, u16)> {
    let script = steps::workspace().join("tests/workloads/grpc/store.js");
    let mut command = Command::new("node");
    command.arg(script).arg("serve");
    command.env("NODE_PATH", setup::node_modules()?);
    start_announced("grpc", directory, &mut command)
}

/// The server of the tests, and the port that it listens on.
fn start_go(directory: &Path, arguments: &[&OsStr]) -> Result<(Running, u16)> {
    let program = directory.join("go-server");
    let source = steps::workspace().join("tests/workloads/go");
    golang::build(&setup::go()?, &source, &program, Packages::Standard)?;
    start_announced("go", directory, Command::new(program).args(arguments))
}

/// With a certificate that wrk does not look at.
fn start_go_tls(directory: &Path) -> Result<(Running, u16)> {
    child::make_certificate(directory)?;
    let [certificate, key] = ["own.crt", "own.key"].map(|name| directory.join(name));
    let arguments = [
        "-certificate".as_ref(),
        certificate.as_os_str(),
        "-key".as_ref(),
        key.as_os_str(),
    ];
    start_go(directory, &arguments)
}

/// As [`start_grpc`], by grpc-go.
fn start_go_grpc(directory: &Path) -> Result<(Running, u16)> {
    let program = directory.join("grpc-server");
    let source = steps::workspace().join("tests/workloads/grpc/go/main.go");
    golang::build(&setup::go()?, &source, &program, Packages::System)?;
    start_announced("grpc", directory, Command::new(program).arg("serve"))
}

/// A program that says on its standard output which port it listens on.
fn start_announced(name: &str, directory: &Path, command: &mut Command) -> Result<(Running, u16)> {
    let mut program = Running::start(name, directory, command)?;
    let port = program.announced_port(Duration::from_secs(10))?;
    Ok((program, port))
}

/// Nothing is written to disk.
fn start_redis(directory: &Path, port: u16) -> Result<Running> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
    command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
    command.arg("--dir").arg(directory);
    Running::start("redis", directory, &mut command)
}
