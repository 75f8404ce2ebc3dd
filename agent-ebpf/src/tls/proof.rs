//! Sessions whose encrypted bytes the program moves itself: whose connection is whose.

use agent_common::{
    connection::{Carried, ConnectionState, Direction, plaintext_identity},
    limits,
};
use aya_ebpf::helpers::bpf_probe_read_user;

use super::{Binding, Received, SocketCall, TlsSession, TlsThread, key, plaintext::announce};
use crate::{
    maps::{CONNECTIONS, TLS_SESSIONS},
    read::{sock::Sock, task},
    scratch::copy_words,
    user_buffer,
};

/// Types of records (RFC 8446, section 5.1), and the version that all of them but the first name.
pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;
const VERSION: [u8; 2] = [3, 3];

/// Longest record (RFC 5246, section 6.2.3), and the most plaintext in one.
pub(super) const RECORD_BYTES: u16 = (1 << 14) + 2048;
const RECORD_PLAINTEXT: u32 = 1 << 14;

/// What ciphers add to the plaintext of a record: with TLS 1.3 a byte of type and a tag, with TLS
/// 1.2 a tag, and for AES-GCM a nonce. Block ciphers add what depends on the length, and prove
/// nothing.
const ADDED: [u32; 3] = [17, 16, 24];

/// A program moved bytes of a connection that may be that of a session whose bytes it handles
/// itself.
#[inline(always)]
pub(super) fn observe(
    thread: &mut TlsThread,
    state: &mut ConnectionState,
    sock: Sock,
    socket: &SocketCall,
) {
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
        if is_inbound {
            note_received(thread, sock, socket);
            thread.received.first = 1;
        } else {
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
            address,
            moved: socket.moved,
            first: 0,
            lengths,
        };
    } else if let Some(session) = last_session(thread) {
        let written = core::mem::replace(&mut thread.written, 0);
        if prove(session, socket, &lengths, written) {
            state.carried = Carried::Encrypted as u8;
        }
    }
}

/// What a thread received for a connection that is known to be encrypted, which rustls is given
/// outside of any call.
#[inline(always)]
pub(super) fn note_received(thread: &mut TlsThread, sock: Sock, socket: &SocketCall) {
    let received = &mut thread.received;
    received.connection = socket.connection;
    received.origin = socket.origin;
    received.sequence = socket.sequence;
    received.address = user_buffer::first_byte().unwrap_or(0);
    received.moved = socket.moved;
    received.first = 0;
    received.lengths = [0; limits::TLS_RECORDS];
    thread.descriptor = task::descriptor();
    thread.waiting = sock.waiting_flags();
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
    if session.binding == Binding::None as u8 && !is_in_use(session) {
        session.binding = Binding::Claimed as u8;
        session.identity = identity;
        session.origins[Direction::Outbound as usize] = socket.origin;
        session.descriptor = task::descriptor();
        session.waiting = sock.waiting_flags();
    }
}

/// What a connection's other end began with is given to a session next: a client that connects on
/// one thread and sends on another is known by that. Nearer than what a thread happened to send.
#[inline(always)]
pub(super) fn claim_received(session: &mut TlsSession, call: &TlsThread) {
    let received = &call.received;
    if session.binding == Binding::Proven as u8 || is_in_use(session) {
        return;
    }
    let identity = plaintext_identity(received.connection);
    if session.identity != identity {
        session.origins = [0; 2];
    }
    session.binding = Binding::Claimed as u8;
    session.identity = identity;
    session.origins[Direction::Inbound as usize] = received.origin;
    session.descriptor = call.descriptor;
    session.waiting = call.waiting;
}

/// Whether plaintext of a session was reported.
#[inline(always)]
fn is_in_use(session: &TlsSession) -> bool {
    // SAFETY: only presence is used here.
    unsafe { CONNECTIONS.get(&session.identity) }.is_some()
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

/// Plaintext that was reported without addresses has them now. Where the other direction began,
/// another thread may have seen.
#[inline(always)]
fn tell_proven(session: &mut TlsSession) {
    let identity = session.identity;
    let Some(carrier) = CONNECTIONS.get_ptr_mut(&plaintext_identity(identity)) else {
        return;
    };
    for (direction, known) in session.origins.iter_mut().enumerate() {
        if *known == 0 {
            // SAFETY: a pointer into the map's value, which is read.
            *known = unsafe { (*carrier).origins[direction] };
        }
    }
    let Some(state) = CONNECTIONS.get_ptr_mut(&identity) else {
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

/// A session gave plaintext: of what was received just now, if its connection is proven by that.
#[inline(always)]
pub(super) fn prove_received(session: &mut TlsSession, call: &mut TlsThread, moved: u32) {
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

/// A session whose connection is known by what was sent learns where the other direction began from
/// what the thread received there: a server of HTTP/2 speaks before it reads its first request.
#[inline(always)]
pub(super) fn note_origin(session: &mut TlsSession, call: &TlsThread) {
    let received = &call.received;
    let known = &mut session.origins[Direction::Inbound as usize];
    if *known != 0
        || received.origin == 0
        || session.identity != plaintext_identity(received.connection)
    {
        return;
    }
    *known = received.origin;
    if let Some(state) = CONNECTIONS.get_ptr_mut(&session.identity) {
        // SAFETY: a pointer into the map's value, which is read.
        announce(session, unsafe { &*state });
    }
}
