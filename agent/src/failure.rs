//! Why the agent cannot do what was asked: the cause, the next step, the exit code. Pure.
//!
//! Every sentence a user can be stopped by is here, so that they read alike and can be tested as
//! a table. The first sentence is the cause, the second what to do about it.

use std::path::PathBuf;

use thiserror::Error;

use crate::capability::CapabilitySet;

/// Something failed while running.
pub const EXIT_RUNTIME: u8 = 1;
/// Bad usage or configuration.
pub const EXIT_USAGE: u8 = 2;
/// Not permitted, or not supported by this kernel.
pub const EXIT_NOT_PERMITTED: u8 = 3;
/// COMMAND exists but cannot be run, as shells and `env` say it.
pub const EXIT_COMMAND_NOT_EXECUTABLE: u8 = 126;
/// COMMAND does not exist, as shells and `env` say it.
pub const EXIT_COMMAND_NOT_FOUND: u8 = 127;

/// The ways to choose what to trace, for whoever chose nothing.
const WAYS_TO_CHOOSE: &str = "choose with one of:\n  \
    --pid 1234            this process and its descendants\n  \
    --port 80,8000-8999   processes that listen on these ports\n  \
    --exe '/usr/bin/node' processes by executable, as a glob\n  \
    --all                 every process on this host\n  \
    -- COMMAND ARGS       start this command and trace it";

#[derive(Debug, Error)]
pub enum Failure {
    #[error("nothing is selected to be traced; {WAYS_TO_CHOOSE}")]
    NothingSelected,

    #[error(
        "no process has the id {pid}. It may have ended: `pgrep -a NAME` finds the current id, or \
            choose by --port or --exe"
    )]
    ProcessMissing { pid: u32 },
    #[error(
        "process {pid} ({name}) is a kernel thread, which has no user program to trace. Choose \
            the id of a user process"
    )]
    KernelThread { pid: u32, name: String },
    #[error(
        "process {pid} is this agent, which never traces itself. Choose the id of another process"
    )]
    IsAgent { pid: u32 },
    #[error(
        "process {pid} ({name}) has ended and waits for its parent to notice (a zombie). Choose \
            the id of a running process"
    )]
    Zombie { pid: u32, name: String },
    #[error("{thread} is a thread of process {pid} ({name}), not a process. Use --pid {pid}")]
    IsThread { thread: u32, pid: u32, name: String },

    #[error(
        "{origin}: {text:?} is not a process id. Give whole numbers above 0, such as 1234 or \
            1234,5678"
    )]
    PidMalformed { origin: String, text: String },
    #[error(
        "{origin}: {text:?} is not a port or range: {cause}. Give ports from 1 to 65535, such as \
            80,8000-8999"
    )]
    PortMalformed {
        origin: String,
        text: String,
        cause: &'static str,
    },
    #[error(
        "{origin}: {count} port ranges do not touch each other, and the kernel side holds \
            {limit}. Merge some of them into wider ranges, or choose by --exe"
    )]
    TooManyPortRanges {
        origin: String,
        count: usize,
        limit: usize,
    },
    #[error(
        "{origin}: {text:?} is not a glob: {cause}. Quote it for the shell, and give a full path \
            such as '/usr/bin/*' or a file name such as 'node'"
    )]
    GlobMalformed {
        origin: String,
        text: String,
        cause: String,
    },
    #[error("{origin}: {text:?} is not one of {expected}")]
    UnknownValue {
        origin: String,
        text: String,
        expected: &'static str,
    },
    #[error(
        "{origin}: {text:?} is not an address. Give address and port, such as 127.0.0.1:9464 or \
            [::]:9464"
    )]
    AddressMalformed { origin: String, text: String },
    #[error("{origin}: {count} values where one is expected. Keep one of them")]
    TooManyValues { origin: String, count: usize },
    #[error(
        "trace context cannot be injected here: {cause}. Leave out `--inject`, or see what \
            `agent check` says"
    )]
    InjectionUnsupported { cause: String },

    #[error(
        "cannot read the configuration file {path}: {cause}. Check the path given by --config or \
            EBPF_AGENT_CONFIG"
    )]
    ConfigUnreadable { path: PathBuf, cause: String },
    #[error(
        "the configuration file {path} is not as expected: {cause}. It holds one `key: value` a \
            line, with the names of the flags as keys"
    )]
    ConfigMalformed { path: PathBuf, cause: String },
    #[error("the configuration file {path} has the unknown key `{key}`. {hint}")]
    ConfigKeyUnknown {
        path: PathBuf,
        key: String,
        hint: String,
    },

    #[error("where spans are to be sent is not clear: {cause}")]
    ExportMalformed { cause: String },

    #[error("the capabilities {missing} are missing. {}", grant(*missing))]
    NotPermitted { missing: CapabilitySet },
    #[error(
        "this kernel ({release}) does not describe its types: /sys/kernel/btf/vmlinux is missing. \
            Use a kernel built with CONFIG_DEBUG_INFO_BTF=y, which Debian 11, Ubuntu 20.10, \
            Fedora 32, RHEL 8.2 and anything later ship"
    )]
    NoTypeInformation { release: String },
    #[error(
        "this machine is {architecture}, and this version reads registers of x86_64 only. Run it \
            on an x86_64 host"
    )]
    ArchitectureUnsupported { architecture: String },
    #[error("this kernel does not let the agent see sockets: {cause}. `agent check` says more")]
    KernelUnsupported { cause: String },
    #[error(
        "this kernel ({release}) is older than 5.8, the first one with a BPF ring buffer. Use \
            Linux 5.8 or later"
    )]
    KernelTooOld { release: String },

    #[error(
        "the command {command:?} was not found. Check its name, or give its full path: sudo may \
            have changed PATH"
    )]
    CommandNotFound { command: String },
    #[error(
        "the command {command:?} cannot be run: {cause}. Check that it is an executable file that \
            the invoking user may run"
    )]
    CommandNotExecutable { command: String, cause: String },
    #[error(
        "cannot listen on {address}: {cause}. Choose another address with --listen, or stop what \
            holds this one"
    )]
    CannotListen {
        address: std::net::SocketAddr,
        cause: String,
    },
    #[error(
        "cannot create the ready file {path}: {cause}. Choose a writable place with --ready-file"
    )]
    ReadyFile { path: PathBuf, cause: String },

    #[error("{0:#}")]
    Runtime(#[from] anyhow::Error),
}

impl Failure {
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NothingSelected
            | Self::ProcessMissing { .. }
            | Self::KernelThread { .. }
            | Self::IsAgent { .. }
            | Self::Zombie { .. }
            | Self::IsThread { .. }
            | Self::PidMalformed { .. }
            | Self::PortMalformed { .. }
            | Self::TooManyPortRanges { .. }
            | Self::GlobMalformed { .. }
            | Self::UnknownValue { .. }
            | Self::AddressMalformed { .. }
            | Self::TooManyValues { .. }
            | Self::ExportMalformed { .. }
            | Self::ConfigUnreadable { .. }
            | Self::ConfigMalformed { .. }
            | Self::ConfigKeyUnknown { .. } => EXIT_USAGE,
            Self::NotPermitted { .. }
            | Self::NoTypeInformation { .. }
            | Self::ArchitectureUnsupported { .. }
            | Self::KernelUnsupported { .. }
            | Self::InjectionUnsupported { .. }
            | Self::KernelTooOld { .. } => EXIT_NOT_PERMITTED,
            Self::CommandNotFound { .. } => EXIT_COMMAND_NOT_FOUND,
            Self::CommandNotExecutable { .. } => EXIT_COMMAND_NOT_EXECUTABLE,
            Self::CannotListen { .. } | Self::ReadyFile { .. } | Self::Runtime(_) => EXIT_RUNTIME,
        }
    }
}

/// The three usual ways to give `missing` to the agent.
fn grant(missing: CapabilitySet) -> String {
    let lower: Vec<String> = missing.names().map(str::to_ascii_lowercase).collect();
    format!(
        "Run it with `sudo -E`, or grant them once: `sudo setcap {}+ep $(command -v agent)`, or \
            in a \
         systemd unit `AmbientCapabilities={}`",
        lower.join(","),
        missing.names().collect::<Vec<_>>().join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each failure has the promised exit code, names its subject and says what to do.
    #[test]
    fn failures_name_cause_and_next_step() {
        let origin = "--port".to_owned();
        let missing = CapabilitySet::required(6, 1);
        let table: Vec<(Failure, u8, &[&str])> = vec![
            (
                Failure::NothingSelected,
                2,
                &["--pid", "--port", "--exe", "--all", "-- COMMAND"],
            ),
            (Failure::ProcessMissing { pid: 77 }, 2, &["77", "pgrep"]),
            (
                Failure::KernelThread {
                    pid: 2,
                    name: "kthreadd".into(),
                },
                2,
                &["2 (kthreadd)", "kernel thread", "Choose"],
            ),
            (Failure::IsAgent { pid: 9 }, 2, &["9 is this agent"]),
            (
                Failure::Zombie {
                    pid: 9,
                    name: "sh".into(),
                },
                2,
                &["zombie"],
            ),
            (
                Failure::IsThread {
                    thread: 11,
                    pid: 10,
                    name: "java".into(),
                },
                2,
                &["11 is a thread of process 10 (java)", "--pid 10"],
            ),
            (
                Failure::PortMalformed {
                    origin,
                    text: "9-1".into(),
                    cause: "reversed",
                },
                2,
                &["--port", "\"9-1\"", "reversed", "80,8000-8999"],
            ),
            (
                Failure::ConfigUnreadable {
                    path: "/none".into(),
                    cause: "not found".into(),
                },
                2,
                &["/none", "--config"],
            ),
            (
                Failure::NotPermitted { missing },
                3,
                &[
                    "CAP_BPF",
                    "CAP_PERFMON",
                    "sudo",
                    "setcap cap_",
                    "AmbientCapabilities=CAP_",
                ],
            ),
            (
                Failure::NoTypeInformation {
                    release: "5.4.0".into(),
                },
                3,
                &["5.4.0", "CONFIG_DEBUG_INFO_BTF", "Debian 11"],
            ),
            (
                Failure::ArchitectureUnsupported {
                    architecture: "riscv64".into(),
                },
                3,
                &["riscv64", "x86_64"],
            ),
            (
                Failure::CommandNotFound {
                    command: "nope".into(),
                },
                127,
                &["\"nope\"", "PATH"],
            ),
            (
                Failure::Runtime(anyhow::anyhow!("inner").context("outer")),
                1,
                &["outer: inner"],
            ),
        ];
        for (failure, code, parts) in table {
            let text = failure.to_string();
            assert_eq!(failure.exit_code(), code, "{text}");
            for part in parts {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
        }
    }
}
