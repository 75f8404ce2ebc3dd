//! The load generators, and what they report.

use std::{fs, io::ErrorKind, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::steps::capture;

/// One run of a load generator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    pub(super) requests: u64,
    /// Requests per second.
    pub(super) rate: f64,
    /// Microseconds.
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

/// wrk for so many seconds on kept connections.
pub(super) fn wrk(url: &str, connections: u32, seconds: u32) -> Result<Load> {
    let report = capture(Command::new("wrk").args([
        "-t1",
        &format!("-c{connections}"),
        &format!("-d{seconds}s"),
        "--latency",
        url,
    ]))?;
    read_wrk(&report).with_context(|| format!("cannot read what wrk reports:\n{report}"))
}

/// Streams of each connection that h2load has open at one time.
const STREAMS: u32 = 10;

/// A message of five bytes as gRPC frames it: not compressed, its length, itself.
const MESSAGE: &[u8] = b"\0\0\0\0\x05hello";

/// A load of HTTP/2 on kept connections, by h2load.
pub(super) struct Streams<'a> {
    pub(super) connections: u32,
    pub(super) seconds: u32,
    /// For h2load's files.
    pub(super) directory: &'a Path,
}

impl Streams<'_> {
    pub(super) fn get(&self, url: &str) -> Result<Load> {
        self.run(url, &[]).map(|(load, _)| load)
    }

    /// Unary calls of gRPC that send and receive a short message. One that fails has status 200,
    /// too, and no message in its answer.
    pub(super) fn call(&self, url: &str) -> Result<Load> {
        let file = self.directory.join("message");
        fs::write(&file, MESSAGE).context("cannot write a message")?;
        let (load, report) = self.run(
            url,
            &[
                &format!("--data={}", file.display()),
                "--header=content-type: application/grpc",
                "--header=te: trailers",
            ],
        )?;
        let expected = load.requests * MESSAGE.len() as u64;
        ensure!(
            answered_bytes(&report).is_some_and(|bytes| bytes >= expected),
            "calls failed:\n{report}"
        );
        Ok(load)
    }

    /// What h2load measures, and its report.
    fn run(&self, url: &str, options: &[&str]) -> Result<(Load, String)> {
        let log = self.directory.join("h2load.log");
        // It adds to a log that is there.
        match fs::remove_file(&log) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", log.display()));
            }
            _ => {}
        }
        let report = capture(
            Command::new("h2load")
                .args([
                    &format!("--clients={}", self.connections),
                    &format!("--max-concurrent-streams={STREAMS}"),
                    &format!("--duration={}", self.seconds),
                    &format!("--log-file={}", log.display()),
                ])
                .args(options)
                .arg(url),
        )?;
        let log = fs::read_to_string(log).context("h2load wrote no log")?;
        let load = read_h2load(&report, &log)
            .with_context(|| format!("cannot read what h2load reports:\n{report}"))?;
        Ok((load, report))
    }
}

/// redis-benchmark with so many requests, each sent when the one before was answered.
pub(super) fn redis_benchmark(port: u16, connections: u32, requests: u64) -> Result<Load> {
    let report = capture(Command::new("redis-benchmark").args([
        "--csv",
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-t",
        "get",
        "-c",
        &connections.to_string(),
        "-n",
        &requests.to_string(),
    ]))?;
    read_redis_benchmark(&report, requests)
        .with_context(|| format!("cannot read what redis-benchmark reports:\n{report}"))
}

/// Requests that failed are said on lines of their own; a run with any is not a measurement.
fn read_wrk(report: &str) -> Option<Load> {
    let after = |prefix: &str| {
        let line = report
            .lines()
            .find_map(|line| line.trim().strip_prefix(prefix));
        line.map(str::trim)
    };
    if after("Non-2xx or 3xx responses:").is_some() {
        return None;
    }
    let total = report
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "));
    Some(Load {
        requests: total?.0.parse().ok()?,
        rate: after("Requests/sec:")?.parse().ok()?,
        p50_us: microseconds(after("50%")?)?,
        p99_us: microseconds(after("99%")?)?,
    })
}

/// The report has no percentiles; the log has a line for each answer: its start, its status and
/// what it took in microseconds. Requests that are open when the time is over fail, and are none.
fn read_h2load(report: &str, log: &str) -> Option<Load> {
    let after = |prefix: &str| report.lines().find_map(|line| line.strip_prefix(prefix));
    let rate = after("finished in ")?.split(", ").nth(1)?;
    let requests = after("requests: ")?
        .split(", ")
        .find_map(|part| part.strip_suffix(" succeeded"))?;
    let mut took_us = Vec::new();
    for line in log.lines() {
        let mut columns = line.split('\t').skip(1);
        if columns.next()? != "200" {
            return None;
        }
        took_us.push(columns.next()?.parse::<f64>().ok()?);
    }
    took_us.sort_unstable_by(f64::total_cmp);
    let percentile = |percent| took_us.get(took_us.len() * percent / 100).copied();
    Some(Load {
        requests: requests.parse().ok()?,
        rate: rate.strip_suffix(" req/s")?.parse().ok()?,
        p50_us: percentile(50)?,
        p99_us: percentile(99)?,
    })
}

/// Of the content of all answers: `traffic: 1KB (1024) total, ..., 100B (100) data`.
fn answered_bytes(report: &str) -> Option<u64> {
    let traffic = report
        .lines()
        .find_map(|line| line.strip_prefix("traffic: "))?;
    let data = traffic.rsplit(", ").next()?.strip_suffix(") data")?;
    data.rsplit('(').next()?.parse().ok()
}

/// A time as wrk writes it.
fn microseconds(text: &str) -> Option<f64> {
    let units = [
        ("us", 1.0),
        ("ms", 1_000.0),
        ("s", 1_000_000.0),
        ("m", 60_000_000.0),
    ];
    units.iter().find_map(|(unit, factor)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(number * factor)
    })
}

/// A line of names, then one of values, all in quotes; times are milliseconds.
fn read_redis_benchmark(report: &str, requests: u64) -> Option<Load> {
    let cells = |line: &str| -> Vec<String> {
        let cells = line.split(',').map(|cell| cell.trim_matches('"'));
        cells.map(str::to_owned).collect()
    };
    let mut lines = report
        .lines()
        .skip_while(|line| !line.starts_with("\"test\""));
    let (names, values) = (cells(lines.next()?), cells(lines.next()?));
    let value = |name: &str| {
        let at = names.iter().position(|known| known == name)?;
        values.get(at)?.parse::<f64>().ok()
    };
    Some(Load {
        requests,
        rate: value("rps")?,
        p50_us: value("p50_latency_ms")? * 1_000.0,
        p99_us: value("p99_latency_ms")? * 1_000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As wrk 4.1.0 wrote it.
    const WRK: &str = "Running 1s test @ http://127.0.0.1:18888/kernels.json
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     6.96ms    9.03ms  60.33ms   86.71%
    Req/Sec     0.93k   592.50     2.31k    70.00%
  Latency Distribution
     50%  280.00us
     75%    8.48ms
     90%   18.95ms
     99%   43.21ms
  945 requests in 1.04s, 24.70MB read
Requests/sec:    905.85
Transfer/sec:     23.68MB
";

    /// As h2load 1.52.0 wrote it, without what it says before.
    const H2LOAD: &str = "\nfinished in 1.00s, 47470.00 req/s, 3.85MB/s
requests: 47470 total, 47510 started, 47470 done, 47470 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 47470 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 3.85MB (4035350) total, 231.80KB (237366) headers (space savings 95.00%), 463.57KB (474700) data
";

    /// As redis-benchmark 7.0.15 wrote it.
    const REDIS: &str =
        "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
\"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"
\"GET\",\"39370.08\",\"0.283\",\"0.048\",\"0.207\",\"0.335\",\"2.615\",\"21.775\"
";

    /// Totals, rates and times in one unit.
    #[test]
    fn wrk_is_read() {
        let load = Load {
            requests: 945,
            rate: 905.85,
            p50_us: 280.0,
            p99_us: 43_210.0,
        };
        assert_eq!(read_wrk(WRK), Some(load));
        let failed = format!("{WRK}  Non-2xx or 3xx responses: 1042\n");
        assert_eq!(read_wrk(&failed), None, "answers that are errors");
    }

    /// Rates from the report, times from the log; an answer that is an error is no measurement.
    #[test]
    fn h2load_is_read() {
        let log = "1795286552861260\t200\t300\n1795286552861261\t200\t100\n1\t200\t200\n";
        let load = Load {
            requests: 47_470,
            rate: 47_470.0,
            p50_us: 200.0,
            p99_us: 300.0,
        };
        assert_eq!(read_h2load(H2LOAD, log), Some(load));
        let failed = log.replace("\t200\t300", "\t502\t300");
        assert_eq!(read_h2load(H2LOAD, &failed), None);
        assert_eq!(read_h2load("no report", log), None);
        assert_eq!(answered_bytes(H2LOAD), Some(474_700));
        assert_eq!(answered_bytes("no report"), None);
    }

    /// Columns are found by name, whatever warnings stand before them.
    #[test]
    fn redis_benchmark_is_read() {
        let load = Load {
            requests: 20_000,
            rate: 39_370.08,
            p50_us: 207.0,
            p99_us: 2_615.0,
        };
        let warned = format!("WARNING: Could not fetch server CONFIG\n{REDIS}");
        assert_eq!(read_redis_benchmark(&warned, 20_000), Some(load));
        assert_eq!(read_redis_benchmark("\"test\",\"rps\"\n", 20_000), None);
    }
}
