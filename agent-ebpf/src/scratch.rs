//! Per-CPU space for records that do not fit the 512-byte stack.

use agent_common::{limits, payload::SocketData};

use crate::{maps::SCRATCH, user_buffer::IoVector};

/// One slot per program that fills a record. The kernel never runs the same program twice at once
/// on a CPU, but a program may interrupt another one.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Slot {
    Send = 0,
    Receive = 1,
    Exec = 2,
    State = 3,
    Send6 = 4,
    Receive6 = 5,
    SendUnix = 6,
    ReceiveUnix = 7,
}

/// Bytes before the captured ones: the largest fixed part of a record.
pub(crate) const HEAD_BYTES: usize = size_of::<SocketData>();

#[repr(C, align(8))]
pub(crate) struct Scratch {
    pub(crate) head: [u8; HEAD_BYTES],
    pub(crate) bytes: [u8; limits::SCRATCH_BYTES],
    /// The call's I/O vectors, as many as were read.
    pub(crate) vectors: [IoVector; limits::IO_VECTORS],
}

/// The slot's area on this CPU.
#[inline(always)]
pub(crate) fn area(slot: Slot) -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(slot as u32)
}

/// Copies a wire type word by word: the compiler would call `memmove`, a loop over bytes that costs
/// at run time and in the verifier.
///
/// # Safety
/// Both pointers are valid for `T` and aligned to 8; `T` has no padding.
#[inline(always)]
pub(crate) unsafe fn copy_words<T: Copy>(to: *mut T, from: *const T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && size_of::<T>() <= 256) };
    let mut index = 0;
    while index < size_of::<T>() / 8 {
        // SAFETY: inside `T`, as the caller promises; volatile keeps the loop from being fused.
        unsafe {
            let word = from.cast::<u64>().add(index).read_volatile();
            to.cast::<u64>().add(index).write_volatile(word);
        }
        index += 1;
    }
}

/// Zeroes a wire type word by word, see [`copy_words`].
///
/// # Safety
/// As for [`copy_words`]; zero is valid for `T`.
#[inline(always)]
pub(crate) unsafe fn zero_words<T: Copy>(to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && size_of::<T>() <= 256) };
    let mut index = 0;
    while index < size_of::<T>() / 8 {
        // SAFETY: inside `T`, as the caller promises.
        unsafe { to.cast::<u64>().add(index).write_volatile(0) };
        index += 1;
    }
}

const _: () = assert!(size_of::<Scratch>() <= 32 * 1024, "PCPU_MIN_UNIT_SIZE");
const _: () = assert!(
    HEAD_BYTES.is_multiple_of(8),
    "captured bytes follow the head without padding"
);
