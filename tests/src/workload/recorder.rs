//! A raw server that hashes what it is sent, and clients that call it when told.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use serde::Deserialize;

use crate::{
    go::{self, Build},
    namespace::Namespace,
    process::{Process, crate_file},
    python,
};

/// Requests by the number of headers that were added on their way.
pub type ByAdded = BTreeMap<String, u64>;

/// What arrived: by path and hash of the bytes.
#[derive(Clone, Debug, Deserialize)]
pub struct Arrived {
    pub paths: BTreeMap<String, BTreeMap<String, ByAdded>>,
    pub broken: u64,
}

impl Arrived {
    /// Requests of all paths to which so many headers were added.
    pub fn with_added(&self, added: u32) -> u64 {
        let hashes = self.paths.values().flat_map(BTreeMap::values);
        hashes
            .filter_map(|counts| counts.get(&added.to_string()))
            .sum()
    }

    pub fn total(&self) -> u64 {
        let hashes = self.paths.values().flat_map(BTreeMap::values);
        hashes.flat_map(BTreeMap::values).sum()
    }

    /// The same requests, whatever was added to them: paths and hashes.
    pub fn content(&self) -> BTreeMap<&str, Vec<&str>> {
        self.paths
            .iter()
            .map(|(path, hashes)| (path.as_str(), hashes.keys().map(String::as_str).collect()))
            .collect()
    }
}

#[derive(Debug)]
pub struct Recorder {
    process: Process,
    port: u16,
    asked: usize,
}

impl Recorder {
    pub fn start() -> Self {
        Self::start_at(Command::new("env"), "127.0.0.1")
    }

    /// Listens at an address of a network namespace.
    pub fn start_in(namespace: &Namespace) -> Self {
        Self::start_at(namespace.command(), namespace.far())
    }

    fn start_at(mut command: Command, address: &str) -> Self {
        command
            .arg(python::interpreter())
            .arg(crate_file("workloads/recorder.py"))
            .arg(address);
        let mut process = Process::spawn("recorder", &mut command);
        let port = process.announced_port();
        Self {
            process,
            port,
            asked: 0,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What arrived since the last time.
    pub fn take(&mut self) -> Arrived {
        self.process.write_line("");
        self.asked += 1;
        let line = self.process.json_line(self.asked);
        serde_json::from_value(line).expect("the recorder's table")
    }
}

/// A client that calls when told.
#[derive(Debug)]
pub struct Caller {
    process: Process,
    asked: usize,
}

impl Caller {
    pub fn python(port: u16) -> Self {
        Self::python_to("127.0.0.1", port)
    }

    /// Calls a server that may be on another host.
    pub fn python_to(host: &str, port: u16) -> Self {
        Self::start(python::interpreter(), "workloads/caller.py", port, &[host])
    }

    pub fn node(port: u16) -> Self {
        Self::start(PathBuf::from("node"), "workloads/caller.js", port, &[])
    }

    pub fn go(port: u16) -> Self {
        let mut command = Command::new(go::server(Build::Stripped));
        command.args(["-call", &format!("127.0.0.1:{port}")]);
        Self::spawn(command)
    }

    fn start(interpreter: PathBuf, script: &str, port: u16, more: &[&str]) -> Self {
        let mut command = Command::new(interpreter);
        command
            .arg(crate_file(script))
            .arg(port.to_string())
            .args(more);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut process = Process::spawn("caller", &mut command);
        process.json_line(0);
        Self { process, asked: 0 }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Begins without waiting for the end.
    pub fn begin(&mut self, mode: &str, count: u64) {
        self.process.write_line(&format!("{mode} {count}"));
        self.asked += 1;
    }

    /// Ends mode `until`.
    pub fn stop_calling(&mut self) {
        self.process.write_line("");
    }

    /// Waits for the end of what was begun; panics when any request failed. Returns how many were
    /// made.
    pub fn finish(&mut self) -> u64 {
        let line = self.process.json_line(self.asked);
        assert_eq!(line["failed"], 0, "{line}");
        line["done"].as_u64().expect("a count")
    }

    pub fn call(&mut self, mode: &str, count: u64) {
        self.begin(mode, count);
        assert_eq!(self.finish(), count);
    }
}
