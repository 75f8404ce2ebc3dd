//! Captured bytes of one socket call.

use crate::{
    connection::{DirectionState, SocketAddresses},
    process::ExecutionUnit,
    record::RecordHeader,
    wire,
};

wire! {
    /// One socket call that moved bytes, followed by `captured_length` bytes: the first ones of
    /// the call. It is written when a turn begins and while the turn's capture budget lasts;
    /// calls beyond it are only counted, and show as a gap before the next `position`.
    pub struct SocketData {
        pub header: RecordHeader,
        pub unit: ExecutionUnit,
        /// Identity of the connection: the socket cookie, or the socket's address before Linux
        /// 5.12 and with kretprobes.
        pub connection: u64,
        pub addresses: SocketAddresses,
        /// Position of the call's first byte in its direction.
        pub position: u64,
        /// Bytes that the call moved.
        pub original_length: u32,
        /// Bytes that follow this header.
        pub captured_length: u32,
        /// TCP sequence number of the call's first byte, the same on both ends of the
        /// connection; 0 for unix sockets.
        pub tcp_sequence: u32,
        /// Bits of [`flags`].
        pub flags: u16,
        /// A [`crate::connection::Role`] as an integer.
        pub role: u8,
        pub reserved: u8,
        /// What the runtime of the program schedules and was running: a goroutine's id; 0 unknown.
        pub task: u64,
        /// The task that started it; 0 unknown.
        pub task_parent: u64,
        /// Of a receiving goroutine's processor (Go's `p`): the next id that it gives to a new
        /// goroutine; 0 unknown.
        pub task_next: u64,
        /// Highest id that any processor of the program may give to a new goroutine, with
        /// `task_next`; 0 unknown.
        pub task_allotted: u64,
        /// First argument of the system call, the socket's file descriptor;
        /// [`UNKNOWN_DESCRIPTOR`] where it is not known.
        pub descriptor: u32,
        /// Ids from `task_next` on that the processor holds: another one gives none of them.
        pub task_left: u32,
        /// The last bytes of the call, right aligned, zeros before, when not all of it was
        /// captured; all zero when unknown.
        pub tail: [u8; 8],
        /// What had flowed in the opposite direction until now; with
        /// [`flags::END_OF_STREAM`] what had flowed in the direction that ended.
        pub other_flow: DirectionState,
    }
}

/// No file descriptor.
pub const UNKNOWN_DESCRIPTOR: u32 = u32::MAX;

/// Bits of [`SocketData::flags`].
pub mod flags {
    /// Sent by the observed process; otherwise received.
    pub const OUTBOUND: u16 = 1 << 0;
    /// The last bytes before these flowed in the other direction, or there were none.
    pub const TURN_START: u16 = 1 << 1;
    /// The socket is in non-blocking mode (`O_NONBLOCK` on its file).
    pub const NON_BLOCKING: u16 = 1 << 2;
    /// Counting began with the connection's first byte: `position` is the stream position.
    pub const COMPLETE: u16 = 1 << 3;
    /// The peer closed its sending direction: the call returned no byte.
    pub const END_OF_STREAM: u16 = 1 << 4;
    /// The socket is in an epoll set, or that could not be told.
    pub const POLLED: u16 = 1 << 5;
    /// What a TLS library was given to encrypt, or had decrypted: positions count such bytes.
    /// `tcp_sequence` is that of the first encrypted byte that the library's call moved since bytes
    /// last went the other way.
    pub const PLAINTEXT: u16 = 1 << 6;
}
