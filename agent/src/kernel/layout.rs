//! Kernel layouts without CO-RE: every field we touch, its offset on this kernel, and what is lost
//! where it is missing. Pure.

use agent_common::kernel_config::{ABSENT, KernelConfig, KernelField};

use super::btf::KernelTypes;

/// What needs a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Nothing works without it.
    SocketCapture,
    /// Unix stream sockets.
    UnixSockets,
    /// Joining both ends on one host by TCP sequence number.
    LocalWire,
    /// Telling blocking from non-blocking servers: `thread` evidence.
    ThreadEvidence,
    /// Role of connections older than the agent.
    OldConnectionRole,
    /// Path, arguments and environment of a program at its exec.
    ExecEnvironment,
    /// Telling a process from a later one of the same number.
    ProcessIdentity,
    /// End of processes.
    ProcessExit,
    /// The network namespace of a connection.
    NetworkNamespace,
    /// The reason of a broken connection.
    ConnectionError,
    /// Putting headers into outgoing requests.
    HeaderInjection,
    /// Carrying trace context in TCP options.
    TcpOption,
    /// Goroutines of Go programs.
    Goroutines,
    /// Work that threads hand to each other.
    HandOff,
}

impl Feature {
    pub const ALL: [Self; 14] = [
        Self::SocketCapture,
        Self::UnixSockets,
        Self::LocalWire,
        Self::ThreadEvidence,
        Self::OldConnectionRole,
        Self::ExecEnvironment,
        Self::ProcessIdentity,
        Self::ProcessExit,
        Self::NetworkNamespace,
        Self::ConnectionError,
        Self::HeaderInjection,
        Self::TcpOption,
        Self::Goroutines,
        Self::HandOff,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::SocketCapture => "socket capture",
            Self::UnixSockets => "unix sockets",
            Self::LocalWire => "joining both ends of a connection on this host",
            Self::ThreadEvidence => "parents by thread",
            Self::OldConnectionRole => "the role of connections older than the agent",
            Self::ExecEnvironment => "path, arguments and environment of new programs",
            Self::ProcessIdentity => "telling processes of one number apart",
            Self::ProcessExit => "the end of processes",
            Self::NetworkNamespace => "network namespaces",
            Self::ConnectionError => "the reason of broken connections",
            Self::HeaderInjection => "header injection",
            Self::TcpOption => "trace context in TCP options",
            Self::Goroutines => "goroutines of Go programs",
            Self::HandOff => "work handed from thread to thread",
        }
    }
}

/// The feature that is off where the kernel lacks the field.
pub const fn needed_by(field: KernelField) -> Feature {
    use KernelField as F;
    match field {
        F::SockFamily
        | F::SockState
        | F::SockLocalPort
        | F::SockRemotePort
        | F::SockLocalV4
        | F::SockRemoteV4
        | F::SockLocalV6
        | F::SockRemoteV6
        | F::SockType
        | F::SockProtocol
        | F::SocketSock
        | F::TaskProcessId
        | F::TaskThreadId
        | F::TaskStack
        | F::RegistersSystemCall
        | F::RegistersArgument1
        | F::RegistersArgument2
        | F::RegistersArgument3
        | F::RegistersCodeSegment => Feature::SocketCapture,
        F::SockNet | F::NetInode => Feature::NetworkNamespace,
        F::SockSocket | F::SocketFile | F::FileFlags | F::FileEpoll => Feature::ThreadEvidence,
        F::SockError => Feature::ConnectionError,
        F::RegistersGoroutine => Feature::Goroutines,
        F::SockBacklogLimit => Feature::OldConnectionRole,
        F::SockCookie
        | F::SockUserData
        | F::PsockStreamVerdict
        | F::PsockSkbVerdict
        | F::SockWriteQueued
        | F::SockSendBuffer => Feature::HeaderInjection,
        F::SockOwned => Feature::TcpOption,
        F::TcpWriteSequence | F::TcpCopiedSequence => Feature::LocalWire,
        F::UnixPeer | F::UnixAddress | F::UnixAddressLength | F::UnixAddressName => {
            Feature::UnixSockets
        }
        F::TaskLeader | F::TaskStart => Feature::ProcessIdentity,
        F::TaskParent
        | F::TaskMemory
        | F::MemoryArgumentsStart
        | F::MemoryArgumentsEnd
        | F::MemoryEnvironmentEnd
        | F::ProgramInterpreter => Feature::ExecEnvironment,
        F::TaskState
        | F::TaskOnCpu
        | F::TaskFiles
        | F::FilesTable
        | F::TableFiles
        | F::TableSize
        | F::FileInode
        | F::FilePrivate
        | F::InodeMode
        | F::RegistersArgument4 => Feature::HandOff,
        F::TaskSignal | F::SignalLive => Feature::ProcessExit,
    }
}

/// Sets every offset; returns the fields this kernel lacks.
pub fn resolve(types: &KernelTypes, config: &mut KernelConfig) -> Vec<KernelField> {
    let mut missing = Vec::new();
    for (field, offset) in KernelField::ALL.iter().zip(&mut config.offsets) {
        *offset = types
            .offset(field.path())
            .or_else(|| types.offset(field.former_path()?))
            .unwrap_or(ABSENT);
        if *offset == ABSENT {
            missing.push(*field);
        }
    }
    if let Some(size) = types.size("pt_regs") {
        config.registers_bytes = size;
    }
    missing
}
