//! Child processes: started in a process group of their own, signalled by number, never by name.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    temp::TempDir,
    wait::{poll_until, wait_for},
};

/// How long a process may take to obey a polite signal.
const POLITE: Duration = Duration::from_secs(10);

/// A running child with its output in files. The whole group is killed on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    status: Option<ExitStatus>,
    directory: TempDir,
}

impl Process {
    /// Starts `command` with a pipe as standard input and files as the other two.
    pub fn spawn(name: &str, command: &mut Command) -> Self {
        use std::os::unix::process::CommandExt;
        let directory = TempDir::new(name);
        let file = |name| File::create(directory.join(name)).expect("a file in a fresh directory");
        let mut child = dying_with_us(command)
            .stdin(Stdio::piped())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}: {command:?}"));
        let stdin = child.stdin.take();
        Self {
            name: name.to_owned(),
            child,
            stdin,
            status: None,
            directory,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A private directory that lives as long as the process is owned.
    pub fn directory(&self) -> &TempDir {
        &self.directory
    }

    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.directory.join(name)).expect("the output file made at start");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Writes a line to the standard input.
    pub fn write_line(&mut self, line: &str) {
        let stdin = self
            .stdin
            .as_mut()
            .expect("the standard input is still open");
        writeln!(stdin, "{line}").expect("the process reads its standard input");
        stdin.flush().expect("a pipe flushes");
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Complete lines of the standard output so far.
    pub fn lines(&self) -> Vec<String> {
        let output = self.stdout();
        let complete = output.rfind('\n').map_or("", |end| &output[..end]);
        complete.lines().map(str::to_owned).collect()
    }

    /// The port that it listens on or comes from, as the first line of its standard output says.
    pub fn announced_port(&mut self) -> u16 {
        let port = self.json_line(0)["port"].as_u64();
        port.and_then(|port| u16::try_from(port).ok())
            .unwrap_or_else(|| panic!("{} names no port", self.name))
    }

    /// Waits for line `number` (from 0) of the standard output, and reads it as JSON.
    pub fn json_line(&mut self, number: usize) -> Value {
        let what = format!("line {number} of {}", self.name);
        let line = wait_for(&what, || {
            // Looked at first: what was printed before the exit must still count.
            let ended = self.exited().is_some();
            let line = self.lines().into_iter().nth(number);
            assert!(
                line.is_some() || !ended,
                "{} ended early: {}",
                self.name,
                self.stderr()
            );
            line
        });
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{what} is no JSON: {error}: {line}"))
    }

    /// The exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self
                .child
                .try_wait()
                .expect("an own child can be waited for");
        }
        self.status
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for(&format!("the end of {}", self.name), || self.exited())
    }

    /// As [`Self::wait`], within a bound of the caller's.
    pub fn wait_within(&mut self, within: Duration) -> Option<ExitStatus> {
        poll_until(within, || self.exited())
    }

    /// Sends a signal, named without `SIG`, to this one process.
    pub fn signal(&mut self, signal: &str) {
        if self.exited().is_none() {
            send(signal, &self.pid().to_string());
        }
    }

    /// Sends a signal to the process and everything in its group.
    pub fn signal_group(&mut self, signal: &str) {
        if self.exited().is_none() {
            send(signal, &format!("-{}", self.pid()));
        }
    }

    /// Ends it politely, then firmly.
    pub fn stop(&mut self) {
        self.signal_group("TERM");
        if self.wait_within(POLITE).is_none() {
            self.signal_group("KILL");
            self.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited().is_none() {
            send("KILL", &format!("-{}", self.child.id()));
            // Reaps it; its status no longer matters.
            let _ = self.child.wait();
        }
    }
}

/// The same command, ended by the kernel when the thread that starts it ends without dropping it,
/// as when the tests are interrupted: in a group of its own it would get no Ctrl-C. By SIGTERM,
/// because nginx then ends its workers too.
fn dying_with_us(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped
        .args(["--pdeathsig", "TERM", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// Signals a process, or with a minus before the number its group. One that is gone is no error.
fn send(signal: &str, target: &str) {
    let mut kill = Command::new("sh");
    kill.args(["-c", "kill -s \"$1\" -- \"$2\"", "kill", signal, target]);
    kill.stderr(Stdio::null())
        .status()
        .expect("sh is everywhere");
}

/// Runs a command to its end and gives its standard output; panics when it fails.
pub fn output(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("does not start: {error}: {command:?}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}: {command:?}: {stderr}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Resident memory in KiB that a process has for itself, so without the ring buffer it shares with
/// the kernel and without its program: these only fill up to their size.
pub fn own_memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("the kernel says how much memory is resident")
}

/// A file of this crate, such as a workload.
pub fn crate_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The build directory: where the agent's binary and other made things are.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate_file("../target"), PathBuf::from)
}
