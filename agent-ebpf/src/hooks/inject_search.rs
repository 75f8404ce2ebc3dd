//! The search for the `traceparent` of a request that a server reads.

use agent_common::{
    injection::{EVENTS, GRAMMAR_BYTES, event, state},
    limits,
};
use aya_ebpf::{
    cty::c_void,
    helpers::{bpf_probe_read_user_buf, generated::bpf_loop},
};

use super::inject_context::TraceContext;
use crate::{
    maps::{GRAMMAR, config},
    scratch::Scratch,
};

/// What follows an event when only the place of a `traceparent` is wanted.
static FOLLOWING: [u8; 256] = following();

const fn following() -> [u8; 256] {
    let mut table = [state::GIVEN_UP; 256];
    let mut row = 0;
    while row < EVENTS as usize {
        table[row] = row as u8;
        row += 1;
    }
    table[event::TRACEPARENT as usize] = state::FOUND;
    table[event::CONNECT as usize] = state::TARGET;
    table[event::OLD_VERSION as usize] = state::VERSION_END;
    table[event::LENGTH as usize] = state::LENGTH;
    table[event::LENGTH_DIGIT as usize] = state::LENGTH_DIGITS;
    table[event::TRANSFER_ENCODING as usize] = state::VALUE;
    table[event::UPGRADE as usize] = state::VALUE;
    table[event::EXPECT as usize] = state::VALUE;
    table
}

/// Bytes read between two looks at where the search is.
const BLOCK: usize = 16;

/// The context that a request carries; `UNKNOWN` when its head is longer than what is searched.
///
/// Not in steps of `bpf_loop`: kernels before 5.13 refuse a program that refers to a callback, even
/// where it is never called. And without branches within a block: the verifier remembers at most
/// 8,192 that it has yet to follow. So what is found stays found, and counts no more bytes.
#[inline(always)]
pub(super) fn inbound(area: *const Scratch, captured: u32) -> Option<TraceContext> {
    let table: *const u8 = GRAMMAR.get_ptr(0)?.cast();
    // SAFETY: a place in the area.
    let bytes: *const u8 = unsafe { (&raw const (*area).bytes).cast() };
    let searched = config!(context_bytes);
    let mut row = state::START;
    let mut read = 0u32;
    for block in 0..searched as usize / BLOCK {
        if block * BLOCK >= captured as usize || row >= state::FOUND {
            break;
        }
        for index in 0..BLOCK {
            // SAFETY: the area is longer than the search.
            let byte = unsafe { bytes.add(block * BLOCK + index).read_volatile() };
            let place = (usize::from(row) << 8 | usize::from(byte)) & (GRAMMAR_BYTES - 1);
            // SAFETY: inside the table, by the mask.
            let next = unsafe { table.add(place).read_volatile() };
            // SAFETY: the table has as many entries as a byte has values.
            row = unsafe {
                (&raw const FOLLOWING)
                    .cast::<u8>()
                    .add(usize::from(next))
                    .read_volatile()
            };
            // 1 below `FOUND`, which is 126.
            read += u32::from(row).wrapping_sub(u32::from(state::FOUND)) >> 31;
        }
    }
    if row < state::FOUND && searched < captured {
        return Some(TraceContext::UNKNOWN);
    }
    if row != state::FOUND {
        return None;
    }
    // Behind the colon.
    parse(bytes, limits::CAPTURE_OFFSETS, read + 1, captured)
}

/// Bytes read in one step of the search.
const STEP: u32 = 64;

/// The search for a `traceparent`.
#[repr(C)]
struct Search {
    table: *const u8,
    bytes: *const u8,
    captured: u32,
    /// Bytes read so far.
    read: u32,
    row: u32,
    reserved: u32,
}

/// Reads some bytes more.
///
/// # Safety
/// Called by `bpf_loop` with a [`Search`] whose pointers are valid.
unsafe extern "C" fn search(_index: u64, search: *mut Search) -> i64 {
    // SAFETY: as promised by the caller.
    let search = unsafe { &mut *search };
    let (table, bytes) = (search.table, search.bytes);
    let mut row = search.row;
    let mut read = search.read;
    for _ in 0..STEP {
        if read >= search.captured || row >= u32::from(state::FOUND) {
            break;
        }
        let place = read as usize & (limits::CAPTURE_OFFSETS - 1);
        // SAFETY: the area is longer than the mask.
        let byte = unsafe { bytes.add(place).read_volatile() };
        row = next(table, row, byte);
        read += 1;
    }
    search.row = row;
    search.read = read;
    i64::from(read >= search.captured || row >= u32::from(state::FOUND))
}

/// The state of the search behind one more byte.
#[inline(always)]
fn next(table: *const u8, row: u32, byte: u8) -> u32 {
    // The compiler knows a bound of `row` by a comparison before and would leave the mask out; the
    // verifier does not.
    let place = core::hint::black_box((row as usize) << 8 | usize::from(byte));
    // SAFETY: inside the table, by the mask.
    let event = unsafe { table.add(place & (GRAMMAR_BYTES - 1)).read_volatile() };
    // SAFETY: the table has as many entries as a byte has values.
    let followed = unsafe {
        (&raw const FOLLOWING)
            .cast::<u8>()
            .add(usize::from(event))
            .read_volatile()
    };
    u32::from(followed)
}

/// As [`inbound`], all of what was captured, with `bpf_loop`.
#[inline(always)]
pub(super) fn inbound_in_steps(area: *const Scratch, captured: u32) -> Option<TraceContext> {
    let table = GRAMMAR.get_ptr(0)?;
    // SAFETY: a place in the area.
    let bytes: *const u8 = unsafe { (&raw const (*area).bytes).cast() };
    let mut found = Search {
        table: table.cast(),
        bytes,
        captured,
        read: 0,
        row: state::START.into(),
        reserved: 0,
    };
    let step = search as unsafe extern "C" fn(u64, *mut Search) -> i64;
    // SAFETY: the callback and its context are of the shape that the helper wants.
    unsafe {
        bpf_loop(
            limits::CAPTURE_OFFSETS as u32 / STEP,
            step as *mut c_void,
            (&raw mut found).cast(),
            0,
        )
    };
    if found.row != u32::from(state::FOUND) {
        return None;
    }
    // Behind the colon.
    parse(bytes, limits::CAPTURE_OFFSETS, found.read, captured)
}

/// The search in what a program has in its memory.
#[repr(C)]
struct UserSearch {
    table: *const u8,
    address: u64,
    length: u32,
    /// Bytes read so far.
    read: u32,
    row: u32,
    reserved: u32,
    block: [u8; STEP as usize],
}

/// Reads some bytes more.
///
/// # Safety
/// Called by `bpf_loop` with a [`UserSearch`] whose table is valid.
unsafe extern "C" fn search_user(_index: u64, search: *mut UserSearch) -> i64 {
    const STOP: i64 = 1;
    // SAFETY: as promised by the caller.
    let search = unsafe { &mut *search };
    let address = search.address + u64::from(search.read);
    // SAFETY: the helper checks the address and fails instead of faulting. What is read behind the
    // end is not looked at.
    if unsafe { bpf_probe_read_user_buf(address as *const u8, &mut search.block) }.is_err() {
        return STOP;
    }
    let table = search.table;
    let mut row = search.row;
    let mut read = search.read;
    for byte in &search.block {
        if read >= search.length || row >= u32::from(state::FOUND) {
            break;
        }
        // SAFETY: a reference.
        let byte = unsafe { core::ptr::read_volatile(byte) };
        row = next(table, row, byte);
        read += 1;
    }
    search.row = row;
    search.read = read;
    i64::from(read >= search.length || row >= u32::from(state::FOUND))
}

/// The context that a request carries which a program has in its memory; with `bpf_loop`.
#[inline(always)]
pub(super) fn inbound_of_user(address: u64, length: u32) -> Option<TraceContext> {
    let mut found = UserSearch {
        table: GRAMMAR.get_ptr(0)?.cast(),
        address,
        length,
        read: 0,
        row: state::START.into(),
        reserved: 0,
        block: [0; STEP as usize],
    };
    let step = search_user as unsafe extern "C" fn(u64, *mut UserSearch) -> i64;
    // SAFETY: the callback and its context are of the shape that the helper wants.
    unsafe {
        bpf_loop(
            limits::CAPTURE_OFFSETS as u32 / STEP,
            step as *mut c_void,
            (&raw mut found).cast(),
            0,
        )
    };
    if found.row != u32::from(state::FOUND) {
        return None;
    }
    // Behind the colon.
    let address = address + u64::from(found.read);
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_user_buf(address as *const u8, &mut found.block) }.ok()?;
    parse(
        found.block.as_ptr(),
        STEP as usize,
        0,
        length.saturating_sub(found.read),
    )
}

/// Bytes of a `traceparent` of version 00.
const VALUE_BYTES: u32 = 55;

/// White space before the value, at most.
const SPACES: u32 = 4;

/// Value of a hexadecimal digit, lower case as the specification wants it; `NOT` for others.
static DIGITS: [u8; 256] = digits();
const NOT: u8 = 0x80;

const fn digits() -> [u8; 256] {
    let mut table = [NOT; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    table
}

/// Reads `00-TRACE-SPAN-FLAGS`; `None` when it is not that. There is `room`, a power of two, for
/// bytes, of which `length` are valid.
#[inline(always)]
fn parse(bytes: *const u8, room: usize, offset: u32, length: u32) -> Option<TraceContext> {
    let at = |place: u32| {
        let place = place as usize & (room - 1);
        // SAFETY: the place is masked, and the area is as long.
        unsafe { core::ptr::read_volatile(bytes.add(place)) }
    };
    let mut begin = offset;
    for _ in 0..SPACES {
        if at(begin) == b' ' || at(begin) == b'\t' {
            begin += 1;
        }
    }
    if begin + VALUE_BYTES > length {
        return None;
    }
    let mut bad = 0;
    let mut digit = |place: u32| {
        // SAFETY: the table has as many entries as a byte has values.
        let value = unsafe {
            core::ptr::read_volatile((&raw const DIGITS).cast::<u8>().add(at(place) as usize))
        };
        bad |= value;
        u64::from(value & 0x0f)
    };
    let mut trace_id = [0u64; 2];
    for index in 0..16 {
        let byte = digit(begin + 3 + 2 * index) << 4 | digit(begin + 4 + 2 * index);
        trace_id[index as usize / 8] |= byte << (index % 8 * 8);
    }
    let mut span = 0;
    for index in 0..16 {
        span |= digit(begin + 36 + index);
    }
    let flags = digit(begin + 53) << 4 | digit(begin + 54);
    let is_framed = at(begin) == b'0'
        && at(begin + 1) == b'0'
        && at(begin + 2) == b'-'
        && at(begin + 35) == b'-'
        && at(begin + 52) == b'-';
    if !is_framed || bad & NOT != 0 || span == 0 || trace_id == [0; 2] {
        return None;
    }
    Some(TraceContext {
        trace_id,
        flags: flags as u32,
        reserved: 0,
    })
}
