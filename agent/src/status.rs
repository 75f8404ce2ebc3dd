//! How others see that the agent is well: `--listen` with `/healthz`, `/readyz` and `/metrics`,
//! and `--ready-file`.
//!
//! Metrics are in the Prometheus text format 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>): the counters of
//! [`SelfMetrics`], then what the kernel side adds. HTTP/1 only, GET and HEAD only.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: serves HTTP and makes a file"
)]

use std::{
    convert::Infallible,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    failure::Failure,
    self_metrics::{Counter, Gauge, Loss, Passing, SelfMetrics},
};

const CONTENT_TYPE_METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const CONTENT_TYPE_TEXT: &str = "text/plain; charset=utf-8";

/// How long a client may take to send its request head, so that idle connections end.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that was lost in user space.
const LOST: &str = "ebpf_agent_lost_total";

/// Pause after a failed accept (out of descriptors), which else would be tried without rest.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A number that is not among [`SelfMetrics`].
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Whole metric name, such as `ebpf_agent_kernel_dropped_total`.
    pub name: &'static str,
    /// A sentence for people; taken from the first sample of a name.
    pub help: &'static str,
    pub kind: Kind,
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// What the pages show.
pub struct Status {
    metrics: Arc<SelfMetrics>,
    ready: AtomicBool,
    extra: Box<dyn Fn() -> Vec<Sample> + Send + Sync>,
}

impl Status {
    /// `extra` is asked for its samples on each scrape; they are grouped by name here.
    pub fn new(
        metrics: Arc<SelfMetrics>,
        extra: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) -> Self {
        Self {
            metrics,
            ready: AtomicBool::new(false),
            extra: Box::new(extra),
        }
    }

    /// Every probe is attached.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    fn answer(&self, method: &Method, path: &str) -> (StatusCode, &'static str, String) {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let text = "only GET and HEAD are served\n".to_owned();
            return (StatusCode::METHOD_NOT_ALLOWED, CONTENT_TYPE_TEXT, text);
        }
        match path {
            "/healthz" => (StatusCode::OK, CONTENT_TYPE_TEXT, "ok\n".to_owned()),
            "/readyz" if self.ready.load(Ordering::Acquire) => {
                (StatusCode::OK, CONTENT_TYPE_TEXT, "ready\n".to_owned())
            }
            "/readyz" => {
                let text = "probes are not attached yet\n".to_owned();
                (StatusCode::SERVICE_UNAVAILABLE, CONTENT_TYPE_TEXT, text)
            }
            "/metrics" => {
                let text = render(&self.metrics, (self.extra)());
                (StatusCode::OK, CONTENT_TYPE_METRICS, text)
            }
            _ => {
                let text = "see /healthz, /readyz and /metrics\n".to_owned();
                (StatusCode::NOT_FOUND, CONTENT_TYPE_TEXT, text)
            }
        }
    }
}

/// `--ready-file`: exists while every probe is attached.
#[derive(Debug)]
pub struct ReadyFile(PathBuf);

impl ReadyFile {
    /// Removes what an agent that was killed may have left there.
    pub fn prepare(path: PathBuf) -> Result<Self, Failure> {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::ReadyFile {
                path,
                cause: error.to_string(),
            }),
            _ => Ok(Self(path)),
        }
    }

    /// Holds the agent's process id.
    pub fn create(&self) -> Result<(), Failure> {
        fs::write(&self.0, format!("{}\n", std::process::id())).map_err(|error| {
            Failure::ReadyFile {
                path: self.0.clone(),
                cause: error.to_string(),
            }
        })
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        // It may never have been created, or its directory may be gone.
        let _ = fs::remove_file(&self.0);
    }
}

/// A bound address, before it is served.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    pub async fn bind(address: SocketAddr) -> Result<Self, Failure> {
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Self(listener)),
            Err(error) => Err(Failure::CannotListen {
                address,
                cause: error.to_string(),
            }),
        }
    }

    /// The address with the port that was chosen, where port 0 was asked for.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves until dropped.
    pub async fn serve(self, status: Arc<Status>) -> Infallible {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(serve_connection(stream, Arc::clone(&status)));
                }
                Err(error) => {
                    tracing::debug!("status page: cannot accept: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, status: Arc<Status>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (code, content_type, text) = status.answer(request.method(), request.uri().path());
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = code;
        let content_type = header::HeaderValue::from_static(content_type);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("status page: {error}");
    }
}

/// Which services pass the trace context of their requests on.
fn passed_on(text: &mut String, metrics: &SelfMetrics) {
    const NAME: &str = "ebpf_agent_propagation_calls_total";
    family(
        text,
        NAME,
        "Calls made for requests that carried a trace context, by what became of it.",
        Kind::Counter,
    );
    for ((service, destination), passed) in metrics.passed() {
        for (passing, count) in Passing::ALL.iter().zip(passed) {
            let labels = [
                ("service", service.as_str()),
                ("destination", &destination),
                ("context", passing.name()),
            ];
            line(text, NAME, &labels, count as f64);
        }
    }
}

/// All numbers in the text format, one family after the other.
fn render(metrics: &SelfMetrics, extra: Vec<Sample>) -> String {
    let mut text = String::new();
    for &counter in Counter::ALL {
        let name = format!("ebpf_agent_{}_total", counter.name().replace('.', "_"));
        family(&mut text, &name, counter.description(), Kind::Counter);
        line(&mut text, &name, &[], metrics.total(counter) as f64);
    }
    for &gauge in Gauge::ALL {
        let name = format!("ebpf_agent_{}", gauge.name().replace('.', "_"));
        family(&mut text, &name, gauge.description(), Kind::Gauge);
        line(&mut text, &name, &[], metrics.now(gauge) as f64);
    }
    family(
        &mut text,
        LOST,
        "What was lost in user space, by reason and service.",
        Kind::Counter,
    );
    let losses = metrics.losses();
    for &reason in Loss::ALL {
        // A reason without loss is shown as 0, so that a rate exists when the first one comes.
        if !losses.keys().any(|(lost, _)| *lost == reason) {
            line(
                &mut text,
                LOST,
                &[("reason", reason.name()), ("service", "")],
                0.0,
            );
        }
    }
    for ((reason, service), count) in &losses {
        line(
            &mut text,
            LOST,
            &[("reason", reason.name()), ("service", service)],
            *count as f64,
        );
    }
    passed_on(&mut text, metrics);
    let mut extra = extra;
    extra.sort_by_key(|sample| sample.name);
    let mut last_name = "";
    for sample in &extra {
        if sample.name != last_name {
            family(&mut text, sample.name, sample.help, sample.kind);
            last_name = sample.name;
        }
        let labels: Vec<(&str, &str)> = sample
            .labels
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        line(&mut text, sample.name, &labels, sample.value);
    }
    text
}

fn family(text: &mut String, name: &str, help: &str, kind: Kind) {
    let help = help.trim().replace('\\', "\\\\").replace('\n', "\\n");
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    // Writing to a String does not fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    text.push_str(name);
    for (position, (label, content)) in labels.iter().enumerate() {
        let content = content
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        let open = if position == 0 { '{' } else { ',' };
        let _ = write!(text, "{open}{label}=\"{content}\"");
    }
    if !labels.is_empty() {
        text.push('}');
    }
    let _ = writeln!(text, " {value}");
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn status() -> Arc<Status> {
        let metrics = Arc::new(SelfMetrics::default());
        metrics.add(Counter::SpansCreated, 7);
        metrics.lose(Loss::ExportFailed, "a\"b\\c", 3);
        let sample = |reason: &str, value| Sample {
            name: "ebpf_agent_kernel_dropped_total",
            help: "Dropped in the kernel.",
            kind: Kind::Counter,
            labels: vec![("reason", reason.to_owned())],
            value,
        };
        let extra = move || vec![sample("ring_full", 2.0), sample("io_uring", 0.0)];
        Arc::new(Status::new(metrics, extra))
    }

    /// Every family has help and type once; labels are escaped.
    #[test]
    fn text_format() {
        let status = status();
        let text = render(&status.metrics, (status.extra)());
        for expected in [
            "# HELP ebpf_agent_spans_created_total Spans made.\n\
             # TYPE ebpf_agent_spans_created_total counter\n\
             ebpf_agent_spans_created_total 7\n",
            "ebpf_agent_lost_total{reason=\"export_failed\",service=\"a\\\"b\\\\c\"} 3\n",
            "ebpf_agent_lost_total{reason=\"record_malformed\",service=\"\"} 0\n",
            "# TYPE ebpf_agent_kernel_dropped_total counter\n\
             ebpf_agent_kernel_dropped_total{reason=\"ring_full\"} 2\n\
             ebpf_agent_kernel_dropped_total{reason=\"io_uring\"} 0\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        let mut types: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("# TYPE"))
            .collect();
        let count = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), count);
    }

    /// The file is there from `create` to the end, and never before.
    #[test]
    fn ready_file() {
        let path = std::env::temp_dir().join(format!("agent-ready-{}", std::process::id()));
        fs::write(&path, "stale").expect("scratch space");
        let file = ReadyFile::prepare(path.clone()).expect("removable");
        assert!(!path.exists());
        file.create().expect("writable");
        let text = fs::read_to_string(&path).expect("created");
        assert_eq!(text.trim(), std::process::id().to_string());
        drop(file);
        assert!(!path.exists());

        let nowhere = ReadyFile::prepare("/nonexistent/ready".into()).expect("nothing to remove");
        let failure = nowhere.create().expect_err("no such directory");
        assert!(failure.to_string().contains("/nonexistent/ready"));
    }

    async fn get(address: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("the page listens");
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .expect("the page reads");
        let mut response = String::new();
        stream
            .read_to_string(&mut response)
            .await
            .expect("the page answers");
        response
    }

    /// The three pages over a real socket, before and after the agent is ready.
    #[test]
    fn pages() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let any_port = "127.0.0.1:0".parse().expect("an address");
            let listener = Listener::bind(any_port).await.expect("loopback");
            let address = listener.address().expect("bound");
            let failure = Listener::bind(address).await.expect_err("already bound");
            assert_eq!(failure.exit_code(), 1);
            assert!(failure.to_string().contains(&address.to_string()));

            let status = status();
            let server = tokio::spawn(listener.serve(Arc::clone(&status)));
            assert!(
                get(address, "GET /healthz")
                    .await
                    .starts_with("HTTP/1.1 200")
            );
            assert!(
                get(address, "GET /readyz")
                    .await
                    .starts_with("HTTP/1.1 503")
            );
            status.set_ready();
            assert!(
                get(address, "GET /readyz")
                    .await
                    .starts_with("HTTP/1.1 200")
            );
            let metrics = get(address, "GET /metrics?x=1").await;
            assert!(
                metrics.contains("content-type: text/plain; version=0.0.4"),
                "{metrics}"
            );
            assert!(
                metrics.contains("ebpf_agent_spans_created_total 7\n"),
                "{metrics}"
            );
            assert!(get(address, "GET /").await.starts_with("HTTP/1.1 404"));
            assert!(
                get(address, "POST /metrics")
                    .await
                    .starts_with("HTTP/1.1 405")
            );
            server.abort();
        });
    }
}
