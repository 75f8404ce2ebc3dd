//! Reading the frames of HTTP/2 that a client sends; a field is added where the header block of a
//! request ends. What is understood of them is [`agent_common::outgoing_frames`].
//!
//! Streams run side by side, and whoever writes one may do so for others. So a call that leaves
//! here begins a trace of its own: nothing proves which request it is made for.

use agent_common::{
    connection::Direction,
    injection::{InjectionOutcome, OutgoingStream, phase},
    outgoing_frames::{
        FIELD_BEGIN, FIELD_BYTES, MAX_HEADER_LIST_SIZE, OutgoingFrames, PREFACE, PeerSettings,
        Reached, UNLIMITED,
    },
};
use aya_ebpf::bindings::{BPF_NOEXIST, sk_msg_md};

use super::{
    inject::{count, leave},
    inject_context::TraceContext,
    inject_message::{
        added, give_back, here, make_room, pull, pulled, put, put_byte, random, size, write_value,
    },
};
use crate::{
    maps::{OUTGOING_FRAMES, PEER_SETTINGS},
    scratch::Scratch,
};

/// What a step needs.
#[repr(C)]
pub(crate) struct Reading {
    pub(crate) msg: *mut sk_msg_md,
    pub(crate) stream: *mut OutgoingStream,
    pub(crate) frames: *mut OutgoingFrames,
    /// Free bytes of the send buffer.
    pub(crate) room: u64,
}

const GO_ON: i64 = 0;
const STOP: i64 = 1;

/// Words of the preface.
const PREFACE_WORDS: [u64; 3] = {
    let mut words = [0u64; 3];
    let mut index = 0;
    while index < PREFACE.len() {
        words[index / 8] |= (PREFACE[index] as u64) << (index % 8 * 8);
        index += 1;
    }
    words
};

/// Whether the first bytes of a connection are the preface: then it is followed frame by frame.
#[inline(always)]
pub(crate) fn begin(msg: *mut sk_msg_md, stream: &mut OutgoingStream) {
    let length = PREFACE.len() as u32;
    if size(msg) < length || !pull(msg, 0, length) {
        return;
    }
    let (data, end) = pulled(msg);
    if data + PREFACE.len() > end {
        return;
    }
    let word = |place: usize| {
        // SAFETY: inside what was pulled, as the comparison shows the verifier.
        unsafe { core::ptr::read_unaligned((data + place) as *const u64) }
    };
    if word(0) != PREFACE_WORDS[0] || word(8) != PREFACE_WORDS[1] || word(16) != PREFACE_WORDS[2] {
        return;
    }
    if OUTGOING_FRAMES
        .insert(&stream.connection, &OutgoingFrames::BEGIN, 0)
        .is_err()
    {
        leave(stream, InjectionOutcome::Refused);
        return;
    }
    stream.offset = length;
    stream.phase = phase::FRAMES;
}

/// The state of a connection that is followed, at the beginning of a message; null where there is
/// none, and the connection was given up.
#[inline(always)]
pub(crate) fn take_up(stream: &mut OutgoingStream) -> *mut OutgoingFrames {
    let Some(frames) = OUTGOING_FRAMES.get_ptr_mut(&stream.connection) else {
        leave(stream, InjectionOutcome::LostTrack);
        return core::ptr::null_mut();
    };
    // SAFETY: the socket's own entry, and the socket is locked.
    unsafe { (*frames).begin_message() };
    frames
}

/// Bytes of a message at most, more than the kernel puts into one (`MAX_MSG_FRAGS` pieces).
const MESSAGE_BYTES: u64 = 1 << 20;

/// Goes back by bytes that TCP did not take; false where it is not known what they are.
#[inline(always)]
pub(crate) fn take_back(stream: &OutgoingStream, unsent: u64) -> bool {
    let Some(frames) = OUTGOING_FRAMES.get_ptr_mut(&stream.connection) else {
        return false;
    };
    // SAFETY: as above.
    unsent <= MESSAGE_BYTES && unsafe { (*frames).take_back(unsent as u32) }
}

/// One step: a token is read, or a payload is skipped.
///
/// # Safety
/// Called by `bpf_loop` with a [`Reading`] whose pointers are valid.
pub(crate) unsafe extern "C" fn step(_index: u64, reading: *mut Reading) -> i64 {
    // SAFETY: as promised by the caller.
    let (msg, stream, frames, room) = unsafe {
        (
            (*reading).msg,
            &mut *(*reading).stream,
            &mut *(*reading).frames,
            (*reading).room,
        )
    };
    let size = size(msg);
    let offset = stream.offset;
    if stream.phase == phase::OFF || offset >= size {
        return STOP;
    }
    let there = size - offset;
    let mut bytes = 0;
    if frames.looks() {
        if frames.is_at_frame() {
            stream.request_position = here(stream);
        }
        let Some(next) = next_bytes(msg, offset, there) else {
            leave(stream, InjectionOutcome::Unreadable);
            return STOP;
        };
        bytes = next;
    }
    let step = frames.step(bytes, there, offset);
    stream.offset = offset + step.used;
    match step.reached {
        Reached::Nothing => {}
        Reached::Refused(outcome) => {
            leave(stream, outcome);
            return STOP;
        }
        Reached::Request => request(msg, stream, frames, room),
    }
    GO_ON
}

/// The next eight bytes, or as many as are left, the first one lowest.
#[inline(always)]
fn next_bytes(msg: *mut sk_msg_md, offset: u32, there: u32) -> Option<u64> {
    const WORD: usize = size_of::<u64>();
    let wanted = if there < WORD as u32 {
        there
    } else {
        WORD as u32
    };
    if !pull(msg, offset, offset + wanted) {
        return None;
    }
    let (data, end) = pulled(msg);
    if data + WORD <= end {
        // SAFETY: inside what was pulled, as the comparison shows the verifier.
        return Some(unsafe { core::ptr::read_unaligned(data as *const u64) });
    }
    let mut word = 0;
    for index in 0..WORD - 1 {
        if data + index + 1 > end {
            break;
        }
        // SAFETY: as above.
        let byte = unsafe { core::ptr::read_volatile((data + index) as *const u8) };
        word |= u64::from(byte) << (index * 8);
    }
    Some(word)
}

/// The block of a request has ended.
#[inline(always)]
fn request(
    msg: *mut sk_msg_md,
    stream: &mut OutgoingStream,
    frames: &mut OutgoingFrames,
    room: u64,
) {
    // SAFETY: copied at once.
    let peer = unsafe { PEER_SETTINGS.get(&stream.connection) }.copied();
    let outcome = frames.judge(peer);
    if !matches!(outcome, InjectionOutcome::Injected) {
        count(outcome);
        return;
    }
    // Before the last byte of the block, which comes again behind the room: nothing may be put
    // behind a message's last byte.
    let at = stream.offset.wrapping_sub(1);
    if let Err(outcome) = make_room(msg, at, FIELD_BYTES, room) {
        count(outcome);
        return;
    }
    let context = TraceContext::new();
    let span_id = random();
    if !write(msg, at, frames, &context, span_id) {
        stream.is_spoiled = give_back(msg, at, FIELD_BYTES);
        if stream.is_spoiled == 1 {
            leave(stream, InjectionOutcome::NoRoom);
        } else {
            count(InjectionOutcome::NoRoom);
        }
        return;
    }
    let added_at = here(stream);
    stream.offset += FIELD_BYTES;
    stream.added += FIELD_BYTES;
    frames.at_once += 1;
    added(stream, added_at, FIELD_BYTES, &context, span_id);
}

/// Bytes of a frame up to the end of its block: header and the longest payload.
const LONGEST: usize = 9 + 16 * 1024;

/// Writes the field behind the block, and the frame's length. Nothing is written before all is
/// sure to be.
#[inline(always)]
fn write(
    msg: *mut sk_msg_md,
    at: u32,
    frames: &OutgoingFrames,
    context: &TraceContext,
    span_id: u64,
) -> bool {
    let begin = frames.frame_at;
    if !pull(msg, begin, at + 1 + FIELD_BYTES) {
        return false;
    }
    let (data, end) = pulled(msg);
    // The verifier wants the bound on this very value.
    let before = core::hint::black_box(at.wrapping_sub(begin)) as usize;
    if before > LONGEST || data + 3 > end {
        return false;
    }
    let place = data + before;
    if place + 1 + FIELD_BYTES as usize > end {
        return false;
    }
    let word = |index: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&FIELD_BEGIN[index..index + 8]);
        u64::from_ne_bytes(word)
    };
    let [high, middle, low] = frames.grown();
    // SAFETY: inside the frame, as the comparisons show the verifier.
    unsafe {
        let last = core::ptr::read_volatile((place + FIELD_BYTES as usize) as *const u8);
        put_byte(place, last);
        put(place + 1, word(0));
        // Its last words overlap.
        put(
            place + 1 + FIELD_BEGIN.len() - 8,
            word(FIELD_BEGIN.len() - 8),
        );
        let value = place + 1 + FIELD_BEGIN.len();
        put_byte(value, b'0');
        put_byte(value + 1, b'0');
        put_byte(value + 2, b'-');
        write_value(value, context, span_id);
        put_byte(data, high);
        put_byte(data + 1, middle);
        put_byte(data + 2, low);
    }
    true
}

/// Bytes before the frames in the area of a walk: the head of the first piece.
const PIECE: usize = agent_common::frames::PIECE_HEAD_BYTES as usize;

/// Bytes of a frame's header, and of one of its settings.
const HEAD: usize = 9;
const SETTING: usize = 6;

/// Settings of one frame that are looked at here: more than HTTP/2 and its extensions have.
const SETTINGS: usize = 16;

/// The first bytes of a server's side are in `area`: its settings, if they came whole. Else user
/// space finds them, some milliseconds later.
#[inline(always)]
pub(crate) fn received(connection: u64, direction: Direction, area: *const Scratch, moved: u32) {
    if matches!(direction, Direction::Outbound) {
        return;
    }
    // SAFETY: copied at once.
    if unsafe { OUTGOING_FRAMES.get(&connection) }.is_none() {
        return;
    }
    let at = |place: usize| {
        // SAFETY: a place in the area, whose bytes are more than these.
        unsafe { core::ptr::read_volatile((&raw const (*area).bytes).cast::<u8>().add(place)) }
    };
    let kept = u32::from_ne_bytes([at(4), at(5), at(6), at(7)]);
    let begins_at_first = at(0) | at(1) | at(2) | at(3) == 0;
    let head = PIECE;
    let length = u32::from(at(head + 1)) << 8 | u32::from(at(head + 2));
    // No frame of settings is longer; neither an acknowledgement nor on a stream.
    let is_settings = at(head) == 0 && at(head + 3) == 4 && at(head + 4) == 0;
    let stream = at(head + 5) | at(head + 6) | at(head + 7) | at(head + 8);
    let there = if kept < moved { kept } else { moved };
    let is_whole = HEAD as u32 + length <= there && length as usize <= SETTINGS * SETTING;
    if !begins_at_first || !is_settings || stream != 0 || !is_whole {
        return;
    }
    let mut list_limit = UNLIMITED;
    for index in 0..SETTINGS {
        if index * SETTING >= length as usize {
            break;
        }
        let place = PIECE + HEAD + index * SETTING;
        if u16::from_be_bytes([at(place), at(place + 1)]) == MAX_HEADER_LIST_SIZE {
            list_limit =
                u32::from_be_bytes([at(place + 2), at(place + 3), at(place + 4), at(place + 5)]);
        }
    }
    let settings = PeerSettings {
        seen: 1,
        list_limit,
    };
    // User space may know more by now.
    let _ = PEER_SETTINGS.insert(&connection, &settings, u64::from(BPF_NOEXIST));
}

/// The connection is gone.
#[inline(always)]
pub(crate) fn destroyed(connection: u64) {
    let _ = OUTGOING_FRAMES.remove(&connection);
    let _ = PEER_SETTINGS.remove(&connection);
}
