//! What each goroutine works for, as far as a header needs it before user space can tell.
//!
//! The rules are those of the user side's `context::goroutine`, with what the kernel side can see
//! by itself: who completes a request's head serves it; what that goroutine starts from then on
//! works for the request too, and so does what is started by those that called before. A call of
//! `net/http`'s client is announced by the goroutine that makes it, before a goroutine of the
//! connection writes it. Any other write is for the request that the writer serves, or for none.

use agent_common::{connection::Direction, injection::OutgoingStream, payload::SocketData};

use super::inject_context::{self, TraceContext};
use crate::{
    connection::Place,
    emit,
    maps::{BORN, BOUND, CONNECTIONS, GO_CALLS, SERVED, SERVING},
    process,
    read::{go::Goroutine, task},
    scratch::Scratch,
};

/// A goroutine, or an id that one may get.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GoroutineKey {
    process_id: u64,
    id: u64,
}

impl GoroutineKey {
    #[inline(always)]
    fn new(process_id: u32, id: u64) -> Self {
        Self {
            process_id: process_id.into(),
            id,
        }
    }
}

/// What a goroutine serves.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Serving {
    context: TraceContext,
    /// The server's connection.
    connection: u64,
    /// When the request was read.
    since_ns: u64,
    /// Highest id that goroutines may have had then; 0 unknown.
    allotted: u64,
    /// 1: the answer has begun.
    is_answered: u32,
    /// 1: it read a request while another connection's was open, so it proves nothing.
    is_loop: u32,
}

/// Who reads a server's connection.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Served {
    goroutine: u64,
    /// Position of the request's first byte.
    position: u64,
    /// 1: only the first byte was read so far, maybe by a goroutine that waits for the client to
    /// go away (`net/http`).
    has_only_begun: u64,
}

/// When an id was still to be given.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Unborn {
    seen_ns: u64,
    /// End of the batch of ids that it belongs to.
    end: u64,
}

/// A call that was announced.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Call {
    context: TraceContext,
    time_ns: u64,
    /// 1: `context` is that of the request it is made for.
    is_known: u64,
}

/// Ids of a batch, `_GoidCacheBatch` in `runtime/proc.go`.
const BATCH: u64 = 16;

/// A request is written within this time of its call; as in `context::goroutine`.
const CALL_NS: u64 = 1_000_000_000;

/// Bytes of the socket call: its record stands at the beginning of the area.
#[inline(always)]
fn record(area: *const Scratch) -> &'static SocketData {
    // SAFETY: the head of the area was filled as this record by the caller of the hook.
    unsafe { &*area.cast::<SocketData>() }
}

/// No request was completed.
pub(crate) const NO_REQUEST: u64 = u64::MAX;

/// A socket call moved bytes. Returns the position of the request that a goroutine serves from now
/// on, or [`NO_REQUEST`].
#[inline(always)]
pub(crate) fn moved(
    direction: Direction,
    connection: u64,
    is_server: bool,
    place: &Place,
    area: *const Scratch,
    captured: u32,
) -> u64 {
    match direction {
        Direction::Inbound => {
            note_unborn(record(area));
            if is_server {
                received(connection, place, record(area))
            } else {
                NO_REQUEST
            }
        }
        Direction::Outbound => {
            if is_server && place.turn_start && !inject_context::is_interim(area, captured) {
                answered(connection);
            }
            NO_REQUEST
        }
    }
}

/// The ids that the reader's processor has left.
#[inline(always)]
fn note_unborn(record: &SocketData) {
    let left = u64::from(record.task_left);
    if record.task_next == 0 || left == 0 || left > BATCH {
        return;
    }
    let unborn = Unborn {
        seen_ns: record.header.timestamp_ns,
        end: record.task_next + left,
    };
    let next = GoroutineKey::new(record.unit.process_id, record.task_next);
    let _ = BORN.insert(&next, &unborn, 0);
}

/// Bytes of a request came: where it begins, if this completes what only had begun.
#[inline(always)]
fn received(connection: u64, place: &Place, record: &SocketData) -> u64 {
    let mut position = place.position;
    if !place.turn_start {
        // SAFETY: copied at once.
        position = match unsafe { SERVED.get(&connection) }.copied() {
            Some(served) if served.has_only_begun == 1 => served.position,
            _ => return NO_REQUEST,
        };
    }
    let has_only_begun = place.turn_start && record.original_length == 1;
    let by = Served {
        goroutine: record.task,
        position,
        has_only_begun: has_only_begun.into(),
    };
    let _ = SERVED.insert(&connection, &by, 0);
    if has_only_begun || record.task == 0 {
        NO_REQUEST
    } else {
        position
    }
}

/// The goroutine that has just read serves a request from now on.
#[inline(always)]
pub(crate) fn serve(connection: u64, context: &TraceContext, area: *const Scratch) {
    let record = record(area);
    let key = GoroutineKey::new(record.unit.process_id, record.task);
    // SAFETY: copied at once.
    let is_loop = unsafe { SERVING.get(&key) }.is_some_and(|before| {
        before.is_loop == 1 || before.connection != connection && before.is_answered == 0
    });
    let serving = Serving {
        context: *context,
        connection,
        since_ns: record.header.timestamp_ns,
        allotted: record.task_allotted,
        is_answered: 0,
        is_loop: u32::from(is_loop),
    };
    let _ = SERVING.insert(&key, &serving, 0);
}

/// A goroutine reads a request inside TLS, whose context is known to user space only: what is
/// called for it carries nothing.
#[inline(always)]
pub(crate) fn serve_unknown(process_id: u32, goroutine: u64, connection: u64) {
    if goroutine == 0 {
        return;
    }
    let serving = Serving {
        context: TraceContext::UNKNOWN,
        connection,
        since_ns: emit::now_ns(),
        allotted: 0,
        is_answered: 0,
        is_loop: 0,
    };
    let _ = SERVING.insert(&GoroutineKey::new(process_id, goroutine), &serving, 0);
}

#[inline(always)]
fn answered(connection: u64) {
    // SAFETY: copied at once.
    let Some(by) = unsafe { SERVED.get(&connection) }.copied() else {
        return;
    };
    if let Some(serving) = SERVING.get_ptr_mut(&GoroutineKey::new(task::process_id(), by.goroutine))
    {
        // SAFETY: a pointer into the map's value.
        unsafe { (*serving).is_answered = 1 };
    }
}

/// The connection is gone.
#[inline(always)]
pub(crate) fn destroyed(connection: u64) {
    let _ = SERVED.remove(&connection);
}

/// The request that a goroutine works for.
#[inline(always)]
fn request_of(process_id: u32, id: u64, parent_id: u64) -> Option<TraceContext> {
    let key = GoroutineKey::new(process_id, id);
    // SAFETY: copied at once.
    if let Some(serving) = unsafe { SERVING.get(&key) } {
        return (serving.is_loop == 0).then_some(serving.context);
    }
    // SAFETY: as above.
    if let Some(context) = unsafe { BOUND.get(&key) } {
        return Some(*context);
    }
    if parent_id == 0 {
        return None;
    }
    let parent = GoroutineKey::new(process_id, parent_id);
    // SAFETY: as above.
    let context = if let Some(serving) = unsafe { SERVING.get(&parent) } {
        if serving.is_loop == 1 || !is_younger(process_id, id, serving.allotted, serving.since_ns) {
            return None;
        }
        serving.context
    } else {
        // SAFETY: as above.
        unsafe { BOUND.get(&parent) }.copied()?
    };
    let _ = BOUND.insert(&key, &context, 0);
    Some(context)
}

/// Whether a goroutine did not exist yet at that time, when ids up to `allotted` were allotted.
#[inline(always)]
fn is_younger(process_id: u32, id: u64, allotted: u64, since_ns: u64) -> bool {
    if allotted != 0 && id > allotted {
        return true;
    }
    let mut is_younger = false;
    for back in 0..BATCH {
        let before = GoroutineKey::new(process_id, id.wrapping_sub(back));
        // SAFETY: copied at once.
        if let Some(unborn) = unsafe { BORN.get(&before) } {
            is_younger |= unborn.end > id && unborn.seen_ns >= since_ns;
        }
    }
    is_younger
}

/// A goroutine is about to send a request of `net/http`'s client.
#[inline(always)]
pub(crate) fn calling(process_id: u32, goroutine: &Goroutine, descriptor: u32) {
    let (context, is_known) = match request_of(process_id, goroutine.id, goroutine.parent_id) {
        Some(context) => (context, 1),
        None => (TraceContext::UNKNOWN, 0),
    };
    let call = Call {
        context,
        time_ns: emit::now_ns(),
        is_known,
    };
    let _ = GO_CALLS.insert(&call_key(process_id, descriptor), &call, 0);
}

#[inline(always)]
fn call_key(process_id: u32, descriptor: u32) -> u64 {
    u64::from(process_id) << 32 | u64::from(descriptor)
}

/// The request for which another leaves now.
#[inline(always)]
pub(crate) fn of_call(stream: &OutgoingStream) -> Option<TraceContext> {
    let process_id = task::process_id();
    let key = call_key(process_id, task::descriptor());
    // SAFETY: copied at once.
    if let Some(call) = unsafe { GO_CALLS.get(&key) }.copied() {
        let _ = GO_CALLS.remove(&key);
        // SAFETY: as above.
        let opened_ns =
            unsafe { CONNECTIONS.get(&stream.connection) }.map_or(0, |state| state.opened_ns);
        let is_recent = emit::now_ns().wrapping_sub(call.time_ns) <= CALL_NS;
        if is_recent && opened_ns <= call.time_ns {
            return (call.is_known == 1).then_some(call.context);
        }
    }
    let program = process::go(process_id)?;
    let writer = Goroutine::at(program, task::goroutine_register()?)?;
    // SAFETY: as above.
    let serving = unsafe { SERVING.get(&GoroutineKey::new(process_id, writer.id)) }?;
    (serving.is_loop == 0).then_some(serving.context)
}
