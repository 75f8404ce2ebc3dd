//! Clients: curl, wrk, and the scripts that count exactly.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

use crate::{
    process::{Process, crate_file, output},
    python,
};

/// Runs curl quietly with these arguments; gives the body, then the status on a line of its own.
pub fn curl(arguments: &[&str]) -> (String, u16) {
    let printed = output(&mut curl_command(arguments));
    let (body, status) = printed.rsplit_once('\n').expect("what --write-out adds");
    (body.to_owned(), status.parse().expect("a status code"))
}

/// The curl command, to be run by someone else.
pub fn curl_command(arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "60",
        "--noproxy",
        "*",
    ]);
    command
        .args(["--write-out", "\n%{http_code}"])
        .args(arguments);
    command
}

/// What wrk counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrkReport {
    pub requests: u64,
    /// Answers that were neither 2xx nor 3xx.
    pub refused: u64,
    /// Sum of connect, read, write and time-out errors.
    pub socket_errors: u64,
}

/// wrk against one URL. It is bound by time, not by a number of requests, and forgets those that
/// are in flight at the end: at most one per connection.
pub fn wrk_command(url: &str, connections: u32, seconds: u32) -> Command {
    let mut command = Command::new("wrk");
    command.args(["--threads", "1", "--connections", &connections.to_string()]);
    command.args(["--duration", &format!("{seconds}s"), url]);
    command
}

pub fn wrk(url: &str, connections: u32, seconds: u32) -> WrkReport {
    read_wrk(&output(&mut wrk_command(url, connections, seconds)))
}

pub fn read_wrk(printed: &str) -> WrkReport {
    let mut report = WrkReport::default();
    for line in printed.lines().map(str::trim) {
        let numbers = || {
            line.split(|letter: char| !letter.is_ascii_digit())
                .filter_map(|digits| digits.parse::<u64>().ok())
        };
        if line.contains(" requests in ") {
            report.requests = numbers().next().unwrap_or(0);
        } else if line.starts_with("Non-2xx") {
            // The name itself has digits: the count stands last.
            report.refused = numbers().next_back().unwrap_or(0);
        } else if line.starts_with("Socket errors:") {
            report.socket_errors = numbers().sum();
        }
    }
    assert!(report.requests > 0, "wrk counted nothing: {printed}");
    report
}

/// Exactly `requests` GETs over so many keep-alive connections; answers by status.
pub fn load(url: &str, requests: u32, connections: u32) -> BTreeMap<String, u64> {
    let mut command = script("workloads/client.py");
    command.args(["load", url, "--requests", &requests.to_string()]);
    command.args(["--connections", &connections.to_string()]);
    serde_json::from_str(&output(&mut command)).expect("the client's counts")
}

/// A client with one keep-alive connection that asks when told.
#[derive(Debug)]
pub struct Steps {
    process: Process,
    port: u16,
    asked: usize,
}

impl Steps {
    /// Connects, and asks nothing yet.
    pub fn connect(url: &str, service: &str) -> Self {
        let mut command = script("workloads/client.py");
        command
            .args(["steps", url])
            .env("OTEL_SERVICE_NAME", service);
        let mut process = Process::spawn("client", &mut command);
        let port = process.announced_port();
        Self {
            process,
            port,
            asked: 0,
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Asks for a path without waiting for the answer.
    pub fn start_asking(&mut self, path: &str) {
        self.process.write_line(path);
        self.asked += 1;
    }

    pub fn kill(&mut self) {
        self.process.signal("KILL");
        self.process.wait();
    }

    /// Asks for a path and waits for the answer's status.
    pub fn ask(&mut self, path: &str) -> i64 {
        self.start_asking(path);
        let answer = self.process.json_line(self.asked);
        answer["status"]
            .as_i64()
            .unwrap_or_else(|| panic!("no status: {answer}"))
    }
}

/// Every way of moving bytes through a socket, on both ends; starts when told.
#[derive(Debug)]
pub struct IoPaths {
    process: Process,
}

impl IoPaths {
    pub fn start(service: &str) -> Self {
        let mut command = script("workloads/io_paths.py");
        command.env("OTEL_SERVICE_NAME", service);
        let mut process = Process::spawn("io_paths", &mut command);
        process.json_line(0);
        Self { process }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Lets it run to its end; gives the paths it exchanged, each answered 200.
    pub fn run(mut self) -> Vec<String> {
        self.process.write_line("");
        let status = self.process.wait();
        assert!(status.success(), "{status}: {}", self.process.stderr());
        let lines = self.process.lines().into_iter().skip(1);
        lines
            .map(|line| {
                let line: Value = serde_json::from_str(&line).expect("a line of JSON");
                assert_eq!(line["status"], 200, "{line}");
                line["path"].as_str().expect("a path").to_owned()
            })
            .collect()
    }
}

/// A forward proxy that knows only CONNECT; gives it and its port.
pub fn connect_proxy(service: &str) -> (Process, u16) {
    let mut command = script("workloads/connect_proxy.py");
    command.env("OTEL_SERVICE_NAME", service);
    let mut process = Process::spawn("proxy", &mut command);
    let port = process.announced_port();
    (process, port)
}

fn script(name: &str) -> Command {
    let mut command = Command::new(python::interpreter());
    command.arg(crate_file(name));
    command
        .env_remove("OTEL_SERVICE_NAME")
        .env_remove("OTEL_RESOURCE_ATTRIBUTES");
    command
}
