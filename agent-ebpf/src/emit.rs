//! Records into the ring buffer; what does not fit is counted.
//!
//! The reader is never woken: a wake-up per record halved nginx's throughput when it was tried. It
//! polls every few milliseconds, in which time the buffer does not fill (2 MiB for each processor
//! in 10 ms would be 200 MB/s of captured bytes from each).

use agent_common::{
    drop_reason::DropReason,
    limits,
    record::{RecordHeader, RecordKind},
};
use aya_ebpf::{bindings, helpers::generated::bpf_ktime_get_boot_ns};

use crate::{
    maps::{DROPS, RECORDS},
    scratch::{HEAD_BYTES, Scratch},
};

pub(crate) const NO_WAKE_UP: u64 = bindings::BPF_RB_NO_WAKEUP as u64;

/// Counts what is lost.
#[inline(always)]
pub(crate) fn count(reason: DropReason) {
    if let Some(counter) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: a valid pointer into this CPU's value; only this CPU writes it.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

#[inline(always)]
pub(crate) fn header(kind: RecordKind, length: usize, timestamp_ns: u64) -> RecordHeader {
    RecordHeader {
        kind: kind as u16,
        reserved: 0,
        length: length as u32,
        timestamp_ns,
    }
}

/// Writes a record of fixed size.
#[inline(always)]
pub(crate) fn record<T>(record: &T) {
    if RECORDS.output::<T>(record, NO_WAKE_UP).is_err() {
        count(DropReason::RingFull);
    }
}

/// Writes a record whose fixed part of `head` bytes ends where the captured bytes of `scratch`
/// begin, with `captured` of them. Returns whether it was written.
#[inline(always)]
pub(crate) fn scratch_record(scratch: *const Scratch, head: usize, captured: u32) -> bool {
    let skipped = HEAD_BYTES - head;
    // The verifier needs the bound next to the call, on this very value.
    let mut captured = captured as usize;
    if captured > limits::CAPTURE_BYTES {
        captured = limits::CAPTURE_BYTES;
    }
    // SAFETY: `head` is a constant of at most HEAD_BYTES, and head + captured ends inside Scratch.
    let data =
        unsafe { core::slice::from_raw_parts(scratch.cast::<u8>().add(skipped), head + captured) };
    let written = RECORDS.output::<[u8]>(data, NO_WAKE_UP).is_ok();
    if !written {
        count(DropReason::RingFull);
    }
    written
}
