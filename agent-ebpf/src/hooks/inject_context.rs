//! What each thread works for, as far as a header needs it before user space can tell.
//!
//! The rules are those of the user side's `context::lineage`: a thread that reads from blocking
//! sockets works for one request from read to answer; nginx's loop works, after each read, for
//! the request that the read belongs to. Any other thread works for nothing that is known, and
//! its calls begin traces of their own.

use agent_common::{
    connection::{ConnectionState, Direction, Role},
    injection::{ContextMinted, OutgoingStream, process},
    payload::{SocketData, flags},
    record::RecordKind,
};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;

use super::{
    inject_frames, inject_go,
    inject_message::random,
    inject_option_reader,
    inject_search::{inbound, inbound_in_steps},
};
use crate::{
    connection::Place,
    emit,
    maps::{
        ARMED, CALLS, INJECTABLE, OPTION_STREAMS, RECEIVED, REQUESTS, STARTED, STREAMS, WORK,
        config,
    },
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
    pub(crate) fn new() -> Self {
        Self {
            trace_id: [random(), random()],
            flags: SAMPLED,
            reserved: 0,
        }
    }
}

/// How the current process is injected for; 0 when it is not.
#[inline(always)]
pub(super) fn armed() -> u32 {
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
pub(super) fn work_for(thread: u64, context: Option<TraceContext>) {
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
    if config!(inject_headers) == 1 {
        inject_frames::destroyed(connection);
    }
    if config!(inject_option) == 1 {
        let _ = OPTION_STREAMS.remove(&connection);
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
pub(super) fn minted(connection: u64, position: u64) -> TraceContext {
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
