//! `workloads/streams.py` and `workloads/streams.js`: WebSocket and server-sent events.

use std::process::Command;

use crate::{
    node,
    process::{Process, crate_file},
    python,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// aiohttp of Python.
    Aiohttp,
    /// uvicorn of Python; a server only.
    Uvicorn,
    /// websockets of Python; no events.
    Websockets,
    /// ws of Node, and its own http.
    Ws,
}

impl Library {
    const fn name(self) -> &'static str {
        match self {
            Self::Aiohttp => "aiohttp",
            Self::Uvicorn => "uvicorn",
            Self::Websockets => "websockets",
            Self::Ws => "ws",
        }
    }

    fn command(self, what: &str, service: &str) -> Command {
        let mut command;
        if self == Self::Ws {
            command = Command::new("node");
            command.env("NODE_PATH", node::modules());
            command.arg(crate_file("workloads/streams.js")).arg(what);
        } else {
            command = Command::new(python::packages_interpreter());
            command.arg(crate_file("workloads/streams.py"));
            command.args([what, self.name()]);
        }
        command.env_remove("OTEL_RESOURCE_ATTRIBUTES");
        command.env("OTEL_SERVICE_NAME", service);
        command
    }
}

/// A running server.
#[derive(Debug)]
pub struct StreamServer {
    process: Process,
    port: u16,
}

impl StreamServer {
    pub fn start(library: Library, service: &str) -> Self {
        let mut process = Process::spawn(library.name(), &mut library.command("serve", service));
        let port = process.announced_port();
        Self { process, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn kill(&mut self) {
        self.process.signal("KILL");
        self.process.wait();
    }
}

/// A client that opens a WebSocket when it is told, and talks when it is told again.
#[derive(Debug)]
pub struct Talker {
    process: Process,
}

impl Talker {
    pub fn start(library: Library, service: &str, port: u16, path: &str) -> Self {
        let mut command = library.command("talk", service);
        command.arg(format!("ws://127.0.0.1:{port}{path}"));
        let mut process = Process::spawn(library.name(), &mut command);
        process.json_line(0);
        Self { process }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Until the server has switched protocols.
    pub fn open(&mut self) {
        self.process.write_line("");
        assert_eq!(self.process.json_line(1)["open"], true);
    }

    /// Says what it has to say, hears it back, and closes in good order.
    pub fn talk(mut self) {
        self.process.write_line("");
        assert_eq!(self.process.json_line(2)["echoed"], 4);
        let status = self.process.wait();
        assert!(status.success(), "{status}: {}", self.process.stderr());
    }
}
