//! Starts COMMAND as the invoking user, held back until the probes are attached.
//!
//! ```text
//! agent                                   gate (this binary as `agent launch-gate`)
//!   listens on an abstract socket
//!   spawns the gate, same terminal  ---->  connects, waits
//!   (its process id is known: attach)
//!   sends one byte                  ---->  drops to the invoking user, becomes COMMAND
//!   waits, exits with COMMAND's code
//! ```
//!
//! The gate is a socket and not a pipe, because standard input belongs to COMMAND and a further
//! descriptor cannot be passed without unsafe code. Its name is not to be guessed, and the
//! agent answers only the process it started. The process id stays the same over the exec.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: starts and waits for a process"
)]

use std::{
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{Read as _, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            net::{SocketAddr, UnixListener, UnixStream},
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::Context as _;
use rand::{TryRngCore as _, rngs::OsRng};
use rustix::{
    process::{Gid, Pid, Signal, Uid},
    thread,
};
use tokio::process::{Child, Command as AsyncCommand};

use crate::failure::Failure;

/// How long a started gate may take to connect: it only has to be loaded.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the agent sends when the command may begin.
const GO: u8 = b'G';

/// Exit code of a gate whose agent died before it said anything: COMMAND was not started.
const EXIT_ABANDONED: u8 = 1;

/// Added to the signal's number when a signal ended the command, as shells do.
const SIGNAL_EXIT_BASE: i32 = 128;

/// A command that waits to begin.
#[derive(Debug)]
pub struct Held {
    child: Child,
    pid: u32,
    gate: tokio::net::UnixStream,
}

/// A command that was let go.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pid: u32,
}

impl Held {
    /// Starts the gate of `command` (the program, then its arguments) from the binary `agent`.
    pub async fn start(agent: &OsStr, command: &[OsString]) -> anyhow::Result<Self> {
        let name = socket_name()?;
        let address = SocketAddr::from_abstract_name(&name)?;
        let listener = UnixListener::bind_addr(&address).context("cannot open the launch gate")?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let child = AsyncCommand::new(agent)
            .args(["launch-gate", "--socket", &name, "--"])
            .args(command)
            .spawn()
            .context("cannot start the launch gate")?;
        let pid = child.id().context("the launch gate ended at once")?;
        let gate = tokio::time::timeout(CONNECT_TIMEOUT, accept_from(&listener, pid))
            .await
            .context("the launch gate did not answer")??;
        Ok(Self { child, pid, gate })
    }

    /// The process id that the command will have.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets the command begin.
    pub fn release(self) -> anyhow::Result<Running> {
        let gate = self.gate.into_std().context("cannot use the launch gate")?;
        gate.set_nonblocking(false)?;
        (&gate).write_all(&[GO]).context("the launch gate closed")?;
        Ok(Running {
            child: self.child,
            pid: self.pid,
        })
    }
}

impl Running {
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the command; its exit code, or 128 and the signal that ended it.
    pub async fn wait(&mut self) -> anyhow::Result<u8> {
        Ok(exit_code(
            self.child
                .wait()
                .await
                .context("cannot wait for the command")?,
        ))
    }

    /// Passes SIGINT on to the command. Not for one from a terminal, which the whole group gets.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Passes a request to end on to the command. The agent itself lives on until it has ended.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self
            .child
            .id()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()))
        {
            // An error means that it ended already.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// The body of `agent launch-gate`: waits, then becomes the command. Returns only the reason why
/// it could not.
pub fn gate(socket: &str, command: &[OsString]) -> Failure {
    match wait_for_go(socket) {
        Ok(true) => become_command(command),
        // Nothing is said: the agent has told its own reason.
        Ok(false) => std::process::exit(EXIT_ABANDONED.into()),
        Err(error) => Failure::Runtime(error),
    }
}

fn wait_for_go(socket: &str) -> anyhow::Result<bool> {
    let address = SocketAddr::from_abstract_name(socket)?;
    let mut stream = UnixStream::connect_addr(&address).context("cannot reach the agent")?;
    let mut answer = [0];
    let length = stream.read(&mut answer).context("lost the agent")?;
    Ok(length == 1 && answer == [GO])
}

fn become_command(command: &[OsString]) -> Failure {
    let Some((program, arguments)) = command.split_first() else {
        return Failure::CommandNotFound {
            command: String::new(),
        };
    };
    let name = program.to_string_lossy().into_owned();
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(user) = invoking_user()
        && let Err(error) = user.assume(&mut command)
    {
        return Failure::Runtime(error);
    }
    let error = command.exec();
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::CommandNotFound { command: name },
        _ => Failure::CommandNotExecutable {
            command: name,
            cause: error.to_string(),
        },
    }
}

async fn accept_from(
    listener: &tokio::net::UnixListener,
    pid: u32,
) -> anyhow::Result<tokio::net::UnixStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        let peer = stream.peer_cred()?.pid().map(i32::cast_unsigned);
        if peer == Some(pid) {
            return Ok(stream);
        }
    }
}

fn socket_name() -> anyhow::Result<String> {
    let mut random = [0_u8; 16];
    OsRng
        .try_fill_bytes(&mut random)
        .context("no random numbers")?;
    Ok(format!("ebpf-agent-{:032x}", u128::from_ne_bytes(random)))
}

fn exit_code(status: ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| SIGNAL_EXIT_BASE + signal);
    status
        .code()
        .or(signal)
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

/// Who called `sudo`, by the variables that it sets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct InvokingUser {
    user: u32,
    group: u32,
    name: Option<String>,
}

/// The user to become; `None` when the agent runs as who started it.
fn invoking_user() -> Option<InvokingUser> {
    let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    rustix::process::geteuid().is_root().then_some(())?;
    let user = number("SUDO_UID").filter(|&user| user != 0)?;
    let group = number("SUDO_GID")?;
    Some(InvokingUser {
        user,
        group,
        name: env::var("SUDO_USER").ok(),
    })
}

impl InvokingUser {
    /// Drops this process to the user, with all groups, and gives `command` the user's `HOME`.
    /// Users and groups are those of the files in `/etc`; others keep their primary group and
    /// find no `HOME` of root.
    fn assume(&self, command: &mut Command) -> anyhow::Result<()> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        let account = Account::find(&passwd, self.user);
        let name = account
            .as_ref()
            .map(|account| account.name.clone())
            .or_else(|| self.name.clone());
        let mut group_ids = BTreeSet::from([self.group]);
        group_ids.extend(name.iter().flat_map(|name| groups_of(&groups, name)));

        // In this order: the right to change groups goes with the user id.
        let ids: Vec<Gid> = group_ids.into_iter().map(Gid::from_raw).collect();
        thread::set_thread_groups(&ids).context("cannot set the groups of the invoking user")?;
        let group = Gid::from_raw(self.group);
        thread::set_thread_res_gid(group, group, group)
            .context("cannot set the group of the invoking user")?;
        let user = Uid::from_raw(self.user);
        thread::set_thread_res_uid(user, user, user).context("cannot become the invoking user")?;

        for name in ["SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND", "HOME"] {
            command.env_remove(name);
        }
        if let Some(account) = account {
            command.env("HOME", &account.home);
        }
        if let Some(name) = name {
            command.env("USER", &name).env("LOGNAME", &name);
        }
        Ok(())
    }
}

/// A line of `/etc/passwd`, passwd(5).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    name: String,
    home: String,
}

impl Account {
    fn find(passwd: &str, user: u32) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, id, _, _, home, ..] = fields[..] else {
                return None;
            };
            let account = || Self {
                name: name.to_owned(),
                home: home.to_owned(),
            };
            (id.parse() == Ok(user)).then(account)
        })
    }
}

/// Groups that list a user as member, group(5).
fn groups_of(groups: &str, user: &str) -> Vec<u32> {
    let member_of = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, id, members] = fields[..] else {
            return None;
        };
        members
            .split(',')
            .any(|member| member == user)
            .then(|| id.parse().ok())?
    };
    groups.lines().filter_map(member_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_and_groups() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:1000:Ann,,,:/home/ann:/bin/sh\n";
        let ann = Account {
            name: "ann".to_owned(),
            home: "/home/ann".to_owned(),
        };
        assert_eq!(Account::find(passwd, 1000), Some(ann));
        assert_eq!(Account::find(passwd, 1001), None);
        let groups = "root:x:0:\nadm:x:4:syslog,ann\nann:x:1000:\ndocker:x:99:ann\nx:x:7:joanne\n";
        assert_eq!(groups_of(groups, "ann"), [4, 99]);
    }

    /// Exit codes pass through, signals as shells say them.
    #[test]
    fn exit_codes() {
        for (raw, code) in [(0, 0), (3 << 8, 3), (255 << 8, 255), (9, 137), (15, 143)] {
            assert_eq!(exit_code(ExitStatus::from_raw(raw)), code);
        }
    }
}
