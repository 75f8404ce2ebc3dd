//! Connections of HTTP/2: frame headers and what is worth it behind them, instead of the first
//! bytes of turns. The walk itself is [`agent_common::frames`].
//!
//! A connection gets here in one of two ways: its first bytes are a client's preface, or user space
//! found frames on it and put it into [`FRAMES`]. No other connection pays for it: what tells is a
//! byte of its state, and a count of what user space has put in.

use agent_common::{
    connection::{ConnectionState, Direction},
    drop_reason::DropReason,
    frames::{
        self, ASTRAY, Call, FrameFlow, FrameState, LEFT_ALONE, Next, PIECE_HEAD_BYTES,
        PREFACE_BYTES, PREFACE_WORD, Walk,
    },
    limits,
    payload::{SocketData, flags},
    record::RecordKind,
};
use aya_ebpf::helpers::{bpf_probe_read_user, generated::bpf_probe_read_user as read_raw};

use crate::{
    emit,
    hooks::{inject_frames, socket_data::Transfer},
    maps::{FRAMES, FRAMES_CHANGED, SCRATCH, WALKS, config},
    scratch::{self, HEAD_BYTES, Scratch},
    user_buffer::{IoVector, UserBuffer},
};

/// How often user space has changed [`FRAMES`].
#[inline(always)]
pub(crate) fn changes() -> u32 {
    FRAMES_CHANGED.get(0).copied().unwrap_or(0)
}

/// Whether frames of this connection are followed. User space changes that by [`FRAMES`], and says
/// by a count that it did, so that only then the map is looked at.
#[inline(always)]
pub(crate) fn are_followed(identity: u64, state: &mut ConnectionState) -> bool {
    let changes = changes();
    if state.frames_seen != changes {
        state.frames_seen = changes;
        // SAFETY: copied at once.
        match unsafe { FRAMES.get(&identity) }.map(|known| known.following) {
            Some(LEFT_ALONE) => {
                state.frames = 0;
                let _ = FRAMES.remove(&identity);
            }
            Some(_) => state.frames = 1,
            None => {}
        }
    }
    state.frames == 1
}

/// Whether the connection's first bytes, which are in `area`, are a client's preface. Then its
/// frames are followed from there on, and this call has not been looked at.
#[inline(always)]
pub(crate) fn begin(
    identity: u64,
    state: &mut ConnectionState,
    direction: Direction,
    area: *const Scratch,
    captured: u32,
) -> bool {
    if captured < PREFACE_BYTES {
        return false;
    }
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "the area's bytes follow a head of whole words"
    )]
    // SAFETY: the area's bytes are aligned to 8 and at least as many.
    let word = unsafe { (&raw const (*area).bytes).cast::<u64>().read_volatile() };
    if word != u64::from_ne_bytes(PREFACE_WORD) {
        return false;
    }
    let client = FrameFlow::sure(PREFACE_BYTES);
    // A server may speak first; what it says then is whole frames.
    let server = FrameFlow::SEEKING;
    let (inbound, outbound) = match direction {
        Direction::Inbound => (client, server),
        Direction::Outbound => (server, client),
    };
    let begun = FrameState {
        inbound,
        outbound,
        ..FrameState::SEEKING
    };
    if FRAMES.insert(&identity, &begun, 0).is_err() {
        return false;
    }
    state.frames = 1;
    true
}

/// A walk and what it goes over.
#[repr(C)]
pub(crate) struct Progress {
    walk: Walk,
    source: Source,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Source {
    identity: u64,
    /// Of the only buffer, or of the I/O vectors.
    address: u64,
    /// I/O vectors; [`SINGLE`]: there is one buffer.
    count: u64,
    /// Of the call's first byte.
    position: u64,
    moved: u32,
    sequence: u32,
    is_outbound: u32,
    reserved: u32,
}

const SINGLE: u64 = u64::MAX;

/// The call whose bytes are walked.
struct Bytes {
    source: *const Source,
    area: *mut Scratch,
}

impl Bytes {
    #[inline(always)]
    fn place(&self, at: u32) -> *mut u8 {
        // The verifier wants the bound next to the access, on this very value.
        let at = core::hint::black_box(at) as usize & (limits::CAPTURE_OFFSETS - 1);
        // SAFETY: below SCRATCH_BYTES by more than CAPTURE_BYTES.
        unsafe { (&raw mut (*self.area).bytes).cast::<u8>().add(at) }
    }
}

impl Call for Bytes {
    #[inline(always)]
    fn buffer(&self, index: u32) -> Option<(u64, u64)> {
        // SAFETY: a valid pointer into a map's value.
        let source = unsafe { &*self.source };
        if source.count == SINGLE {
            return Some((source.address, u64::from(source.moved)));
        }
        if u64::from(index) >= source.count {
            return None;
        }
        let element = source.address + u64::from(index) * size_of::<IoVector>() as u64;
        // SAFETY: the helper checks the address and fails instead of faulting.
        let vector = unsafe { bpf_probe_read_user(element as *const IoVector) }.ok()?;
        Some((vector.base, vector.length))
    }

    #[inline(always)]
    fn copy(&self, to: u32, from: u64, length: u32) -> bool {
        let place = self.place(to);
        let mut length = core::hint::black_box(length);
        if length > frames::BLOCK_BYTES {
            length = frames::BLOCK_BYTES;
        }
        // SAFETY: a block fits behind any place; the helper checks the source.
        unsafe { read_raw(place.cast(), length, from as *const _) == 0 }
    }

    #[inline(always)]
    fn word(&self, at: u32) -> u64 {
        // SAFETY: eight bytes fit behind any place.
        unsafe { self.place(at).cast::<u64>().read_unaligned() }
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        // SAFETY: one byte fits behind any place.
        unsafe { self.place(at).read() }
    }

    #[inline(always)]
    fn put(&self, at: u32, word: u64) {
        // SAFETY: as above.
        unsafe { self.place(at).cast::<u64>().write_unaligned(word) }
    }

    #[inline(always)]
    fn write(&self, from: u32, covered: u32, kept: u32) {
        // SAFETY: as above; the scratch area's head, which the caller has filled in.
        let (source, record) = unsafe { (&*self.source, &mut *self.area.cast::<SocketData>()) };
        record.header.kind = RecordKind::FrameData as u16;
        record.header.length = HEAD_BYTES as u32 + kept;
        record.position = source.position + u64::from(from);
        record.original_length = covered;
        record.captured_length = kept;
        if source.sequence != 0 {
            record.tcp_sequence = source.sequence.wrapping_add(from);
        }
        if from > 0 {
            record.flags &= !flags::TURN_START;
        }
        emit::scratch_record(self.area, HEAD_BYTES, kept);
    }
}

/// Whether the call adds nothing that is wanted; then its bytes are counted.
#[inline(always)]
pub(crate) fn passes(identity: u64, direction: Direction, moved: u32) -> bool {
    let Some(flow) = flow(identity, direction) else {
        return false;
    };
    if flow.passes(moved) {
        flow.ahead -= moved;
        return true;
    }
    false
}

#[inline(always)]
fn flow(identity: u64, direction: Direction) -> Option<&'static mut FrameFlow> {
    let state = FRAMES.get_ptr_mut(&identity)?;
    // SAFETY: a pointer into the map's value; only calls of one direction use its flow.
    Some(unsafe {
        match direction {
            Direction::Inbound => &mut (*state).inbound,
            Direction::Outbound => &mut (*state).outbound,
        }
    })
}

/// Prepares a walk over a call's bytes that writes what is wanted of them ([`walk_frames`]); `None`
/// when they cannot be read. The head of the scratch area is filled in.
#[inline(always)]
pub(crate) fn prepare(transfer: &Transfer, identity: u64, buffer: UserBuffer) -> Option<()> {
    let moved = transfer.result as u32;
    let (address, count) = match buffer {
        UserBuffer::Single(address) => (address, SINGLE),
        UserBuffer::Vector { address, count } => (address, count),
        UserBuffer::Absent | UserBuffer::Unknown(_) => {
            flow(identity, transfer.direction)?.pass_unread(moved);
            return None;
        }
    };
    let area = scratch::area(transfer.slot)?;
    let progress = WALKS.get_ptr_mut(transfer.slot as u32)?;
    // SAFETY: the scratch area's head, and a map's value that nobody else uses now.
    unsafe {
        let record = &*area.cast::<SocketData>();
        (*progress).source = Source {
            identity,
            address,
            count,
            position: record.position,
            moved,
            sequence: record.tcp_sequence,
            is_outbound: u32::from(matches!(transfer.direction, Direction::Outbound)),
            reserved: 0,
        };
    }
    Some(())
}

/// A walk over the call of a slot. A global function: it is verified on its own, once, whatever its
/// callers know (Linux 5.6), and takes numbers only.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn walk_frames(slot: u32) -> u32 {
    let Some((progress, area)) = progress(slot) else {
        return 0;
    };
    let source = progress.source;
    let direction = if source.is_outbound == 1 {
        Direction::Outbound
    } else {
        Direction::Inbound
    };
    let Some(flow) = flow(source.identity, direction) else {
        // Others needed the room: the next call is looked at anew.
        let _ = FRAMES.insert(&source.identity, &FrameState::SEEKING, 0);
        emit::count(DropReason::FramesForgotten);
        return 0;
    };
    let bytes = Bytes {
        source: &raw const progress.source,
        area,
    };
    let room = limits::CAPTURE_BYTES as u32;
    progress.walk.begin(&bytes, *flow, source.moved, room);
    for _ in 0..limits::FRAME_STEPS / STEPS_AT_ONCE {
        if step_frames(slot) == 0 {
            break;
        }
    }
    let walk = &mut progress.walk;
    if walk.is_unfinished() {
        if walk.flow.trust != ASTRAY {
            emit::count(DropReason::FramesBeyondLimit);
        }
        walk.give_up();
    }
    if walk.went_astray == 1 {
        emit::count(DropReason::FramesAstray);
    }
    walk.finish(&bytes, source.moved);
    *flow = walk.flow;
    if config!(inject_headers) == 1 && source.position == 0 && walk.has_first_piece() {
        inject_frames::received(source.identity, direction, area, source.moved);
    }
    0
}

/// Steps taken for one look at the maps.
const STEPS_AT_ONCE: u32 = 4;

/// Some steps of the walk of a slot; 0 when it has ended. A global function, as above.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn step_frames(slot: u32) -> u32 {
    let Some((progress, area)) = progress(slot) else {
        return 0;
    };
    let bytes = Bytes {
        source: &raw const progress.source,
        area,
    };
    for _ in 0..STEPS_AT_ONCE {
        // What a step leaves behind is in memory, where the verifier does not follow it.
        let walk = core::hint::black_box(&mut progress.walk);
        match walk.step(&bytes) {
            Next::Step => {}
            Next::Finish => return 0,
            Next::Unreadable => {
                emit::count(DropReason::BufferUnreadable);
                return 0;
            }
        }
    }
    1
}

#[inline(always)]
fn progress(slot: u32) -> Option<(&'static mut Progress, *mut Scratch)> {
    let progress = WALKS.get_ptr_mut(slot)?;
    let area = SCRATCH.get_ptr_mut(slot)?;
    // SAFETY: a map's value that nobody else uses now.
    Some((unsafe { &mut *progress }, area))
}

const _: () = assert!(
    limits::CAPTURE_BYTES as u32 > frames::BLOCK_BYTES + 2 * PIECE_HEAD_BYTES,
    "a block fits"
);
