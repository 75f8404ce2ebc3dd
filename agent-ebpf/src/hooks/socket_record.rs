//! The record of one socket call: its head, and the captured bytes behind it.

use agent_common::{
    connection::{ConnectionState, Direction, FAMILY_UNIX},
    payload::{SocketData, flags},
    record::RecordKind,
};

use super::socket_data::Transfer;
use crate::{
    connection::Place,
    emit,
    process::{self, TracedUnit},
    read::{go::Goroutine, sock::Sock, task},
    scratch::{self, HEAD_BYTES, Scratch},
    user_buffer::{self, UserBuffer},
};

/// Bytes captured behind the head; `None` when the buffer cannot be read, which is counted.
#[inline(always)]
pub(super) fn capture(buffer: UserBuffer, wanted: u32, area: *mut Scratch) -> Option<u32> {
    if matches!(buffer, UserBuffer::Unknown(_)) {
        return None;
    }
    // SAFETY: nobody else uses the slot of this area now.
    match unsafe { user_buffer::capture(buffer, wanted, area) } {
        Ok(captured) => Some(captured),
        Err(reason) => {
            emit::count(reason);
            None
        }
    }
}

/// Fills the fixed part of the record in place.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "one caller's locals; a struct would cost stack"
)]
pub(super) fn write_head(
    transfer: &Transfer,
    sock: Sock,
    identity: u64,
    traced: TracedUnit,
    state: &ConnectionState,
    place: &Place,
    now_ns: u64,
    area: *mut Scratch,
    more_flags: u16,
) {
    // SAFETY: the head of the area has the size and alignment of SocketData; nobody else uses
    // this slot now; all bit patterns are valid.
    let record = unsafe { &mut *area.cast::<SocketData>() };
    let (opposite, sequence) = match transfer.direction {
        Direction::Inbound => (&state.outbound, sequence(state, sock, Direction::Inbound)),
        Direction::Outbound => (&state.inbound, sequence(state, sock, Direction::Outbound)),
    };
    record.header = emit::header(RecordKind::SocketData, HEAD_BYTES, now_ns);
    record.unit = traced.unit;
    record.connection = identity;
    // SAFETY: both are wire types without padding, aligned to 8.
    unsafe { scratch::copy_words(&raw mut record.addresses, &raw const state.addresses) };
    record.position = place.position;
    record.original_length = transfer.result as u32;
    record.captured_length = 0;
    record.tcp_sequence = if sequence == 0 {
        0
    } else {
        sequence.wrapping_sub(transfer.result as u32)
    };
    record.flags = more_flags
        | if matches!(transfer.direction, Direction::Outbound) {
            flags::OUTBOUND
        } else {
            0
        }
        | if place.turn_start {
            flags::TURN_START
        } else {
            0
        }
        | if state.complete == 1 {
            flags::COMPLETE
        } else {
            0
        }
        | sock.waiting_flags();
    record.role = state.role;
    record.reserved = 0;
    record.task = 0;
    record.task_parent = 0;
    record.task_next = 0;
    record.task_allotted = 0;
    record.task_left = 0;
    record.descriptor = task::descriptor();
    if traced.is_go {
        note_goroutine(record, transfer.direction);
    }
    record.tail = [0; 8];
    // SAFETY: as above.
    unsafe { scratch::copy_words(&raw mut record.other_flow, opposite) };
}

/// Who is running, and of a reader what it takes to tell which goroutines are younger than this
/// call.
#[inline(always)]
fn note_goroutine(record: &mut SocketData, direction: Direction) -> Option<()> {
    let program = process::go(record.unit.process_id)?;
    let goroutine = Goroutine::at(program, task::goroutine_register()?)?;
    record.task = goroutine.id;
    record.task_parent = goroutine.parent_id;
    if matches!(direction, Direction::Inbound)
        && let Some(ids) = goroutine.ids(program)
    {
        record.task_next = ids.next;
        record.task_left = ids.left;
        record.task_allotted = ids.allotted;
    }
    Some(())
}

/// Sequence number behind the call's last byte; 0 where there is none. Not an `Option`: the
/// compiler then computes with the undefined half of `None`, which the verifier refuses.
#[inline(always)]
pub(super) fn sequence(state: &ConnectionState, sock: Sock, direction: Direction) -> u32 {
    if state.addresses.family == FAMILY_UNIX {
        return 0;
    }
    match direction {
        Direction::Inbound => sock.copied_sequence(),
        Direction::Outbound => sock.write_sequence(),
    }
}
