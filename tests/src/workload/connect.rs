//! `workloads/connect.js`: one service by Connect, gRPC-Web and gRPC.

use std::process::Command;

use crate::{
    node,
    process::{Process, crate_file},
};

fn command(service: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(crate_file("workloads/connect.js"));
    command.env("NODE_PATH", node::modules());
    command.env_remove("OTEL_RESOURCE_ATTRIBUTES");
    command.env("OTEL_SERVICE_NAME", service);
    command
}

#[derive(Debug)]
pub struct ConnectServer {
    process: Process,
    port: u16,
}

impl ConnectServer {
    /// `version` of HTTP: `1.1` or `2`.
    pub fn start(service: &str, version: &str) -> Self {
        let mut process = Process::spawn("connect", command(service).args(["serve", version]));
        let port = process.announced_port();
        Self { process, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

#[derive(Debug)]
pub struct ConnectClient {
    process: Process,
}

impl ConnectClient {
    /// `protocol`: `connect`, `grpc-web` or `grpc`.
    pub fn start(service: &str, port: u16, protocol: &str, version: &str) -> Self {
        let mut command = command(service);
        command.args(["call", &port.to_string(), protocol, version]);
        let mut process = Process::spawn("connect", &mut command);
        process.json_line(0);
        Self { process }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Makes one call of each method, of which the first and third end well.
    pub fn call(mut self) {
        self.process.write_line("");
        let status = self.process.wait();
        assert!(status.success(), "{status}: {}", self.process.stderr());
        let expected = serde_json::json!([
            ["Get", "ok"],
            ["Miss", "NotFound"],
            ["List", "ok"],
            ["Break", "Internal"]
        ]);
        assert_eq!(self.process.json_line(1)["done"], expected);
    }
}
