//! Plaintext of Go's own TLS. Its calls say which object they are for, and the object, through the
//! connections below it, which file descriptor; so nothing is noted of threads, between which a
//! goroutine may move.

use agent_common::{
    connection::{Carried, ConnectionState, Direction, Role, plaintext_identity},
    drop_reason::DropReason,
    payload::flags,
    process::GoProcess,
};

use super::{
    Binding, TlsSession,
    plaintext::{self, Plaintext, Task, announce, insert_empty},
};
use crate::{
    emit, frames,
    hooks::inject_go,
    maps::{ACCEPTED, CONNECTIONS, config},
    process::{self, TracedUnit},
    read::{
        self,
        file::File,
        go::{self, Goroutine},
        sock::{Sock, Stream},
    },
};

/// Bytes that a `crypto/tls.Conn` has decrypted, or is about to encrypt.
pub(crate) struct Moved<'a> {
    pub(crate) traced: TracedUnit,
    pub(crate) program: &'a GoProcess,
    pub(crate) direction: Direction,
    /// Address of the `crypto/tls.Conn`.
    pub(crate) object: u64,
    pub(crate) buffer: u64,
    pub(crate) length: u64,
    /// Address of the goroutine's structure.
    pub(crate) goroutine: u64,
}

/// grpc-go collects 32 KiB before it writes, `crypto/tls` hands out 16 KiB at most.
const WRITE_PARTS: u32 = 3;
const READ_PARTS: u32 = 2;

#[inline(always)]
pub(crate) fn moved(moved: &Moved<'_>) {
    if moved.length == 0 || moved.length > i32::MAX as u64 {
        return;
    }
    if !moved.traced.uses_tls {
        process::note_tls(moved.traced.unit.process_id);
    }
    if try_report(moved).is_none() {
        emit::count(DropReason::GoSocketUnknown);
    }
}

/// `None`: the connection's socket is not known.
#[inline(always)]
fn try_report(data: &Moved<'_>) -> Option<()> {
    let descriptor = go::tls_descriptor(data.program, data.object)?;
    let sock = Sock(File::of(descriptor).socket());
    let connection = sock.known_identity();
    if connection == 0 {
        return None;
    }
    let carrier = carrier(sock, connection, data.traced)?;
    carrier.carried = Carried::Encrypted as u8;
    let session = read::unknown(&session(data, descriptor, connection, carrier));
    let task = read::unknown(&task(data));
    if !is_owner(data, &session) {
        return None;
    }
    if config!(inject) == 1
        && matches!(data.direction, Direction::Inbound)
        && matches!(Role::from(carrier.role), Role::Server)
    {
        inject_go::serve_unknown(data.traced.unit.process_id, task.id, connection);
    }
    let plaintext = Plaintext {
        session: &session,
        buffer: data.buffer,
        first_ns: 0,
        sequence: 0,
        direction: data.direction,
        moved: data.length as u32,
        task,
    };
    match data.direction {
        Direction::Inbound => plaintext::report_parts::<READ_PARTS>(&plaintext),
        Direction::Outbound => plaintext::report_parts::<WRITE_PARTS>(&plaintext),
    }
    own(data.object, &session);
    Some(())
}

/// State of the connection that carries it; made here when the program has not used it since it is
/// traced.
#[inline(always)]
fn carrier(
    sock: Sock,
    connection: u64,
    traced: TracedUnit,
) -> Option<&'static mut ConnectionState> {
    if let Some(known) = CONNECTIONS.get_ptr_mut(&connection) {
        // SAFETY: a pointer into the map's value; concurrent calls on one socket may mix counts,
        // which shows as a gap, never as memory unsafety.
        return Some(unsafe { &mut *known });
    }
    let stream = sock.stream()?;
    let state = insert_empty(connection)?;
    sock.write_addresses(&mut state.addresses);
    state.unit = traced.unit;
    state.opened_ns = emit::now_ns();
    state.frames_seen = frames::changes();
    if stream == Stream::Tcp && sock.looks_accepted() {
        state.role = Role::Server as u8;
        let _ = ACCEPTED.remove(&connection);
    }
    Some(state)
}

/// What the other hooks keep of a session is known of this one by each call.
#[inline(always)]
fn session(
    data: &Moved<'_>,
    descriptor: u32,
    connection: u64,
    carrier: &ConnectionState,
) -> TlsSession {
    let is_complete = carrier.complete == 1 && carrier.opened_ns >= data.program.tls_since_ns;
    let mut origins = [0; 2];
    if is_complete {
        let direction = data.direction as usize;
        origins[direction] = carrier.origins[direction];
    }
    TlsSession {
        identity: plaintext_identity(connection),
        descriptor,
        // Sockets of Go are all polled.
        waiting: flags::NON_BLOCKING | flags::POLLED,
        complete: u8::from(is_complete),
        binding: Binding::Proven as u8,
        origins,
    }
}

/// Whether plaintext of this identity is that of this object: one TLS connection inside of another
/// has the same socket. And tells the origin of a direction that begins.
#[inline(always)]
fn is_owner(data: &Moved<'_>, session: &TlsSession) -> bool {
    let Some(state) = CONNECTIONS.get_ptr_mut(&session.identity) else {
        return true;
    };
    // SAFETY: as in `carrier`.
    let state = unsafe { &*state };
    if state.frames_seen != mark(data.object) {
        return false;
    }
    if state.position(data.direction) == 0 && session.complete == 1 {
        announce(session, state);
    }
    true
}

#[inline(always)]
fn own(object: u64, session: &TlsSession) {
    if let Some(state) = CONNECTIONS.get_ptr_mut(&session.identity) {
        // SAFETY: as in `carrier`; one aligned word.
        unsafe { (*state).frames_seen = mark(object) };
    }
}

/// Objects are aligned to 16 at least.
#[inline(always)]
const fn mark(object: u64) -> u32 {
    (object >> 4) as u32
}

/// Who is running, and of a reader what it takes to tell which goroutines are younger.
#[inline(always)]
fn task(data: &Moved<'_>) -> Task {
    let mut task = Task::NONE;
    if let Some(goroutine) = Goroutine::at(data.program, data.goroutine) {
        task.id = goroutine.id;
        task.parent = goroutine.parent_id;
        if matches!(data.direction, Direction::Inbound)
            && let Some(ids) = goroutine.ids(data.program)
        {
            task.next = ids.next;
            task.left = ids.left;
            task.allotted = ids.allotted;
        }
    }
    task
}
