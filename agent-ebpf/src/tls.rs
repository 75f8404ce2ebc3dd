//! What TLS libraries encrypt and decrypt, and which connection it travels on.
//!
//! A call of a library is noted for its thread on entry. A socket call of the same thread, made
//! inside it, tells the session's connection ([`carries`]); the return tells how many bytes there
//! were, and [`plaintext`] writes the same record as the socket hooks do. Only processes that have
//! called a library pay for the look at the note.
//!
//! A library may also be given its bytes by the program, which reads and writes the socket itself
//! (memory BIOs: Node, asyncio). Then two things must agree before a session is taken for that of a
//! connection: the connection's first bytes left right after a call of the session ([`claim`]), and
//! a record of TLS on it is as long as bytes that went through the session at that moment, with
//! what a cipher adds ([`prove`]). Until then, and where it cannot be proven, the plaintext has no
//! addresses.

use agent_common::{
    connection::{Carried, ConnectionState, Direction, PlaintextOpened, Role, plaintext_identity},
    drop_reason::DropReason,
    frames::{PREFACE_BYTES, PREFACE_WORD},
    limits,
    payload::{SocketData, UNKNOWN_DESCRIPTOR, flags},
    record::RecordKind,
};
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_probe_read_user, generated::bpf_probe_read_user as read_raw,
};

use crate::{
    connection::{self, Place},
    emit,
    maps::{CONNECTIONS, RECORDS, TLS_SESSIONS, TLS_THREADS},
    process::{self, TracedUnit},
    read::{sock::Sock, task},
    scratch::{HEAD_BYTES, copy_words, zero_words},
    user_buffer::{self, UserBuffer},
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
    /// As in [`PlaintextOpened::origins`].
    origins: [u32; 2],
}

/// What is known of a session's connection.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Binding {
    None = 0,
    /// It began right after a call of the session.
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
    /// When that call returned.
    first_ns: u64,
    /// TCP sequence number of its first byte.
    sequence: u32,
    descriptor: u32,
    waiting: u16,
    /// An [`Action`] as an integer.
    action: u8,
    reserved: u8,
    /// Bytes that the last write was given.
    written: u32,
    /// As in [`PlaintextOpened::origins`], of those directions in which bytes flowed.
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
    /// As in [`PlaintextOpened::origins`].
    origin: u32,
    /// TCP sequence number of the first byte.
    sequence: u32,
    /// Lengths of the records of application data; 0 behind them.
    lengths: [u16; limits::TLS_RECORDS],
}

impl Received {
    const NONE: Self = Self {
        connection: 0,
        origin: 0,
        sequence: 0,
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
        reserved: 0,
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
        observe(thread, state, sock, socket);
    }
    state.carried != Carried::Own as u8
}

/// A read may write first (an alert, a key update), so only a call in its own direction counts as
/// the one that carries its bytes; but any tells the connection.
#[inline(always)]
fn note_socket(thread: &mut TlsThread, sock: Sock, socket: &SocketCall) {
    thread.connection = socket.connection;
    thread.descriptor = task::descriptor();
    thread.waiting = sock.waiting_flags();
    thread.origins[socket.direction as usize] = socket.origin;
    let is_read = thread.action == Action::Read as u8;
    let is_inbound = matches!(socket.direction, Direction::Inbound);
    if is_read == is_inbound && thread.first_ns == 0 {
        thread.first_ns = emit::now_ns();
        thread.sequence = socket.sequence;
    }
}

/// Types of records (RFC 8446, section 5.1), and the version that all of them but the first name.
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const VERSION: [u8; 2] = [3, 3];

/// Longest record (RFC 5246, section 6.2.3), and the most plaintext in one.
const RECORD_BYTES: u16 = (1 << 14) + 2048;
const RECORD_PLAINTEXT: u32 = 1 << 14;

/// What ciphers add to the plaintext of a record: with TLS 1.3 a byte of type and a tag, with TLS
/// 1.2 a tag, and for AES-GCM a nonce. Block ciphers add what depends on the length, and prove
/// nothing.
const ADDED: [u32; 3] = [17, 16, 24];

/// A program moved bytes of a connection that may be that of a session whose bytes it handles
/// itself.
#[inline(always)]
fn observe(thread: &mut TlsThread, state: &mut ConnectionState, sock: Sock, socket: &SocketCall) {
    let Some(address) = user_buffer::first_byte() else {
        return;
    };
    let is_inbound = matches!(socket.direction, Direction::Inbound);
    if socket.position == 0 {
        // SAFETY: the helper checks the address and fails instead of faulting.
        let Ok([kind, major]) = (unsafe { bpf_probe_read_user(address as *const [u8; 2]) }) else {
            return;
        };
        if kind != HANDSHAKE || major != VERSION[0] {
            return;
        }
        if state.carried == Carried::Own as u8 {
            state.carried = Carried::Unproven as u8;
        }
        if !is_inbound {
            claim(thread, sock, socket);
        }
        return;
    }
    let lengths = record_lengths(address, socket.moved);
    if is_inbound {
        thread.received = Received {
            connection: socket.connection,
            origin: socket.origin,
            sequence: socket.sequence,
            lengths,
        };
    } else if let Some(session) = last_session(thread) {
        let written = core::mem::replace(&mut thread.written, 0);
        if prove(session, socket, &lengths, written) {
            state.carried = Carried::Encrypted as u8;
        }
    }
}

/// The session that the thread used last.
#[inline(always)]
fn last_session(thread: &TlsThread) -> Option<&'static mut TlsSession> {
    // SAFETY: as in `session`.
    TLS_SESSIONS
        .get_ptr_mut(&key(thread.last_object))
        .map(|session| unsafe { &mut *session })
}

/// A connection's first bytes leave right after a call of a session that has no connection.
#[inline(always)]
fn claim(thread: &TlsThread, sock: Sock, socket: &SocketCall) {
    let Some(session) = last_session(thread) else {
        return;
    };
    let identity = plaintext_identity(socket.connection);
    // SAFETY: only presence is used here.
    let is_in_use = unsafe { CONNECTIONS.get(&session.identity) }.is_some();
    if session.binding == Binding::None as u8 && !is_in_use {
        session.binding = Binding::Claimed as u8;
        session.identity = identity;
        session.origins[Direction::Outbound as usize] = socket.origin;
        session.descriptor = task::descriptor();
        session.waiting = sock.waiting_flags();
    }
}

/// Lengths of the records of application data that begin at an address; 0 behind them.
#[inline(always)]
fn record_lengths(address: u64, moved: u32) -> [u16; limits::TLS_RECORDS] {
    const HEADER_BYTES: u32 = 5;

    let mut lengths = [0; limits::TLS_RECORDS];
    let mut offset = 0;
    for length in &mut lengths {
        if offset + HEADER_BYTES > moved {
            break;
        }
        let place = (address + u64::from(offset)) as *const [u8; HEADER_BYTES as usize];
        // SAFETY: the helper checks the address and fails instead of faulting.
        let Ok([kind, major, minor, high, low]) = (unsafe { bpf_probe_read_user(place) }) else {
            break;
        };
        let bytes = u16::from_be_bytes([high, low]);
        let is_record = (CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&kind)
            && [major, minor] == VERSION
            && bytes <= RECORD_BYTES;
        if !is_record {
            break;
        }
        if kind == APPLICATION_DATA {
            *length = bytes;
        }
        offset += HEADER_BYTES + u32::from(bytes);
    }
    lengths
}

/// Whether a session's connection is proven by this: it was claimed before, and one of the records
/// on it is as long as what went through the session at that moment.
#[inline(always)]
fn prove(
    session: &mut TlsSession,
    socket: &SocketCall,
    lengths: &[u16; limits::TLS_RECORDS],
    plaintext: u32,
) -> bool {
    if session.binding != Binding::Claimed as u8
        || session.identity != plaintext_identity(socket.connection)
        || plaintext == 0
    {
        return false;
    }
    let in_record = if plaintext > RECORD_PLAINTEXT {
        RECORD_PLAINTEXT
    } else {
        plaintext
    };
    let mut matches = false;
    for length in lengths {
        let added = u32::from(*length).wrapping_sub(in_record);
        matches |= added == ADDED[0] || added == ADDED[1] || added == ADDED[2];
    }
    if matches {
        session.binding = Binding::Proven as u8;
        session.origins[socket.direction as usize] = socket.origin;
        tell_proven(session);
    }
    matches
}

/// Plaintext that was reported without addresses has them now.
#[inline(always)]
fn tell_proven(session: &TlsSession) {
    let identity = session.identity;
    let Some(state) = CONNECTIONS.get_ptr_mut(&identity) else {
        return;
    };
    let Some(carrier) = CONNECTIONS.get_ptr_mut(&plaintext_identity(identity)) else {
        return;
    };
    // SAFETY: pointers into the map's values; wire types, aligned to 8.
    let state = unsafe {
        copy_words(&raw mut (*state).addresses, &raw const (*carrier).addresses);
        (*state).role = (*carrier).role;
        (*state).carried = Carried::Own as u8;
        &*state
    };
    announce(session, state);
}

/// A call returns `result`.
#[inline(always)]
pub(crate) fn leave(result: i32) -> Option<()> {
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
            Direction::Inbound => prove_received(session, call, moved),
            Direction::Outbound => call.written = moved,
        }
    }
    plaintext(&Plaintext {
        session,
        call,
        direction,
        moved,
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

/// A session gave plaintext: of what was received just now, if its connection is proven by that.
#[inline(always)]
fn prove_received(session: &mut TlsSession, call: &mut TlsThread, moved: u32) {
    let received = call.received;
    let socket = SocketCall {
        connection: received.connection,
        direction: Direction::Inbound,
        moved: 0,
        position: 0,
        sequence: received.sequence,
        origin: received.origin,
    };
    if !prove(session, &socket, &received.lengths, moved) {
        return;
    }
    call.sequence = received.sequence;
    if let Some(carrier) = CONNECTIONS.get_ptr_mut(&received.connection) {
        // SAFETY: a pointer into the map's value; one byte is written.
        unsafe { (*carrier).carried = Carried::Encrypted as u8 };
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

/// Bytes of a session that a call moved.
struct Plaintext<'a> {
    session: &'a TlsSession,
    call: &'a TlsThread,
    direction: Direction,
    moved: u32,
}

/// The plaintext's own positions, turns and budgets; as the socket hooks keep them for others.
#[inline(always)]
fn plaintext(data: &Plaintext<'_>) -> Option<()> {
    let traced = process::traced_unit()?;
    let state = state(data, traced)?;
    state.unit = traced.unit;
    let mut place = connection::place(state, data.direction);
    if place.position == 0 && begins_frames(data) {
        state.frames = WHOLE_CALLS;
    }
    if state.frames == WHOLE_CALLS {
        place.budget = limits::CAPTURE_BYTES as u32;
    }
    let mut now_ns = emit::now_ns();
    let mut tail = [0; 8];
    let buffer = if data.call.buffer == 0 {
        UserBuffer::Absent
    } else {
        UserBuffer::Single(data.call.buffer)
    };
    let wanted = if data.call.buffer == 0 {
        0
    } else if data.moved < place.budget {
        data.moved
    } else {
        place.budget
    };
    if wanted < data.moved {
        tail = user_buffer::tail(buffer, data.moved, core::ptr::null());
    }
    if place.turn_start || wanted > 0 {
        if place.turn_start && is_request(state, data.direction) && data.call.first_ns != 0 {
            // A request begins when its first byte leaves, not when the library is done with it.
            now_ns = data.call.first_ns;
        }
        let record = Record {
            data,
            traced,
            state,
            place: &place,
            now_ns,
            tail,
            wanted,
        };
        let captured = write(&record);
        state.turn_captured += captured;
    }
    connection::advance(state, data.direction, data.moved, now_ns, tail);
    Some(())
}

/// Stands in [`ConnectionState::frames`] of plaintext that is HTTP/2: each call is captured from its
/// beginning, whatever the turn, because header fields refer to those before.
const WHOLE_CALLS: u8 = 2;

/// Whether the first bytes are a client's preface of HTTP/2.
#[inline(always)]
fn begins_frames(data: &Plaintext<'_>) -> bool {
    if data.call.buffer == 0 || data.moved < PREFACE_BYTES {
        return false;
    }
    // SAFETY: the helper checks the address and fails instead of faulting.
    let word = unsafe { bpf_probe_read_user(data.call.buffer as *const u64) };
    word == Ok(u64::from_ne_bytes(PREFACE_WORD))
}

#[inline(always)]
fn is_request(state: &ConnectionState, direction: Direction) -> bool {
    matches!(direction, Direction::Outbound) && matches!(Role::from(state.role), Role::Client)
}

/// The state of the plaintext, made from that of the connection on its first use.
#[inline(always)]
fn state(data: &Plaintext<'_>, traced: TracedUnit) -> Option<&'static mut ConnectionState> {
    let identity = data.session.identity;
    if let Some(state) = CONNECTIONS.get_ptr_mut(&identity) {
        // SAFETY: a pointer into the map's value; concurrent calls of one session may mix counts,
        // never memory.
        return Some(unsafe { &mut *state });
    }
    let is_proven = data.session.binding == Binding::Proven as u8;
    if is_proven {
        let carrier = CONNECTIONS.get_ptr_mut(&plaintext_identity(identity))?;
        // SAFETY: a pointer into the map's value, read by the helper.
        if CONNECTIONS
            .insert(&identity, unsafe { &*carrier }, 0)
            .is_err()
        {
            emit::count(DropReason::ConnectionTableFull);
            return None;
        }
    } else {
        let mut empty = core::mem::MaybeUninit::<ConnectionState>::uninit();
        // SAFETY: zero is valid for a wire type.
        let empty = unsafe {
            zero_words(empty.as_mut_ptr());
            empty.assume_init_ref()
        };
        if CONNECTIONS.insert(&identity, empty, 0).is_err() {
            emit::count(DropReason::ConnectionTableFull);
            return None;
        }
    }
    let state = CONNECTIONS.get_ptr_mut(&identity)?;
    // SAFETY: as above; the parts are wire types, aligned to 8.
    let state = unsafe {
        zero_words(&raw mut (*state).inbound);
        zero_words(&raw mut (*state).outbound);
        &mut *state
    };
    state.unit = traced.unit;
    state.last_direction = 0;
    state.complete = data.session.complete;
    state.carried = if is_proven {
        Carried::Own as u8
    } else {
        Carried::Unproven as u8
    };
    state.turn_captured = 0;
    state.turns = 0;
    state.frames = 0;
    if is_proven {
        announce(data.session, state);
    } else {
        state.opened_ns = emit::now_ns();
    }
    Some(state)
}

/// Writes a [`PlaintextOpened`] record.
#[inline(always)]
fn announce(session: &TlsSession, state: &ConnectionState) {
    let Some(mut record) = RECORDS.reserve::<PlaintextOpened>(0) else {
        emit::count(DropReason::RingFull);
        return;
    };
    let length = size_of::<PlaintextOpened>();
    // SAFETY: reserved memory of this size, aligned to 8; all bit patterns are valid.
    let opened = unsafe { &mut *record.as_mut_ptr() };
    opened.header = emit::header(RecordKind::PlaintextOpened, length, emit::now_ns());
    opened.unit = state.unit;
    opened.connection = session.identity;
    opened.carrier = plaintext_identity(session.identity);
    // SAFETY: wire types without padding, aligned to 8.
    unsafe { copy_words(&raw mut opened.addresses, &raw const state.addresses) };
    opened.origins = if session.complete == 1 {
        session.origins
    } else {
        [0; 2]
    };
    opened.role = state.role;
    opened.reserved = [0; 7];
    record.submit(emit::NO_WAKE_UP);
}

/// A record to be written.
struct Record<'a> {
    data: &'a Plaintext<'a>,
    traced: TracedUnit,
    state: &'a ConnectionState,
    place: &'a Place,
    now_ns: u64,
    tail: [u8; 8],
    wanted: u32,
}

/// A record with room for captured bytes, in the ring buffer. Scratch areas are of no use here:
/// since Linux 6.0 a probe of a program may be preempted by the same one on another thread.
#[repr(C)]
struct Room<const BYTES: usize> {
    head: SocketData,
    bytes: [u8; BYTES],
}

/// Rooms of several sizes: the kernel reserves constant sizes only, and most calls are small.
const SMALL: usize = 1024 - HEAD_BYTES;
const MEDIUM: usize = 4096 - HEAD_BYTES;

/// Writes the record; returns how many bytes were captured.
#[inline(always)]
fn write(record: &Record<'_>) -> u32 {
    if record.wanted <= SMALL as u32 {
        write_sized::<SMALL>(record)
    } else if record.wanted <= MEDIUM as u32 {
        write_sized::<MEDIUM>(record)
    } else {
        write_sized::<{ limits::CAPTURE_BYTES }>(record)
    }
}

#[inline(always)]
fn write_sized<const BYTES: usize>(record: &Record<'_>) -> u32 {
    let Some(mut room) = RECORDS.reserve::<Room<BYTES>>(0) else {
        emit::count(DropReason::RingFull);
        return 0;
    };
    let address = room.as_mut_ptr();
    // The verifier wants the bound right before the read ("R2 unbounded memory access").
    let mut captured = core::hint::black_box(record.wanted);
    if captured > BYTES as u32 {
        captured = BYTES as u32;
    }
    if captured > 0 {
        let source = record.data.call.buffer as *const _;
        // SAFETY: `bytes` has room for BYTES; the helper checks the source.
        let failed = unsafe { read_raw((&raw mut (*address).bytes).cast(), captured, source) };
        if failed != 0 {
            emit::count(DropReason::BufferUnreadable);
            captured = 0;
        }
    }
    // SAFETY: reserved memory of this size, aligned to 8; all bit patterns are valid.
    write_head(unsafe { &mut (*address).head }, record, captured);
    room.submit(emit::NO_WAKE_UP);
    captured
}

#[inline(always)]
fn write_head(head: &mut SocketData, record: &Record<'_>, captured: u32) {
    let Record {
        data, state, place, ..
    } = record;
    let (direction, opposite) = match data.direction {
        Direction::Inbound => (0, &state.outbound),
        Direction::Outbound => (flags::OUTBOUND, &state.inbound),
    };
    let length = HEAD_BYTES + captured as usize;
    head.header = emit::header(RecordKind::SocketData, length, record.now_ns);
    head.unit = record.traced.unit;
    head.connection = data.session.identity;
    // SAFETY: wire types without padding, aligned to 8.
    unsafe {
        copy_words(&raw mut head.addresses, &raw const state.addresses);
        copy_words(&raw mut head.other_flow, opposite);
    }
    head.position = place.position;
    head.original_length = data.moved;
    head.captured_length = captured;
    head.tcp_sequence = data.call.sequence;
    head.flags = flags::PLAINTEXT
        | direction
        | data.session.waiting
        | if place.turn_start {
            flags::TURN_START
        } else {
            0
        }
        | if state.complete == 1 {
            flags::COMPLETE
        } else {
            0
        };
    head.role = state.role;
    head.reserved = 0;
    head.task = 0;
    head.task_parent = 0;
    head.task_next = 0;
    head.task_allotted = 0;
    head.task_left = 0;
    head.descriptor = data.session.descriptor;
    head.tail = record.tail;
}
