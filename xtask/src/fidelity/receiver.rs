//! The tests' OTLP receiver, which shares no code with the agent, as a child process that appends
//! each span to a file. A cell has a few thousand spans, which it takes in well under a second.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::judge::{Role, Span, Subject};
use crate::{child::Running, steps};

/// Python and its packages are read from disk.
const START: Duration = Duration::from_secs(30);

/// `OTEL_SERVICE_NAME` of the back. Fronts may overwrite their environment, so only the back is
/// known by it.
pub(super) const BACK: &str = "back";

pub(super) struct Receiver {
    process: Running,
    port: u16,
    file: SpanFile,
}

impl Receiver {
    pub(super) fn start(python: &Path, directory: &Path) -> Result<Self> {
        let output = directory.join("spans.jsonl");
        File::create(&output).with_context(|| format!("cannot create {}", output.display()))?;
        let script = steps::workspace().join("tests/receiver/otlp_receiver.py");
        let mut command = Command::new(python);
        command.arg(script).arg("--output").arg(&output);
        let mut process = Running::start("receiver", directory, &mut command)?;
        let ports = process.stdout.clone();
        let mut port = None;
        process.wait_until("ports", START, || {
            port = read_port(&ports);
            port.is_some()
        })?;
        Ok(Self {
            process,
            port: port.context("the receiver names no port")?,
            file: SpanFile::new(output),
        })
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits until `is_complete` says so of the spans so far; `false` when `deadline` passes first.
    pub(super) fn wait_until(
        &mut self,
        deadline: Duration,
        is_complete: impl Fn(&[Span]) -> bool,
    ) -> bool {
        let file = &mut self.file;
        let condition = || file.read_on().is_ok() && is_complete(&file.spans);
        self.process
            .wait_until("complete spans", deadline, condition)
            .is_ok()
    }

    /// All spans, of an agent that has ended: it ends when the receiver has answered.
    pub(super) fn spans(mut self) -> Result<Vec<Span>> {
        self.file.read_on()?;
        self.process.stop()?;
        Ok(self.file.spans)
    }
}

/// From the first line of standard output, as soon as it is whole.
fn read_port(stdout: &Path) -> Option<u16> {
    let text = std::fs::read_to_string(stdout).ok()?;
    let (line, _) = text.split_once('\n')?;
    let ports: Value = serde_json::from_str(line).ok()?;
    ports["http"].as_u64()?.try_into().ok()
}

/// One JSON object a line, read as it grows.
struct SpanFile {
    path: PathBuf,
    /// Where the first line begins that was not read.
    position: u64,
    /// Of cases and background calls.
    spans: Vec<Span>,
}

impl SpanFile {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            position: 0,
            spans: Vec::new(),
        }
    }

    fn read_on(&mut self) -> Result<()> {
        let mut file = File::open(&self.path).context("the receiver's file is gone")?;
        file.seek(SeekFrom::Start(self.position))?;
        let mut reader = BufReader::new(file);
        let mut line = String::new();
        // A line without an end is being written, and read the next time.
        while reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
            let received: Received = serde_json::from_str(&line)
                .with_context(|| format!("not a span of the receiver: {line}"))?;
            self.spans.extend(received.into_span());
            self.position += line.len() as u64;
            line.clear();
        }
        Ok(())
    }
}

/// A span as the receiver writes it.
#[derive(Deserialize)]
struct Received {
    service: String,
    kind: String,
    trace_id: String,
    span_id: String,
    parent_span_id: String,
    start_ns: u64,
    end_ns: u64,
    attributes: Map<String, Value>,
    links: Vec<ReceivedLink>,
}

#[derive(Deserialize)]
struct ReceivedLink {
    span_id: String,
}

impl Received {
    /// `None` for a span that belongs to no case and no background call.
    fn into_span(self) -> Option<Span> {
        let text = |key: &str| self.attributes.get(key).and_then(Value::as_str);
        let keys = ["url.path", "url.full", "rpc.method"];
        let path = keys.into_iter().find_map(text)?;
        let role = match (self.kind.as_str(), self.service.as_str()) {
            ("CLIENT", _) => Role::FrontClient,
            ("SERVER", BACK) => Role::BackServer,
            ("SERVER", _) => Role::FrontServer,
            _ => return None,
        };
        Some(Span {
            role,
            subject: Subject::parse(path)?,
            duration_ns: self.end_ns.saturating_sub(self.start_ns),
            evidence: text("ebpf_agent.parent.evidence").map(str::to_owned),
            trace_id: self.trace_id,
            id: self.span_id,
            parent_id: self.parent_span_id,
            links: self.links.into_iter().map(|link| link.span_id).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::TemporaryDirectory;

    fn line(service: &str, kind: &str, attribute: (&str, &str)) -> String {
        let span = serde_json::json!({
            "service": service, "kind": kind, "trace_id": "t", "span_id": "s",
            "parent_span_id": "", "start_ns": 5, "end_ns": 9, "links": [{"span_id": "l"}],
            "attributes": {attribute.0: attribute.1},
        });
        format!("{span}\n")
    }

    /// Whole lines are read once, a half one when its rest is there.
    #[test]
    fn the_file_is_read_as_it_grows() {
        let directory = TemporaryDirectory::create("span-file").expect("a place for files");
        let path = directory.0.join("spans");
        let first = line("back", "SERVER", ("url.path", "/case/1"));
        let second = line("front", "CLIENT", ("url.full", "http://b:1/background/2"));
        let other = line("front", "SERVER", ("url.path", "/favicon.ico"));
        let third = line("nginx", "SERVER", ("url.path", "/case/1"));

        let mut file = SpanFile::new(path.clone());
        let half = second.len() / 2;
        std::fs::write(&path, [&first, &second[..half]].concat()).expect("a file of our own");
        file.read_on().expect("whole lines are spans");
        assert_eq!(file.spans.len(), 1);
        std::fs::write(&path, [first, second, other, third].concat()).expect("a file of our own");
        file.read_on().expect("whole lines are spans");

        let found: Vec<_> = file
            .spans
            .iter()
            .map(|span| (span.role, span.subject))
            .collect();
        let expected = [
            (Role::BackServer, Subject::Case(1)),
            (Role::FrontClient, Subject::Background(2)),
            (Role::FrontServer, Subject::Case(1)),
        ];
        assert_eq!(found, expected);
        assert_eq!(
            (file.spans[0].duration_ns, &*file.spans[0].links[0]),
            (4, "l")
        );
    }
}
