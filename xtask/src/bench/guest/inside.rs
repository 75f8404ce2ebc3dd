//! What runs inside the guest. All times here are the guest's.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    super::{
        load::{self, Load},
        sink::Sink,
        usage::Usage,
    },
    Figures, NGINX_PORT,
};
use crate::{
    child::{Running, TemporaryDirectory},
    vm,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The agent: one program without arguments.
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// Seconds of each load.
    #[arg(long)]
    seconds: u32,
}

/// Where agents are told to send spans: the standard port of OTLP over HTTP.
const OTLP_PORT: u16 = 4318;

const CONNECTIONS: u32 = 8;

/// Between two requests while the first span is awaited.
const BETWEEN: Duration = Duration::from_millis(20);

const FIRST_SPAN: Duration = Duration::from_mins(10);

/// Spans that have not come after so long without another will not come.
const QUIET: Duration = Duration::from_secs(3);

const END: Duration = Duration::from_mins(2);

/// One worker and a small file, with what Debian's configuration says of both.
const NGINX: &str = "
daemon off;
user root;
worker_processes 1;
pid @DIR@/nginx.pid;
error_log @DIR@/error.log warn;
events { worker_connections 512; }
http {
    sendfile on;
    tcp_nopush on;
    access_log @DIR@/access.log;
    client_body_temp_path @DIR@/body;
    proxy_temp_path @DIR@/proxy;
    fastcgi_temp_path @DIR@/fastcgi;
    uwsgi_temp_path @DIR@/uwsgi;
    scgi_temp_path @DIR@/scgi;
    keepalive_requests 1000000000;
    server {
        listen 127.0.0.1:@PORT@;
        root @DIR@/www;
    }
}
";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let directory = TemporaryDirectory::create("bench-guest")?;
    let sink = Sink::start_at(OTLP_PORT)?;
    let _nginx = start_nginx(&directory.0)?;
    let url = format!("http://127.0.0.1:{NGINX_PORT}/small.txt");
    let full_load = || load::wrk(&url, CONNECTIONS, arguments.seconds);
    // Files come into the guest's memory before the first run that counts.
    load::wrk(&url, CONNECTIONS, 1)?;
    let before = full_load()?;
    vm::report(&format!("without the agent: {:.0} /s", before.rate));
    let traced = trace(arguments, &directory.0, &sink, &full_load)?;
    let after = full_load()?;
    vm::report(&format!("without it again: {:.0} /s", after.rate));
    let figures = Figures {
        // What comes between them, such as the kernel's housekeeping, only takes away.
        rate_without: before.rate.max(after.rate),
        ..traced
    };
    vm::report(&serde_json::to_string(&figures)?);
    Ok(())
}

/// All figures but the rate without the agent.
fn trace(
    arguments: &Arguments,
    directory: &Path,
    sink: &Sink,
    full_load: &impl Fn() -> Result<Load>,
) -> Result<Figures> {
    let started = Instant::now();
    let mut agent = start_agent(&arguments.agent, directory)?;
    let accounted = Accounted::of(agent.pid())?;
    let first_span = wait_for_span(&mut agent, sink, started)?;
    vm::report(&format!(
        "first span after {:.2} s",
        first_span.as_secs_f64()
    ));
    wait_until_quiet(sink, u64::MAX);

    let (spans_before, cpu_before) = (sink.spans(), accounted.cpu_s()?);
    let load = full_load()?;
    vm::report(&format!("with the agent: {:.0} /s", load.rate));
    wait_until_quiet(sink, spans_before + load.requests);
    let cpu_s = accounted.cpu_s()? - cpu_before;
    let usage = Usage::of(agent.pid())?;
    let spans = sink.spans() - spans_before;
    agent.stop_by("TERM", END)?;
    Ok(Figures {
        rate_without: 0.0,
        rate_with: load.rate,
        requests: load.requests,
        spans,
        cpu_s,
        rss_kb: usage.rss_kb,
        peak_kb: usage.peak_kb,
        first_span_s: first_span.as_secs_f64(),
    })
}

fn start_nginx(directory: &Path) -> Result<Running> {
    fs::create_dir(directory.join("www"))?;
    fs::write(directory.join("www/small.txt"), "hello\n")?;
    let text = NGINX
        .replace("@DIR@", &directory.display().to_string())
        .replace("@PORT@", &NGINX_PORT.to_string());
    let mut nginx = Running::start_nginx(directory, &text)?;
    nginx.wait_until("listening", Duration::from_mins(1), || request().is_some())?;
    Ok(nginx)
}

/// The variables are for our agent; others are told by a script of their own.
fn start_agent(program: &Path, directory: &Path) -> Result<Running> {
    let mut command = Command::new(program);
    command.envs([
        ("EBPF_AGENT_PORT", NGINX_PORT.to_string()),
        ("EBPF_AGENT_EXPORTER", "otlp".to_owned()),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://127.0.0.1:{OTLP_PORT}"),
        ),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".to_owned()),
    ]);
    Running::start("agent", directory, &mut command)
}

/// A request on a connection of its own.
fn request() -> Option<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, NGINX_PORT)).ok()?;
    let head = "GET /small.txt HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).ok()?;
    stream.read_to_end(&mut Vec::new()).ok().map(drop)
}

fn wait_for_span(agent: &mut Running, sink: &Sink, started: Instant) -> Result<Duration> {
    let mut last = Instant::now();
    agent.wait_until("span", FIRST_SPAN, || {
        if last.elapsed() >= BETWEEN {
            last = Instant::now();
            request();
        }
        sink.first_span().is_some()
    })?;
    let first = sink.first_span().context("there was one")?;
    Ok(first - started)
}

/// Until `wanted` spans came, or no more come.
fn wait_until_quiet(sink: &Sink, wanted: u64) {
    let mut last = (sink.spans(), Instant::now());
    while last.0 < wanted && last.1.elapsed() < QUIET {
        thread::sleep(BETWEEN);
        let spans = sink.spans();
        if spans != last.0 {
            last = (spans, Instant::now());
        }
    }
}

/// A control group of its own, which counts CPU time in microseconds, and that of threads and
/// children that ended, too (Documentation/admin-guide/cgroup-v2.rst, `cpu.stat`).
struct Accounted(PathBuf);

impl Accounted {
    fn of(pid: u32) -> Result<Self> {
        let group = Path::new("/sys/fs/cgroup/measured-agent");
        fs::create_dir_all(group).context("cannot make a control group")?;
        fs::write(group.join("cgroup.procs"), pid.to_string())
            .context("cannot put the agent into a control group")?;
        Ok(Self(group.to_owned()))
    }

    fn cpu_s(&self) -> Result<f64> {
        let statistics = fs::read_to_string(self.0.join("cpu.stat"))?;
        cpu_s(&statistics).context("cannot read the CPU time of a control group")
    }
}

fn cpu_s(statistics: &str) -> Option<f64> {
    let usage = statistics
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(usage.parse::<f64>().ok()? / 1_000_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of user and kernel time, in seconds.
    #[test]
    fn time_of_a_control_group() {
        let statistics = "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n";
        assert_eq!(cpu_s(statistics), Some(1.5));
        assert_eq!(cpu_s("user_usec 1\n"), None);
    }
}
