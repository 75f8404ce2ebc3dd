//! Bytes that sockets moved: the one body of every hook that sees them (`socket_calls.rs`,
//! `kretprobe.rs`).

use crate::{
    connection::{self, Place},
    emit, frames,
    hooks::{
        hand_off, inject_context, inject_option_reader,
        socket_record::{capture, sequence, write_head},
    },
    maps::{CONNECTIONS, config},
    process::{self, TracedUnit},
    read::{
        field,
        sock::{Sock, Stream},
        task,
    },
    scratch::{self, HEAD_BYTES, Slot},
    tls::{self, SocketCall},
    user_buffer::{self, UserBuffer},
};
use agent_common::{
    connection::{
        ConnectionOpened, ConnectionState, Direction, FAMILY_UNIX, Role, plaintext_identity,
    },
    kernel_config::KernelField,
    limits,
    payload::{SocketData, flags},
    process::ExecutionUnit,
    record::RecordKind,
};

/// `MSG_PEEK`: the bytes stay in the socket and will be received again.
const PEEK: i32 = 2;

/// A socket call that has just returned.
pub(crate) struct Transfer {
    pub(crate) sock: *const u8,
    pub(crate) direction: Direction,
    /// Bytes moved, or a negative errno.
    pub(crate) result: i32,
    pub(crate) message_flags: i32,
    pub(crate) slot: Slot,
}

/// `socket->sk`, loaded directly so that the verifier still knows that it is a socket.
#[inline(always)]
pub(crate) fn socket_sock(socket: *const u8) -> *const u8 {
    let Some(offset) = crate::read::offset(KernelField::SocketSock) else {
        return core::ptr::null();
    };
    // SAFETY: `socket` is the hook's own argument and the offset comes from its BTF; the verifier
    // checks the access and makes it safe against faults.
    unsafe { core::ptr::read_volatile(socket.add(offset).cast()) }
}

/// There is no user buffer, so there is nothing to capture. A head was sent before, which made the
/// connection's state and began the turn.
#[inline(always)]
pub(crate) fn count_pages(sock: *const u8, result: i32) -> i32 {
    if result <= 0 || sock.is_null() || !process::is_traced(task::process_id()) {
        return 0;
    }
    if let Some(state) = CONNECTIONS.get_ptr_mut(&Sock(sock).identity()) {
        // SAFETY: as in `try_handle`.
        let state = unsafe { &mut *state };
        connection::place(state, Direction::Outbound);
        connection::advance(
            state,
            Direction::Outbound,
            result as u32,
            emit::now_ns(),
            [0; 8],
        );
    }
    0
}

#[inline(always)]
pub(crate) fn handle(transfer: &Transfer) -> i32 {
    handle_in::<false>(transfer)
}

/// The one body of every socket data hook. `LOOPS`: with `bpf_loop`, for what injection looks for.
#[inline(always)]
pub(crate) fn handle_in<const LOOPS: bool>(transfer: &Transfer) -> i32 {
    let (sock, result, message_flags) = (transfer.sock, transfer.result, transfer.message_flags);
    // The slot is a constant where this is inlined, so that one of them is left.
    let left = match transfer.slot {
        Slot::Send6 => body::<LOOPS, { Slot::Send6 as u32 }>(sock, result, message_flags),
        Slot::SendUnix => body::<LOOPS, { Slot::SendUnix as u32 }>(sock, result, message_flags),
        Slot::Receive => body::<LOOPS, { Slot::Receive as u32 }>(sock, result, message_flags),
        Slot::Receive6 => body::<LOOPS, { Slot::Receive6 as u32 }>(sock, result, message_flags),
        Slot::ReceiveUnix => {
            body::<LOOPS, { Slot::ReceiveUnix as u32 }>(sock, result, message_flags)
        }
        _ => body::<LOOPS, { Slot::Send as u32 }>(sock, result, message_flags),
    };
    if left == WALK {
        frames::walk_frames(transfer.slot as u32);
    }
    0
}

/// What a hook's body leaves to do: nothing, or to walk over frames.
const DONE: u32 = 0;
const WALK: u32 = 1;

/// A function of its own, because the 512 bytes of stack are for it and what it calls: the walk
/// over frames has no room behind it.
#[inline(never)]
fn body<const LOOPS: bool, const SLOT: u32>(
    sock: *const u8,
    result: i32,
    message_flags: i32,
) -> u32 {
    const SEND6: u32 = Slot::Send6 as u32;
    const SEND_UNIX: u32 = Slot::SendUnix as u32;
    const RECEIVE: u32 = Slot::Receive as u32;
    const RECEIVE6: u32 = Slot::Receive6 as u32;
    const RECEIVE_UNIX: u32 = Slot::ReceiveUnix as u32;
    let (slot, direction) = match SLOT {
        SEND6 => (Slot::Send6, Direction::Outbound),
        SEND_UNIX => (Slot::SendUnix, Direction::Outbound),
        RECEIVE => (Slot::Receive, Direction::Inbound),
        RECEIVE6 => (Slot::Receive6, Direction::Inbound),
        RECEIVE_UNIX => (Slot::ReceiveUnix, Direction::Inbound),
        _ => (Slot::Send, Direction::Outbound),
    };
    let transfer = Transfer {
        sock,
        direction,
        result,
        message_flags,
        slot,
    };
    match process::traced_unit() {
        Some(traced) => try_handle::<LOOPS>(&transfer, traced).unwrap_or(DONE),
        None => DONE,
    }
}

#[inline(always)]
fn try_handle<const LOOPS: bool>(transfer: &Transfer, traced: TracedUnit) -> Option<u32> {
    let unit = traced.unit;
    if transfer.message_flags & PEEK != 0 || transfer.sock.is_null() {
        return None;
    }
    if transfer.result < 0 {
        user_buffer::abandon_messages();
        return None;
    }
    let ended = transfer.result == 0;
    if ended && matches!(transfer.direction, Direction::Outbound) {
        return None;
    }
    let sock = Sock(transfer.sock);
    let identity = sock.identity();
    let state = if let Some(state) = CONNECTIONS.get_ptr_mut(&identity) {
        state
    } else {
        let stream = sock.stream()?;
        if ended {
            return None;
        }
        open(sock, stream, identity, unit, transfer.slot)?
    };
    // SAFETY: a pointer into the map's value; concurrent calls on one socket may mix counts, which
    // shows as a gap, never as memory unsafety.
    let state = unsafe { &mut *state };
    state.unit = unit;
    if state.addresses.local_port == 0 && state.addresses.family != FAMILY_UNIX {
        // A connecting socket has no port yet when its state is made.
        sock.write_addresses(&mut state.addresses);
    }
    if config!(inject_option) == 1 && matches!(transfer.direction, Direction::Inbound) {
        inject_option_reader::read_up_to(identity, sock.copied_sequence());
    }
    note_origin(transfer, sock, state);
    if traced.uses_tls && is_encrypted(transfer, sock, identity, state) {
        return count_encrypted::<LOOPS>(transfer, sock, identity, traced, state);
    }
    emit_data::<LOOPS>(transfer, sock, identity, traced, state)
}

/// Where a direction begins is kept of every connection: that a process uses TLS is not known
/// before its first session, whose handshake has begun by then.
#[inline(always)]
fn note_origin(transfer: &Transfer, sock: Sock, state: &mut ConnectionState) {
    if state.position(transfer.direction) == 0 && state.complete == 1 {
        let next = sequence(state, sock, transfer.direction);
        state.origins[transfer.direction as usize] = next.wrapping_sub(transfer.result as u32);
    }
}

/// Whether a TLS library made or will read what was moved. Its probes report the plaintext.
#[inline(always)]
fn is_encrypted(
    transfer: &Transfer,
    sock: Sock,
    identity: u64,
    state: &mut ConnectionState,
) -> bool {
    let next = sequence(state, sock, transfer.direction);
    let sequence = next.wrapping_sub(transfer.result as u32);
    let socket = SocketCall {
        connection: identity,
        direction: transfer.direction,
        moved: transfer.result as u32,
        position: state.position(transfer.direction),
        sequence,
        origin: state.origins[transfer.direction as usize],
    };
    tls::carries(state, sock, &socket)
}

/// Counts what was moved. The end of the stream is that of the plaintext, too.
#[inline(always)]
fn count_encrypted<const LOOPS: bool>(
    transfer: &Transfer,
    sock: Sock,
    identity: u64,
    traced: TracedUnit,
    state: &mut ConnectionState,
) -> Option<u32> {
    if transfer.result == 0 {
        let identity = plaintext_identity(identity);
        let plaintext = CONNECTIONS.get_ptr_mut(&identity)?;
        // SAFETY: as in `try_handle`.
        return emit_data::<LOOPS>(transfer, sock, identity, traced, unsafe { &mut *plaintext });
    }
    if config!(inject) == 1 {
        inject_context::resumed(transfer.direction, identity, state);
    }
    connection::place(state, transfer.direction);
    let (moved, now_ns) = (transfer.result as u32, emit::now_ns());
    connection::advance(state, transfer.direction, moved, now_ns, [0; 8]);
    Some(DONE)
}

/// State for a connection seen for the first time. A unix socket is announced with its path,
/// which no later record carries.
#[inline(always)]
fn open(
    sock: Sock,
    stream: Stream,
    identity: u64,
    unit: ExecutionUnit,
    slot: Slot,
) -> Option<*mut ConnectionState> {
    let state = connection::state(sock, stream, identity, unit, slot)?;
    if stream == Stream::Unix {
        announce(sock, identity, unit, Role::Unknown, slot);
    }
    Some(state)
}

/// Writes a [`ConnectionOpened`] record.
#[inline(always)]
pub(crate) fn announce(
    sock: Sock,
    identity: u64,
    unit: ExecutionUnit,
    role: Role,
    slot: Slot,
) -> Option<()> {
    let area = scratch::area(slot)?;
    // SAFETY: the area is larger and aligned to 8; nobody else uses this slot now; all bit
    // patterns are valid.
    let record = unsafe {
        scratch::zero_words(area.cast::<ConnectionOpened>());
        &mut *area.cast::<ConnectionOpened>()
    };
    let length = size_of::<ConnectionOpened>();
    record.header = emit::header(RecordKind::ConnectionOpened, length, emit::now_ns());
    record.unit = unit;
    record.connection = identity;
    sock.write_addresses(&mut record.addresses);
    record.role = role as u8;
    record.unix_path_length = if record.addresses.family == FAMILY_UNIX {
        sock.write_unix_path(&mut record.unix_path)
    } else {
        0
    };
    emit::record::<ConnectionOpened>(record);
    Some(())
}

/// Captures what the budget allows and counts the rest.
#[inline(always)]
fn emit_data<const LOOPS: bool>(
    transfer: &Transfer,
    sock: Sock,
    identity: u64,
    traced: TracedUnit,
    state: &mut ConnectionState,
) -> Option<u32> {
    let now_ns = emit::now_ns();
    let moved = transfer.result as u32;
    if moved == 0 {
        let place = Place {
            position: state.inbound.position,
            turn_start: false,
            budget: 0,
        };
        let area = scratch::area(transfer.slot)?;
        let flag = flags::END_OF_STREAM;
        write_head(
            transfer, sock, identity, traced, state, &place, now_ns, area, flag,
        );
        let record = area.cast::<SocketData>();
        // SAFETY: a field of the scratch area, see `write_head`; both sides are wire types.
        unsafe { scratch::copy_words(&raw mut (*record).other_flow, &raw const state.inbound) };
        emit::scratch_record(area, HEAD_BYTES, 0);
        return Some(DONE);
    }
    let place = connection::place(state, transfer.direction);
    let is_followed = frames::are_followed(identity, state);
    if is_followed && frames::passes(identity, transfer.direction, moved) {
        connection::advance(state, transfer.direction, moved, now_ns, [0; 8]);
        return Some(DONE);
    }
    let buffer = user_buffer::locate();
    if let UserBuffer::Unknown(reason) = buffer {
        emit::count(reason);
    }
    if is_followed
        || emit_turn::<LOOPS>(
            transfer, sock, identity, traced, state, &place, now_ns, buffer,
        )? == Spoken::Frames
    {
        let area = scratch::area(transfer.slot)?;
        write_head(
            transfer, sock, identity, traced, state, &place, now_ns, area, 0,
        );
        if config!(inject) == 1 {
            inject_context::multiplexed(transfer.direction, state);
        }
        connection::advance(state, transfer.direction, moved, now_ns, [0; 8]);
        if frames::prepare(transfer, identity, buffer).is_some() {
            return Some(WALK);
        }
    }
    Some(DONE)
}

/// What a connection begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spoken {
    /// Frames of HTTP/2: the call was not captured.
    Frames,
    Other,
}

/// Captures what the turn's budget allows and counts the rest.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "one caller's locals; a struct would cost stack"
)]
fn emit_turn<const LOOPS: bool>(
    transfer: &Transfer,
    sock: Sock,
    identity: u64,
    traced: TracedUnit,
    state: &mut ConnectionState,
    place: &Place,
    now_ns: u64,
    buffer: UserBuffer,
) -> Option<Spoken> {
    let moved = transfer.result as u32;
    let mut tail = [0; 8];
    let is_capturable = !matches!(buffer, UserBuffer::Absent | UserBuffer::Unknown(_));
    if !place.turn_start && (place.budget == 0 || !is_capturable) {
        if is_capturable {
            tail = user_buffer::tail(buffer, moved, core::ptr::null());
        }
        if config!(inject) == 1 {
            inject_context::resumed(transfer.direction, identity, state);
        }
    } else {
        let area = scratch::area(transfer.slot)?;
        let wanted = if moved < place.budget {
            moved
        } else {
            place.budget
        };
        let captured = match capture(buffer, wanted, area) {
            Some(captured) => {
                if place.position == 0
                    && frames::begin(identity, state, transfer.direction, area, captured)
                {
                    return Some(Spoken::Frames);
                }
                if captured < moved {
                    tail = user_buffer::tail(buffer, moved, area);
                }
                captured
            }
            None => 0,
        };
        if captured > 0 || place.turn_start {
            write_head(
                transfer, sock, identity, traced, state, place, now_ns, area, 0,
            );
            // SAFETY: the scratch area's head, see `write_head`.
            let record = unsafe { &mut *area.cast::<SocketData>() };
            record.captured_length = captured;
            record.header.length += captured;
            record.tail = tail;
            if config!(inject) == 1 {
                let waiting = record.flags;
                inject_context::moved::<LOOPS>(
                    transfer.direction,
                    identity,
                    state,
                    place,
                    waiting,
                    area,
                    captured,
                );
            }
            if emit::scratch_record(area, HEAD_BYTES, captured) {
                state.turn_captured += captured;
            }
        }
    }
    if traced.is_followed && place.turn_start {
        hand_off::note_read(transfer.direction, state, now_ns);
    }
    connection::advance(state, transfer.direction, moved, now_ns, tail);
    Some(Spoken::Other)
}

const _: () = assert!(size_of::<ConnectionOpened>() <= HEAD_BYTES + limits::SCRATCH_BYTES);

/// Reads `socket->sk` where the verifier does not know the type (kprobes).
#[inline(always)]
pub(crate) fn socket_sock_probed(socket: *const u8) -> *const u8 {
    field(socket, KernelField::SocketSock).unwrap_or(core::ptr::null())
}
