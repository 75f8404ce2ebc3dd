//! What TLS libraries encrypt and decrypt, and which connection it travels on.
//!
//! A call of a library is noted for its thread on entry. A socket call of the same thread, made
//! inside it, tells the session's connection ([`carries`]); the return tells how many bytes there
//! were, and `plaintext::report` writes the same record as the socket hooks do. Only processes
//! that have called a library pay for the look at the note.
//!
//! A library may also be given its bytes by the program, which reads and writes the socket itself
//! (memory BIOs: Node, asyncio). Then two things must agree before a session is taken for that of a
//! connection: the connection's first bytes left right after a call of the session
//! (`proof::claim`), and a record of TLS on it is as long as bytes that went through the session at
//! that moment, with what a cipher adds (`proof::prove`). Until then, and where it cannot be
//! proven, the plaintext has no addresses.

pub(crate) mod goroutines;
mod plaintext;
mod proof;
pub(crate) mod rustls;

use agent_common::{
    connection::{Carried, ConnectionState, Direction, plaintext_identity},
    limits,
    payload::{UNKNOWN_DESCRIPTOR, flags},
};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};

use self::plaintext::{Plaintext, Task};
use crate::{
    emit,
    maps::{TLS_SESSIONS, TLS_THREADS},
    process,
    read::{sock::Sock, task},
};

/// Marks identities of sessions whose connection is not known. No other identity has the first bit
/// and lacks the last one.
const UNBOUND: u64 = 3 << 61;
const UNBOUND_MASK: u64 = (1 << 61) - 1;

/// A session of a process: the library's object, by its address.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SessionKey {
    pub(crate) object: u64,
    pub(crate) process_id: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TlsSession {
    /// Identity of its plaintext.
    identity: u64,
    /// File descriptor of the connection's socket, as of the last socket call.
    descriptor: u32,
    /// How the program waits on that socket, as [`flags`] bits.
    waiting: u16,
    /// 1: seen from its making on.
    complete: u8,
    /// A [`Binding`] as an integer.
    binding: u8,
    /// As in `PlaintextOpened::origins`.
    origins: [u32; 2],
}

/// What is known of a session's connection.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Binding {
    None = 0,
    /// It began right after a call of the session, or what it began with was given to the session
    /// next.
    Claimed = 1,
    Proven = 2,
}

/// What a call of a library does.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Action {
    Read = 1,
    Write = 2,
    /// Bytes that flow are the library's own.
    Handshake = 3,
    /// Bytes that may be sent a second time: positions are no longer those of the other end.
    WriteEarly = 4,
    /// It makes a session, whose address it writes where `moved` says.
    Make = 5,
}

/// A call of a library, by the thread that is in it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TlsThread {
    /// The session; 0 outside of a call.
    object: u64,
    buffer: u64,
    /// Where the call writes how many bytes it moved; 0: it returns that.
    moved: u64,
    /// Connection of the first socket call made inside; 0 before.
    connection: u64,
    /// When the first socket call of the last turn in the call's own direction returned.
    first_ns: u64,
    /// TCP sequence number of its first byte.
    sequence: u32,
    descriptor: u32,
    waiting: u16,
    /// An [`Action`] as an integer.
    action: u8,
    /// 1: bytes went the other way since those that the call moved in its own direction.
    turned: u8,
    /// Bytes that the last write was given.
    written: u32,
    /// As in `PlaintextOpened::origins`, of those directions in which bytes flowed.
    origins: [u32; 2],
    /// The session that was used last, in a call that is over.
    last_object: u64,
    /// What was received last outside of calls, of connections whose session is not proven.
    received: Received,
}

/// Encrypted bytes that a program received.
#[repr(C)]
#[derive(Clone, Copy)]
struct Received {
    connection: u64,
    /// As in `PlaintextOpened::origins`.
    origin: u32,
    /// TCP sequence number of the first byte.
    sequence: u32,
    /// Where they are, and how many.
    address: u64,
    moved: u32,
    /// 1: the first of their direction, a handshake, and no session was used since.
    first: u32,
    /// Lengths of the records of application data; 0 behind them.
    lengths: [u16; limits::TLS_RECORDS],
}

impl Received {
    const NONE: Self = Self {
        connection: 0,
        origin: 0,
        sequence: 0,
        address: 0,
        moved: 0,
        first: 0,
        lengths: [0; limits::TLS_RECORDS],
    };
}

/// A call that begins.
pub(crate) struct Call {
    pub(crate) action: Action,
    pub(crate) object: u64,
    pub(crate) buffer: u64,
    pub(crate) moved: u64,
}

/// A socket call that a thread made.
pub(crate) struct SocketCall {
    pub(crate) connection: u64,
    pub(crate) direction: Direction,
    pub(crate) moved: u32,
    /// Position of its first byte in its direction.
    pub(crate) position: u64,
    /// TCP sequence number of its first byte.
    pub(crate) sequence: u32,
    /// That of the direction's first byte; 0 where it was not counted from there on.
    pub(crate) origin: u32,
}

#[inline(always)]
fn key(object: u64) -> SessionKey {
    SessionKey {
        object,
        process_id: bpf_get_current_pid_tgid() >> 32,
    }
}

/// A thread of a traced process enters a call.
#[inline(always)]
pub(crate) fn enter(call: &Call) {
    let Some(traced) = process::traced_unit() else {
        return;
    };
    if !traced.uses_tls {
        process::note_tls(traced.unit.process_id);
    }
    let Some(thread) = thread() else { return };
    thread.object = call.object;
    thread.buffer = call.buffer;
    thread.moved = call.moved;
    thread.connection = 0;
    thread.first_ns = 0;
    thread.sequence = 0;
    thread.origins = [0; 2];
    thread.action = call.action as u8;
    thread.turned = 0;
}

/// What the current thread does, which is nothing if it was not known.
#[inline(always)]
fn thread() -> Option<&'static mut TlsThread> {
    let id = bpf_get_current_pid_tgid();
    if let Some(known) = TLS_THREADS.get_ptr_mut(&id) {
        // SAFETY: a pointer into the map's value, which only this thread writes.
        return Some(unsafe { &mut *known });
    }
    let new = TlsThread {
        object: 0,
        buffer: 0,
        moved: 0,
        connection: 0,
        first_ns: 0,
        sequence: 0,
        descriptor: UNKNOWN_DESCRIPTOR,
        waiting: 0,
        action: 0,
        turned: 0,
        written: 0,
        origins: [0; 2],
        last_object: 0,
        received: Received::NONE,
    };
    let _ = TLS_THREADS.insert(&id, &new, 0);
    // SAFETY: as above.
    TLS_THREADS.get_ptr_mut(&id).map(|new| unsafe { &mut *new })
}

/// Whether what this socket call moved is encrypted. A call made inside of a library's call tells
/// that, and whose.
#[inline(always)]
pub(crate) fn carries(state: &mut ConnectionState, sock: Sock, socket: &SocketCall) -> bool {
    const ENCRYPTED: u8 = Carried::Encrypted as u8;

    if socket.moved == 0 {
        return state.carried == ENCRYPTED;
    }
    let Some(thread) = thread() else {
        return state.carried != Carried::Own as u8;
    };
    if thread.object != 0 {
        note_socket(thread, sock, socket);
        state.carried = ENCRYPTED;
    } else if state.carried == Carried::Unproven as u8
        || (state.carried == Carried::Own as u8 && socket.position == 0)
    {
        proof::observe(thread, state, sock, socket);
    } else if state.carried == ENCRYPTED && matches!(socket.direction, Direction::Inbound) {
        proof::note_received(thread, sock, socket);
    }
    state.carried != Carried::Own as u8
}

/// A read may make a whole handshake first, or write an alert or a key update, so only what moved
/// in its own direction since the last turn counts as what carries its bytes; but any socket call
/// tells the connection.
#[inline(always)]
fn note_socket(thread: &mut TlsThread, sock: Sock, socket: &SocketCall) {
    thread.connection = socket.connection;
    thread.descriptor = task::descriptor();
    thread.waiting = sock.waiting_flags();
    thread.origins[socket.direction as usize] = socket.origin;
    let is_read = thread.action == Action::Read as u8;
    let is_inbound = matches!(socket.direction, Direction::Inbound);
    if is_read != is_inbound {
        thread.turned = 1;
    } else if thread.first_ns == 0 || thread.turned == 1 {
        thread.turned = 0;
        thread.first_ns = emit::now_ns();
        thread.sequence = socket.sequence;
    }
}

/// A call returns `result`. `LOOPS`: with `bpf_loop`.
#[inline(always)]
pub(crate) fn leave<const LOOPS: bool>(result: i32) -> Option<()> {
    let call = TLS_THREADS.get_ptr_mut(&bpf_get_current_pid_tgid())?;
    // SAFETY: a pointer into the map's value, which only this thread writes.
    let call = unsafe { &mut *call };
    if call.object == 0 {
        return None;
    }
    let object = core::mem::replace(&mut call.object, 0);
    if call.action == Action::Make as u8 {
        // SAFETY: the helper checks the address and fails instead of faulting.
        let made = unsafe { bpf_probe_read_user(call.moved as *const u64) }.ok()?;
        return self::made(made);
    }
    if call.last_object != object {
        call.last_object = object;
        call.written = 0;
    }
    let session = session(object)?;
    if call.connection != 0 {
        bind(session, call);
    }
    let is_first = core::mem::replace(&mut call.received.first, 0) == 1;
    if is_first && call.action == Action::Handshake as u8 {
        proof::claim_received(session, call);
    }
    let direction = match call.action {
        action if action == Action::Read as u8 => Direction::Inbound,
        action if action == Action::Write as u8 => Direction::Outbound,
        action if action == Action::WriteEarly as u8 => {
            session.complete = 0;
            Direction::Outbound
        }
        _ => return None,
    };
    let moved = moved(call, result)?;
    if session.binding == Binding::Claimed as u8 {
        match direction {
            Direction::Inbound => proof::prove_received(session, call, moved),
            Direction::Outbound => call.written = moved,
        }
    } else if matches!(direction, Direction::Inbound) {
        proof::note_origin(session, call);
    }
    plaintext::report::<LOOPS>(&Plaintext {
        session,
        buffer: call.buffer,
        first_ns: call.first_ns,
        sequence: call.sequence,
        direction,
        moved,
        task: Task::NONE,
    })
}

/// The library itself uses the socket.
#[inline(always)]
fn bind(session: &mut TlsSession, call: &TlsThread) {
    session.identity = plaintext_identity(call.connection);
    session.binding = Binding::Proven as u8;
    session.descriptor = call.descriptor;
    session.waiting = call.waiting;
    for (known, seen) in session.origins.iter_mut().zip(call.origins) {
        if seen != 0 {
            *known = seen;
        }
    }
}

/// Bytes that the call moved; `None` for none.
#[inline(always)]
fn moved(call: &TlsThread, result: i32) -> Option<u32> {
    if result <= 0 {
        return None;
    }
    if call.moved == 0 {
        return Some(result as u32);
    }
    // SAFETY: the helper checks the address and fails instead of faulting.
    let moved = unsafe { bpf_probe_read_user(call.moved as *const u64) }.ok()?;
    if moved == 0 || moved > i32::MAX as u64 {
        return None;
    }
    Some(moved as u32)
}

/// What is known of a session, which is new if nothing is.
#[inline(always)]
fn session(object: u64) -> Option<&'static mut TlsSession> {
    let key = key(object);
    if let Some(known) = TLS_SESSIONS.get_ptr_mut(&key) {
        // SAFETY: a pointer into the map's value. A session is used by one thread at a time, or
        // its counts mix.
        return Some(unsafe { &mut *known });
    }
    begin(&key, 0);
    // SAFETY: as above.
    TLS_SESSIONS
        .get_ptr_mut(&key)
        .map(|new| unsafe { &mut *new })
}

#[inline(always)]
fn begin(key: &SessionKey, complete: u8) {
    let new = TlsSession {
        identity: UNBOUND | (emit::now_ns() & UNBOUND_MASK),
        descriptor: UNKNOWN_DESCRIPTOR,
        // What cannot be told proves nothing.
        waiting: flags::NON_BLOCKING | flags::POLLED,
        complete,
        binding: Binding::None as u8,
        origins: [0; 2],
    };
    let _ = TLS_SESSIONS.insert(key, &new, 0);
}

/// A traced process made a session: all of it will be seen.
#[inline(always)]
pub(crate) fn made(object: u64) -> Option<()> {
    process::traced_unit()?;
    if object != 0 {
        begin(&key(object), 1);
    }
    Some(())
}

/// A session is freed. One whose connection is known ends with that.
#[inline(always)]
pub(crate) fn freed(object: u64) {
    let key = key(object);
    // SAFETY: copied at once.
    let Some(session) = (unsafe { TLS_SESSIONS.get(&key) }).copied() else {
        return;
    };
    let _ = TLS_SESSIONS.remove(&key);
    if session.binding != Binding::Proven as u8 {
        crate::hooks::socket_lifecycle::plaintext_ends(session.identity);
    }
}
