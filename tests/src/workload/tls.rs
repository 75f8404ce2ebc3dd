//! Programs that speak TLS, with certificates of [`crate::pki`].

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde_json::Value;

use super::{
    client::curl,
    server::{Runtime, Server, ServerBuilder},
};
use crate::{
    pki::Pki,
    port::free_port,
    privilege,
    process::{Process, crate_file},
    python,
    scene::Traced,
    span::Span,
    temp::TempDir,
    wait::wait_for,
};

/// Whether a server speaks TLS: everything else about it is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twin {
    Plain,
    Tls,
}

impl Twin {
    /// `server.py` or `server.js`.
    pub fn server(self, runtime: Runtime, service: &str, pki: &Pki) -> ServerBuilder {
        let builder = ServerBuilder::new(runtime).service(service);
        match self {
            Self::Plain => builder,
            Self::Tls => builder
                .option("--certificate", text(&pki.server_certificate()))
                .option("--key", text(&pki.server_key())),
        }
    }

    pub fn scheme(self) -> &'static str {
        match self {
            Self::Plain => "http",
            Self::Tls => "https",
        }
    }

    pub fn url(self, port: u16, path: &str) -> String {
        format!("{}://localhost:{port}{path}", self.scheme())
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path named in ASCII")
}

/// A server whose calls go to `backend`, over TLS if that speaks it.
pub fn calling(builder: ServerBuilder, twin: Twin, backend: &Server, pki: &Pki) -> Server {
    let builder = builder.option("--backend", &format!("localhost:{}", backend.port()));
    match twin {
        Twin::Plain => builder,
        Twin::Tls => builder.option("--authority", text(&pki.authority_certificate())),
    }
    .start()
}

/// curl that trusts the authority; gives body and status.
pub fn curl_tls(pki: &Pki, arguments: &[&str]) -> (String, u16) {
    let authority = pki.authority_certificate();
    let trusting = ["--cacert", text(&authority)];
    curl(&[trusting.as_slice(), arguments].concat())
}

/// What a span says, but for what is different by nature: addresses of this run and the scheme.
fn said(span: &Span) -> BTreeMap<String, String> {
    const BY_NATURE: [&str; 4] = [
        "url.scheme",
        "network.peer.port",
        "server.port",
        "client.port",
    ];
    let mut said: BTreeMap<String, String> = span
        .attributes
        .iter()
        .filter(|(key, _)| !BY_NATURE.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.to_string()))
        .collect();
    said.remove("url.full");
    // A time, and how an answer is cut into pieces.
    said.remove("ebpf_agent.time_to_first_byte");
    let own = [
        ("name", &span.name),
        ("kind", &span.kind),
        ("path", &span.path().to_owned()),
        ("status", &span.status.code),
    ];
    for (key, value) in own {
        said.insert(key.to_owned(), value.clone());
    }
    said
}

/// What all spans of this kind say, in order of their beginning.
pub fn all_said(traced: &Traced, kind: &str) -> Vec<BTreeMap<String, String>> {
    let mut spans: Vec<Span> = traced.spans.clone();
    spans.retain(|span| span.kind == kind);
    spans.sort_by_key(|span| span.start_ns);
    spans.iter().map(said).collect()
}

/// nginx on TLS, with HTTP/2 for those that ask for it.
#[derive(Debug)]
pub struct NginxTls {
    process: Process,
    port: u16,
    _directory: TempDir,
}

impl NginxTls {
    /// In front of a server of this kind, which it keeps connections to.
    pub fn in_front_of(pki: &Pki, twin: Twin, backend: u16) -> Self {
        Self::in_front_of_host(pki, twin, &format!("localhost:{backend}"))
    }

    /// The same, with the server's host and port.
    pub fn in_front_of_host(pki: &Pki, twin: Twin, backend: &str) -> Self {
        let directory = TempDir::new("nginx-tls");
        let port = free_port();
        let file = directory.join("nginx.conf");
        let root = text(directory.path());
        let user = if privilege::is_root() {
            "user root;"
        } else {
            ""
        };
        let (certificate, key) = (pki.server_certificate(), pki.server_key());
        let (certificate, key) = (text(&certificate), text(&key));
        let scheme = twin.scheme();
        let configuration = format!(
            "daemon off; {user} worker_processes 1; pid {root}/pid; error_log {root}/error warn;
             events {{ worker_connections 512; }}
             http {{
                 access_log off;
                 client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
                 fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi;
                 scgi_temp_path {root}/scgi;
                 keepalive_requests 1000000;
                 upstream behind {{ server {backend}; keepalive 32; }}
                 server {{
                     listen 127.0.0.1:{port} ssl http2;
                     ssl_certificate {certificate}; ssl_certificate_key {key};
                     location / {{
                         proxy_pass {scheme}://behind; proxy_http_version 1.1;
                         proxy_set_header Connection \"\"; proxy_set_header Host $http_host;
                     }}
                     location = /own {{ return 200 \"own\\n\"; }}
                 }}
             }}"
        );
        fs::write(&file, configuration).expect("a file of our own");
        let mut command = Command::new("nginx");
        command.arg("-c").arg(file).arg("-p").arg(directory.path());
        command
            .args(["-e", "stderr"])
            .env("OTEL_SERVICE_NAME", "nginx");
        let mut process = Process::spawn("nginx-tls", &mut command);
        wait_for("nginx to accept", || {
            let ended = process.exited();
            assert!(ended.is_none(), "nginx ended: {}", process.stderr());
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self {
            process,
            port,
            _directory: directory,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// `workloads/tls_clients.py` with one of its libraries.
pub fn client_command(library: &str, pki: &Pki, urls: &[String]) -> Command {
    let mut command = Command::new(python::packages_interpreter());
    command.arg(crate_file("workloads/tls_clients.py"));
    command.arg("--authority").arg(pki.authority_certificate());
    command.arg(library).args(urls);
    command.env("OTEL_SERVICE_NAME", "client");
    command.env_remove("OTEL_RESOURCE_ATTRIBUTES");
    command
}

/// Runs it to its end; gives the statuses of its answers.
pub fn run_client(library: &str, pki: &Pki, urls: &[String]) -> Vec<i64> {
    let mut client = Process::spawn("client", &mut client_command(library, pki, urls));
    let status = client.wait();
    assert!(status.success(), "{library}: {status}: {}", client.stderr());
    client
        .lines()
        .iter()
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("a line of JSON");
            line["status"].as_i64().expect("a status")
        })
        .collect()
}

/// `workloads/asyncio_server.py`, and its port.
pub fn asyncio_server(pki: &Pki, backend: Option<u16>) -> (Process, u16) {
    let mut command = Command::new(python::interpreter());
    command.arg(crate_file("workloads/asyncio_server.py"));
    command.arg("--certificate").arg(pki.server_certificate());
    command.arg("--key").arg(pki.server_key());
    command.arg("--authority").arg(pki.authority_certificate());
    if let Some(port) = backend {
        command.arg("--backend").arg(format!("localhost:{port}"));
    }
    command.env("OTEL_SERVICE_NAME", "asyncio");
    let mut process = Process::spawn("asyncio", &mut command);
    let port = process.announced_port();
    (process, port)
}
