//! `workloads/ends.js`: a server and a client whose streams of HTTP/2 end in many ways.

use std::process::Command;

use crate::process::{Process, crate_file};

fn command(service: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(crate_file("workloads/ends.js"));
    command.env_remove("OTEL_RESOURCE_ATTRIBUTES");
    command.env("OTEL_SERVICE_NAME", service);
    command
}

#[derive(Debug)]
pub struct EndsServer {
    process: Process,
    port: u16,
}

impl EndsServer {
    pub fn start(service: &str) -> Self {
        let mut process = Process::spawn("ends", command(service).arg("serve"));
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

/// A client that plays one scene when it is told.
#[derive(Debug)]
pub struct EndsClient {
    process: Process,
}

impl EndsClient {
    pub fn start(service: &str, port: u16, scene: &str) -> Self {
        let mut command = command(service);
        command.args(["call", &port.to_string(), scene]);
        let mut process = Process::spawn("ends", &mut command);
        process.json_line(0);
        Self { process }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Plays the scene to its end.
    pub fn play(mut self) {
        self.process.write_line("");
        let status = self.process.wait();
        assert!(status.success(), "{status}: {}", self.process.stderr());
        assert!(self.process.json_line(1)["done"].is_array());
    }

    /// Begins the scene that waits; its requests are made when this returns.
    pub fn play_until_it_waits(&mut self) {
        self.process.write_line("");
        assert_eq!(self.process.json_line(1)["waiting"], true);
    }

    pub fn kill(&mut self) {
        self.process.signal("KILL");
        self.process.wait();
    }

    /// Lets the scene that waits end, when somebody else has ended its requests.
    pub fn go_on(mut self) {
        self.process.write_line("");
        let status = self.process.wait();
        assert!(status.success(), "{status}: {}", self.process.stderr());
    }
}
