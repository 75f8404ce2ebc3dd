//! The first bytes of everything in the ring buffer.

use crate::wire;

wire! {
    /// Starts every record; `length` counts the whole record, this header included.
    pub struct RecordHeader {
        /// A [`RecordKind`] as an integer.
        pub kind: u16,
        pub reserved: u16,
        /// Bytes of the whole record.
        pub length: u32,
        /// `CLOCK_BOOTTIME` in nanoseconds: it counts on through suspend (`bpf_ktime_get_boot_ns`,
        /// Linux 5.8).
        pub timestamp_ns: u64,
    }
}

/// What follows a [`RecordHeader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RecordKind {
    /// [`crate::payload::SocketData`] and the captured bytes.
    SocketData = 1,
    /// [`crate::connection::ConnectionOpened`].
    ConnectionOpened = 2,
    /// [`crate::connection::ConnectionClosing`].
    ConnectionClosing = 3,
    /// [`crate::process::ProcessExec`] and the start of the environment block.
    ProcessExec = 4,
    /// [`crate::process::ProcessFork`].
    ProcessFork = 5,
    /// [`crate::process::ProcessExit`].
    ProcessExit = 6,
    /// [`crate::process::ProcessListen`].
    ProcessListen = 7,
    /// [`crate::injection::ContextMinted`].
    ContextMinted = 32,
    /// [`crate::tcp_option::ContextCarried`].
    ContextCarried = 33,
    /// [`crate::connection::PlaintextOpened`].
    PlaintextOpened = 48,
    /// [`crate::process::GoCall`].
    GoCall = 8,
    /// [`crate::process::ProcessExit`] of a thread that was not the last one.
    ThreadExit = 9,
    /// [`crate::connection::ConnectionEstablished`].
    ConnectionEstablished = 11,
    /// [`crate::payload::SocketData`] and pieces of the call's bytes, see [`crate::frames`].
    FrameData = 10,
    /// [`crate::process::GoStream`].
    GoStream = 12,
    /// [`crate::process::ProcessFork`] of a child that is traced provisionally, as its parent was.
    ProvisionalFork = 13,
    /// [`crate::process::HandOff`].
    HandOff = 16,
}

/// The integer names no [`RecordKind`]: the two sides were built from different sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownKind(pub u16);

impl TryFrom<u16> for RecordKind {
    type Error = UnknownKind;

    fn try_from(kind: u16) -> Result<Self, UnknownKind> {
        Ok(match kind {
            1 => Self::SocketData,
            2 => Self::ConnectionOpened,
            3 => Self::ConnectionClosing,
            4 => Self::ProcessExec,
            5 => Self::ProcessFork,
            6 => Self::ProcessExit,
            7 => Self::ProcessListen,
            32 => Self::ContextMinted,
            33 => Self::ContextCarried,
            48 => Self::PlaintextOpened,
            8 => Self::GoCall,
            9 => Self::ThreadExit,
            11 => Self::ConnectionEstablished,
            10 => Self::FrameData,
            12 => Self::GoStream,
            13 => Self::ProvisionalFork,
            16 => Self::HandOff,
            other => return Err(UnknownKind(other)),
        })
    }
}
