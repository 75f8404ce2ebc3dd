//! Plaintext of a session as records of the ring buffer.

use agent_common::{
    connection::{Carried, ConnectionState, Direction, PlaintextOpened, Role, plaintext_identity},
    drop_reason::DropReason,
    frames::{PREFACE_BYTES, PREFACE_WORD},
    limits,
    payload::{SocketData, flags},
    record::RecordKind,
};
use aya_ebpf::helpers::{bpf_probe_read_user, generated::bpf_probe_read_user as read_raw};

use super::{Binding, TlsSession};
use crate::{
    connection::{self, Place},
    emit,
    hooks::inject_decrypted::{self, Decrypted},
    maps::{CONNECTIONS, RECORDS, config},
    process::{self, TracedUnit},
    scratch::{HEAD_BYTES, copy_words, zero_words},
    user_buffer::{self, UserBuffer},
};

/// Bytes of a session that a call moved.
#[derive(Clone, Copy)]
pub(super) struct Plaintext<'a> {
    pub(super) session: &'a TlsSession,
    /// Where they are; 0: not in memory.
    pub(super) buffer: u64,
    /// When the first of the encrypted bytes left; 0 where that is not known.
    pub(super) first_ns: u64,
    /// TCP sequence number of that one; 0 where it is not known.
    pub(super) sequence: u32,
    pub(super) direction: Direction,
    pub(super) moved: u32,
    pub(super) task: Task,
}

/// What was running, as `SocketData` says it; zeros where the program has but threads.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub(super) id: u64,
    pub(super) parent: u64,
    pub(super) next: u64,
    pub(super) allotted: u64,
    pub(super) left: u32,
}

impl Task {
    pub(super) const NONE: Self = Self {
        id: 0,
        parent: 0,
        next: 0,
        allotted: 0,
        left: 0,
    };
}

/// The plaintext's own positions, turns and budgets; as the socket hooks keep them for others.
#[inline(always)]
pub(super) fn report<const LOOPS: bool>(data: &Plaintext<'_>) -> Option<()> {
    let traced = process::traced_unit()?;
    let state = state(data, traced)?;
    state.unit = traced.unit;
    let mut place = connection::place(state, data.direction);
    if place.position == 0 && begins_frames(data) {
        state.frames = WHOLE_CALLS;
    }
    if state.frames == WHOLE_CALLS {
        place.budget = limits::CAPTURE_BYTES as u32;
    }
    let mut now_ns = emit::now_ns();
    let mut tail = [0; 8];
    let buffer = if data.buffer == 0 {
        UserBuffer::Absent
    } else {
        UserBuffer::Single(data.buffer)
    };
    let wanted = if data.buffer == 0 {
        0
    } else if data.moved < place.budget {
        data.moved
    } else {
        place.budget
    };
    if wanted < data.moved {
        tail = user_buffer::tail(buffer, data.moved, core::ptr::null());
    }
    if config!(inject) == 1 {
        inject_decrypted::moved::<LOOPS>(&Decrypted {
            direction: data.direction,
            role: Role::from(state.role),
            identity: data.session.identity,
            is_proven: data.session.binding == Binding::Proven as u8,
            is_multiplexed: state.frames == WHOLE_CALLS,
            turn_start: place.turn_start,
            position: place.position,
            waiting: data.session.waiting,
            buffer: data.buffer,
            moved: data.moved,
            sequence: data.sequence,
        });
    }
    if place.turn_start || wanted > 0 {
        if place.turn_start && is_request(state, data.direction) && data.first_ns != 0 {
            // A request begins when its first byte leaves, not when the library is done with it.
            now_ns = data.first_ns;
        }
        let record = Record {
            data,
            traced,
            state,
            place: &place,
            now_ns,
            tail,
            wanted,
        };
        let captured = write(&record);
        state.turn_captured += captured;
    }
    connection::advance(state, data.direction, data.moved, now_ns, tail);
    Some(())
}

/// As [`report`], in so many parts at most where one record cannot hold all of it: frames of HTTP/2
/// stand anywhere.
#[inline(always)]
pub(super) fn report_parts<const PARTS: u32>(data: &Plaintext<'_>) {
    const PART_BYTES: u32 = limits::CAPTURE_BYTES as u32;

    let (mut left, mut buffer) = (data.moved, data.buffer);
    for part in 1..=PARTS {
        let moved = if part < PARTS && left > PART_BYTES {
            PART_BYTES
        } else {
            left
        };
        let _ = report::<false>(&Plaintext {
            buffer,
            moved,
            ..*data
        });
        buffer += u64::from(moved);
        left -= moved;
        if left == 0 {
            break;
        }
    }
}

/// Stands in [`ConnectionState::frames`] of plaintext that is HTTP/2: each call is captured from
/// its beginning, whatever the turn, because header fields refer to those before.
const WHOLE_CALLS: u8 = 2;

/// Whether the first bytes are a client's preface of HTTP/2.
#[inline(always)]
fn begins_frames(data: &Plaintext<'_>) -> bool {
    if data.buffer == 0 || data.moved < PREFACE_BYTES {
        return false;
    }
    // SAFETY: the helper checks the address and fails instead of faulting.
    let word = unsafe { bpf_probe_read_user(data.buffer as *const u64) };
    word == Ok(u64::from_ne_bytes(PREFACE_WORD))
}

#[inline(always)]
fn is_request(state: &ConnectionState, direction: Direction) -> bool {
    matches!(direction, Direction::Outbound) && matches!(Role::from(state.role), Role::Client)
}

/// The state of the plaintext, made from that of the connection on its first use.
#[inline(always)]
fn state(data: &Plaintext<'_>, traced: TracedUnit) -> Option<&'static mut ConnectionState> {
    let identity = data.session.identity;
    if let Some(state) = CONNECTIONS.get_ptr_mut(&identity) {
        // SAFETY: a pointer into the map's value; concurrent calls of one session may mix counts,
        // never memory.
        return Some(unsafe { &mut *state });
    }
    let is_proven = data.session.binding == Binding::Proven as u8;
    if is_proven {
        let carrier = CONNECTIONS.get_ptr_mut(&plaintext_identity(identity))?;
        // SAFETY: a pointer into the map's value, read by the helper.
        let carrier = unsafe { &*carrier };
        if CONNECTIONS.insert(&identity, carrier, 0).is_err() {
            emit::count(DropReason::ConnectionTableFull);
            return None;
        }
    } else {
        insert_empty(identity)?;
    }
    let state = CONNECTIONS.get_ptr_mut(&identity)?;
    // SAFETY: as above; the parts are wire types, aligned to 8.
    let state = unsafe {
        zero_words(&raw mut (*state).inbound);
        zero_words(&raw mut (*state).outbound);
        &mut *state
    };
    state.unit = traced.unit;
    state.last_direction = 0;
    state.complete = data.session.complete;
    state.carried = if is_proven {
        Carried::Own as u8
    } else {
        Carried::Unproven as u8
    };
    state.turn_captured = 0;
    state.turns = 0;
    state.frames = 0;
    if is_proven {
        announce(data.session, state);
    } else {
        state.opened_ns = emit::now_ns();
    }
    Some(state)
}

/// A state of zeros for this identity.
#[inline(always)]
pub(super) fn insert_empty(identity: u64) -> Option<&'static mut ConnectionState> {
    let mut empty = core::mem::MaybeUninit::<ConnectionState>::uninit();
    // SAFETY: zero is valid for a wire type.
    let empty = unsafe {
        zero_words(empty.as_mut_ptr());
        empty.assume_init_ref()
    };
    if CONNECTIONS.insert(&identity, empty, 0).is_err() {
        emit::count(DropReason::ConnectionTableFull);
        return None;
    }
    // SAFETY: as in `state`.
    CONNECTIONS
        .get_ptr_mut(&identity)
        .map(|new| unsafe { &mut *new })
}

/// Writes a [`PlaintextOpened`] record.
#[inline(always)]
pub(super) fn announce(session: &TlsSession, state: &ConnectionState) {
    let Some(mut record) = RECORDS.reserve::<PlaintextOpened>(0) else {
        emit::count(DropReason::RingFull);
        return;
    };
    let length = size_of::<PlaintextOpened>();
    // SAFETY: reserved memory of this size, aligned to 8; all bit patterns are valid.
    let opened = unsafe { &mut *record.as_mut_ptr() };
    opened.header = emit::header(RecordKind::PlaintextOpened, length, emit::now_ns());
    opened.unit = state.unit;
    opened.connection = session.identity;
    opened.carrier = plaintext_identity(session.identity);
    // SAFETY: wire types without padding, aligned to 8.
    unsafe { copy_words(&raw mut opened.addresses, &raw const state.addresses) };
    opened.origins = if session.complete == 1 {
        session.origins
    } else {
        [0; 2]
    };
    opened.role = state.role;
    opened.reserved = [0; 7];
    record.submit(emit::NO_WAKE_UP);
}

/// A record to be written.
struct Record<'a> {
    data: &'a Plaintext<'a>,
    traced: TracedUnit,
    state: &'a ConnectionState,
    place: &'a Place,
    now_ns: u64,
    tail: [u8; 8],
    wanted: u32,
}

/// A record with room for captured bytes, in the ring buffer. Scratch areas are of no use here:
/// since Linux 6.0 a probe of a program may be preempted by the same one on another thread.
#[repr(C)]
struct Room<const BYTES: usize> {
    head: SocketData,
    bytes: [u8; BYTES],
}

/// Rooms of several sizes: the kernel reserves constant sizes only, and most calls are small.
const SMALL: usize = 1024 - HEAD_BYTES;
const MEDIUM: usize = 4096 - HEAD_BYTES;

/// Writes the record; returns how many bytes were captured.
#[inline(always)]
fn write(record: &Record<'_>) -> u32 {
    if record.wanted <= SMALL as u32 {
        write_sized::<SMALL>(record)
    } else if record.wanted <= MEDIUM as u32 {
        write_sized::<MEDIUM>(record)
    } else {
        write_sized::<{ limits::CAPTURE_BYTES }>(record)
    }
}

#[inline(always)]
fn write_sized<const BYTES: usize>(record: &Record<'_>) -> u32 {
    let Some(mut room) = RECORDS.reserve::<Room<BYTES>>(0) else {
        emit::count(DropReason::RingFull);
        return 0;
    };
    let address = room.as_mut_ptr();
    // The verifier wants the bound right before the read ("R2 unbounded memory access").
    let mut captured = core::hint::black_box(record.wanted);
    if captured > BYTES as u32 {
        captured = BYTES as u32;
    }
    if captured > 0 {
        let source = record.data.buffer as *const _;
        // SAFETY: `bytes` has room for BYTES; the helper checks the source.
        let failed = unsafe { read_raw((&raw mut (*address).bytes).cast(), captured, source) };
        if failed != 0 {
            emit::count(DropReason::BufferUnreadable);
            captured = 0;
        }
    }
    // SAFETY: reserved memory of this size, aligned to 8; all bit patterns are valid.
    write_head(unsafe { &mut (*address).head }, record, captured);
    room.submit(emit::NO_WAKE_UP);
    captured
}

#[inline(always)]
fn write_head(head: &mut SocketData, record: &Record<'_>, captured: u32) {
    let Record {
        data, state, place, ..
    } = record;
    let (direction, opposite) = match data.direction {
        Direction::Inbound => (0, &state.outbound),
        Direction::Outbound => (flags::OUTBOUND, &state.inbound),
    };
    let length = HEAD_BYTES + captured as usize;
    head.header = emit::header(RecordKind::SocketData, length, record.now_ns);
    head.unit = record.traced.unit;
    head.connection = data.session.identity;
    // SAFETY: wire types without padding, aligned to 8.
    unsafe {
        copy_words(&raw mut head.addresses, &raw const state.addresses);
        copy_words(&raw mut head.other_flow, opposite);
    }
    head.position = place.position;
    head.original_length = data.moved;
    head.captured_length = captured;
    head.tcp_sequence = data.sequence;
    head.flags = flags::PLAINTEXT
        | direction
        | data.session.waiting
        | if place.turn_start {
            flags::TURN_START
        } else {
            0
        }
        | if state.complete == 1 {
            flags::COMPLETE
        } else {
            0
        };
    head.role = state.role;
    head.reserved = 0;
    head.task = data.task.id;
    head.task_parent = data.task.parent;
    head.task_next = data.task.next;
    head.task_allotted = data.task.allotted;
    head.task_left = data.task.left;
    head.descriptor = data.session.descriptor;
    head.tail = record.tail;
}
