//! `cargo xtask bench`: what the agent costs nginx, and what it costs itself.
//!
//! Runs with and without the agent alternate, so that a machine that gets slower or faster
//! meanwhile weighs on both. Numbers are printed, never asserted.

pub(crate) mod guest;
mod load;
mod sink;
mod spread;
mod usage;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result};
use sink::Sink;
use usage::Usage;

use crate::{
    build::{self, Agent},
    child::{self, Running, TemporaryDirectory},
    setup::{self, Purpose},
    steps::{Privilege, capture, say},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Pairs of runs, one without and one with the agent.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Connections that wrk keeps open.
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// An agent to measure instead of building one.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    #[arg(long)]
    guest: bool,
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
    server {
        listen 127.0.0.1:@PORT@;
        location / { default_type text/plain; return 200 'hello\\n'; }
    }
}
";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::prepare(Purpose::Show)?;
    let binary = match &arguments.agent {
        Some(binary) => binary.clone(),
        None => build::agent(build::Profile::Release)?,
    };
    if arguments.guest {
        return guest::run(&guest::visible(binary)?, arguments.seconds).map(drop);
    }
    let directory = TemporaryDirectory::create("bench")?;
    let [port] = child::free_ports()?;
    let mut nginx = start_nginx(&directory.0, port)?;
    nginx.wait_for_port(port)?;
    // Page cache, CPU frequency and branch predictors settle before the first run that counts.
    load(port, 1, arguments.connections)?;

    let mut pairs = Vec::new();
    for index in 0..arguments.pairs.max(1) {
        let bench = Bench {
            binary: &binary,
            directory: &directory.0,
            nginx: &nginx,
            arguments,
        };
        let pair = bench.pair(port, index)?;
        say("bench", &pair.line(index));
        pairs.push(pair);
    }
    say("bench", &summary(&pairs));
    Ok(())
}

/// What every run of a benchmark shares.
struct Bench<'a> {
    binary: &'a Path,
    directory: &'a Path,
    nginx: &'a Running,
    arguments: &'a Arguments,
}

/// A run without the agent and one with it.
struct Pair {
    /// Requests per second.
    without: f64,
    with: f64,
    traced: Traced,
}

/// The agent during one run.
struct Traced {
    requests: u64,
    /// CPU time in microseconds, kernel and user.
    cpu_us: u64,
    rss_kb: u64,
    peak_kb: u64,
    /// From starting the agent to its first span at the receiver, with the load that began when
    /// it was ready.
    first_span_ms: Option<u128>,
    spans: u64,
    /// The agent's own ledger, as it wrote it.
    ledger: String,
}

impl Bench<'_> {
    /// Every second pair begins with the agent, so that neither side is always first.
    fn pair(&self, port: u16, index: usize) -> Result<Pair> {
        let (seconds, connections) = (self.arguments.seconds, self.arguments.connections);
        if index.is_multiple_of(2) {
            let (without, _) = load(port, seconds, connections)?;
            let (with, traced) = self.traced(port)?;
            return Ok(Pair {
                without,
                with,
                traced,
            });
        }
        let (with, traced) = self.traced(port)?;
        let (without, _) = load(port, seconds, connections)?;
        Ok(Pair {
            without,
            with,
            traced,
        })
    }

    fn traced(&self, port: u16) -> Result<(f64, Traced)> {
        let sink = Sink::start()?;
        let endpoint = format!("http://127.0.0.1:{}", sink.port);
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ];
        let pid = self.nginx.pid().to_string();
        let arguments = ["--pid", &pid, "--exporter", "otlp"].map(str::to_owned);
        let started = Instant::now();
        let mut agent = Agent::start(self.binary, self.directory, &arguments, &environment)?;
        let agent_pid = agent.process.pid();
        let before = Usage::of(agent_pid)?;
        let (rate, requests) = load(port, self.arguments.seconds, self.arguments.connections)?;
        let after = Usage::of(agent_pid)?;
        agent.process.stop()?;
        let traced = Traced {
            requests,
            cpu_us: after.cpu_us.saturating_sub(before.cpu_us),
            rss_kb: after.rss_kb,
            peak_kb: after.peak_kb,
            first_span_ms: sink.first_span().map(|first| (first - started).as_millis()),
            spans: sink.spans(),
            ledger: fs::read_to_string(&agent.summary).unwrap_or_default(),
        };
        Ok((rate, traced))
    }
}

fn start_nginx(directory: &Path, port: u16) -> Result<Running> {
    // Workers of a root nginx would otherwise become a user who may not enter the directory.
    let user = if Privilege::detect() == Privilege::Root {
        "user root;"
    } else {
        ""
    };
    let text = NGINX
        .replace("@USER@", user)
        .replace("@DIR@", &directory.display().to_string())
        .replace("@PORT@", &port.to_string());
    Running::start_nginx(directory, &text)
}

/// Requests per second and requests of one run of wrk.
fn load(port: u16, seconds: u32, connections: u32) -> Result<(f64, u64)> {
    let report = capture(Command::new("wrk").args([
        "-t1",
        &format!("-c{connections}"),
        &format!("-d{seconds}s"),
        &format!("http://127.0.0.1:{port}/"),
    ]))?;
    let rate = report
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let total = report
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "));
    let rate = rate.and_then(|rate| rate.trim().parse().ok());
    let total = total.and_then(|(total, _)| total.parse().ok());
    rate.zip(total)
        .with_context(|| format!("cannot read what wrk reports:\n{report}"))
}

impl Pair {
    fn ratio(&self) -> f64 {
        self.with / self.without
    }

    fn line(&self, index: usize) -> String {
        format!(
            "pair {}: {:>8.0} /s without, {:>8.0} /s with, ratio {:.3}; {} requests, {} spans",
            index + 1,
            self.without,
            self.with,
            self.ratio(),
            self.traced.requests,
            self.traced.spans,
        )
    }
}

fn summary(pairs: &[Pair]) -> String {
    let mut text = String::from("result\n");
    let mut row = |name: &str, values: Vec<f64>, unit: &str| {
        let spread = Spread::of(values);
        let _ = writeln!(
            text,
            "  {name:<24} {:>10.2} {unit:<6} (from {:.2} to {:.2})",
            spread.median, spread.least, spread.most
        );
    };
    let of = |value: fn(&Pair) -> f64| pairs.iter().map(value).collect::<Vec<f64>>();
    row("nginx without the agent", of(|pair| pair.without), "/s");
    row("nginx with the agent", of(|pair| pair.with), "/s");
    row("ratio of each pair", of(Pair::ratio), "");
    row(
        "agent CPU per request",
        of(|pair| pair.traced.cpu_us_per_request()),
        "us",
    );
    row(
        "agent RSS after the run",
        of(|pair| pair.traced.rss_kb as f64 / 1024.0),
        "MiB",
    );
    row(
        "agent RSS at its peak",
        of(|pair| pair.traced.peak_kb as f64 / 1024.0),
        "MiB",
    );
    let first: Vec<f64> = pairs
        .iter()
        .filter_map(|pair| Some(pair.traced.first_span_ms? as f64))
        .collect();
    if !first.is_empty() {
        row("start to first span", first, "ms");
    }
    let missing = of(|pair| pair.traced.requests as f64 - pair.traced.spans as f64);
    row("requests less spans", missing, "");
    if let Some(last) = pairs.last() {
        let _ = write!(
            text,
            "  ledger of the last run: {}",
            last.traced.ledger.trim()
        );
    }
    text
}

impl Traced {
    fn cpu_us_per_request(&self) -> f64 {
        self.cpu_us as f64 / self.requests.max(1) as f64
    }
}

/// Where the values of several runs lie.
#[derive(Debug, PartialEq)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(at(middle.saturating_sub(1)), at(middle))
        } else {
            at(middle)
        };
        Self {
            least: at(0),
            median,
            most: at(values.len().saturating_sub(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The median is the middle value, or the mean of the two in the middle.
    #[test]
    fn medians() {
        let of = |values: &[f64]| Spread::of(values.to_vec());
        assert_eq!(
            of(&[3.0, 1.0, 2.0]),
            Spread {
                least: 1.0,
                median: 2.0,
                most: 3.0
            }
        );
        assert_eq!(
            of(&[4.0, 1.0, 2.0, 3.0]),
            Spread {
                least: 1.0,
                median: 2.5,
                most: 4.0
            }
        );
    }
}
