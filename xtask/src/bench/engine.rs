//! The agent's engine alone, over recordings: `agent/benches/engine.rs` measures, this makes the
//! recording of a program under load and reads what the bench reports.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    thread,
};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::subject::Subject;
use crate::{
    build::Agent,
    steps::{self, capture, say},
};

/// Requests at a time, and by how many each connection is used: some megabytes of records.
const CONNECTIONS: u32 = 16;
const REQUESTS: u32 = 500;

/// The recording that is made here; the bench names results by the file.
const RECORDING: &str = "nginx_load";

/// What the engine needs for one recording, as the median of the bench's samples.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Replayed {
    pub(super) recording: String,
    /// Spans that come of it: requests, each on one of its ends.
    pub(super) spans: u64,
    pub(super) spans_per_second: f64,
    pub(super) allocations_per_span: f64,
    pub(super) bytes_per_span: f64,
}

pub(super) fn run(agent: &Path, directory: &Path) -> Result<Vec<Replayed>> {
    let recording = directory.join(format!("{RECORDING}.rec"));
    record(agent, directory, &recording)?;
    let mut bench = steps::cargo();
    bench.args([
        "bench",
        "--quiet",
        "--package",
        "agent",
        "--bench",
        "engine",
    ]);
    bench.args(["--", "--color", "never", "--bytes-format", "decimal"]);
    bench.env("ENGINE_RECORDING", &recording);
    say("bench", "building and running the bench of the engine");
    let report = capture(&mut bench)?;
    let replayed = read(&report);
    ensure!(
        !replayed.is_empty(),
        "cannot read what the bench of the engine reports"
    );
    for one in &replayed {
        say("bench", &one.line());
    }
    Ok(replayed)
}

impl Replayed {
    fn line(&self) -> String {
        format!(
            "{:<16} {:>9.0} spans/s, {:.1} allocations and {:.0} bytes per span",
            self.recording, self.spans_per_second, self.allocations_per_span, self.bytes_per_span
        )
    }
}

/// What goes into the engine while nginx answers kept connections.
fn record(agent: &Path, directory: &Path, recording: &Path) -> Result<()> {
    let served = Subject::Nginx.start(directory, CONNECTIONS)?;
    let path = recording.display().to_string();
    let environment = [("EBPF_AGENT_RECORD_FILE", path.as_str())];
    let pid = served.program.pid().to_string();
    let arguments = ["--pid", &pid, "--exporter", "none"].map(str::to_owned);
    let mut agent = Agent::start(agent, directory, &arguments, &environment)?;
    let port = served.port();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| thread::spawn(move || ask(port).is_some()))
        .collect();
    for client in clients {
        let answered = client.join().unwrap_or(false);
        ensure!(answered, "nginx did not answer every request");
    }
    agent.process.stop()
}

/// The requests of one connection, one after the other.
fn ask(port: u16) -> Option<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    for number in 0..REQUESTS {
        let head = format!(
            "GET /orders/{number} HTTP/1.1\r\nHost: shop.test\r\nUser-Agent: bench\r\n\
             Accept: */*\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).ok()?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
            if let Some(value) = line.strip_prefix("Content-Length:") {
                length = value.trim().parse().ok()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length]).ok()?;
    }
    Some(())
}

/// What divan 0.1 prints: a tree whose leaves are `NAME:SPANS`, each followed by lines of what was
/// counted, in columns of which the third is the median.
fn read(report: &str) -> Vec<Replayed> {
    let mut all: Vec<Replayed> = Vec::new();
    let mut rows: Vec<Vec<&str>> = Vec::new();
    let lines = report
        .lines()
        .map(|line| line.split('│').collect::<Vec<_>>());
    // Nested lines have bars before their first column, so columns are counted from the right.
    let columns =
        lines.filter_map(|cells| Some(cells.get(cells.len().checked_sub(6)?..)?.to_vec()));
    for row in columns {
        if row.first().is_some_and(|cell| cell.contains('─')) {
            all.extend(replayed(&rows));
            rows.clear();
        }
        rows.push(row);
    }
    all.extend(replayed(&rows));
    all
}

/// Of the rows of one leaf; nothing of a bench without a recording.
fn replayed(rows: &[Vec<&str>]) -> Option<Replayed> {
    let first = rows.first()?.first()?;
    let name = first.split_whitespace().find(|word| !word.contains('─'))?;
    let (recording, spans) = name.rsplit_once(':')?;
    let spans: u64 = spans.parse().ok()?;
    let median = |row: &Vec<&str>| quantity(row.get(2)?);
    let rate = rows.get(1).and_then(median)?;
    // Below its title, how many; below that, how many bytes. What did not happen has no title.
    let counted = |title: &str| {
        let at = rows
            .iter()
            .position(|row| row.first().is_some_and(|cell| cell.trim() == title))?;
        Some((median(rows.get(at + 1)?)?, median(rows.get(at + 2)?)?))
    };
    let (made, made_bytes) = counted("alloc:")?;
    let (grown, grown_bytes) = counted("grow:").unwrap_or_default();
    let of = |sum: f64| sum / spans.max(1) as f64;
    Some(Replayed {
        recording: recording.to_owned(),
        spans,
        spans_per_second: rate,
        allocations_per_span: of(made + grown),
        bytes_per_span: of(made_bytes + grown_bytes),
    })
}

/// A number, perhaps with a unit, whose first letter may be a decimal prefix.
fn quantity(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace();
    let number: f64 = words.next()?.parse().ok()?;
    let factor = match words.next().and_then(|unit| unit.chars().next()) {
        Some('K') => 1e3,
        Some('M') => 1e6,
        Some('G') => 1e9,
        _ => 1.0,
    };
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As divan 0.1.21 printed it, some lines left out.
    const REPORT: &str = "\
Timer precision: 20 ns
engine              fastest       │ slowest       │ median        │ mean          │ samples │ iters
├─ empty            1.2 µs        │ 2 µs          │ 1.3 µs        │ 1.3 µs        │ 100     │ 100
│                   alloc:        │               │               │               │         │
│                     2           │ 2             │ 2             │ 2             │         │
│                     1 KB        │ 1 KB          │ 1 KB          │ 1 KB          │         │
╰─ replayed                       │               │               │               │         │
   ├─ sendfile:2    108.1 µs      │ 14.18 ms      │ 285.3 µs      │ 4.86 ms       │ 3       │ 3
   │                18.49 Kitem/s │ 140.9 item/s  │ 7.008 Kitem/s │ 411.5 item/s  │         │
   │                max alloc:    │               │               │               │         │
   │                  49          │ 49            │ 49            │ 49            │         │
   │                  9.977 KB    │ 9.977 KB      │ 9.977 KB      │ 9.977 KB      │         │
   │                alloc:        │               │               │               │         │
   │                  67          │ 67            │ 67            │ 67            │         │
   │                  11.52 KB    │ 11.52 KB      │ 11.52 KB      │ 11.52 KB      │         │
   │                grow:         │               │               │               │         │
   │                  8           │ 8             │ 8             │ 8             │         │
   │                  1.52 KB     │ 1.52 KB       │ 1.52 KB       │ 1.52 KB       │         │
   ╰─ unix:4        133.2 µs      │ 5.04 ms       │ 160.9 µs      │ 1.778 ms      │ 3       │ 3
                    30.02 Mitem/s │ 793.5 item/s  │ 2.5 Mitem/s   │ 2.249 Kitem/s │         │
                    alloc:        │               │               │               │         │
                      87          │ 87            │ 88            │ 87            │         │
                      15.55 KB    │ 15.55 KB      │ 800 B         │ 15.55 KB      │         │
";

    /// Medians of each recording, per span; memory that grew was allocated, too.
    #[test]
    fn the_report_is_read() {
        let of = |recording: &str, spans, rate, allocations, bytes| Replayed {
            recording: recording.to_owned(),
            spans,
            spans_per_second: rate,
            allocations_per_span: allocations,
            bytes_per_span: bytes,
        };
        let expected = [
            of("sendfile", 2, 7_008.0, 37.5, 6_520.0),
            of("unix", 4, 2_500_000.0, 22.0, 200.0),
        ];
        assert_eq!(read(REPORT), expected);
        assert_eq!(read("error: no bench target\n"), []);
    }
}
