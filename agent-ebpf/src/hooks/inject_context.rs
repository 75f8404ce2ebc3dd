//! What each thread works for, as far as a header needs it before user space can tell.
//!
//! The rules are those of the user side's `context::lineage`: a thread that reads from blocking
//! sockets works for one request from read to answer; nginx's loop works, after each read, for
//! the request that the read belongs to. Any other thread works for nothing that is known, and
//! its calls begin traces of their own.

use agent_common::{
    connection::{ConnectionState, Direction, Role},
    injection::{ContextMinted, EVENTS, GRAMMAR_BYTES, OutgoingStream, event, process, state},
    limits,
    payload::{SocketData, flags},
    record::RecordKind,
};
use aya_ebpf::{
    cty::c_void,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_loop},
};

use super::{inject_go, inject_head::random, inject_option_reader};
use crate::{
    connection::Place,
    emit,
    maps::{ARMED, CALLS, GRAMMAR, INJECTABLE, RECEIVED, REQUESTS, STARTED, STREAMS, WORK, config},
    read::task,
    scratch::Scratch,
};

/// The trace of a request.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TraceContext {
    /// As it is written, first byte first.
    pub(crate) trace_id: [u64; 2],
    /// W3C trace flags.
    pub(crate) flags: u32,
    pub(crate) reserved: u32,
}

/// W3C trace flags: sampled.
const SAMPLED: u32 = 1;

impl TraceContext {
    /// There may be one, and it could not be read.
    pub(crate) const UNKNOWN: Self = Self {
        trace_id: [0; 2],
        flags: 0,
        reserved: 0,
    };

    #[inline(always)]
    pub(crate) fn is_known(&self) -> bool {
        self.trace_id[0] | self.trace_id[1] != 0
    }

    #[inline(always)]
    fn new() -> Self {
        Self {
            trace_id: [random(), random()],
            flags: SAMPLED,
            reserved: 0,
        }
    }
}

/// How the current process is injected for; 0 when it is not.
#[inline(always)]
fn armed() -> u32 {
    // SAFETY: copied at once.
    unsafe { ARMED.get(&task::process_id()) }
        .copied()
        .unwrap_or(0)
}

/// The current thread began to connect.
#[inline(always)]
pub(crate) fn connecting(connection: u64) {
    let mode = armed();
    if mode & (process::HEADERS | process::OPTION) == 0 {
        return;
    }
    if mode & process::HEADERS != 0 {
        let _ = INJECTABLE.insert(&connection, &mode, 0);
    }
    if mode & process::LOOP != 0 {
        // SAFETY: copied at once.
        match unsafe { WORK.get(&bpf_get_current_pid_tgid()) } {
            Some(context) => {
                let context = *context;
                let _ = CALLS.insert(&connection, &context, 0);
            }
            None => {
                let _ = CALLS.remove(&connection);
            }
        }
    }
}

#[inline(always)]
fn of_thread(thread: u64) -> Option<TraceContext> {
    // SAFETY: copied at once.
    unsafe { WORK.get(&thread) }.copied()
}

/// Who started a thread, and for which trace.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Starter {
    thread: u64,
    trace_id: [u64; 2],
}

/// A thread started another: while it works for the same request, so does the other.
#[inline(always)]
pub(crate) fn started(starter: u64, thread: u64) {
    if let Some(context) = of_thread(starter) {
        let by = Starter {
            thread: starter,
            trace_id: context.trace_id,
        };
        let _ = STARTED.insert(&thread, &by, 0);
    } else {
        let _ = STARTED.remove(&thread);
    }
}

#[inline(always)]
fn of_starter(thread: u64) -> Option<TraceContext> {
    // SAFETY: copied at once.
    let by = unsafe { STARTED.get(&thread) }.copied()?;
    let context = of_thread(by.thread)?;
    (context.trace_id[0] == by.trace_id[0] && context.trace_id[1] == by.trace_id[1])
        .then_some(context)
}

/// The trace of a request that leaves now.
#[inline(always)]
pub(crate) fn of_call(stream: &OutgoingStream) -> TraceContext {
    let mode = u32::from(stream.mode);
    if mode & process::GOROUTINES != 0 {
        return inject_go::of_call(stream).unwrap_or_else(TraceContext::new);
    }
    let both = bpf_get_current_pid_tgid();
    let sender = Sender {
        process: (both >> 32) as u32,
        thread: both as u32,
    };
    let is_first = stream.request_position == 0;
    of_sender(
        sender,
        stream.connection,
        mode & process::LOOP != 0,
        is_first,
    )
}

/// Who sends a request.
#[derive(Clone, Copy)]
pub(crate) struct Sender {
    pub(crate) process: u32,
    pub(crate) thread: u32,
}

/// The trace of a request that a thread is about to send; `is_first` on its connection.
#[inline(always)]
pub(crate) fn of_sender(
    sender: Sender,
    connection: u64,
    is_loop: bool,
    is_first: bool,
) -> TraceContext {
    let thread = u64::from(sender.process) << 32 | u64::from(sender.thread);
    if !is_loop {
        return of_thread(thread)
            .or_else(|| of_starter(thread))
            .unwrap_or_else(TraceContext::new);
    }
    // Whoever opened the connection sends its first request, however long that took.
    let known = if is_first {
        // SAFETY: copied at once.
        unsafe { CALLS.get(&connection) }.copied()
    } else {
        of_thread(thread)
    };
    let context = known.unwrap_or_else(TraceContext::new);
    let _ = CALLS.insert(&connection, &context, 0);
    context
}

/// A socket call moved bytes; `area` holds `captured` of them when there are any. `LOOPS`: with
/// `bpf_loop`.
#[inline(always)]
pub(crate) fn moved<const LOOPS: bool>(
    direction: Direction,
    connection: u64,
    state: &ConnectionState,
    place: &Place,
    waiting: u16,
    area: *const Scratch,
    captured: u32,
) {
    let mode = armed();
    if mode == 0 {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    let is_go = mode & process::GOROUTINES != 0;
    let is_loop = mode & process::LOOP != 0;
    let is_server = matches!(Role::from(state.role), Role::Server);
    let is_request = is_server && matches!(direction, Direction::Inbound);
    let found = if is_request && (is_go || place.turn_start) {
        if LOOPS {
            inbound_in_steps(area, captured)
        } else {
            inbound(area, captured)
        }
    } else {
        None
    };
    if is_go {
        let position = inject_go::moved(direction, connection, is_server, place, area, captured);
        if position != inject_go::NO_REQUEST {
            let context = or_minted(found, connection, position, area);
            inject_go::serve(connection, &context, area);
        }
        return;
    }
    if is_request && place.turn_start {
        if !is_loop && waiting & flags::NON_BLOCKING != 0 {
            let _ = WORK.remove(&thread);
            return;
        }
        let context = or_minted(found, connection, place.position, area);
        let _ = WORK.insert(&thread, &context, 0);
        if is_loop {
            let _ = REQUESTS.insert(&connection, &context, 0);
        }
        return;
    }
    match (Role::from(state.role), direction) {
        (Role::Server, Direction::Inbound) if is_loop => {
            // SAFETY: copied at once.
            work_for(thread, unsafe { REQUESTS.get(&connection) }.copied());
        }
        (Role::Client, Direction::Inbound) if is_loop => {
            // SAFETY: copied at once.
            work_for(thread, unsafe { CALLS.get(&connection) }.copied());
        }
        (Role::Server, Direction::Outbound)
            if place.turn_start && !is_loop && !is_interim(area, captured) =>
        {
            let _ = WORK.remove(&thread);
        }
        _ => {}
    }
}

/// A socket call moved bytes of which none were captured, within a turn.
#[inline(always)]
pub(crate) fn resumed(direction: Direction, connection: u64, state: &ConnectionState) {
    if matches!(direction, Direction::Outbound) || armed() & process::LOOP == 0 {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    let context = match Role::from(state.role) {
        // SAFETY: copied at once.
        Role::Server => unsafe { REQUESTS.get(&connection) }.copied(),
        // SAFETY: as above.
        Role::Client => unsafe { CALLS.get(&connection) }.copied(),
        Role::Unknown => None,
    };
    work_for(thread, context);
}

/// Bytes moved on a connection that carries many requests at once: whoever reads them works for
/// none that is known here.
#[inline(always)]
pub(crate) fn multiplexed(direction: Direction, state: &ConnectionState) {
    let is_request = matches!(
        (Role::from(state.role), direction),
        (Role::Server, Direction::Inbound)
    );
    if is_request && armed() != 0 {
        let _ = WORK.remove(&bpf_get_current_pid_tgid());
    }
}

#[inline(always)]
fn work_for(thread: u64, context: Option<TraceContext>) {
    match context {
        Some(context) => {
            let _ = WORK.insert(&thread, &context, 0);
        }
        None => {
            let _ = WORK.remove(&thread);
        }
    }
}

/// The connection is gone.
#[inline(always)]
pub(crate) fn destroyed(connection: u64) {
    let _ = CALLS.remove(&connection);
    let _ = REQUESTS.remove(&connection);
    let _ = INJECTABLE.remove(&connection);
    let _ = STREAMS.remove(&connection);
    inject_go::destroyed(connection);
    if config!(inject_option) == 1 {
        let _ = RECEIVED.remove(&connection);
    }
}

/// The context that came with a TCP option for the request that begins with the bytes in `area`.
#[inline(always)]
fn carried(connection: u64, area: *const Scratch) -> Option<TraceContext> {
    // SAFETY: the head of the area is a record of this kind, see `socket_data::write_head`.
    let sequence = unsafe { (*area.cast::<SocketData>()).tcp_sequence };
    inject_option_reader::of_request(connection, sequence)
}

/// What a request carries in its head or its segment, else a trace of its own.
#[inline(always)]
fn or_minted(
    found: Option<TraceContext>,
    connection: u64,
    position: u64,
    area: *const Scratch,
) -> TraceContext {
    match found.or_else(|| carried(connection, area)) {
        Some(context) => context,
        None => minted(connection, position),
    }
}

/// A request without context begins a trace; user space is told which.
#[inline(always)]
fn minted(connection: u64, position: u64) -> TraceContext {
    let context = TraceContext::new();
    emit::record(&ContextMinted {
        header: emit::header(
            RecordKind::ContextMinted,
            size_of::<ContextMinted>(),
            emit::now_ns(),
        ),
        connection,
        position,
        added_at: 0,
        trace_id: context.trace_id,
        span_id: 0,
        added: 0,
        trace_flags: context.flags,
    });
    context
}

/// `HTTP/1.1 1`: the answer itself is still to come.
#[inline(always)]
pub(crate) fn is_interim(area: *const Scratch, captured: u32) -> bool {
    // SAFETY: inside the scratch area.
    captured > 9 && unsafe { core::ptr::read_volatile(&raw const (*area).bytes[9]) } == b'1'
}

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
fn inbound(area: *const Scratch, captured: u32) -> Option<TraceContext> {
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
    parse(bytes, read + 1, captured)
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
        // The compiler knows a bound of `row` by the comparison above and would leave the mask out;
        // the verifier does not.
        let place = core::hint::black_box((row as usize) << 8 | usize::from(byte));
        // SAFETY: inside the table, by the mask.
        let next = unsafe { table.add(place & (GRAMMAR_BYTES - 1)).read_volatile() };
        // SAFETY: the table has as many entries as a byte has values.
        let followed = unsafe {
            (&raw const FOLLOWING)
                .cast::<u8>()
                .add(usize::from(next))
                .read_volatile()
        };
        row = u32::from(followed);
        read += 1;
    }
    search.row = row;
    search.read = read;
    i64::from(read >= search.captured || row >= u32::from(state::FOUND))
}

/// As [`inbound`], all of what was captured, with `bpf_loop`.
#[inline(always)]
fn inbound_in_steps(area: *const Scratch, captured: u32) -> Option<TraceContext> {
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
    parse(bytes, found.read, captured)
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

/// Reads `00-TRACE-SPAN-FLAGS`; `None` when it is not that.
#[inline(always)]
fn parse(bytes: *const u8, offset: u32, length: u32) -> Option<TraceContext> {
    let at = |place: u32| {
        let place = place as usize & (limits::CAPTURE_OFFSETS - 1);
        // SAFETY: the place is masked, and the area is longer.
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
