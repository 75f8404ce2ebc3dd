//! Sockets: addresses, roles, what flowed in each direction, and the end.

use crate::{process::ExecutionUnit, record::RecordHeader, wire};

wire! {
    /// Both ends of a socket as its owner sees them.
    pub struct SocketAddresses {
        /// `AF_INET` 2, `AF_INET6` 10, `AF_UNIX` 1.
        pub family: u16,
        pub local_port: u16,
        pub remote_port: u16,
        pub reserved: u16,
        /// Inode number of the network namespace; 0 where unknown.
        pub network_namespace: u32,
        pub reserved_2: u32,
        /// The address as it lies in memory, in network byte order; IPv4 in the first four bytes.
        /// For unix sockets the first word identifies the own end while it exists.
        pub local: [u64; 2],
        /// As `local`, for the other end.
        pub remote: [u64; 2],
    }
}

pub const FAMILY_UNIX: u16 = 1;
pub const FAMILY_INET: u16 = 2;
pub const FAMILY_INET6: u16 = 10;

wire! {
    /// What flowed in one direction of a connection since the kernel side began to count.
    pub struct DirectionState {
        /// Bytes so far; the position of the next byte.
        pub position: u64,
        /// When the last byte flowed, `CLOCK_BOOTTIME` nanoseconds; 0 when none did.
        pub last_ns: u64,
        /// The last bytes that flowed, right aligned, 0 before them: enough to recognise the last
        /// chunk of a chunked body. Kept for bytes that were not captured.
        pub tail: [u8; 8],
    }
}

wire! {
    /// Per-connection state: the value of the map that user space reads to learn the end of a
    /// long message.
    pub struct ConnectionState {
        pub addresses: SocketAddresses,
        pub inbound: DirectionState,
        pub outbound: DirectionState,
        /// The process that used it last.
        pub unit: ExecutionUnit,
        /// When the kernel side first saw it, or the connection was established.
        pub opened_ns: u64,
        /// A [`Role`] as an integer.
        pub role: u8,
        /// A [`Direction`] as an integer plus one; 0 before the first byte.
        pub last_direction: u8,
        /// 1 when counting began with the first byte of the connection.
        pub complete: u8,
        /// 1 when frames of HTTP/2 are followed on it, see [`crate::frames`].
        pub frames: u8,
        /// Bytes captured in the current turn.
        pub turn_captured: u32,
        /// Turns so far, both directions.
        pub turns: u32,
        /// How often user space had changed whose frames are followed when this one was looked up.
        /// Of plaintext in a Go program: whose it is, by the lower half of the object's address.
        pub frames_seen: u32,
        /// TCP sequence numbers at which the directions began, inbound and outbound; 0 where that
        /// was not seen. They are kept because positions lag behind sequence numbers where the
        /// kernel makes and opens TLS records (kTLS): calls then return what is inside of them.
        pub origins: [u32; 2],
        /// A [`Carried`] as an integer.
        pub carried: u8,
        pub reserved: [u8; 7],
    }
}

impl ConnectionState {
    /// Bytes that have flowed in this direction.
    #[inline]
    #[must_use]
    pub const fn position(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Inbound => self.inbound.position,
            Direction::Outbound => self.outbound.position,
        }
    }
}

/// What the bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Carried {
    /// What the program sends and receives.
    Own = 0,
    /// What a TLS library made of it: only counted. What the program sends and receives has a
    /// state of its own, see [`plaintext_identity`].
    Encrypted = 1,
    /// The same, but which session's it is has not been proven. Of a plaintext: its connection has
    /// not been.
    Unproven = 2,
}

/// Identity of the plaintext that a connection carries encrypted. Cookies are small numbers, and
/// addresses of sockets have all of their upper bits set: neither is another connection's.
#[must_use]
pub const fn plaintext_identity(connection: u64) -> u64 {
    connection ^ (1 << 62)
}

wire! {
    /// A TLS session was given or gave its first plaintext on a known connection.
    pub struct PlaintextOpened {
        pub header: RecordHeader,
        pub unit: ExecutionUnit,
        /// Identity of the plaintext.
        pub connection: u64,
        /// Identity of the connection that carries it.
        pub carrier: u64,
        /// Those of the carrier.
        pub addresses: SocketAddresses,
        /// TCP sequence numbers at which the carrier's directions began, inbound and outbound: the
        /// other end knows the same ones. 0 where unknown, or where the plaintext was not counted
        /// from its first byte on.
        pub origins: [u32; 2],
        /// A [`Role`] as an integer.
        pub role: u8,
        pub reserved: [u8; 7],
    }
}

/// Which end of the connection the observed process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    #[default]
    Unknown = 0,
    /// It connected.
    Client = 1,
    /// It accepted.
    Server = 2,
}

impl From<u8> for Role {
    fn from(role: u8) -> Self {
        match role {
            1 => Self::Client,
            2 => Self::Server,
            _ => Self::Unknown,
        }
    }
}

/// Where bytes went, seen from the observed process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    Inbound = 0,
    Outbound = 1,
}

impl Direction {
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Inbound => Self::Outbound,
            Self::Outbound => Self::Inbound,
        }
    }
}

/// Longest path of a unix socket (`sun_path`), unix(7).
pub const UNIX_PATH_BYTES: usize = 108;

wire! {
    /// A traced process began to connect, or a unix socket was first used.
    pub struct ConnectionOpened {
        pub header: RecordHeader,
        pub unit: ExecutionUnit,
        pub connection: u64,
        pub addresses: SocketAddresses,
        /// A [`Role`] as an integer.
        pub role: u8,
        pub reserved: [u8; 3],
        /// Bytes of `unix_path` in use; an abstract name begins with NUL.
        pub unix_path_length: u32,
        pub unix_path: [u8; UNIX_PATH_BYTES],
        pub reserved_2: u32,
    }
}

wire! {
    /// The connection that a traced process began is established: its own port is known now.
    pub struct ConnectionEstablished {
        pub header: RecordHeader,
        pub connection: u64,
        pub addresses: SocketAddresses,
    }
}

/// How far the end of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ClosingStep {
    /// The observed side closed its sending direction first.
    LocalClosed = 1,
    /// The peer closed its sending direction first.
    RemoteClosed = 2,
    /// The connection broke: reset, timed out or refused; `error` is the errno.
    Aborted = 3,
    /// The socket is gone; nothing more will come.
    Destroyed = 4,
}

impl ClosingStep {
    pub const fn from_wire(step: u8) -> Option<Self> {
        Some(match step {
            1 => Self::LocalClosed,
            2 => Self::RemoteClosed,
            3 => Self::Aborted,
            4 => Self::Destroyed,
            _ => return None,
        })
    }
}

wire! {
    /// A connection of a traced process ends, with all that flowed.
    pub struct ConnectionClosing {
        pub header: RecordHeader,
        pub connection: u64,
        pub inbound: DirectionState,
        pub outbound: DirectionState,
        /// A [`ClosingStep`] as an integer.
        pub step: u8,
        pub reserved: [u8; 3],
        /// errno of the socket, positive; 0 when none.
        pub error: u32,
    }
}
