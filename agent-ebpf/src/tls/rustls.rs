//! Plaintext of rustls, whose connections are values that programs move about: an address says
//! nothing of which connection it is. So sessions are keyed by the connection here, and each piece
//! of plaintext must prove where it travels.
//!
//! **Out.** A program gives plaintext to a connection (`CommonState::buffer_plaintext`), and the
//! same thread then sends what is queued in the same value: the queue (`ChunkVecBuffer`) that is
//! written to the socket next lies within the value that took the plaintext. The socket call made
//! inside tells the connection. The program still holds the buffer then, so it is read at that
//! moment. Where the socket took nothing, the plaintext is counted and comes later, as bytes that
//! were not read.
//!
//! **In.** Records are decrypted in place, right after they were received: the record, whose header
//! must stand before it, ends within the bytes that the thread received last.

use agent_common::{
    connection::{Direction, plaintext_identity},
    drop_reason::DropReason,
    payload::{UNKNOWN_DESCRIPTOR, flags},
};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};

use super::{
    Action, Binding, Call, TlsSession, TlsThread,
    plaintext::{self, Plaintext, Task},
    proof::{APPLICATION_DATA, CHANGE_CIPHER_SPEC, RECORD_BYTES},
};
use crate::{
    emit,
    maps::{RUSTLS_THREADS, RUSTLS_UNSENT, TLS_SESSIONS, TLS_THREADS},
    process,
    user_buffer::IoVector,
};

/// A `CommonState` has some 830 bytes.
const VALUE_BYTES: u64 = 1024;

/// More pieces than the 64 that Rust's writers give at once mean that they were misread.
const MOST_PIECES: u64 = 1024;

/// Pieces of one vectored write that are read; what is behind them is counted. HTTP writes a head
/// and a body, or a chunk between its two lines.
const READ_PIECES: usize = 3;

/// With one in front for what was not sent before, and one for what is behind.
const PIECES: usize = READ_PIECES + 2;

/// What a thread does in rustls.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RustlsThread {
    /// The connection's value that took plaintext; 0 for none.
    sink: u64,
    /// Where the plaintext is, piece by piece. The list that the program made of them is gone when
    /// they are sent.
    pieces: [IoVector; PIECES],
    /// How much of it was taken, and not sent yet; 0 for none.
    taken: u64,
    /// How far a queue is behind the beginning of its value, as seen last; 0 before.
    distance: u64,
    /// The record that is being decrypted, and its length; 0 for none.
    record: u64,
    record_bytes: u32,
    /// An [`Overhead`] as an integer.
    overhead: u32,
}

const NOTHING: IoVector = IoVector { base: 0, length: 0 };

impl RustlsThread {
    const IDLE: Self = Self {
        sink: 0,
        pieces: [NOTHING; PIECES],
        taken: 0,
        distance: 0,
        record: 0,
        record_bytes: 0,
        overhead: 0,
    };
}

/// A connection's value in a process.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SinkKey {
    address: u64,
    process_id: u64,
}

/// What a cipher adds to the plaintext of a record, in bytes.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Overhead {
    /// A byte of type and a tag (RFC 8446, section 5.2).
    Tls13 = 17,
    /// A nonce and a tag (RFC 5288, section 3).
    Tls12Gcm = 24,
    /// A tag (RFC 7905, section 2).
    Tls12Chacha = 16,
}

#[inline(always)]
fn thread() -> Option<&'static mut RustlsThread> {
    let id = bpf_get_current_pid_tgid();
    if RUSTLS_THREADS.get_ptr_mut(&id).is_none() {
        let _ = RUSTLS_THREADS.insert(&id, &RustlsThread::IDLE, 0);
    }
    // SAFETY: a pointer into the map's value, which only this thread writes.
    RUSTLS_THREADS
        .get_ptr_mut(&id)
        .map(|thread| unsafe { &mut *thread })
}

/// A program gives plaintext to a connection. `chunks` is the address of `OutboundChunks`: 0, an
/// address and a length; or the address and count of pieces, and where in all of them it begins and
/// ends.
#[inline(always)]
pub(crate) fn enter_write(sink: u64, chunks: u64) -> Option<()> {
    const LONGEST: u64 = i32::MAX as u64;

    process::traced_unit()?;
    let thread = thread()?;
    set_aside(thread);
    thread.sink = 0;
    // SAFETY: the helper checks the address and fails instead of faulting.
    let words = unsafe { bpf_probe_read_user(chunks as *const [u64; 4]) };
    let Ok([first, second, third, fourth]) = words else {
        emit::count(DropReason::BufferUnreadable);
        return None;
    };
    let is_one = first == 0 && third <= LONGEST;
    let is_many = first != 0 && second <= MOST_PIECES && third <= fourth && fourth <= LONGEST;
    if !is_one && !is_many {
        emit::count(DropReason::BufferUnreadable);
        return None;
    }
    thread.sink = sink;
    thread.pieces = [NOTHING; PIECES];
    thread.pieces[PIECES - 1].length = LONGEST;
    if is_one {
        thread.pieces[1] = IoVector {
            base: second,
            length: third,
        };
    } else if third == 0 {
        note_pieces(thread, first, second);
    }
    // Else it is the rest of a write whose beginning went before, and is counted only.
    Some(())
}

#[inline(always)]
fn note_pieces(thread: &mut RustlsThread, list: u64, count: u64) {
    let mut place = list;
    for number in 0..READ_PIECES {
        if number as u64 >= count {
            break;
        }
        // SAFETY: the helper checks the address and fails instead of faulting.
        let Ok(vector) = (unsafe { bpf_probe_read_user(place as *const IoVector) }) else {
            emit::count(DropReason::BufferUnreadable);
            break;
        };
        thread.pieces[number + 1] = vector;
        place += size_of::<IoVector>() as u64;
    }
}

/// The connection took so many bytes of it.
#[inline(always)]
pub(crate) fn leave_write(taken: u64) -> Option<()> {
    let thread = RUSTLS_THREADS.get_ptr_mut(&bpf_get_current_pid_tgid())?;
    // SAFETY: as in `thread`.
    let thread = unsafe { &mut *thread };
    if thread.sink != 0 && i32::try_from(taken).is_ok() {
        thread.taken = taken;
    }
    Some(())
}

/// What a thread gave to a connection was not sent at once: its bytes can be read no more.
#[inline(always)]
fn set_aside(thread: &mut RustlsThread) {
    let taken = core::mem::replace(&mut thread.taken, 0);
    if taken == 0 {
        return;
    }
    let key = sink_key(thread.sink);
    // SAFETY: copied at once.
    let before = unsafe { RUSTLS_UNSENT.get(&key) }.copied().unwrap_or(0);
    let _ = RUSTLS_UNSENT.insert(&key, &(before + taken), 0);
}

#[inline(always)]
fn sink_key(address: u64) -> SinkKey {
    SinkKey {
        address,
        process_id: bpf_get_current_pid_tgid() >> 32,
    }
}

/// A connection's queue is sent.
#[inline(always)]
pub(crate) fn enter_send(queue: u64) {
    super::enter(&Call {
        action: Action::Write,
        object: queue,
        buffer: 0,
        moved: 0,
    });
}

#[inline(always)]
pub(crate) fn leave_send() -> Option<()> {
    let call = TLS_THREADS.get_ptr_mut(&bpf_get_current_pid_tgid())?;
    // SAFETY: a pointer into the map's value, which only this thread writes.
    let call = unsafe { &mut *call };
    let queue = core::mem::replace(&mut call.object, 0);
    if queue == 0 {
        return None;
    }
    let thread = thread()?;
    if call.connection == 0 {
        set_aside(thread);
        return None;
    }
    let outbound = call.origins[Direction::Outbound as usize];
    let begins = outbound != 0 && call.sequence == outbound;
    let session = session(call.connection, u8::from(begins))?;
    note_origins(session, call);
    let distance = queue.wrapping_sub(thread.sink);
    if thread.taken != 0 && distance < VALUE_BYTES {
        thread.distance = distance;
    } else {
        set_aside(thread);
    }
    let key = sink_key(queue.wrapping_sub(thread.distance));
    // SAFETY: copied at once.
    let unsent = unsafe { RUSTLS_UNSENT.get(&key) }.copied().unwrap_or(0);
    if unsent != 0 {
        let _ = RUSTLS_UNSENT.remove(&key);
    }
    report_sent(session, call, thread, unsent);
    Some(())
}

/// First what could not be read in time, then what the thread gave just now, piece by piece.
#[inline(always)]
fn report_sent(session: &TlsSession, call: &TlsThread, thread: &mut RustlsThread, unsent: u64) {
    let mut left = core::mem::replace(&mut thread.taken, 0) + unsent;
    // In memory, so that the verifier sees the same unknown numbers in each turn.
    thread.pieces[0].length = unsent;
    for piece in &thread.pieces {
        let moved = if piece.length < left {
            piece.length
        } else {
            left
        };
        left -= moved;
        if moved == 0 || moved > i32::MAX as u64 {
            continue;
        }
        let _ = plaintext::report::<false>(&Plaintext {
            session,
            buffer: piece.base,
            first_ns: call.first_ns,
            sequence: call.sequence,
            direction: Direction::Outbound,
            moved: moved as u32,
            task: Task::NONE,
        });
    }
}

/// A record is about to be decrypted. `message` is the address of `InboundOpaqueMessage`, which has
/// the record's address and length beside its type and version, in an order that the compiler
/// chose: the header before the record says which they are.
#[inline(always)]
pub(crate) fn enter_open(message: u64, overhead: Overhead) -> Option<()> {
    const WORDS: usize = 3;
    const HEADER_BYTES: u64 = 5;

    process::traced_unit()?;
    let thread = thread()?;
    thread.record = 0;
    // SAFETY: the helper checks the address and fails instead of faulting.
    let words = unsafe { bpf_probe_read_user(message as *const [u64; WORDS]) }.ok()?;
    for pair in [[words[0], words[1]], [words[1], words[2]]] {
        let [address, length] = pair;
        if address < HEADER_BYTES || length == 0 || length > u64::from(RECORD_BYTES) {
            continue;
        }
        let header = (address - HEADER_BYTES) as *const [u8; HEADER_BYTES as usize];
        // SAFETY: as above.
        let Ok([kind, major, _, high, low]) = (unsafe { bpf_probe_read_user(header) }) else {
            continue;
        };
        let is_record = (CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&kind)
            && major == 3
            && u64::from(u16::from_be_bytes([high, low])) == length;
        if is_record {
            thread.record = address;
            thread.record_bytes = length as u32;
            thread.overhead = overhead as u32;
        }
    }
    Some(())
}

/// It was decrypted, where it is.
#[inline(always)]
pub(crate) fn leave_open() -> Option<()> {
    let thread = RUSTLS_THREADS.get_ptr_mut(&bpf_get_current_pid_tgid())?;
    // SAFETY: as in `thread`.
    let thread = unsafe { &mut *thread };
    let record = core::mem::replace(&mut thread.record, 0);
    let call = TLS_THREADS.get_ptr_mut(&bpf_get_current_pid_tgid())?;
    // SAFETY: a pointer into the map's value, which only this thread writes.
    let call = unsafe { &mut *call };
    let received = call.received;
    let end = record + u64::from(thread.record_bytes);
    let is_of_received = record != 0
        && received.connection != 0
        && end > received.address
        && end <= received.address + u64::from(received.moved);
    if !is_of_received {
        return None;
    }
    let session = session(received.connection, 0)?;
    call.origins = [0; 2];
    call.origins[Direction::Inbound as usize] = received.origin;
    note_origins(session, call);
    let moved = thread.record_bytes.checked_sub(thread.overhead)?;
    // TLS 1.3 has the type behind the plaintext, TLS 1.2 in the header.
    let kind = if thread.overhead == Overhead::Tls13 as u32 {
        record + u64::from(moved)
    } else {
        record - 5
    };
    // SAFETY: the helper checks the address and fails instead of faulting.
    let kind = unsafe { bpf_probe_read_user(kind as *const u8) };
    if kind != Ok(APPLICATION_DATA) || moved == 0 {
        return None;
    }
    call.sequence = received.sequence;
    call.first_ns = 0;
    // A full record is longer than what one report can hold.
    plaintext::report_parts::<2>(&Plaintext {
        session,
        buffer: record,
        first_ns: call.first_ns,
        sequence: call.sequence,
        direction: Direction::Inbound,
        moved,
        task: Task::NONE,
    });
    Some(())
}

/// The session of a connection. `begins`: 1 if its first bytes leave just now.
#[inline(always)]
fn session(connection: u64, begins: u8) -> Option<&'static mut TlsSession> {
    let key = super::key(connection);
    if begins == 1 || TLS_SESSIONS.get_ptr_mut(&key).is_none() {
        let new = TlsSession {
            identity: plaintext_identity(connection),
            descriptor: UNKNOWN_DESCRIPTOR,
            waiting: flags::NON_BLOCKING | flags::POLLED,
            complete: begins,
            binding: Binding::Proven as u8,
            origins: [0; 2],
        };
        let _ = TLS_SESSIONS.insert(&key, &new, 0);
    }
    // SAFETY: a pointer into the map's value; a connection is used by one thread at a time.
    TLS_SESSIONS
        .get_ptr_mut(&key)
        .map(|session| unsafe { &mut *session })
}

/// What the thread's last socket call said of the connection.
#[inline(always)]
fn note_origins(session: &mut TlsSession, call: &TlsThread) {
    session.descriptor = call.descriptor;
    session.waiting = call.waiting;
    for (known, seen) in session.origins.iter_mut().zip(call.origins) {
        if seen != 0 {
            *known = seen;
        }
    }
}
