//! Reading the head of a request in steps, driven by the table of user space; the header is
//! written where the head ends.

use agent_common::{
    connection::Direction,
    injection::{
        EVENTS, HEADER_BYTES, InjectionOutcome, OutgoingStream, event, phase, proof, said, state,
    },
    limits,
};
use aya_ebpf::bindings::sk_msg_md;

use super::{
    inject::{count, leave},
    inject_context::{self, TraceContext},
    inject_message::{
        added, give_back, here, make_room, pull, pulled, put, put_byte, random, size, write_value,
    },
};
use crate::maps::CONNECTIONS;

/// What a step needs.
#[repr(C)]
pub(crate) struct Reading {
    pub(crate) msg: *mut sk_msg_md,
    pub(crate) stream: *mut OutgoingStream,
    pub(crate) table: *const u8,
    /// Free bytes of the send buffer.
    pub(crate) room: u64,
    /// 1: the socket leaves the map with the head of this request.
    pub(crate) is_blocking: u64,
}

const GO_ON: i64 = 0;
const STOP: i64 = 1;

/// One step: a body is skipped, or some bytes are read up to the first event.
///
/// # Safety
/// Called by `bpf_loop` with a [`Reading`] whose pointers are valid.
pub(crate) unsafe extern "C" fn step(_index: u64, reading: *mut Reading) -> i64 {
    // SAFETY: as promised by the caller.
    let (msg, found, table, room, is_blocking) = unsafe {
        (
            (*reading).msg,
            (*reading).stream,
            (*reading).table,
            (*reading).room,
            (*reading).is_blocking,
        )
    };
    // SAFETY: as above.
    let stream = unsafe { &mut *found };
    let size = size(msg);
    let offset = stream.offset;
    if stream.phase == phase::OFF || offset >= size {
        return STOP;
    }
    let left = size - offset;
    if stream.skip > 0 {
        let length = if stream.skip < u64::from(left) {
            stream.skip as u32
        } else {
            left
        };
        stream.skip -= u64::from(length);
        stream.skipped += u64::from(length);
        stream.offset = offset + length;
        return GO_ON;
    }
    if stream.state == state::START && !begin_request(stream) {
        return STOP;
    }
    let length = if left < limits::INJECT_STEP_BYTES as u32 {
        left
    } else {
        limits::INJECT_STEP_BYTES as u32
    };
    if !pull(msg, offset, offset + length) {
        leave(stream, InjectionOutcome::Unreadable);
        return STOP;
    }
    let (data, end) = pulled(msg);
    let mut row = stream.state;
    let mut last = 0u8;
    let mut read = 0u32;
    for index in 0..limits::INJECT_STEP_BYTES {
        if data + index + 1 > end {
            break;
        }
        // SAFETY: inside what was pulled, as the comparison shows the verifier.
        last = unsafe { core::ptr::read_volatile((data + index) as *const u8) };
        let place = (usize::from(row) << 8 | usize::from(last))
            & (agent_common::injection::GRAMMAR_BYTES - 1);
        // SAFETY: inside the table, by the mask.
        row = unsafe { core::ptr::read_volatile(table.add(place)) };
        read = index as u32 + 1;
        if row >= EVENTS {
            break;
        }
    }
    if read == 0 {
        leave(stream, InjectionOutcome::Unreadable);
        return STOP;
    }
    stream.offset = offset + read;
    stream.skipped = 0;
    if row < EVENTS {
        stream.state = row;
        return GO_ON;
    }
    if row == event::LAST_LINE {
        end_head(msg, stream, room);
        if is_blocking == 1 && stream.phase != phase::OFF {
            leave(stream, InjectionOutcome::Blocking);
        }
    } else {
        note(stream, row, last);
    }
    GO_ON
}

/// The first byte of a request comes next; false when it must not be one.
#[inline(always)]
fn begin_request(stream: &mut OutgoingStream) -> bool {
    // Whoever awaits an answer looks at no message before it, so only the first byte is one behind.
    if stream.phase == phase::AWAITED || stream.proof == proof::BEGUN {
        if stream.offset != 0 || !is_answered(stream) {
            leave(stream, InjectionOutcome::OutOfTurn);
            return false;
        }
        stream.phase = phase::FOLLOWED;
    }
    stream.proof = if stream.proof == proof::WANTED {
        count(InjectionOutcome::Adopted);
        proof::BEGUN
    } else {
        proof::DONE
    };
    stream.request_position = here(stream);
    stream.said = 0;
    stream.length = 0;
    true
}

/// Whether the program has received since it sent last.
#[inline(always)]
fn is_answered(stream: &OutgoingStream) -> bool {
    const ANSWERED: u8 = Direction::Inbound as u8 + 1;
    // SAFETY: copied at once.
    unsafe { CONNECTIONS.get(&stream.connection) }
        .is_some_and(|state| state.last_direction == ANSWERED)
}

/// Acts on what was recognised in a line, a chunk or at an end.
#[inline(always)]
fn note(stream: &mut OutgoingStream, what: u8, last: u8) {
    stream.state = match what {
        event::CONNECT => {
            stream.said |= said::CONNECT;
            state::TARGET
        }
        event::OLD_VERSION => {
            stream.said |= said::OLD_VERSION;
            state::VERSION_END
        }
        event::TRACEPARENT => {
            stream.said |= said::TRACEPARENT;
            state::VALUE
        }
        event::TRANSFER_ENCODING => {
            stream.said |= said::TRANSFER_ENCODING;
            state::VALUE
        }
        event::UPGRADE => {
            stream.said |= said::UPGRADE;
            state::VALUE
        }
        event::EXPECT => {
            stream.said |= said::EXPECT;
            state::VALUE
        }
        event::LENGTH => {
            if stream.said & said::LENGTH != 0 {
                leave(stream, InjectionOutcome::Ambiguous);
            }
            stream.said |= said::LENGTH;
            state::LENGTH
        }
        event::LENGTH_DIGIT => {
            digit(stream, 10, u64::from(last.wrapping_sub(b'0')));
            state::LENGTH_DIGITS
        }
        event::CHUNK_DIGIT => {
            // '0' to '9' is 0x30 on, 'A' to 'F' 0x41 on, 'a' to 'f' 0x61 on.
            let value = u64::from(last & 0x0f) + u64::from(last >> 6) * 9;
            digit(stream, 16, value);
            state::CHUNK_DIGITS
        }
        event::CHUNK_DATA => {
            let length = stream.length;
            stream.length = 0;
            stream.skip = length;
            if length == 0 {
                state::TRAILER
            } else {
                state::CHUNK_END
            }
        }
        event::HEAD_DONE => {
            end_of_head(stream);
            if stream.said & said::TRANSFER_ENCODING != 0 {
                state::CHUNK
            } else {
                state::START
            }
        }
        event::BODY_DONE => state::START,
        _ => {
            leave(stream, InjectionOutcome::NotHttp);
            state::START
        }
    };
}

/// Lengths beyond this are no lengths.
const LONGEST: u64 = 1 << 56;

#[inline(always)]
fn digit(stream: &mut OutgoingStream, base: u64, value: u64) {
    stream.length = stream.length * base + value;
    if stream.length > LONGEST {
        leave(stream, InjectionOutcome::Ambiguous);
    }
}

/// The whole head has been read: what comes behind it.
#[inline(always)]
fn end_of_head(stream: &mut OutgoingStream) {
    if stream.said & (said::CONNECT | said::UPGRADE | said::EXPECT) != 0 {
        leave(stream, InjectionOutcome::Switched);
        return;
    }
    let length = stream.length;
    stream.length = 0;
    if stream.said & said::LENGTH != 0 {
        stream.skip = length;
    } else if stream.said & (said::OLD_VERSION | said::TRANSFER_ENCODING) == said::OLD_VERSION {
        // A body may follow that ends with the connection.
        stream.phase = phase::AWAITED;
    }
}

/// The carriage return of the empty line: nothing but the line feed may follow, so the head is
/// whole.
#[inline(always)]
fn end_head(msg: *mut sk_msg_md, stream: &mut OutgoingStream, room: u64) {
    stream.state = state::HEAD_END;
    let next = stream.offset;
    if next < size(msg) {
        if !pull(msg, next, next + 1) {
            leave(stream, InjectionOutcome::Unreadable);
            return;
        }
        let (data, end) = pulled(msg);
        // SAFETY: inside what was pulled, as the comparison shows the verifier.
        if data + 1 > end || unsafe { core::ptr::read_volatile(data as *const u8) } != b'\n' {
            leave(stream, InjectionOutcome::NotHttp);
            return;
        }
    }
    if stream.said & (said::LENGTH | said::TRANSFER_ENCODING)
        == said::LENGTH | said::TRANSFER_ENCODING
    {
        leave(stream, InjectionOutcome::Ambiguous);
    } else if stream.said & said::CONNECT != 0 {
        // Counted when the head is over.
    } else if stream.said & said::TRACEPARENT != 0 {
        count(InjectionOutcome::AlreadyPresent);
    } else if stream.proof != proof::DONE {
        count(InjectionOutcome::Proof);
    } else {
        inject(msg, stream, room);
    }
}

/// Puts the header before the carriage return that was read last. All or nothing.
#[inline(always)]
fn inject(msg: *mut sk_msg_md, stream: &mut OutgoingStream, room: u64) {
    let at = stream.offset.wrapping_sub(1);
    let context = inject_context::of_call(stream);
    if !context.is_known() {
        count(InjectionOutcome::TraceUnknown);
        return;
    }
    if let Err(outcome) = make_room(msg, at, HEADER_BYTES, room) {
        count(outcome);
        return;
    }
    let span_id = random();
    if !write(msg, at, &context, span_id) {
        stream.is_spoiled = give_back(msg, at, HEADER_BYTES);
        count(InjectionOutcome::NoRoom);
        return;
    }
    let added_at = here(stream).wrapping_sub(1);
    stream.offset += HEADER_BYTES;
    stream.added += HEADER_BYTES;
    added(stream, added_at, HEADER_BYTES, &context, span_id);
}

/// Writes the header over the bytes that were made for it.
#[inline(always)]
fn write(msg: *mut sk_msg_md, at: u32, context: &TraceContext, span_id: u64) -> bool {
    if !pull(msg, at, at + HEADER_BYTES) {
        return false;
    }
    let (data, end) = pulled(msg);
    if data + HEADER_BYTES as usize > end {
        return false;
    }
    // SAFETY: inside the header, whose bounds were compared above; the processor takes words at
    // any address.
    unsafe {
        put(data, u64::from_ne_bytes(*b"tracepar"));
        put(data + 8, u64::from_ne_bytes(*b"ent: 00-"));
        write_value(data + VALUE, context, span_id);
        put_byte(data + 68, b'\r');
        put_byte(data + 69, b'\n');
    }
    true
}

/// Behind the header's name.
const VALUE: usize = 13;
