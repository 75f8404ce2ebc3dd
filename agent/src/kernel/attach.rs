//! Programs and hooks: what is attached where, since when, and what stands in for it.

use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, FEntry, FExit, KProbe, Program, ProgramError},
};
use thiserror::Error;
use tracing::debug;

use super::{btf::KernelTypes, features::Helpers};

/// The three ways to see what sockets move, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CapturePath {
    /// `sock_send_length` and `sock_recv_length`: Linux 6.3.
    Tracepoint,
    /// Exit of the protocol families' send and receive functions: Linux 5.5 with trampolines.
    Fexit,
    /// Entry and return of the same functions.
    Kretprobe,
}

impl CapturePath {
    pub const ALL: [Self; 3] = [Self::Tracepoint, Self::Fexit, Self::Kretprobe];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Tracepoint => "tracepoint",
            Self::Fexit => "fexit",
            Self::Kretprobe => "kretprobe",
        }
    }

    /// Scratch slots in use, see `agent_ebpf::scratch::Slot`: they are numbered in this order.
    pub const fn scratch_slots(self) -> u32 {
        match self {
            Self::Tracepoint | Self::Kretprobe => 4,
            Self::Fexit => 8,
        }
    }

    const fn hooks(self) -> &'static [Hook] {
        match self {
            Self::Tracepoint => TRACEPOINTS,
            Self::Fexit => FEXITS,
            Self::Kretprobe => KRETPROBES,
        }
    }
}

/// How a program is tied to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attachment {
    BtfTracepoint,
    Fentry,
    Fexit,
    /// Entry and return alike: the program's section says which.
    Kprobe,
}

/// One row: a program, and the kernel symbol it is attached to.
#[derive(Clone, Copy, Debug)]
struct Hook {
    program: &'static str,
    /// What stands in for it where headers are injected.
    injecting: Option<&'static str>,
    symbol: &'static str,
    attachment: Attachment,
    /// Without it the path does not count as working. IPv6 and unix sockets may be compiled out.
    required: bool,
    /// A hook of the same path without which this one would do harm.
    needs: Option<&'static str>,
    /// Newer kernels do without the symbol and go through the other hooks.
    is_passing: bool,
}

/// Which programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Plain,
    /// Those that search requests for the context they carry, where they differ.
    Injecting,
}

impl Variant {
    pub fn of(is_injecting: bool, helpers: Helpers) -> Self {
        if is_injecting && helpers.long_searches {
            Self::Injecting
        } else {
            Self::Plain
        }
    }
}

impl Hook {
    fn of(self, variant: Variant) -> Self {
        match (variant, self.injecting) {
            (Variant::Injecting, Some(program)) => Self { program, ..self },
            _ => self,
        }
    }
}

const fn tracepoint(name: &'static str, required: bool) -> Hook {
    Hook {
        program: name,
        injecting: None,
        symbol: name,
        attachment: Attachment::BtfTracepoint,
        required,
        needs: None,
        is_passing: false,
    }
}

const fn fexit(program: &'static str, symbol: &'static str, required: bool) -> Hook {
    Hook {
        program,
        injecting: None,
        symbol,
        attachment: Attachment::Fexit,
        required,
        needs: None,
        is_passing: false,
    }
}

const fn kprobe(program: &'static str, symbol: &'static str, required: bool) -> Hook {
    Hook {
        program,
        injecting: None,
        symbol,
        attachment: Attachment::Kprobe,
        required,
        needs: None,
        is_passing: false,
    }
}

/// The end of unix sockets: without it the next socket at the address of one that is gone would be
/// taken for it.
const UNIX_END: &str = "unix_release";

/// A hook that sees unix sockets.
const fn unix(hook: Hook) -> Hook {
    Hook {
        needs: Some(UNIX_END),
        ..hook
    }
}

/// A hook that another program stands in for where headers are injected.
const fn receiving(hook: Hook, injecting: &'static str) -> Hook {
    Hook {
        injecting: Some(injecting),
        ..hook
    }
}

/// A hook whose symbol newer kernels do without.
const fn passing(hook: Hook) -> Hook {
    Hook {
        is_passing: true,
        ..hook
    }
}

const TRACEPOINTS: &[Hook] = &[
    tracepoint("sock_send_length", true),
    receiving(
        tracepoint("sock_recv_length", true),
        "sock_recv_length_injecting",
    ),
];

const FEXITS: &[Hook] = &[
    Hook {
        attachment: Attachment::Fentry,
        ..fexit(UNIX_END, UNIX_END, false)
    },
    fexit("inet_sendmsg_exit", "inet_sendmsg", true),
    receiving(
        fexit("inet_recvmsg_exit", "inet_recvmsg", true),
        "inet_recvmsg_injecting",
    ),
    fexit("inet6_sendmsg_exit", "inet6_sendmsg", false),
    receiving(
        fexit("inet6_recvmsg_exit", "inet6_recvmsg", false),
        "inet6_recvmsg_injecting",
    ),
    passing(fexit("inet_sendpage_exit", "inet_sendpage", false)),
    passing(unix(fexit(
        "unix_stream_sendpage_exit",
        "unix_stream_sendpage",
        false,
    ))),
    unix(fexit(
        "unix_stream_sendmsg_exit",
        "unix_stream_sendmsg",
        false,
    )),
    receiving(
        unix(fexit(
            "unix_stream_recvmsg_exit",
            "unix_stream_recvmsg",
            false,
        )),
        "unix_stream_recvmsg_injecting",
    ),
];

/// The entry halves first: a return without an entry is counted as lost.
const KRETPROBES: &[Hook] = &[
    kprobe("unix_release_enter", UNIX_END, false),
    kprobe("sendmsg_enter", "inet_sendmsg", true),
    kprobe("recvmsg_enter", "inet_recvmsg", true),
    kprobe("sendmsg_enter", "inet6_sendmsg", false),
    kprobe("recvmsg_enter", "inet6_recvmsg", false),
    unix(kprobe("sendmsg_enter", "unix_stream_sendmsg", false)),
    unix(kprobe("recvmsg_enter", "unix_stream_recvmsg", false)),
    passing(kprobe("sendmsg_enter", "inet_sendpage", false)),
    passing(unix(kprobe("sendmsg_enter", "unix_stream_sendpage", false))),
    passing(kprobe("sendmsg_return", "inet_sendpage", false)),
    passing(unix(kprobe(
        "sendmsg_return",
        "unix_stream_sendpage",
        false,
    ))),
    kprobe("sendmsg_return", "inet_sendmsg", true),
    kprobe("recvmsg_return", "inet_recvmsg", true),
    kprobe("sendmsg_return", "inet6_sendmsg", false),
    kprobe("recvmsg_return", "inet6_recvmsg", false),
    unix(kprobe("sendmsg_return", "unix_stream_sendmsg", false)),
    unix(kprobe("recvmsg_return", "unix_stream_recvmsg", false)),
];

/// Attached on every path. Each is a feature of its own: without it the rest goes on.
const ALWAYS: &[Hook] = &[
    tracepoint("inet_sock_set_state", false),
    tracepoint("tcp_destroy_sock", false),
    tracepoint("sched_process_exec", false),
    tracepoint("sched_process_fork", false),
    tracepoint("sched_process_exit", false),
];

/// Symbol and purpose of the hooks that do not depend on the path.
pub fn optional_hooks() -> impl Iterator<Item = (&'static str, &'static str)> {
    let always = ALWAYS.iter().map(|hook| {
        let purpose = match hook.symbol {
            "inet_sock_set_state" | "tcp_destroy_sock" => "begin and end of connections",
            _ => "begin and end of processes",
        };
        (hook.symbol, purpose)
    });
    let hand_off = HAND_OFF.map(|symbol| (symbol, "work handed from thread to thread"));
    always.chain(hand_off)
}

/// A hook that could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unattached {
    pub symbol: &'static str,
    pub reason: String,
}

#[derive(Debug, Error)]
pub enum AttachError {
    #[error("program {0} is not in the eBPF object")]
    NoProgram(&'static str),
    #[error("{symbol}: {source}")]
    Program {
        symbol: &'static str,
        source: ProgramError,
    },
}

/// Attaches the hooks of a capture path. Optional hooks that fail are returned.
pub fn attach_path(
    ebpf: &mut Ebpf,
    btf: &Btf,
    types: &KernelTypes,
    path: CapturePath,
    variant: Variant,
) -> Result<Vec<Unattached>, AttachError> {
    let mut unattached = Vec::<Unattached>::new();
    for hook in path.hooks() {
        if hook.is_passing && !types.has_function(hook.symbol) {
            continue;
        }
        if let Some(needed) = unattached
            .iter()
            .find(|other| Some(other.symbol) == hook.needs)
        {
            let reason = format!("needs {}: {}", needed.symbol, needed.reason);
            unattached.push(Unattached {
                symbol: hook.symbol,
                reason,
            });
            continue;
        }
        match attach(ebpf, btf, &hook.of(variant)) {
            Ok(()) => {}
            Err(error) if hook.required => return Err(error),
            Err(error) => unattached.push(describe(hook, &error)),
        }
    }
    Ok(unattached)
}

/// Attaches what every path has; returns what could not be had.
pub fn attach_always(ebpf: &mut Ebpf, btf: &Btf) -> Vec<Unattached> {
    ALWAYS
        .iter()
        .filter_map(|hook| {
            attach(ebpf, btf, hook)
                .err()
                .map(|error| describe(hook, &error))
        })
        .collect()
}

/// Hooks that [`super::hand_off`] attaches while they are needed.
pub(super) const HAND_OFF: [&str; 2] = ["sched_switch", "sched_waking"];

/// Loads what is attached later; returns what could not be had.
pub fn load_for_later(ebpf: &mut Ebpf, btf: &Btf) -> Vec<Unattached> {
    let load = |ebpf: &mut Ebpf, hook: &Hook| {
        let program = ebpf
            .program_mut(hook.program)
            .ok_or(AttachError::NoProgram(hook.program))?;
        let loaded = <&mut BtfTracePoint>::try_from(program)
            .and_then(|program| program.load(hook.symbol, btf));
        loaded.map_err(|source| AttachError::Program {
            symbol: hook.symbol,
            source,
        })
    };
    HAND_OFF
        .map(|name| tracepoint(name, false))
        .iter()
        .filter_map(|hook| Some(describe(hook, &load(ebpf, hook).err()?)))
        .collect()
}

fn describe(hook: &Hook, error: &AttachError) -> Unattached {
    Unattached {
        symbol: hook.symbol,
        reason: reason(error),
    }
}

/// The error in one line: a verifier log is cut to its last ones.
pub fn reason(error: &AttachError) -> String {
    match error {
        AttachError::NoProgram(_) => error.to_string(),
        AttachError::Program { source, .. } => program_reason(source),
    }
}

/// As [`reason`], of one program.
pub fn program_reason(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| is_complaint(line)).collect();
            let last = lines
                .get(lines.len().saturating_sub(3)..)
                .unwrap_or_default()
                .join(" | ");
            if last.is_empty() {
                format!("the kernel refused to load the program: {io_error}")
            } else {
                format!("the verifier refused the program: {io_error}: {last}")
            }
        }
        other => {
            let mut text = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(error) = cause {
                let more = error.to_string();
                if !text.contains(&more) {
                    text = format!("{text}: {more}");
                }
                cause = error.source();
            }
            text
        }
    }
}

/// Not one of the verifier's statistics, which follow the complaint.
fn is_complaint(line: &str) -> bool {
    const STATISTICS: [&str; 3] = ["verification time ", "stack depth ", "processed "];
    !line.trim().is_empty() && STATISTICS.iter().all(|start| !line.starts_with(start))
}

fn attach(ebpf: &mut Ebpf, btf: &Btf, hook: &Hook) -> Result<(), AttachError> {
    let program = ebpf
        .program_mut(hook.program)
        .ok_or(AttachError::NoProgram(hook.program))?;
    attach_program(program, btf, hook).map_err(|source| AttachError::Program {
        symbol: hook.symbol,
        source,
    })?;
    debug!(hook = hook.symbol, program = hook.program, "hook attached");
    Ok(())
}

fn attach_program(program: &mut Program, btf: &Btf, hook: &Hook) -> Result<(), ProgramError> {
    match hook.attachment {
        Attachment::BtfTracepoint => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(hook.symbol, btf)?;
            program.attach()?;
        }
        Attachment::Fentry => {
            let program: &mut FEntry = program.try_into()?;
            program.load(hook.symbol, btf)?;
            program.attach()?;
        }
        Attachment::Fexit => {
            let program: &mut FExit = program.try_into()?;
            program.load(hook.symbol, btf)?;
            program.attach()?;
        }
        Attachment::Kprobe => {
            let program: &mut KProbe = program.try_into()?;
            match program.load() {
                // One program serves several symbols.
                Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
                Err(error) => return Err(error),
            }
            program.attach(hook.symbol, 0)?;
        }
    }
    Ok(())
}
