//! Per-connection state: role, turn, counters, budget.

use agent_common::{
    connection::{ConnectionState, Direction, Role},
    drop_reason::DropReason,
    process::ExecutionUnit,
};

use crate::{
    emit, frames,
    maps::{ACCEPTED, CONNECTIONS, config},
    read::sock::{Sock, Stream},
    scratch::{self, Slot},
};

const _: () = assert!(
    size_of::<ConnectionState>() <= scratch::HEAD_BYTES + 8 * 1024,
    "a new state is built in a scratch area"
);

/// The state of a connection a traced process uses, made on its first use.
#[inline(always)]
pub(crate) fn state(
    sock: Sock,
    stream: Stream,
    identity: u64,
    unit: ExecutionUnit,
    slot: Slot,
) -> Option<*mut ConnectionState> {
    // SAFETY: only presence is used here.
    let accepted = unsafe { ACCEPTED.get(&identity) }.copied();
    let (role, complete, opened_ns) = match (stream, accepted) {
        (Stream::Tcp, Some(at)) => {
            let _ = ACCEPTED.remove(&identity);
            (Role::Server, 1, at)
        }
        (Stream::Tcp, None) if sock.looks_accepted() => (Role::Server, 0, emit::now_ns()),
        _ => (Role::Unknown, 0, emit::now_ns()),
    };
    insert(
        sock,
        identity,
        unit,
        NewState {
            role,
            complete,
            opened_ns,
        },
        slot,
    )
}

pub(crate) struct NewState {
    pub(crate) role: Role,
    pub(crate) complete: u8,
    pub(crate) opened_ns: u64,
}

#[inline(always)]
pub(crate) fn insert(
    sock: Sock,
    identity: u64,
    unit: ExecutionUnit,
    new: NewState,
    slot: Slot,
) -> Option<*mut ConnectionState> {
    let area = scratch::area(slot)?;
    // SAFETY: the area is larger and aligned to 8; nobody else uses this slot now; all bit
    // patterns are valid.
    let state = unsafe {
        scratch::zero_words(area.cast::<ConnectionState>());
        &mut *area.cast::<ConnectionState>()
    };
    sock.write_addresses(&mut state.addresses);
    state.unit = unit;
    state.opened_ns = new.opened_ns;
    state.role = new.role as u8;
    state.complete = new.complete;
    state.frames_seen = frames::changes();
    if CONNECTIONS.insert(&identity, &*state, 0).is_err() {
        emit::count(DropReason::ConnectionTableFull);
        return None;
    }
    CONNECTIONS.get_ptr_mut(&identity)
}

/// What is known of a call's place in its connection before its bytes are counted.
pub(crate) struct Place {
    pub(crate) position: u64,
    pub(crate) turn_start: bool,
    /// Bytes of this call that may be captured.
    pub(crate) budget: u32,
}

/// Begins a turn where the direction changed, and says what may be captured.
#[inline(always)]
pub(crate) fn place(state: &mut ConnectionState, direction: Direction) -> Place {
    let mark = direction as u8 + 1;
    let turn_start = state.last_direction != mark;
    if turn_start {
        state.last_direction = mark;
        state.turn_captured = 0;
        state.turns += 1;
    }
    Place {
        position: state.position(direction),
        turn_start,
        budget: budget(state, direction, turn_start),
    }
}

#[inline(always)]
fn budget(state: &ConnectionState, direction: Direction, turn_start: bool) -> u32 {
    let is_response = match Role::from(state.role) {
        Role::Server => matches!(direction, Direction::Outbound),
        Role::Client => matches!(direction, Direction::Inbound),
        Role::Unknown => false,
    };
    let (turn, call) = if is_response {
        let call = if turn_start {
            config!(response_first_call_bytes)
        } else {
            config!(response_call_bytes)
        };
        (config!(response_turn_bytes), call)
    } else {
        (config!(request_turn_bytes), config!(request_turn_bytes))
    };
    let left = turn.saturating_sub(state.turn_captured);
    if call < left { call } else { left }
}

/// Counts the call's bytes. User space may read the state meanwhile, from its beginning on, and
/// goes by the time: so that is written first, and who reads the new position reads no older time.
#[inline(always)]
pub(crate) fn advance(
    state: &mut ConnectionState,
    direction: Direction,
    moved: u32,
    at_ns: u64,
    tail: [u8; 8],
) {
    let flow = match direction {
        Direction::Inbound => &mut state.inbound,
        Direction::Outbound => &mut state.outbound,
    };
    let position = flow.position + u64::from(moved);
    // SAFETY: fields of the map's value, borrowed for this function.
    unsafe {
        core::ptr::write_volatile(&raw mut flow.last_ns, at_ns);
        core::ptr::write_volatile(&raw mut flow.tail, tail);
        core::ptr::write_volatile(&raw mut flow.position, position);
    }
}
