//! `workloads/server.py` and `workloads/server.js`: the same routes on two runtimes. And
//! `workloads/go`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::{LogLine, read_log};
use crate::{
    go::{self, Build},
    process::{Process, crate_file},
    python,
    temp::TempDir,
    wait::wait_until,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// A blocking thread per connection.
    Python,
    /// One event loop.
    Node,
    /// `workloads/go`: goroutines. It has routes and options of its own.
    Go(Build),
}

/// A server that is not started yet.
#[derive(Debug)]
#[must_use]
pub struct ServerBuilder {
    command: Command,
    directory: TempDir,
    unix: Option<PathBuf>,
}

/// A running one.
#[derive(Debug)]
pub struct Server {
    process: Process,
    port: u16,
    unix: Option<PathBuf>,
    directory: TempDir,
}

/// The command that runs the server script of this runtime.
pub fn script_command(runtime: Runtime) -> Command {
    let (interpreter, script) = match runtime {
        Runtime::Go(build) => return Command::new(go::server(build)),
        Runtime::Python => (python::interpreter(), "workloads/server.py"),
        Runtime::Node => (PathBuf::from("node"), "workloads/server.js"),
    };
    let mut command = Command::new(interpreter);
    command.arg(crate_file(script));
    command
}

impl ServerBuilder {
    pub fn new(runtime: Runtime) -> Self {
        let directory = TempDir::new("server");
        let mut command = script_command(runtime);
        if !matches!(runtime, Runtime::Go(_)) {
            command.arg("--log").arg(directory.join("log"));
        }
        for name in ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"] {
            command.env_remove(name);
        }
        Self {
            command,
            directory,
            unix: None,
        }
    }

    /// Sets `OTEL_SERVICE_NAME`.
    pub fn service(self, name: &str) -> Self {
        self.env("OTEL_SERVICE_NAME", name)
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Where `/call/...` goes: a port on 127.0.0.1.
    pub fn backend(self, port: u16) -> Self {
        self.option("--backend", &format!("127.0.0.1:{port}"))
    }

    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.command.args([name, value]);
        self
    }

    pub fn flag(mut self, name: &str) -> Self {
        self.command.arg(name);
        self
    }

    /// Listens on a unix socket instead.
    pub fn unix(mut self) -> Self {
        let path = self.directory.join("socket");
        self.command.arg("--unix").arg(&path);
        self.unix = Some(path);
        self
    }

    pub fn start(mut self) -> Server {
        let mut process = Process::spawn("server", &mut self.command);
        let line = process.json_line(0);
        let port = line["port"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok());
        let port = port.unwrap_or_else(|| panic!("the server names its port: {line}"));
        assert_eq!(
            line["pid"],
            Value::from(process.pid()),
            "no wrapper stands between"
        );
        Server {
            process,
            port,
            unix: self.unix,
            directory: self.directory,
        }
    }
}

impl Server {
    /// A Python server with this service name.
    pub fn python(service: &str) -> Self {
        ServerBuilder::new(Runtime::Python).service(service).start()
    }

    /// A Node server with this service name.
    pub fn node(service: &str) -> Self {
        ServerBuilder::new(Runtime::Node).service(service).start()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Panics when it does not listen on one.
    pub fn unix_path(&self) -> &Path {
        self.unix.as_deref().expect("a server built with `unix`")
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it says it served so far.
    pub fn log(&self) -> Vec<LogLine> {
        read_log(&self.directory.join("log"))
    }

    /// Waits until it says it served so many requests.
    pub fn wait_for_log(&self, count: usize) -> Vec<LogLine> {
        wait_until(&format!("{count} log lines"), || self.log().len() >= count);
        self.log()
    }
}
