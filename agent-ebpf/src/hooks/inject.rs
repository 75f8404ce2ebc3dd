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
    connection::Direction,
    injection::{self, InjectionOutcome, OutgoingStream, phase, proof},
    kernel_config::KernelField,
    limits,
};
use aya_ebpf::{
    bindings::{
        BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_HDR_OPT_LEN_CB,
        BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG, bpf_sock_ops, sk_action, sk_msg_md,
    },
    cty::c_void,
    helpers::generated::{
        bpf_get_socket_cookie, bpf_loop, bpf_map_delete_elem, bpf_skc_to_tcp_sock,
    },
    macros::{sk_msg, sock_ops},
    programs::{SkMsgContext, SockOpsContext},
};

use super::{inject_frames, inject_head, inject_message};
use crate::{
    maps::{
        CONNECTIONS, GRAMMAR, INJECTABLE, INJECTED_SOCKETS, INJECTIONS, LEAVING, STREAMS, config,
    },
    read::{field, typed_field},
};

/// Counts what became of a request or a connection.
#[inline(always)]
pub(crate) fn count(outcome: InjectionOutcome) {
    if let Some(counter) = INJECTIONS.get_ptr_mut(outcome as u32) {
        // SAFETY: a valid pointer into this CPU's value.
        unsafe { *counter += 1 };
    }
}

/// What is remembered of a socket whose messages are read, by its cookie; null where nothing is.
#[inline(always)]
pub(crate) fn stream(connection: u64) -> *const OutgoingStream {
    STREAMS.get_ptr(&connection).unwrap_or(core::ptr::null())
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

#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_socket_cookie(ctx.ops.cast()) }
}

/// Takes a socket out of the map that was given up by the message which is being sent.
#[inline(always)]
fn take_out(ctx: &SockOpsContext) -> Option<()> {
    let mut key = cookie(ctx);
    // SAFETY: the socket's own entry, and the socket is locked.
    let stream = unsafe { &*STREAMS.get_ptr(&key)? };
    if stream.phase != phase::OFF {
        return None;
    }
    // SAFETY: the map's own key; the map may be changed from this kind of program.
    unsafe {
        bpf_map_delete_elem(
            (&raw const INJECTED_SOCKETS).cast_mut().cast(),
            (&raw mut key).cast(),
        )
    };
    if stream.keeps_callback == 1 || config!(inject_option) == 1 {
        return None;
    }
    ctx.set_cb_flags((ctx.cb_flags() & !BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG) as i32)
        .ok()
}

#[inline(always)]
fn join(ctx: &SockOpsContext) -> Option<()> {
    let cookie = cookie(ctx);
    // SAFETY: copied at once.
    let mode = unsafe { INJECTABLE.get(&cookie) }.copied()?;
    let _ = INJECTABLE.remove(&cookie);
    let port = u32::from_be(ctx.remote_port());
    for other in injection::PORTS_LEFT_ALONE {
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
    let fresh = OutgoingStream {
        connection: cookie,
        mode: mode as u8,
        keeps_callback: u8::from(ctx.cb_flags() & BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG != 0),
        ..NEW_STREAM
    };
    if STREAMS.insert(&cookie, &fresh, 0).is_err() {
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
    mode: 0,
    is_spoiled: 0,
    proof: proof::DONE,
    keeps_callback: 0,
    reserved: [0; 2],
};

/// Reads a message, and puts the header into what is a whole head of a request.
#[sk_msg]
pub(crate) fn inject_header(ctx: SkMsgContext) -> u32 {
    let is_in_pieces = inject_message::is_in_pieces(ctx.msg);
    let read = read_message(ctx.msg).unwrap_or(Read::Unchanged);
    if matches!(read, Read::Spoiled) {
        count(InjectionOutcome::Withheld);
        return sk_action::SK_DROP;
    }
    // The kernel hands over piece by piece (`tcp_bpf_push`), and without TCP_NODELAY the second
    // one waits until the first is acknowledged: 40 ms when the peer waits for the rest, too.
    if is_in_pieces || matches!(read, Read::Changed) {
        inject_message::join_pieces(ctx.msg);
    }
    sk_action::SK_PASS
}

/// What became of a message.
enum Read {
    Unchanged,
    Changed,
    /// It must not leave.
    Spoiled,
}

#[inline(always)]
fn read_message(msg: *mut sk_msg_md) -> Option<Read> {
    // SAFETY: fields of the context.
    let sk: *mut c_void =
        unsafe { core::ptr::read_volatile(&raw const (*msg).__bindgen_anon_3.sk) }.cast();
    if sk.is_null() {
        return None;
    }
    // SAFETY: the verifier knows the socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk) } as *const u8;
    let cookie: u64 = typed_field(tcp, KernelField::SockCookie)?;
    let found = STREAMS.get_ptr_mut(&cookie)?;
    // SAFETY: the socket's own entry, and the socket is locked.
    let stream = unsafe { &mut *found };
    if stream.phase == phase::OFF {
        return None;
    }
    let table = GRAMMAR.get_ptr(0)?;
    let written: u32 = typed_field(tcp, KernelField::TcpWriteSequence)?;
    let queued: u32 = typed_field(tcp, KernelField::SockWriteQueued)?;
    let buffer: u32 = typed_field(tcp, KernelField::SockSendBuffer)?;
    if stream.proof == proof::WANTED && stream.has_sequence == 0 && has_other_owner(tcp) {
        leave(stream, InjectionOutcome::Refused);
        return None;
    }
    if !take_up(stream, written) {
        return None;
    }
    let room = u64::from(buffer.saturating_sub(queued));
    let is_blocking = stream.is_trial == 0 && is_blocking(tcp);
    if stream.phase == phase::FOLLOWED && stream.position == 0 {
        inject_frames::begin(msg, stream);
    }
    if stream.phase == phase::FRAMES {
        if is_blocking {
            leave(stream, InjectionOutcome::Blocking);
        } else {
            read_frames(msg, found, room);
        }
    } else if stream.phase != phase::OFF {
        let mut reading = inject_head::Reading {
            msg,
            stream: found,
            table: table.cast(),
            room,
            is_blocking: u64::from(is_blocking),
        };
        let step = inject_head::step as unsafe extern "C" fn(u64, *mut inject_head::Reading) -> i64;
        // SAFETY: the callback and its context are of the shape that the helper wants.
        unsafe {
            bpf_loop(
                limits::INJECT_STEPS,
                step as *mut c_void,
                (&raw mut reading).cast(),
                0,
            )
        };
    }
    // SAFETY: as above; it was changed through the same pointer meanwhile.
    let stream = unsafe { &mut *found };
    let size = inject_message::size(msg);
    if stream.phase != phase::OFF && stream.offset < size {
        leave(stream, InjectionOutcome::TooLong);
    }
    stream.sequence = written.wrapping_add(size);
    stream.position += u64::from(size.wrapping_sub(stream.added));
    Some(match (stream.is_spoiled, stream.added) {
        (1, _) => Read::Spoiled,
        (_, 0) => Read::Unchanged,
        _ => Read::Changed,
    })
}

/// As [`read_message`], of a connection of HTTP/2.
#[inline(always)]
fn read_frames(msg: *mut sk_msg_md, found: *mut OutgoingStream, room: u64) {
    // SAFETY: the socket's own entry, and the socket is locked.
    let frames = inject_frames::take_up(unsafe { &mut *found });
    if frames.is_null() {
        return;
    }
    let mut reading = inject_frames::Reading {
        msg,
        stream: found,
        frames,
        room,
    };
    let step = inject_frames::step as unsafe extern "C" fn(u64, *mut inject_frames::Reading) -> i64;
    // SAFETY: the callback and its context are of the shape that the helper wants.
    unsafe {
        bpf_loop(
            limits::INJECT_STEPS,
            step as *mut c_void,
            (&raw mut reading).cast(),
            0,
        )
    };
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

/// Whether another program's socket map, too, holds the socket and has its messages judged.
#[inline(always)]
fn has_other_owner(tcp: *const u8) -> bool {
    /// Bits of the pointer that are flags, `SK_USER_DATA_PTRMASK` in `include/net/sock.h`.
    const FLAGS: u64 = 7;
    let data: u64 = typed_field(tcp, KernelField::SockUserData).unwrap_or(0);
    let owner = (data & !FLAGS) as *const u8;
    [
        KernelField::PsockStreamVerdict,
        KernelField::PsockSkbVerdict,
    ]
    .into_iter()
    .any(|program| field::<u64>(owner, program).unwrap_or(0) != 0)
}

/// Goes on where the last message ended; false when it is not known where that is.
#[inline(always)]
fn take_up(stream: &mut OutgoingStream, written: u32) -> bool {
    // SAFETY: copied at once.
    let known = unsafe { CONNECTIONS.get(&stream.connection) };
    if stream.phase == phase::AWAITED {
        const ANSWERED: u8 = Direction::Inbound as u8 + 1;
        match known {
            Some(state) if state.last_direction == ANSWERED => {
                stream.position = state.outbound.position;
                stream.has_sequence = 0;
            }
            // Maybe the rest of something: none of it is looked at.
            _ => return false,
        }
    }
    if stream.has_sequence == 0 {
        stream.has_sequence = 1;
        stream.sequence = written;
        stream.skipped = 0;
    }
    let unsent = u64::from(stream.sequence.wrapping_sub(written));
    let is_followed = if stream.phase == phase::FRAMES {
        inject_frames::take_back(stream, unsent)
    } else {
        unsent <= stream.skipped
    };
    if !is_followed {
        leave(stream, InjectionOutcome::LostTrack);
        return false;
    }
    // TCP did not take the end of the last message: the program sends it again.
    stream.skip += unsent;
    stream.position -= unsent;
    stream.skipped = 0;
    stream.offset = 0;
    stream.added = 0;
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
