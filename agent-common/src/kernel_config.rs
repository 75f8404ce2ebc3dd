//! Read-only values the loader sets before load. They are constants to the verifier, which
//! prunes the branches they rule out.

use crate::{limits, wire};

/// Offset of a field this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Declares every kernel field we touch, with the path that the loader resolves in the kernel's
/// own BTF.
macro_rules! kernel_fields {
    ($($variant:ident = $path:literal,)+) => {
        /// Index into [`KernelConfig::offsets`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum KernelField { $($variant,)+ }

        impl KernelField {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            pub const COUNT: usize = Self::ALL.len();

            /// `struct.member.member`, as the kernel names it.
            pub const fn path(self) -> &'static str {
                match self { $(Self::$variant => $path,)+ }
            }

            /// The same under an older name.
            pub const fn former_path(self) -> Option<&'static str> {
                match self {
                    // A list head before Linux 5.11, a pointer to one since.
                    Self::FileEpoll => Some("file.f_ep_links"),
                    // One program did both before Linux 5.13.
                    Self::PsockStreamVerdict => Some("sk_psock.progs.skb_verdict"),
                    // Renamed in Linux 5.14.
                    Self::TaskState => Some("task_struct.state"),
                    _ => None,
                }
            }
        }
    };
}

kernel_fields! {
    SockFamily = "sock.__sk_common.skc_family",
    SockState = "sock.__sk_common.skc_state",
    SockLocalPort = "sock.__sk_common.skc_num",
    SockRemotePort = "sock.__sk_common.skc_dport",
    SockLocalV4 = "sock.__sk_common.skc_rcv_saddr",
    SockRemoteV4 = "sock.__sk_common.skc_daddr",
    SockLocalV6 = "sock.__sk_common.skc_v6_rcv_saddr",
    SockRemoteV6 = "sock.__sk_common.skc_v6_daddr",
    SockNet = "sock.__sk_common.skc_net",
    SockType = "sock.sk_type",
    SockProtocol = "sock.sk_protocol",
    SockSocket = "sock.sk_socket",
    SockError = "sock.sk_err",
    SockBacklogLimit = "sock.sk_max_ack_backlog",
    SockCookie = "sock.__sk_common.skc_cookie",
    SockUserData = "sock.sk_user_data",
    PsockStreamVerdict = "sk_psock.progs.stream_verdict",
    PsockSkbVerdict = "sk_psock.progs.skb_verdict",
    SockWriteQueued = "sock.sk_wmem_queued",
    SockSendBuffer = "sock.sk_sndbuf",
    SockOwned = "sock.sk_lock.owned",
    SocketSock = "socket.sk",
    SocketFile = "socket.file",
    FileFlags = "file.f_flags",
    FileEpoll = "file.f_ep",
    NetInode = "net.ns.inum",
    TcpWriteSequence = "tcp_sock.write_seq",
    TcpCopiedSequence = "tcp_sock.copied_seq",
    UnixPeer = "unix_sock.peer",
    UnixAddress = "unix_sock.addr",
    UnixAddressLength = "unix_address.len",
    UnixAddressName = "unix_address.name",
    TaskProcessId = "task_struct.tgid",
    TaskThreadId = "task_struct.pid",
    TaskLeader = "task_struct.group_leader",
    TaskStart = "task_struct.start_boottime",
    TaskParent = "task_struct.real_parent",
    TaskSignal = "task_struct.signal",
    TaskStack = "task_struct.stack",
    TaskMemory = "task_struct.mm",
    TaskState = "task_struct.__state",
    TaskOnCpu = "task_struct.on_cpu",
    TaskFiles = "task_struct.files",
    FilesTable = "files_struct.fdt",
    TableFiles = "fdtable.fd",
    TableSize = "fdtable.max_fds",
    FileInode = "file.f_inode",
    FilePrivate = "file.private_data",
    InodeMode = "inode.i_mode",
    SignalLive = "signal_struct.live",
    MemoryArgumentsStart = "mm_struct.arg_start",
    MemoryArgumentsEnd = "mm_struct.arg_end",
    MemoryEnvironmentEnd = "mm_struct.env_end",
    ProgramInterpreter = "linux_binprm.interp",
    RegistersSystemCall = "pt_regs.orig_ax",
    RegistersArgument1 = "pt_regs.di",
    RegistersArgument2 = "pt_regs.si",
    RegistersArgument3 = "pt_regs.dx",
    RegistersArgument4 = "pt_regs.r10",
    RegistersCodeSegment = "pt_regs.cs",
    RegistersGoroutine = "pt_regs.r14",
}

wire! {
    /// An inclusive range of ports in host byte order.
    pub struct PortRange {
        pub first: u16,
        pub last: u16,
    }
}

wire! {
    /// The one read-only global of the eBPF object.
    pub struct KernelConfig {
        /// Byte offsets by [`KernelField`]; [`ABSENT`] where the kernel lacks the field.
        pub offsets: [u32; KernelField::COUNT],
        /// Size of `struct pt_regs` in bytes.
        pub registers_bytes: u32,
        /// Size of a kernel stack in bytes.
        pub stack_bytes: u32,
        /// The agent's own process, never traced.
        pub agent_process_id: u32,
        /// 1: every process but the agent is traced.
        pub trace_all: u32,
        /// 1: every process that replaces its program is traced provisionally and reported.
        pub consider_execs: u32,
        /// 1: `bpf_task_pt_regs` and `bpf_get_current_task_btf` exist (Linux 5.15).
        pub has_task_registers_helper: u32,
        /// 1: `bpf_get_socket_cookie` works in tracing programs (Linux 5.12).
        pub has_socket_cookie: u32,
        /// 1: headers or TCP options are injected.
        pub inject: u32,
        /// 1: TCP options are written and read.
        pub inject_option: u32,
        /// 1: headers are injected.
        pub inject_headers: u32,
        /// Bytes of a captured request in which its `traceparent` is looked for.
        pub context_bytes: u32,
        /// Capture budgets in bytes, see [`limits`].
        pub request_turn_bytes: u32,
        pub response_turn_bytes: u32,
        pub response_first_call_bytes: u32,
        pub response_call_bytes: u32,
        /// Entries of `ports` in use: a process that listens on one of them is traced.
        pub port_count: u32,
        pub ports: [PortRange; limits::PORT_RANGES],
    }
}

impl KernelConfig {
    /// Nothing selected, no field known, default budgets.
    pub const DEFAULT: Self = Self {
        offsets: [ABSENT; KernelField::COUNT],
        registers_bytes: 168,
        stack_bytes: 16 * 1024,
        agent_process_id: 0,
        trace_all: 0,
        consider_execs: 0,
        has_task_registers_helper: 0,
        has_socket_cookie: 0,
        inject: 0,
        inject_option: 0,
        inject_headers: 0,
        context_bytes: limits::CONTEXT_BYTES as u32,
        request_turn_bytes: limits::REQUEST_TURN_BYTES,
        response_turn_bytes: limits::RESPONSE_TURN_BYTES,
        response_first_call_bytes: limits::RESPONSE_FIRST_CALL_BYTES,
        response_call_bytes: limits::RESPONSE_CALL_BYTES,
        port_count: 0,
        ports: [PortRange { first: 0, last: 0 }; limits::PORT_RANGES],
    };
}

#[cfg(feature = "user")]
mod user {
    use super::KernelConfig;

    #[expect(
        unsafe_code,
        reason = "aya reads and writes map values and globals by Pod"
    )]
    // SAFETY: repr(C), integers only, no padding (IntoBytes is derived), any bit pattern valid.
    unsafe impl aya::Pod for KernelConfig {}
    #[expect(
        unsafe_code,
        reason = "aya reads and writes map values and globals by Pod"
    )]
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::connection::ConnectionState {}
    #[expect(
        unsafe_code,
        reason = "aya reads and writes map values and globals by Pod"
    )]
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::frames::FrameState {}
    #[expect(
        unsafe_code,
        reason = "aya reads and writes map values and globals by Pod"
    )]
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::process::GoProcess {}
}
