//! The built agent as a child process, by its command line contract.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::PathBuf,
    process::{Command, ExitStatus},
    time::SystemTime,
};

use crate::{
    process::{Process, target_directory},
    receiver::Receiver,
    summary::Summary,
    temp::TempDir,
    wait::wait_for,
};

/// The binary: `AGENT_BIN`, else the newest of the build directory's. The caller builds it.
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("AGENT_BIN") {
        return path.into();
    }
    let modified = |path: &PathBuf| -> Option<SystemTime> {
        fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .ok()
    };
    ["debug", "release"]
        .map(|profile| target_directory().join(profile).join("agent"))
        .into_iter()
        .filter(|path| path.exists())
        .max_by_key(modified)
        .expect("the agent is built (cargo build -p agent), or AGENT_BIN names it")
}

/// A command line in the making.
#[derive(Debug)]
#[must_use]
pub struct AgentCommand {
    command: Command,
    directory: TempDir,
}

impl Default for AgentCommand {
    fn default() -> Self {
        Self::new()
    }
}

impl AgentCommand {
    pub fn new() -> Self {
        Self::of(Command::new(binary()))
    }

    /// Another program in the agent's place, to test the harness.
    pub fn of(command: Command) -> Self {
        let made = Self::bare(command, TempDir::new("agent"));
        let (ready, summary) = (made.ready_file(), made.summary_file());
        made.arg("--ready-file")
            .arg(ready)
            .env("EBPF_AGENT_SUMMARY_FILE", summary)
    }

    /// For a test that names its own ready file.
    pub fn without_ready_file() -> Self {
        Self::bare(Command::new(binary()), TempDir::new("agent"))
    }

    /// `agent check`.
    pub fn check() -> Self {
        Self::bare(Command::new(binary()), TempDir::new("agent")).arg("check")
    }

    /// Runs as the user `nobody` without any capability; from a copy of the binary, since that
    /// user may not reach the original.
    pub fn unprivileged() -> Self {
        let directory = TempDir::new("agent");
        let copy = directory.join("agent");
        fs::copy(binary(), &copy).expect("the agent's binary can be copied");
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(copy);
        Self::bare(command, directory)
    }

    /// What the caller of the tests exports must not change what they test.
    fn bare(mut command: Command, directory: TempDir) -> Self {
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("OTEL_") || text.starts_with("EBPF_AGENT_") {
                command.env_remove(&name);
            }
        }
        Self { command, directory }
    }

    fn ready_file(&self) -> PathBuf {
        self.directory.join("ready")
    }

    fn summary_file(&self) -> PathBuf {
        self.directory.join("summary.json")
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, arguments: I) -> Self {
        self.command.args(arguments);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn pid(self, pid: u32) -> Self {
        self.args(["--pid", &pid.to_string()])
    }

    /// Exports over gRPC.
    pub fn grpc_to(self, receiver: &Receiver) -> Self {
        self.grpc_to_endpoint(&receiver.grpc_endpoint())
    }

    pub fn grpc_to_endpoint(self, endpoint: &str) -> Self {
        self.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    }

    /// Exports over HTTP with protobuf bodies.
    pub fn http_to(self, receiver: &Receiver) -> Self {
        self.env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint())
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    }

    /// Starts it and waits until every probe is attached.
    pub fn start(self) -> Agent {
        let ready = self.ready_file();
        let mut agent = self.spawn();
        wait_for("the agent's ready file", || {
            if let Some(status) = agent.process.exited() {
                panic!(
                    "the agent ended before it was ready, {status}: {}",
                    agent.stderr()
                );
            }
            ready.exists().then_some(())
        });
        agent
    }

    /// Runs it to its own end: for errors, `check`, and commands behind `--`.
    pub fn run(mut self) -> Exit {
        let mut process = Process::spawn("agent", &mut self.command);
        process.close_stdin();
        Agent {
            process,
            directory: self.directory,
        }
        .wait()
    }

    /// Starts it without waiting for readiness.
    pub fn spawn(mut self) -> Agent {
        let process = Process::spawn("agent", &mut self.command);
        Agent {
            process,
            directory: self.directory,
        }
    }
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    directory: TempDir,
}

/// How it ended, and what it said.
#[derive(Debug)]
pub struct Exit {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// The ledger, where it got as far as to write one.
    pub summary: Option<Summary>,
}

impl Exit {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The ledger of a run that ended in good order.
    pub fn ledger(&self) -> &Summary {
        self.summary
            .as_ref()
            .unwrap_or_else(|| panic!("no summary was written: {}", self.stderr))
    }

    /// Panics unless it ended with this code and said all of `words` on standard error.
    pub fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code(), Some(code), "{}: {}", self.status, self.stderr);
        for word in words {
            assert!(
                self.stderr.contains(word),
                "nothing about {word:?} in: {}",
                self.stderr
            );
        }
    }
}

impl Agent {
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn stderr(&self) -> String {
        self.process.stderr()
    }

    pub fn stdout(&self) -> String {
        self.process.stdout()
    }

    /// Interrupts it, waits for the flush, and checks that the end was a clean one.
    pub fn stop(self) -> Exit {
        let exit = self.interrupt();
        assert_eq!(exit.code(), Some(0), "{}: {}", exit.status, exit.stderr);
        exit
    }

    /// Interrupts it as Ctrl-C would and waits for its end.
    pub fn interrupt(mut self) -> Exit {
        self.process.signal("INT");
        self.process.wait();
        self.exit()
    }

    /// Kills it without warning.
    pub fn kill(mut self) {
        self.process.signal("KILL");
        self.process.wait();
    }

    /// Waits for it to end by itself.
    pub fn wait(mut self) -> Exit {
        self.process.wait();
        self.exit()
    }

    fn exit(mut self) -> Exit {
        let status = self
            .process
            .exited()
            .expect("the caller waited for the end");
        Exit {
            status,
            stdout: self.process.stdout(),
            stderr: self.process.stderr(),
            summary: Summary::read(&self.directory.join("summary.json")),
        }
    }
}
