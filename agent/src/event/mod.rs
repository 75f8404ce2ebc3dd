//! Records to events. Pure.
//!
//! The only module that knows how the kernel side lays out its records; everything after it sees
//! [`Event`]. Input comes from the kernel, yet it never panics on it.
#![deny(clippy::indexing_slicing)]

pub mod clock;
pub mod decode;

use std::net::IpAddr;

use agent_common::frames::PIECE_HEAD_BYTES;

use self::decode::DecodeError;

pub use agent_common::{
    connection::{ClosingStep, Direction, DirectionState, Role},
    process::Traced,
};

/// A process, safe against reuse of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId {
    /// Process id in the initial PID namespace.
    pub pid: u32,
    /// Start of the process since boot in clock ticks of 10 ms, as field 22 of `/proc/PID/stat`
    /// has it; the kernel side's nanoseconds are cut to it, so that both sources agree. 0 where
    /// unknown.
    pub start_ticks: u64,
}

/// Nanoseconds in a clock tick of `/proc` (`USER_HZ` is 100 on every supported architecture).
pub const TICK_NS: u64 = 10_000_000;

impl ProcessId {
    pub const fn new(pid: u32, start_boottime_ns: u64) -> Self {
        Self {
            pid,
            start_ticks: start_boottime_ns / TICK_NS,
        }
    }
}

/// The thread that did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    pub process: ProcessId,
    pub thread_id: u32,
}

/// What a program's own runtime schedules on its threads: a goroutine. Ids are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Task {
    pub id: u64,
    /// The one that started it; 0 unknown.
    pub parent: u64,
}

/// Ids that may be given to new goroutines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskIds {
    /// The processor gives `left` ids from here on, and no other processor gives them.
    pub next: u64,
    pub left: u32,
    /// No processor has ids above this yet; 0 unknown.
    pub allotted: u64,
}

/// Identity of a connection while it exists: socket cookie or socket address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

impl ConnectionId {
    /// Of the plaintext that this connection carries encrypted.
    #[must_use]
    pub const fn plaintext(self) -> Self {
        Self(agent_common::connection::plaintext_identity(self.0))
    }

    /// The connection that carries this plaintext encrypted: that is its own inverse.
    #[must_use]
    pub const fn carrier(self) -> Self {
        self.plaintext()
    }
}

/// Both ends of a connection as the observed process sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoints {
    Inet {
        local: (IpAddr, u16),
        remote: (IpAddr, u16),
        network_namespace: u32,
    },
    /// Identities of the two ends, 0 where unknown.
    Unix { local: u64, remote: u64 },
    /// Of plaintext whose connection could not be told.
    Unknown,
}

/// Who is at the other end of a server's connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtherEnd {
    #[default]
    Unknown,
    /// A traced process of this host.
    Traced,
    /// Another host, or a process that is not traced.
    NotTraced,
}

/// What the kernel side reported. Times are `CLOCK_BOOTTIME` nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Event<'a> {
    pub timestamp_ns: u64,
    pub kind: EventKind<'a>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum EventKind<'a> {
    Data(Data<'a>),
    Opened {
        unit: Unit,
        connection: ConnectionId,
        endpoints: Endpoints,
        role: Role,
        unix_path: Option<String>,
    },
    /// A connection that a traced process began is established.
    Established {
        connection: ConnectionId,
        endpoints: Endpoints,
    },
    Closing {
        connection: ConnectionId,
        step: ClosingStep,
        error: u32,
        inbound: DirectionState,
        outbound: DirectionState,
    },
    Exec(Exec<'a>),
    /// A thread started a process, or a thread of its own process.
    Fork {
        parent: Unit,
        child: Unit,
        /// Not so: the child is traced until it is decided whether the user chose it.
        is_decided: bool,
    },
    Exit {
        process: ProcessId,
    },
    /// A thread ended that was not the last one of its process.
    ThreadExit {
        unit: Unit,
    },
    Listen {
        process: ProcessId,
        port: u16,
        traced: bool,
    },
    Minted(Minted),
    Carried(Carried),
    /// A TLS session is known to travel on a connection.
    PlaintextOpened(PlaintextOpened),
    /// A thread woke another one on purpose.
    HandOff(HandOff),
    /// A goroutine is about to use a connection for a request of Go's HTTP client; without a
    /// descriptor, to start one that writes the headers of a stream.
    GoCall {
        process: ProcessId,
        task: Task,
        descriptor: Option<u32>,
    },
    /// A goroutine serves a stream of HTTP/2, or has begun one.
    GoStream {
        process: ProcessId,
        task: Task,
        stream: u32,
        /// Who is about to write the headers of the one that was begun; `None`: it is served.
        writer: Option<u64>,
    },
}

/// A TLS session is known to travel on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaintextOpened {
    pub unit: Unit,
    /// The plaintext.
    pub connection: ConnectionId,
    pub endpoints: Endpoints,
    pub role: Role,
    /// TCP sequence numbers at which the carrier began, inbound and outbound; 0 where the other
    /// end may count the plaintext in another way.
    pub origins: [u32; 2],
}

/// A thread woke another one of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOff {
    pub from: Unit,
    pub to: Unit,
    pub waiting_since_ns: u64,
    /// When the waker last read the beginning of a request; 0 where the woken thread is no worker.
    pub request_ns: u64,
    /// When it last read the beginning of an answer; 0 where the woken one does not wait for that.
    pub answer_ns: u64,
}

/// Ids that the kernel side made for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minted {
    pub connection: ConnectionId,
    /// Position of the request's first byte in its direction.
    pub position: u64,
    pub trace_id: [u8; 16],
    /// Zero when only a trace was begun, for a server's request.
    pub span_id: [u8; 8],
    /// Position of the byte before which a header was put into the stream.
    pub added_at: u64,
    /// Bytes of that header.
    pub added: u32,
    pub carrier: Carrier,
}

/// What was put into a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A header of HTTP/1, before the empty line of a head.
    Header,
    /// A field of HTTP/2, behind a block.
    Field,
}

/// A context that left with a TCP option on a client's connection, or came with one on a server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    pub connection: ConnectionId,
    /// TCP sequence number of the request's first byte.
    pub tcp_sequence: u32,
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    /// W3C trace flags.
    pub flags: u8,
}

/// One socket call that moved bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Data<'a> {
    pub unit: Unit,
    /// Where the program has tasks of its own, and they can be told.
    pub task: Option<Task>,
    /// Of the task that received.
    pub task_ids: Option<TaskIds>,
    /// The socket's file descriptor.
    pub descriptor: Option<u32>,
    pub connection: ConnectionId,
    pub endpoints: Endpoints,
    pub role: Role,
    pub direction: Direction,
    pub position: u64,
    /// Bytes that the call moved; 0 for the end of the stream.
    pub original_length: u32,
    pub tcp_sequence: u32,
    pub turn_start: bool,
    pub non_blocking: bool,
    /// The socket is in an epoll set, or that could not be told.
    pub polled: bool,
    pub complete: bool,
    pub end_of_stream: bool,
    /// What a TLS library encrypts or has decrypted.
    pub plaintext: bool,
    /// The first bytes of the call.
    pub bytes: &'a [u8],
    /// Pieces of what follows them.
    pub further: Pieces<'a>,
    /// The last bytes of the call when not all of it was captured; zero when unknown.
    pub tail: [u8; 8],
    /// What had flowed in the other direction; at the end of a stream, in the one that ended.
    pub other_flow: DirectionState,
}

impl Data<'_> {
    /// Bytes of the call that were not captured.
    pub fn uncaptured(&self) -> u64 {
        let further: usize = self.further.into_iter().map(|(_, bytes)| bytes.len()).sum();
        u64::from(self.original_length).saturating_sub((self.bytes.len() + further) as u64)
    }
}

/// Pieces of a call's bytes, each with its offset in the call, in order and apart from each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pieces<'a> {
    rest: &'a [u8],
}

impl<'a> Pieces<'a> {
    /// All of `rest` must be pieces of a call of this length.
    pub(crate) fn new(rest: &'a [u8], original_length: u32) -> Result<Self, DecodeError> {
        let all = Self { rest };
        let (mut left, mut end) = (rest.len(), 0);
        for (offset, bytes) in all {
            if offset < end {
                return Err(DecodeError::BrokenPieces);
            }
            end = offset.saturating_add(bytes.len() as u32);
            left -= PIECE_HEAD_BYTES as usize + bytes.len();
        }
        if left > 0 || end > original_length {
            return Err(DecodeError::BrokenPieces);
        }
        Ok(all)
    }

    /// The bytes with which the call begins, and the other pieces.
    pub(super) fn split_first(self) -> (&'a [u8], Self) {
        let mut pieces = self.into_iter();
        match pieces.next() {
            Some((0, first)) => (first, Self { rest: pieces.rest }),
            _ => (&[], self),
        }
    }
}

impl<'a> IntoIterator for Pieces<'a> {
    type Item = (u32, &'a [u8]);
    type IntoIter = PieceIterator<'a>;

    fn into_iter(self) -> Self::IntoIter {
        PieceIterator { rest: self.rest }
    }
}

#[derive(Debug)]
pub struct PieceIterator<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for PieceIterator<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (offset, rest) = self.rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_ne_bytes(*length) as usize)?;
        self.rest = rest;
        Some((u32::from_ne_bytes(*offset), bytes))
    }
}

/// A process replaced its program.
#[derive(Clone, Debug, PartialEq)]
pub struct Exec<'a> {
    pub process: ProcessId,
    pub parent_pid: u32,
    pub traced: Traced,
    pub command: String,
    /// Path the kernel runs, for a script that of its interpreter; empty when unknown.
    pub executable: String,
    /// Strings that end in NUL; the last one may be cut.
    pub arguments: &'a [u8],
    /// `NAME=value` strings that end in NUL; the last one may be cut.
    pub environment: &'a [u8],
}
