//! The system call's registers -> the user buffer. The only loops over I/O vectors.
//!
//! The socket hooks run inside the system call, so its registers still say where the program's
//! buffer is. On return of a receive the kernel has just filled it; on return of a send it has
//! just read it: either way its pages are present.

use agent_common::{drop_reason::DropReason, limits};
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_probe_read_user, generated::bpf_probe_read_user as read_raw,
};

use crate::{
    maps::MESSAGES,
    read::task::{Registers, registers},
    scratch::Scratch,
};

/// System call numbers of x86-64, `arch/x86/entry/syscalls/syscall_64.tbl`.
pub(crate) mod system_call {
    pub(crate) const READ: i64 = 0;
    pub(crate) const WRITE: i64 = 1;
    pub(crate) const POLL: i64 = 7;
    pub(crate) const READV: i64 = 19;
    pub(crate) const WRITEV: i64 = 20;
    pub(crate) const SENDFILE: i64 = 40;
    pub(crate) const SENDTO: i64 = 44;
    pub(crate) const RECVFROM: i64 = 45;
    pub(crate) const SENDMSG: i64 = 46;
    pub(crate) const RECVMSG: i64 = 47;
    pub(crate) const FUTEX: i64 = 202;
    pub(crate) const PPOLL: i64 = 271;
    pub(crate) const SPLICE: i64 = 275;
    pub(crate) const RECVMMSG: i64 = 299;
    pub(crate) const SENDMMSG: i64 = 307;
    pub(crate) const IO_URING_ENTER: i64 = 426;
}

/// Code segment of 64-bit programs (`__USER_CS`); 32-bit ones number their calls differently.
pub(crate) const USER_CODE_SEGMENT: u16 = 0x33;

/// Sizes and offsets of `struct user_msghdr` and `struct mmsghdr` on 64-bit machines.
const MSGHDR_IOV: u64 = 16;
const MSGHDR_IOVLEN: u64 = 24;
const MMSGHDR_BYTES: u64 = 64;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct IoVector {
    pub(crate) base: u64,
    pub(crate) length: u64,
}

const VECTOR_BYTES: u32 = size_of::<IoVector>() as u32;

/// Where the bytes of the current call are in the program's memory.
#[derive(Clone, Copy)]
pub(crate) enum UserBuffer {
    Single(u64),
    Vector {
        address: u64,
        count: u64,
    },
    /// The call has no user buffer: sendfile, splice.
    Absent,
    /// There is one, but it is not known where.
    Unknown(DropReason),
}

/// How far a thread is in a message array.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MessageProgress {
    array: u64,
    next: u64,
}

/// Finds the buffer of the call that moved bytes just now.
#[inline(always)]
pub(crate) fn locate() -> UserBuffer {
    let Some(registers) = registers() else {
        return UserBuffer::Unknown(DropReason::KernelReadFailed);
    };
    if registers.code_segment != USER_CODE_SEGMENT {
        return UserBuffer::Unknown(DropReason::CompatSystemCall);
    }
    let [_, second, third] = registers.arguments;
    match registers.system_call {
        system_call::READ | system_call::WRITE | system_call::SENDTO | system_call::RECVFROM => {
            UserBuffer::Single(second)
        }
        system_call::READV | system_call::WRITEV => UserBuffer::Vector {
            address: second,
            count: third,
        },
        system_call::SENDMSG | system_call::RECVMSG => message(second),
        system_call::SENDMMSG | system_call::RECVMMSG => next_message(&registers),
        system_call::SENDFILE | system_call::SPLICE => UserBuffer::Absent,
        system_call::IO_URING_ENTER => UserBuffer::Unknown(DropReason::IoUring),
        _ => UserBuffer::Unknown(DropReason::UnknownSystemCall),
    }
}

/// Where the call's first byte is; `None` where that is not known, or where the call is one of
/// several in a message array.
#[inline(always)]
pub(crate) fn first_byte() -> Option<u64> {
    let registers = registers()?;
    if registers.code_segment != USER_CODE_SEGMENT {
        return None;
    }
    let [_, second, _] = registers.arguments;
    match registers.system_call {
        system_call::READ | system_call::WRITE | system_call::SENDTO | system_call::RECVFROM => {
            Some(second)
        }
        system_call::READV | system_call::WRITEV => read_word(second),
        system_call::SENDMSG | system_call::RECVMSG => read_word(read_word(second + MSGHDR_IOV)?),
        _ => None,
    }
}

#[inline(always)]
fn read_word(address: u64) -> Option<u64> {
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_user(address as *const u64) }.ok()
}

#[inline(always)]
fn message(header: u64) -> UserBuffer {
    let (Some(address), Some(count)) = (
        read_word(header + MSGHDR_IOV),
        read_word(header + MSGHDR_IOVLEN),
    ) else {
        return UserBuffer::Unknown(DropReason::BufferUnreadable);
    };
    UserBuffer::Vector { address, count }
}

/// The hook runs once per message, in order, within one system call.
#[inline(always)]
fn next_message(registers: &Registers) -> UserBuffer {
    let [_, array, count] = registers.arguments;
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread uses its entry.
    let index = match unsafe { MESSAGES.get(&thread) } {
        Some(progress) if progress.array == array && progress.next < count => progress.next,
        _ => 0,
    };
    if index + 1 >= count {
        let _ = MESSAGES.remove(&thread);
    } else {
        let _ = MESSAGES.insert(
            &thread,
            &MessageProgress {
                array,
                next: index + 1,
            },
            0,
        );
    }
    message(array + index * MMSGHDR_BYTES)
}

/// A call failed or ended the stream: a message array in progress ends with it.
#[inline(always)]
pub(crate) fn abandon_messages() {
    if let Some(registers) = registers()
        && matches!(
            registers.system_call,
            system_call::SENDMMSG | system_call::RECVMMSG
        )
    {
        let _ = MESSAGES.remove(&bpf_get_current_pid_tgid());
    }
}

/// Copies at most `wanted` of the call's bytes behind the area's head, and its I/O vectors behind
/// them; returns how many bytes, or why none.
///
/// # Safety
/// `area` is a valid scratch area that nobody else uses now.
#[inline(always)]
pub(crate) unsafe fn capture(
    buffer: UserBuffer,
    wanted: u32,
    area: *mut Scratch,
) -> Result<u32, DropReason> {
    match buffer {
        UserBuffer::Single(address) => {
            // SAFETY: offset 0, length clamped inside.
            if unsafe { copy((&raw mut (*area).bytes).cast(), 0, address, wanted) } {
                Ok(wanted)
            } else {
                Err(DropReason::BufferUnreadable)
            }
        }
        // SAFETY: as for this function.
        UserBuffer::Vector { address, count } => unsafe {
            capture_vector(address, count, wanted, area)
        },
        UserBuffer::Absent => Ok(0),
        UserBuffer::Unknown(reason) => Err(reason),
    }
}

/// # Safety
/// As for [`capture`].
#[inline(always)]
unsafe fn capture_vector(
    address: u64,
    count: u64,
    wanted: u32,
    area: *mut Scratch,
) -> Result<u32, DropReason> {
    // SAFETY: as for this function.
    let (out, vectors) = unsafe { (&raw mut (*area).bytes, &raw mut (*area).vectors) };
    // One read for all of them: each costs a tenth of the whole hook. The bound is stated where the
    // verifier wants it, see `copy`.
    let mut bytes = core::hint::black_box(count as u32).wrapping_mul(VECTOR_BYTES);
    if bytes > limits::IO_VECTORS as u32 * VECTOR_BYTES {
        bytes = limits::IO_VECTORS as u32 * VECTOR_BYTES;
    }
    // SAFETY: at most IO_VECTORS elements; the helper checks the source.
    if unsafe { read_raw(vectors.cast(), bytes, address as *const _) } != 0 {
        return Err(DropReason::BufferUnreadable);
    }
    let mut filled = 0u32;
    for index in 0..limits::IO_VECTORS {
        if index as u64 >= count || filled >= wanted {
            return Ok(filled);
        }
        // SAFETY: inside the array, which was just filled so far.
        let vector = unsafe { (*vectors)[index] };
        let room = u64::from(wanted - filled);
        let length = if vector.length > room {
            room
        } else {
            vector.length
        } as u32;
        // SAFETY: offset and length are bounded inside.
        if !unsafe { copy(out.cast(), filled, vector.base, length) } {
            return Err(DropReason::BufferUnreadable);
        }
        // The mask changes nothing, but makes the verifier forget how `filled` came about:
        // otherwise it follows every combination of lengths through the loop.
        filled = core::hint::black_box(filled + length) & (limits::CAPTURE_OFFSETS as u32 - 1);
    }
    if filled < wanted && count > limits::IO_VECTORS as u64 {
        crate::emit::count(DropReason::TooManyBuffers);
    }
    Ok(filled)
}

/// Copies `length` bytes of user memory to `out + offset`.
///
/// # Safety
/// As for [`capture`]: whatever the two values are, they are bounded to fit it.
#[inline(always)]
unsafe fn copy(out: *mut u8, offset: u32, source: u64, length: u32) -> bool {
    // The verifier forgets bounds that were proven far away ("R2 unbounded memory access"): both
    // are stated again right before the call, in a form the compiler cannot fold away.
    let offset = core::hint::black_box(offset) as usize & (limits::CAPTURE_OFFSETS - 1);
    let mut length = core::hint::black_box(length);
    if length > limits::CAPTURE_BYTES as u32 {
        length = limits::CAPTURE_BYTES as u32;
    }
    // SAFETY: offset + length <= SCRATCH_BYTES; the helper checks the source.
    unsafe { read_raw(out.add(offset).cast(), length, source as *const _) == 0 }
}

/// Shortest tail worth reading: the last chunk of a chunked body, `0\r\n\r\n`.
const SHORT_TAIL: u32 = 5;

/// The call's last bytes, right aligned; zeros when unknown. `area`: where [`capture`] left the
/// call's I/O vectors, null when it did not run.
#[inline(always)]
pub(crate) fn tail(buffer: UserBuffer, length: u32, area: *const Scratch) -> [u8; 8] {
    let end = match buffer {
        UserBuffer::Single(address) => address + u64::from(length),
        UserBuffer::Vector { address, count } => match vector_end(address, count, length, area) {
            Some(end) => end,
            None => return [0; 8],
        },
        UserBuffer::Absent | UserBuffer::Unknown(_) => return [0; 8],
    };
    if length >= 8 {
        return read_word(end - 8).unwrap_or(0).to_ne_bytes();
    }
    if length < SHORT_TAIL {
        return [0; 8];
    }
    let mut tail = [0u8; 8];
    // SAFETY: five bytes fit behind the third; the helper checks the source.
    unsafe {
        read_raw(
            tail.as_mut_ptr().add(3).cast(),
            SHORT_TAIL,
            (end - 5) as *const _,
        )
    };
    tail
}

/// End of the last element, when the call moved all of them and the element holds a whole tail.
#[inline(always)]
fn vector_end(address: u64, count: u64, length: u32, area: *const Scratch) -> Option<u64> {
    let last = count.checked_sub(1)?;
    let vector = if !area.is_null() && last < limits::IO_VECTORS as u64 {
        let index = core::hint::black_box(last) as usize & (limits::IO_VECTORS - 1);
        // SAFETY: inside the array of a valid area, as the caller promises.
        unsafe { (*area).vectors[index] }
    } else {
        let element = address + last * u64::from(VECTOR_BYTES);
        // SAFETY: the helper checks the address and fails instead of faulting.
        unsafe { bpf_probe_read_user(element as *const IoVector) }.ok()?
    };
    let whole_tail = if length >= 8 {
        8
    } else {
        u64::from(SHORT_TAIL)
    };
    (vector.length >= whole_tail && vector.length <= u64::from(length))
        .then_some(vector.base + vector.length)
}
