//! Header injection: which sockets, and what is done with a message that one of them sends.
//!
//! hook: sock_ops BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB at the root of the control groups, since 4.13
//! hook: sk_msg of the map [`INJECTED_SOCKETS`], since 4.17; bpf_loop since 5.17
//! fallback: none; without them nothing is injected
//!
//! Both run only when the user asked for injection: the loader loads them then.
//!
//! While a socket is in a socket map the kernel receives through a function of its own
//! (`tcp_bpf_recvmsg`), which ends a *blocking* receive with `EAGAIN` when anything but data wakes
//! it: a signal, the acknowledgement of a half-close, room in the send buffer. Programs take that
//! for an error. So a blocking socket is in the map only until the head of its first request has
//! left: the same send takes it out, before the program can receive. Sending asks the control
//! group's programs for the length of their TCP options (`BPF_SOCK_OPS_HDR_OPT_LEN_CB`), and of
//! all that runs then only they may take sockets out of a map (Linux 6.10 and later).
//!
//! A message is read here before the kernel's TCP takes it, with the socket locked: one at a time
//! for each socket. The sequence number of the next byte is compared each time, so that bytes
//! which TCP did not take (a full send buffer) are read again, and bytes that came another way
//! end the reading.

use agent_common::{
    injection::{self, InjectionOutcome, OutgoingStream, phase},
    kernel_config::KernelField,
    limits,
};
use aya_ebpf::{
    bindings::{
        BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_HDR_OPT_LEN_CB, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG, bpf_sock_ops, sk_action,
        sk_msg_md,
    },
    cty::c_void,
    helpers::generated::{
        bpf_get_socket_cookie, bpf_loop, bpf_map_delete_elem, bpf_sk_storage_get,
        bpf_skc_to_tcp_sock,
    },
    macros::{sk_msg, sock_ops},
    programs::{SkMsgContext, SockOpsContext},
};

use super::inject_head::{self, Reading};
use crate::{
    maps::{
        CONNECTIONS, GRAMMAR, INJECTABLE, INJECTED_SOCKETS, INJECTIONS, LEAVING, STREAMS, config,
    },
    read::typed_field,
};

/// Ports where by convention TLS is spoken, or the server speaks first and the client's blocking
/// receive comes before any send: FTP, SSH, telnet, SMTP, POP3, IMAP, MySQL, and with TLS HTTPS,
/// SMTP, LDAP, FTP, IMAP, POP3.
const PORTS_LEFT_ALONE: [u32; 15] = [
    21, 22, 23, 25, 110, 143, 443, 465, 587, 636, 990, 993, 995, 3306, 8443,
];

/// Counts what became of a request or a connection.
#[inline(always)]
pub(crate) fn count(outcome: InjectionOutcome) {
    if let Some(counter) = INJECTIONS.get_ptr_mut(outcome as u32) {
        // SAFETY: a valid pointer into this CPU's value.
        unsafe { *counter += 1 };
    }
}

/// A socket of the map of streams, as the helpers want it.
#[inline(always)]
fn storage(sk: *mut c_void, initial: *mut OutgoingStream, flags: u64) -> *mut OutgoingStream {
    // SAFETY: the map is one of socket storage, and the verifier knows the socket.
    unsafe {
        bpf_sk_storage_get(
            (&raw const STREAMS).cast_mut().cast(),
            sk,
            initial.cast(),
            flags,
        )
    }
    .cast()
}

/// What is remembered of a socket whose messages are read; null where nothing is.
#[inline(always)]
pub(crate) fn stream(sk: *mut c_void) -> *const OutgoingStream {
    storage(sk, core::ptr::null_mut(), 0)
}

/// Joins a connection that a process of ours began, as soon as the peer has answered.
#[sock_ops]
pub(crate) fn join_injected(ctx: SockOpsContext) -> u32 {
    let _ = match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => join(&ctx),
        BPF_SOCK_OPS_HDR_OPT_LEN_CB => take_out(&ctx),
        _ => None,
    };
    1
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut c_void {
    // SAFETY: a field of the context.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_2.sk) }.cast()
}

/// Takes a socket out of the map that was given up by the message which is being sent.
#[inline(always)]
fn take_out(ctx: &SockOpsContext) -> Option<()> {
    let sk = socket(ctx);
    if sk.is_null() {
        return None;
    }
    let stream = storage(sk, core::ptr::null_mut(), 0);
    // SAFETY: the socket's own storage, and the socket is locked.
    if stream.is_null() || unsafe { (*stream).phase } != phase::OFF {
        return None;
    }
    // SAFETY: as above.
    let mut key = unsafe { (*stream).connection };
    // SAFETY: the map's own key; the map may be changed from this kind of program.
    unsafe {
        bpf_map_delete_elem(
            (&raw const INJECTED_SOCKETS).cast_mut().cast(),
            (&raw mut key).cast(),
        )
    };
    // SAFETY: as above.
    if unsafe { (*stream).keeps_callback } == 1 || config!(inject_option) == 1 {
        return None;
    }
    ctx.set_cb_flags((ctx.cb_flags() & !BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG) as i32)
        .ok()
}

#[inline(always)]
fn join(ctx: &SockOpsContext) -> Option<()> {
    // SAFETY: the helper takes the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.ops.cast()) };
    // SAFETY: copied at once.
    let is_loop = unsafe { INJECTABLE.get(&cookie) }.copied()?;
    let _ = INJECTABLE.remove(&cookie);
    let port = u32::from_be(ctx.remote_port());
    for other in PORTS_LEFT_ALONE {
        if port == other {
            return None;
        }
    }
    let sk = socket(ctx);
    if sk.is_null() {
        return None;
    }
    // SAFETY: the verifier knows the socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk) } as *const u8;
    if typed_field::<u64>(tcp, KernelField::SockUserData).unwrap_or(1) != 0 {
        count(InjectionOutcome::Refused);
        return None;
    }
    let mut fresh = OutgoingStream {
        connection: cookie,
        is_loop: is_loop as u8,
        keeps_callback: u32::from(ctx.cb_flags() & BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG != 0),
        ..NEW_STREAM
    };
    if storage(sk, &raw mut fresh, u64::from(BPF_SK_STORAGE_GET_F_CREATE)).is_null() {
        count(InjectionOutcome::Refused);
        return None;
    }
    let mut key = cookie;
    // SAFETY: the context is the program's own.
    let ops: &mut bpf_sock_ops = unsafe { &mut *ctx.ops };
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
    if ctx.set_cb_flags(flags as i32).is_err() {
        count(InjectionOutcome::Refused);
        return None;
    }
    let joined = INJECTED_SOCKETS.update(&mut key, ops, u64::from(BPF_NOEXIST));
    count(if joined.is_ok() {
        InjectionOutcome::Joined
    } else {
        InjectionOutcome::Refused
    });
    Some(())
}

const NEW_STREAM: OutgoingStream = OutgoingStream {
    connection: 0,
    position: 0,
    request_position: 0,
    skip: 0,
    skipped: 0,
    length: 0,
    sequence: 0,
    offset: 0,
    added: 0,
    said: 0,
    state: injection::state::START,
    phase: phase::FRESH,
    has_sequence: 0,
    is_trial: 0,
    is_loop: 0,
    is_spoiled: 0,
    keeps_callback: 0,
};

/// Reads a message, and puts the header into what is a whole head of a request.
#[sk_msg]
pub(crate) fn inject_header(ctx: SkMsgContext) -> u32 {
    let is_spoiled = read_message(ctx.msg).unwrap_or(false);
    if is_spoiled {
        count(InjectionOutcome::Withheld);
        return sk_action::SK_DROP;
    }
    sk_action::SK_PASS
}

/// Whether the message must not leave.
#[inline(always)]
fn read_message(msg: *mut sk_msg_md) -> Option<bool> {
    // SAFETY: fields of the context.
    let sk: *mut c_void =
        unsafe { core::ptr::read_volatile(&raw const (*msg).__bindgen_anon_3.sk) }.cast();
    if sk.is_null() {
        return None;
    }
    let found = storage(sk, core::ptr::null_mut(), 0);
    if found.is_null() {
        return None;
    }
    // SAFETY: the socket's own storage, and the socket is locked.
    let stream = unsafe { &mut *found };
    if stream.phase == phase::OFF {
        return None;
    }
    let table = GRAMMAR.get_ptr(0)?;
    // SAFETY: the verifier knows the socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk) } as *const u8;
    let written: u32 = typed_field(tcp, KernelField::TcpWriteSequence)?;
    let queued: u32 = typed_field(tcp, KernelField::SockWriteQueued)?;
    let buffer: u32 = typed_field(tcp, KernelField::SockSendBuffer)?;
    if !take_up(stream, written) {
        return None;
    }
    let mut reading = Reading {
        msg,
        stream: found,
        table: table.cast(),
        room: u64::from(buffer.saturating_sub(queued)),
        is_blocking: u64::from(stream.is_trial == 0 && is_blocking(tcp)),
    };
    let step = inject_head::step as unsafe extern "C" fn(u64, *mut Reading) -> i64;
    // SAFETY: the callback and its context are of the shape that the helper wants.
    unsafe {
        bpf_loop(
            limits::INJECT_STEPS,
            step as *mut c_void,
            (&raw mut reading).cast(),
            0,
        )
    };
    // SAFETY: as above; it was changed through the same pointer meanwhile.
    let stream = unsafe { &mut *found };
    let size = inject_head::size(msg);
    if stream.phase != phase::OFF && stream.offset < size {
        leave(stream, InjectionOutcome::TooLong);
    }
    stream.sequence = written.wrapping_add(size);
    stream.position += u64::from(size.wrapping_sub(stream.added));
    Some(stream.is_spoiled == 1)
}

/// Whether receiving waits; also where that cannot be told.
#[inline(always)]
fn is_blocking(tcp: *const u8) -> bool {
    const NON_BLOCKING: u32 = 0o4000;
    let file = typed_field::<*const u8>(tcp, KernelField::SockSocket)
        .and_then(|socket| typed_field::<*const u8>(socket, KernelField::SocketFile));
    let Some(file) = file else { return true };
    typed_field::<u32>(file, KernelField::FileFlags).unwrap_or(0) & NON_BLOCKING == 0
}

/// Goes on where the last message ended; false when it is not known where that is.
#[inline(always)]
fn take_up(stream: &mut OutgoingStream, written: u32) -> bool {
    if stream.has_sequence == 0 {
        stream.has_sequence = 1;
        stream.sequence = written;
    }
    let unsent = u64::from(stream.sequence.wrapping_sub(written));
    if unsent > stream.skipped {
        leave(stream, InjectionOutcome::LostTrack);
        return false;
    }
    // TCP did not take the end of the last message: the program sends it again.
    stream.skip += unsent;
    stream.position -= unsent;
    stream.skipped = 0;
    stream.offset = 0;
    stream.added = 0;
    // SAFETY: copied at once.
    let known = unsafe { CONNECTIONS.get(&stream.connection) };
    if stream.phase == phase::FRESH {
        // Bytes that left with the first packet (TCP Fast Open) did not come by here.
        if known.is_some_and(|state| state.outbound.position != 0) {
            leave(stream, InjectionOutcome::LostTrack);
            return false;
        }
        stream.phase = phase::FOLLOWED;
    }
    true
}

/// Gives a connection up for good. User space takes it out of the map.
#[inline(always)]
pub(crate) fn leave(stream: &mut OutgoingStream, outcome: InjectionOutcome) {
    stream.phase = phase::OFF;
    count(outcome);
    let connection = stream.connection;
    let _ = LEAVING.push(&connection, 0);
}
