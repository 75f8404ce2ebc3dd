//! The agent's engine alone, over recordings: `agent/benches/engine.rs` measures, this makes the
//! recording of a program under load and reads what the bench reports.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    thread,
};

use anyhow::{Context as _, Result, ensure};
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
    bench.args(["bench", "--quiet", "--package", "agent", "--bench", "engine"]);
    // One line for each figure, without units that change from line to line.
    bench.args(["--", "--color", "never", "--bytes-format", "decimal"]);
    bench.env("ENGINE_RECORDING", &recording);
    say("bench", "building and running the bench of the engine");
    let report = capture(&mut bench)?;
    println!("{report}");
    let replayed = read(&report);
    ensure!(!replayed.is_empty(), "cannot read what the bench of the engine reports");
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

fn read(_report: &str) -> Vec<Replayed> {
    Vec::new()
}
