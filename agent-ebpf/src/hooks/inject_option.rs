//! The TCP option that carries trace context: written where a client's request begins, read where
//! a server's does (`inject_option_reader`). See [`agent_common::tcp_option`] for its form.
//!
//! hook: sock_ops at the root of the control groups: BPF_SOCK_OPS_TCP_CONNECT_CB and
//!       BPF_SOCK_OPS_*_ESTABLISHED_CB, since 4.13; BPF_SOCK_OPS_RETRANS_CB, since 4.16;
//!       BPF_SOCK_OPS_HDR_OPT_LEN_CB, BPF_SOCK_OPS_WRITE_HDR_OPT_CB and
//!       BPF_SOCK_OPS_PARSE_HDR_OPT_CB, since 5.10
//! fallback: none; without them no option is written or read
//!
//! Runs only when the user asked for it: the loader loads it then. Payload is not touched, and no
//! socket is put into a map, so the kernel sends and receives as ever.
//!
//! **Where a request begins.** Before the kernel's TCP takes what a program sends, it asks for the
//! size of its packets (`tcp_current_mss`), and with that for the length of options, in the
//! sender's own context. When everything sent before was acknowledged then, and bytes have come
//! since the last time, a turn begins: what the program sends next begins a packet of its own, at
//! the sequence number of the next byte. Ids are chosen here, where it is known who sends.
//!
//! **Where the option goes.** On the packet that begins at that sequence number, and only when it
//! is sent for the first time. Room is made in two places or not at all: when packets are sized,
//! and when this one is built. A packet that is cut into segments by the network card or the kernel
//! carries the option on each; whoever reads keeps the lowest sequence number.
//!
//! **When it gets lost.** A lost packet is sent again without the option. When that happened
//! [`PATH_LOSSES`] times in a row on the way to an address, no options go there for a while.

use agent_common::{
    connection::Direction,
    injection::{InjectionOutcome, phase, process},
    kernel_config::KernelField,
    record::RecordKind,
    tcp_option::{
        ContextCarried, KIND, NOT_SAMPLED, OPTION_BYTES, OptionStream, PATH_LOSSES, PATH_RETRY_NS,
        PathState, SAMPLED, SAMPLED_FLAG, stage,
    },
};
use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_HDR_OPT_LEN_CB,
        BPF_SOCK_OPS_PARSE_HDR_OPT_CB, BPF_SOCK_OPS_PARSE_UNKNOWN_HDR_OPT_CB_FLAG,
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RETRANS_CB, BPF_SOCK_OPS_RETRANS_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_WRITE_HDR_OPT_CB,
        BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG,
    },
    cty::c_void,
    helpers::generated::{
        bpf_get_socket_cookie, bpf_reserve_hdr_opt, bpf_skc_to_tcp_sock, bpf_store_hdr_opt,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};

use super::{
    inject::{self, count},
    inject_context::{self, Sender, TraceContext},
    inject_message::random,
    inject_option_reader::arrived,
};
use crate::{
    emit,
    maps::{ARMED, OPTION_STREAMS, PATHS, config},
    process::is_traced,
    read::{self, task, typed_field},
};

/// First argument of BPF_SOCK_OPS_HDR_OPT_LEN_CB when packets are sized: there is none to build yet
/// (`BPF_WRITE_HDR_TCP_CURRENT_MSS`, `include/uapi/linux/bpf.h`).
const SIZING: u32 = 1;

/// `AF_INET`.
const INET: u32 = 2;

/// Reads a field of the context. Volatile: the verifier refuses accesses that the compiler widens.
macro_rules! context {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: a field of the program's own context.
        unsafe { core::ptr::read_volatile(&raw const (*$ctx.ops).$($field)+) }
    };
}
pub(super) use context;

#[sock_ops]
pub(crate) fn carry_context(ctx: SockOpsContext) -> u32 {
    let _ = match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_HDR_OPT_LEN_CB => reserve(&ctx),
        BPF_SOCK_OPS_WRITE_HDR_OPT_CB => write(&ctx),
        BPF_SOCK_OPS_RETRANS_CB => sent_again(&ctx),
        BPF_SOCK_OPS_PARSE_HDR_OPT_CB => arrived(&ctx),
        _ => None,
    };
    1
}

#[inline(always)]
pub(super) fn socket(ctx: &SockOpsContext) -> Option<*mut c_void> {
    let sk: *mut c_void = context!(ctx, __bindgen_anon_2.sk).cast();
    (!sk.is_null()).then_some(sk)
}

/// What is remembered of a client's socket.
#[inline(always)]
fn stream(ctx: &SockOpsContext, sk: *mut c_void) -> Option<&'static mut OptionStream> {
    let found = OPTION_STREAMS.get_ptr_mut(&identity(ctx, sk))?;
    // SAFETY: the socket's own entry, and the socket is locked.
    Some(unsafe { &mut *found })
}

/// The connection's identity as the tracing hooks have it.
#[inline(always)]
pub(super) fn identity(ctx: &SockOpsContext, sk: *mut c_void) -> u64 {
    if config!(has_socket_cookie) == 1 {
        // SAFETY: the helper takes the program's own context.
        return unsafe { bpf_get_socket_cookie(ctx.ops.cast()) };
    }
    // SAFETY: the verifier knows the socket.
    unsafe { bpf_skc_to_tcp_sock(sk) as u64 }
}

/// The peer's address as it lies in memory, IPv4 in the first word.
#[inline(always)]
fn remote(ctx: &SockOpsContext) -> [u64; 2] {
    if ctx.family() == INET {
        return [u64::from(context!(ctx, remote_ip4)), 0];
    }
    let words = [
        context!(ctx, remote_ip6[0]),
        context!(ctx, remote_ip6[1]),
        context!(ctx, remote_ip6[2]),
        context!(ctx, remote_ip6[3]),
    ];
    [
        u64::from(words[0]) | u64::from(words[1]) << 32,
        u64::from(words[2]) | u64::from(words[3]) << 32,
    ]
}

/// Both ends are on this host then, where no option is needed to join them.
#[inline(always)]
fn is_loopback(ctx: &SockOpsContext) -> bool {
    const IPV4: u32 = 127;
    /// `::ffff:0:0/96` as its third word lies in memory.
    const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
    const ONE: u32 = u32::from_ne_bytes([0, 0, 0, 1]);
    if ctx.family() == INET {
        return context!(ctx, remote_ip4) & 0xff == IPV4;
    }
    let upper = context!(ctx, remote_ip6[0]) | context!(ctx, remote_ip6[1]);
    let third = context!(ctx, remote_ip6[2]);
    let last = context!(ctx, remote_ip6[3]);
    upper == 0 && (third == 0 && last == ONE || third == MAPPED && last & 0xff == IPV4)
}

/// Process and thread of the current task. Not by the helper for it, which programs of this kind
/// have only since Linux 6.10.
#[inline(always)]
fn sender() -> Option<Sender> {
    let current = task::current();
    Some(Sender {
        process: read::field(current, KernelField::TaskProcessId)?,
        thread: read::field(current, KernelField::TaskThreadId)?,
    })
}

/// A process connects: whether its requests get options shows when it sends them.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) -> Option<()> {
    if !is_traced(sender()?.process) || is_loopback(ctx) {
        return None;
    }
    let sk = socket(ctx)?;
    let connection = identity(ctx, sk);
    let fresh = OptionStream {
        connection,
        trace_id: [0; 2],
        span_id: 0,
        remote: remote(ctx),
        sequence: 0,
        awaited: 0,
        trace_flags: 0,
        stage: stage::NONE,
        has_room: 0,
        is_reserved: 0,
        is_refused: 0,
    };
    if OPTION_STREAMS.insert(&connection, &fresh, 0).is_err() {
        count(InjectionOutcome::Refused);
    }
    Some(())
}

#[inline(always)]
fn connected(ctx: &SockOpsContext) -> Option<()> {
    let sk = socket(ctx)?;
    stream(ctx, sk)?;
    let wanted = BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG;
    ctx.set_cb_flags((ctx.cb_flags() | wanted) as i32).ok()
}

/// A connection was accepted, by whom is not known yet. Only segments with an option that the
/// kernel does not know are looked at from now on, and the one that completed the handshake, which
/// may carry data.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) -> Option<()> {
    if is_loopback(ctx) {
        return None;
    }
    let wanted = BPF_SOCK_OPS_PARSE_UNKNOWN_HDR_OPT_CB_FLAG;
    let _ = ctx.set_cb_flags((ctx.cb_flags() | wanted) as i32);
    arrived(ctx)
}

/// Makes room for the option where it is to be.
#[inline(always)]
fn reserve(ctx: &SockOpsContext) -> Option<()> {
    let sk = socket(ctx)?;
    let stream = stream(ctx, sk)?;
    let next = context!(ctx, snd_nxt);
    if ctx.arg(0) == SIZING {
        // SAFETY: the verifier knows the socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk) } as *const u8;
        begin(ctx, stream, tcp);
        stream.has_room = 0;
        if is_at(stream, next) {
            if make_room(ctx) {
                stream.has_room = 1;
            } else if stream.is_refused == 0 {
                stream.is_refused = 1;
                count(InjectionOutcome::OptionNoRoom);
            }
        }
        return Some(());
    }
    stream.is_reserved = 0;
    if context!(ctx, skb_len) > 0 && stream.has_room == 1 && is_at(stream, next) {
        stream.is_reserved = u8::from(make_room(ctx));
    } else {
        settle(ctx, stream);
    }
    Some(())
}

/// Whether a packet that begins at this sequence number gets the option.
#[inline(always)]
fn is_at(stream: &OptionStream, next: u32) -> bool {
    (stream.stage == stage::READY || stream.stage == stage::SENT) && stream.sequence == next
}

#[inline(always)]
fn make_room(ctx: &SockOpsContext) -> bool {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_reserve_hdr_opt(ctx.ops, OPTION_BYTES as u32, 0) == 0 }
}

/// An option that was acknowledged got through: the way to that address takes options.
#[inline(always)]
fn settle(ctx: &SockOpsContext, stream: &mut OptionStream) {
    let behind = context!(ctx, snd_una).wrapping_sub(stream.sequence) as i32;
    if stream.stage == stage::SENT && behind > 0 {
        stream.stage = stage::SETTLED;
        let _ = PATHS.remove(&stream.remote);
    }
}

/// Chooses ids where a turn begins with what the current thread is about to send.
#[inline(always)]
fn begin(ctx: &SockOpsContext, stream: &mut OptionStream, tcp: *const u8) -> Option<()> {
    let next = context!(ctx, snd_nxt);
    let written: u32 = typed_field(tcp, KernelField::TcpWriteSequence)?;
    if written != next || context!(ctx, snd_una) != next {
        return None;
    }
    // 1 within a system call on the socket, 0 when the network or a timer asks.
    let owned: i32 = typed_field(tcp, KernelField::SockOwned)?;
    let awaited = context!(ctx, rcv_nxt);
    // When nothing was sent after all, the next who wants to send may be another.
    let is_unused = stream.stage == stage::READY && stream.sequence == written;
    let is_turn = stream.stage == stage::NONE || stream.awaited != awaited;
    if owned == 0 || !(is_unused || is_turn) {
        return None;
    }
    settle(ctx, stream);
    let is_first = stream.stage == stage::NONE;
    stream.awaited = awaited;
    stream.stage = stage::SETTLED;
    let sender = sender()?;
    // SAFETY: copied at once.
    let mode = unsafe { ARMED.get(&sender.process) }.copied()?;
    if mode & process::OPTION == 0 || has_header(stream.connection, written) {
        return None;
    }
    if is_closed(stream) {
        count(InjectionOutcome::OptionPathClosed);
        return None;
    }
    let is_loop = mode & process::LOOP != 0;
    let context = inject_context::of_sender(sender, stream.connection, is_loop, is_first);
    if !context.is_known() {
        count(InjectionOutcome::TraceUnknown);
        return None;
    }
    stream.trace_id = context.trace_id;
    stream.trace_flags = context.flags & SAMPLED_FLAG;
    stream.span_id = random();
    stream.sequence = written;
    stream.is_refused = 0;
    stream.stage = stage::READY;
    Some(())
}

/// Whether headers are put into what is sent on this socket, or into the message sent now.
#[inline(always)]
fn has_header(connection: u64, written: u32) -> bool {
    if config!(inject_headers) == 0 {
        return false;
    }
    let found = inject::stream(connection);
    if found.is_null() {
        return false;
    }
    // SAFETY: the socket's own entry, and the socket is locked.
    let stream = unsafe { &*found };
    let is_within = (stream.sequence.wrapping_sub(written) as i32) > 0;
    stream.phase != phase::OFF || stream.added > 0 && is_within
}

#[inline(always)]
fn is_closed(stream: &OptionStream) -> bool {
    // SAFETY: copied at once.
    let Some(path) = (unsafe { PATHS.get(&stream.remote) }).copied() else {
        return false;
    };
    path.losses >= PATH_LOSSES && emit::now_ns().wrapping_sub(path.lost_ns) < PATH_RETRY_NS
}

/// The packet is being built: the option goes where room was made for it.
#[inline(always)]
fn write(ctx: &SockOpsContext) -> Option<()> {
    let sk = socket(ctx)?;
    let stream = stream(ctx, sk)?;
    if stream.is_reserved == 0 {
        return None;
    }
    stream.is_reserved = 0;
    let identifier = if stream.trace_flags & SAMPLED_FLAG != 0 {
        SAMPLED
    } else {
        NOT_SAMPLED
    };
    let option = TcpOption {
        begin: [KIND, OPTION_BYTES as u8, identifier[0], identifier[1]],
        trace_id: halves(stream.trace_id),
        span_id: [stream.span_id as u32, (stream.span_id >> 32) as u32],
    };
    // SAFETY: the helper takes the program's own context and reads that many bytes.
    let failed =
        unsafe { bpf_store_hdr_opt(ctx.ops, (&raw const option).cast(), OPTION_BYTES as u32, 0) };
    if failed != 0 {
        count(InjectionOutcome::OptionNoRoom);
        return None;
    }
    if stream.stage == stage::READY {
        stream.stage = stage::SENT;
        count(InjectionOutcome::OptionSent);
        report(
            Direction::Outbound,
            stream.connection,
            stream.sequence,
            stream.span_id,
            TraceContext {
                trace_id: stream.trace_id,
                flags: stream.trace_flags,
                reserved: 0,
            },
        );
    }
    Some(())
}

/// The option as it lies in memory. Words of four bytes: they begin four bytes into it.
#[repr(C)]
pub(super) struct TcpOption {
    pub(super) begin: [u8; 4],
    pub(super) trace_id: [u32; 4],
    pub(super) span_id: [u32; 2],
}

const _: () = assert!(size_of::<TcpOption>() == OPTION_BYTES);

#[inline(always)]
fn halves([first, second]: [u64; 2]) -> [u32; 4] {
    [
        first as u32,
        (first >> 32) as u32,
        second as u32,
        (second >> 32) as u32,
    ]
}

#[inline(always)]
pub(super) fn report(
    direction: Direction,
    connection: u64,
    tcp_sequence: u32,
    span_id: u64,
    context: TraceContext,
) {
    emit::record(&ContextCarried {
        header: emit::header(
            RecordKind::ContextCarried,
            size_of::<ContextCarried>(),
            emit::now_ns(),
        ),
        connection,
        trace_id: context.trace_id,
        span_id,
        tcp_sequence,
        trace_flags: context.flags as u16,
        direction: direction as u8,
        reserved: 0,
    });
}

/// A packet was sent again, its first sequence number is the first argument.
#[inline(always)]
fn sent_again(ctx: &SockOpsContext) -> Option<()> {
    let sk = socket(ctx)?;
    let stream = stream(ctx, sk)?;
    if stream.stage != stage::SENT || ctx.arg(0) != stream.sequence {
        return None;
    }
    stream.stage = stage::SETTLED;
    count(InjectionOutcome::OptionLost);
    // SAFETY: copied at once.
    let before = unsafe { PATHS.get(&stream.remote) }.map_or(0, |path| path.losses);
    let path = PathState {
        lost_ns: emit::now_ns(),
        losses: before.saturating_add(1),
        reserved: 0,
    };
    let _ = PATHS.insert(&stream.remote, &path, 0);
    Some(())
}
