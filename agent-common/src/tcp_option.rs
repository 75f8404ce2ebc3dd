//! The TCP option that carries trace context to an agent on another host.
//!
//! An experimental option with a 16-bit identifier (RFC 6994, section 3) on the segment that begins
//! at a request's first byte:
//!
//! ```text
//! 0      1      2             4                                20                       28
//! +------+------+-------------+--------------------------------+-----------------------+
//! | 254  |  28  | identifier  | trace id                       | span id               |
//! +------+------+-------------+--------------------------------+-----------------------+
//! ```
//!
//! A TCP header has room for 40 bytes of options (RFC 9293, section 3.1), and timestamps take 12 of
//! them on every segment. So both ids in full take all that is left, and nothing else fits: which
//! request is meant is told by the segment's sequence number, and the one flag that W3C Trace
//! Context defines for a decision (`sampled`) by the choice between two identifiers. A shorter form
//! would have to derive an id from addresses or sequence numbers, which middleboxes rewrite.
//!
//! The identifiers are not registered with IANA.

use crate::{record::RecordHeader, wire};

/// Bytes of the option.
pub const OPTION_BYTES: usize = 28;

/// Kind of the option: the second of those for experiments (RFC 4727, section 7.2).
pub const KIND: u8 = 254;

/// Identifier of a context that is sampled.
pub const SAMPLED: [u8; 2] = [0x7c, 0xe3];

/// Identifier of a context that is not sampled.
pub const NOT_SAMPLED: [u8; 2] = [0x7c, 0xe2];

/// W3C trace flags: sampled.
pub const SAMPLED_FLAG: u32 = 1;

/// Segments with an option that were lost one after the other on the way to an address, before the
/// option is suspected: something on the way may drop what it does not know.
pub const PATH_LOSSES: u32 = 3;

/// An address is tried again after this time.
pub const PATH_RETRY_NS: u64 = 600_000_000_000;

/// Addresses of which losses are remembered at one time.
pub const PATHS: u32 = 4_096;

/// What has become of a context: [`OptionStream::stage`].
pub mod stage {
    /// There is none.
    pub const NONE: u8 = 0;
    /// It leaves with the byte at its sequence number.
    pub const READY: u8 = 1;
    /// It has left.
    pub const SENT: u8 = 2;
    /// The peer has acknowledged it, or the segment with it was lost.
    pub const SETTLED: u8 = 3;
}

wire! {
    /// What is remembered of a client's socket: the value of the socket's storage.
    pub struct OptionStream {
        /// The connection's identity.
        pub connection: u64,
        /// As they are written, first byte first.
        pub trace_id: [u64; 2],
        pub span_id: u64,
        /// The peer's address as it lies in memory; IPv4 in the first word.
        pub remote: [u64; 2],
        /// TCP sequence number of the request's first byte.
        pub sequence: u32,
        /// TCP sequence number that was awaited from the peer when the request began.
        pub awaited: u32,
        /// W3C trace flags.
        pub trace_flags: u32,
        /// One of [`stage`].
        pub stage: u8,
        /// 1: packets are being sized with the option in mind.
        pub has_room: u8,
        /// 1: room was made in the packet that is being built.
        pub is_reserved: u8,
        /// 1: it was said that there is no room for the current request's option.
        pub is_refused: u8,
    }
}

wire! {
    /// A context left with an option, or came with one.
    pub struct ContextCarried {
        pub header: RecordHeader,
        pub connection: u64,
        /// As they are written, first byte first.
        pub trace_id: [u64; 2],
        pub span_id: u64,
        /// TCP sequence number of the request's first byte.
        pub tcp_sequence: u32,
        /// W3C trace flags.
        pub trace_flags: u16,
        /// A [`crate::connection::Direction`] as an integer.
        pub direction: u8,
        pub reserved: u8,
    }
}

wire! {
    /// A context that came with an option, until its request is read.
    pub struct ReceivedContext {
        /// As they are written, first byte first.
        pub trace_id: [u64; 2],
        pub span_id: u64,
        /// TCP sequence number of the request's first byte.
        pub sequence: u32,
        /// W3C trace flags.
        pub trace_flags: u16,
        /// [`TOLD`], [`TAKEN`].
        pub state: u16,
    }
}

/// In [`ReceivedContext::state`]: user space was told.
pub const TOLD: u16 = 1;

/// In [`ReceivedContext::state`]: it is the context of a request that came encrypted.
pub const TAKEN: u16 = 2;

wire! {
    /// What becomes of options on the way to an address.
    pub struct PathState {
        /// When the last one was lost, `CLOCK_BOOTTIME` nanoseconds.
        pub lost_ns: u64,
        /// Lost one after the other.
        pub losses: u32,
        pub reserved: u32,
    }
}
