//! `workloads/grpc`: one service and its client in four implementations.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use serde::Deserialize;

use crate::{
    go, node,
    pki::Pki,
    process::{Process, crate_file, output, target_directory},
    python,
    temp::TempDir,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// grpcio, on a pool of threads.
    Python,
    /// grpc-js.
    Node,
    /// grpc-go.
    Go,
    /// tonic.
    Rust,
}

impl Implementation {
    pub const ALL: [Self; 4] = [Self::Python, Self::Node, Self::Go, Self::Rust];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Python => "grpcio",
            Self::Node => "grpc-js",
            Self::Go => "grpc-go",
            Self::Rust => "tonic",
        }
    }

    /// The program, whatever it needs made first.
    fn command(self) -> Command {
        let mut command = match self {
            Self::Python => {
                let mut command = Command::new(python::packages_interpreter());
                command.arg(crate_file("workloads/grpc/store.py"));
                command
            }
            Self::Node => {
                let mut command = Command::new("node");
                command.arg(crate_file("workloads/grpc/store.js"));
                command.env("NODE_PATH", node::modules());
                command
            }
            Self::Go => Command::new(go::packaged("workloads/grpc/go", "grpc-go")),
            Self::Rust => Command::new(example("grpc_store")),
        };
        command.env_remove("OTEL_RESOURCE_ATTRIBUTES");
        command
    }
}

fn serve_tls(command: &mut Command, pki: &Pki) {
    command.env("TLS_CERTIFICATE", pki.server_certificate());
    command.env("TLS_KEY", pki.server_key());
}

/// An example of this crate, built on first use.
pub fn example(name: &str) -> PathBuf {
    let target = target_directory();
    fs::create_dir_all(&target).expect("the build directory");
    let lock = File::create(target.join("example.lock")).expect("a lock file");
    lock.lock()
        .expect("other test processes let go of the lock when they end");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", "agent-tests", "--example"]);
    cargo.arg(name).current_dir(crate_file("."));
    // What cargo tells this test of its own package would make it build other crates anew, those
    // that ask for it (ring).
    for (variable, _) in env::vars_os() {
        let text = variable.to_string_lossy();
        let is_setting = ["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&&*text);
        if text.starts_with("CARGO_") && !is_setting {
            cargo.env_remove(&variable);
        }
    }
    output(&mut cargo);
    fs::canonicalize(target.join("debug/examples").join(name)).expect("just built")
}

/// What the methods do; the number of a call says which.
pub const KINDS: [&str; 8] = [
    "Unary", "Collect", "Watch", "Chat", "Missing", "Broken", "Slow", "Gone",
];

/// A running server.
#[derive(Debug)]
pub struct Store {
    process: Process,
    port: u16,
}

impl Store {
    pub fn start(implementation: Implementation, service: &str) -> Self {
        let mut command = implementation.command();
        command.arg("serve").env("OTEL_SERVICE_NAME", service);
        let mut process = Process::spawn(implementation.name(), &mut command);
        let port = process.announced_port();
        Self { process, port }
    }

    /// grpc-go or grpcio, inside TLS.
    pub fn start_tls(implementation: Implementation, service: &str, pki: &Pki) -> Self {
        let mut command = implementation.command();
        serve_tls(&mut command, pki);
        command.arg("serve").env("OTEL_SERVICE_NAME", service);
        let mut process = Process::spawn(implementation.name(), &mut command);
        let port = process.announced_port();
        Self { process, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The values of `traceparent` that the calls so far carried, by method. Once.
    pub fn seen(&mut self) -> BTreeMap<String, Vec<String>> {
        self.process.write_line("");
        serde_json::from_value(self.process.json_line(1)).expect("lists of values by method")
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// What a client says of one call.
#[derive(Clone, Debug, Deserialize)]
pub struct Call {
    /// With the service, as `rpc.method` has it.
    pub method: String,
    pub status: String,
    /// Messages.
    pub sent: i64,
    pub received: i64,
    /// By the wall clock, around the whole call.
    #[serde(deserialize_with = "number_or_digits")]
    pub start_ns: u64,
    #[serde(deserialize_with = "number_or_digits")]
    pub end_ns: u64,
}

/// JavaScript has no numbers so large.
fn number_or_digits<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    use serde::de::Error;
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(digits) => digits.parse().map_err(D::Error::custom),
        other => other
            .as_u64()
            .ok_or_else(|| D::Error::custom("neither number nor digits")),
    }
}

impl Call {
    /// One of which only the method is known.
    pub fn named(method: &str) -> Self {
        Self {
            method: method.to_owned(),
            status: String::new(),
            sent: 0,
            received: 0,
            start_ns: 0,
            end_ns: 0,
        }
    }

    /// What its method does.
    pub fn kind(&self) -> &str {
        let name = self.method.rsplit('/').next().unwrap_or_default();
        name.trim_end_matches(|letter: char| letter.is_ascii_digit())
    }
}

/// Far longer than 100,000 calls take.
const CALLS: Duration = Duration::from_mins(30);

/// What calls carry of themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sends {
    /// No `traceparent`.
    Nothing,
    Own,
}

/// A client that waits to be told.
#[derive(Debug)]
pub struct Caller {
    process: Process,
    /// Of a program under another name.
    _directory: Option<TempDir>,
}

impl Caller {
    pub fn start(
        implementation: Implementation,
        service: &str,
        port: u16,
        count: usize,
        parallel: usize,
    ) -> Self {
        Self::start_with(implementation, service, &[port.into(), count, parallel])
    }

    /// grpc-go or grpcio, inside TLS.
    pub fn start_tls(
        implementation: Implementation,
        service: &str,
        pki: &Pki,
        [port, count, parallel]: [usize; 3],
    ) -> Self {
        let mut command = implementation.command();
        command.env("TLS_AUTHORITY", pki.authority_certificate());
        let name = implementation.name();
        Self::start_command(name, command, service, &[port, count, parallel])
    }

    /// grpcio, inside TLS, in a process that has had so many sessions by another TLS library.
    pub fn start_after_sessions(
        sessions: usize,
        service: &str,
        pki: &Pki,
        [port, count, parallel]: [usize; 3],
    ) -> Self {
        let mut command = Implementation::Python.command();
        command.env("OTHER_SESSIONS", sessions.to_string());
        serve_tls(&mut command, pki);
        command.env("TLS_AUTHORITY", pki.authority_certificate());
        Self::start_command("grpc-caller", command, service, &[port, count, parallel])
    }

    /// As [`Self::start`], in two rounds with so many methods: grpcio and grpc-go.
    pub fn start_in_rounds(
        implementation: Implementation,
        service: &str,
        port: u16,
        [count, parallel, methods]: [usize; 3],
    ) -> Self {
        Self::start_with(
            implementation,
            service,
            &[port.into(), count, parallel, methods],
        )
    }

    /// One that headers are injected for on every kernel.
    ///
    /// Kernels that deny waiting bytes want to know a program by its name, and a program made with
    /// tonic has any. So it gets that of another client that does not ask either.
    pub fn injectable(implementation: Implementation, numbers: [usize; 3], sends: Sends) -> Self {
        let directory = TempDir::new("caller");
        let mut command = match implementation {
            Implementation::Rust => {
                let copy = directory.join("nghttp");
                fs::copy(example("grpc_store"), &copy).expect("a program is a file");
                Command::new(copy)
            }
            other => other.command(),
        };
        if sends == Sends::Own {
            command.env("SEND_OWN", "1");
        }
        Self {
            _directory: Some(directory),
            ..Self::start_command("grpc-caller", command, "caller", &numbers)
        }
    }

    fn start_with(implementation: Implementation, service: &str, numbers: &[usize]) -> Self {
        let command = implementation.command();
        Self::start_command(implementation.name(), command, service, numbers)
    }

    fn start_command(name: &str, mut command: Command, service: &str, numbers: &[usize]) -> Self {
        command.arg("call").env("OTEL_SERVICE_NAME", service);
        command.args(numbers.iter().map(ToString::to_string));
        let mut process = Process::spawn(name, &mut command);
        process.json_line(0);
        Self {
            process,
            _directory: None,
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Makes its calls.
    pub fn run(mut self) -> Vec<Call> {
        self.begin();
        self.finish()
    }

    /// Begins to make its calls, or the next round of them, or to end.
    pub fn begin(&mut self) {
        self.process.write_line("");
    }

    /// Calls that have ended so far.
    pub fn ended(&self) -> usize {
        self.process.lines().len().saturating_sub(1)
    }

    /// Waits for its last call.
    pub fn finish(mut self) -> Vec<Call> {
        let status = self.process.wait_within(CALLS).expect("its calls end");
        assert!(status.success(), "{status}: {}", self.process.stderr());
        let lines = self.process.lines().into_iter().skip(1);
        lines
            .map(|line| {
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect()
    }
}
