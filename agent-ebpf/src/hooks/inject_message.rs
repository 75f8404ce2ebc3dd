//! A message that is about to leave: its bytes, and room for more.

use agent_common::{
    injection::{ContextMinted, InjectionOutcome, OutgoingStream},
    limits,
    record::RecordKind,
};
use aya_ebpf::{
    bindings::sk_msg_md,
    helpers::{
        bpf_msg_pop_data, bpf_msg_push_data,
        generated::{bpf_get_prandom_u32, bpf_msg_pull_data},
    },
};

use super::{inject::count, inject_context::TraceContext};
use crate::emit;

/// Room in the send buffer beyond what stands before a header: the header and what the kernel's own
/// bookkeeping of a packet takes.
const ROOM_BYTES: u64 = 4096;

#[inline(always)]
pub(crate) fn size(msg: *mut sk_msg_md) -> u32 {
    // SAFETY: a field of the context.
    unsafe { core::ptr::read_volatile(&raw const (*msg).size) }
}

#[inline(always)]
pub(crate) fn pull(msg: *mut sk_msg_md, from: u32, to: u32) -> bool {
    // SAFETY: the context is the program's own.
    unsafe { bpf_msg_pull_data(msg, from, to, 0) == 0 }
}

/// First byte and end of what was pulled last.
#[inline(always)]
pub(crate) fn pulled(msg: *mut sk_msg_md) -> (usize, usize) {
    // SAFETY: fields of the context.
    unsafe {
        (
            core::ptr::read_volatile(&raw const (*msg).__bindgen_anon_1.data) as usize,
            core::ptr::read_volatile(&raw const (*msg).__bindgen_anon_2.data_end) as usize,
        )
    }
}

/// Whether the message lies in several pieces of memory. Before anything was pulled.
#[inline(always)]
pub(crate) fn is_in_pieces(msg: *mut sk_msg_md) -> bool {
    let (data, end) = pulled(msg);
    end.wrapping_sub(data) < size(msg) as usize
}

/// Puts the message into one piece. Where there is no memory for it, it leaves as it is.
#[inline(always)]
pub(crate) fn join_pieces(msg: *mut sk_msg_md) {
    let size = size(msg);
    if size <= limits::INJECT_PIECE {
        pull(msg, 0, size);
    }
}

/// Position of the next byte as the program counts.
#[inline(always)]
pub(crate) fn here(stream: &OutgoingStream) -> u64 {
    stream.position + u64::from(stream.offset.wrapping_sub(stream.added))
}

/// Makes room for so many bytes before the byte at `at`, or says why not.
#[inline(always)]
pub(crate) fn make_room(
    msg: *mut sk_msg_md,
    at: u32,
    bytes: u32,
    room: u64,
) -> Result<(), InjectionOutcome> {
    if at > limits::INJECT_OFFSET {
        return Err(InjectionOutcome::NoRoom);
    }
    // Had TCP to stop before the end of the header, the kernel would tell the program a wrong
    // number of bytes (`tcp_bpf_send_verdict` subtracts what was added).
    if u64::from(at) + ROOM_BYTES > room {
        return Err(InjectionOutcome::BufferFull);
    }
    // In one piece from its beginning: the kernel computes the rest of a later piece wrongly
    // (`rsge.offset += start` in `bpf_msg_push_data`).
    if !pull(msg, 0, at + 1) {
        return Err(InjectionOutcome::NoRoom);
    }
    // SAFETY: the context is the program's own.
    if unsafe { bpf_msg_push_data(msg, at, bytes, 0) } != 0 {
        return Err(InjectionOutcome::NoRoom);
    }
    Ok(())
}

/// Takes room back that could not be written to; 1 when that fails, too, and the message must not
/// leave.
#[inline(always)]
pub(crate) fn give_back(msg: *mut sk_msg_md, at: u32, bytes: u32) -> u8 {
    // SAFETY: the context is the program's own.
    u8::from(unsafe { bpf_msg_pop_data(msg, at, bytes, 0) } != 0)
}

/// Something was added before the byte at this position: user space is told.
#[inline(always)]
pub(crate) fn added(
    stream: &OutgoingStream,
    added_at: u64,
    added: u32,
    context: &TraceContext,
    span_id: u64,
) {
    count(InjectionOutcome::Injected);
    if stream.is_trial == 0 {
        emit::record(&ContextMinted {
            header: emit::header(
                RecordKind::ContextMinted,
                size_of::<ContextMinted>(),
                emit::now_ns(),
            ),
            connection: stream.connection,
            position: stream.request_position,
            added_at,
            trace_id: context.trace_id,
            span_id,
            added,
            trace_flags: context.flags,
        });
    }
}

/// A random number that is not 0.
#[inline(always)]
pub(crate) fn random() -> u64 {
    // SAFETY: no preconditions.
    let (high, low) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    let number = u64::from(high) << 32 | u64::from(low);
    if number == 0 { 1 } else { number }
}

/// Writes eight bytes, the first one lowest.
///
/// # Safety
/// The verifier knows that they are inside the message.
#[inline(always)]
pub(crate) unsafe fn put(place: usize, word: u64) {
    // SAFETY: as promised by the caller; the processor takes words at any address.
    unsafe { core::ptr::write_unaligned(place as *mut u64, word) };
}

/// # Safety
/// As [`put`].
#[inline(always)]
pub(crate) unsafe fn put_byte(place: usize, value: u8) {
    // SAFETY: as promised by the caller.
    unsafe { core::ptr::write_volatile(place as *mut u8, value) };
}

/// Writes `00-TRACE-SPAN-FLAGS`, 55 bytes of which the first three are there or written by others.
///
/// # Safety
/// As [`put`], for all of them.
#[inline(always)]
pub(crate) unsafe fn write_value(place: usize, context: &TraceContext, span_id: u64) {
    let [high, low] = context.trace_id;
    let flags = if context.flags & 1 == 1 { b'1' } else { b'0' };
    // SAFETY: as promised by the caller.
    unsafe {
        put(place + 3, hexadecimal(high as u32));
        put(place + 11, hexadecimal((high >> 32) as u32));
        put(place + 19, hexadecimal(low as u32));
        put(place + 27, hexadecimal((low >> 32) as u32));
        put_byte(place + 35, b'-');
        put(place + 36, hexadecimal(span_id as u32));
        put(place + 44, hexadecimal((span_id >> 32) as u32));
        put_byte(place + 52, b'-');
        put_byte(place + 53, b'0');
        put_byte(place + 54, flags);
    }
}

/// Four bytes as eight digits, first byte first.
#[inline(always)]
fn hexadecimal(bytes: u32) -> u64 {
    const NIBBLES: u64 = 0x0f0f_0f0f_0f0f_0f0f;
    // Each byte to two: spread out, then the high half of each before its low half.
    let mut spread = u64::from(bytes);
    spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    let digits = (spread >> 4 | spread << 8) & NIBBLES;
    // Digits above 9 are letters: adding 6 carries exactly those into the upper half.
    let letters = (digits + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    digits + 0x3030_3030_3030_3030 + letters * 39
}
