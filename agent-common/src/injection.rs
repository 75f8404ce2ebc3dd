//! Header injection: the grammar's events, what is remembered of each outgoing stream, and what is
//! reported of a header that left.

use crate::{record::RecordHeader, wire};

/// Bytes of `traceparent: 00-` (trace id) `-` (span id) `-` (flags) CRLF.
pub const HEADER_BYTES: u32 = 70;

/// States of the table that drives reading: rows of 256 next states each, one for each byte. A
/// next state of [`EVENTS`] or more is an event, which the kernel side acts on.
pub const GRAMMAR_STATES: usize = 128;

/// Bytes of the whole table.
pub const GRAMMAR_BYTES: usize = GRAMMAR_STATES * 256;

/// The first event.
pub const EVENTS: u8 = 128;

/// States that the kernel side sets by itself; all others are known to the table alone.
pub mod state {
    /// Before the first byte of a request.
    pub const START: u8 = 0;
    /// In the value of a field whose value does not matter.
    pub const VALUE: u8 = 1;
    /// Behind the name `Content-Length` and its colon, before the first digit.
    pub const LENGTH: u8 = 2;
    /// Behind a digit of a length.
    pub const LENGTH_DIGITS: u8 = 3;
    /// Before the target of a request.
    pub const TARGET: u8 = 4;
    /// Behind the version of the request line.
    pub const VERSION_END: u8 = 5;
    /// Behind the carriage return of the empty line that ends a head.
    pub const HEAD_END: u8 = 6;
    /// Before a chunk's size.
    pub const CHUNK: u8 = 7;
    /// Behind a digit of a chunk's size.
    pub const CHUNK_DIGITS: u8 = 8;
    /// Behind the data of a chunk.
    pub const CHUNK_END: u8 = 9;
    /// At the beginning of a line behind the last chunk.
    pub const TRAILER: u8 = 10;
    /// At the beginning of a line of the head. Reading of captured bytes begins here or at
    /// [`START`].
    pub const LINE: u8 = 11;
    /// The first state that is known to the table alone.
    pub const OTHERS: u8 = 12;
    /// A search has found what it looked for; stays so.
    pub const FOUND: u8 = 126;
    /// A search has ended in vain; stays so.
    pub const GIVEN_UP: u8 = 127;
}

/// Events: what was recognised with the byte just read.
pub mod event {
    use super::EVENTS;

    /// Not HTTP/1.
    pub const FAILED: u8 = EVENTS;
    /// The method is CONNECT.
    pub const CONNECT: u8 = EVENTS + 1;
    /// The version is 1.0.
    pub const OLD_VERSION: u8 = EVENTS + 2;
    /// The carriage return of the empty line that ends a head.
    pub const LAST_LINE: u8 = EVENTS + 3;
    /// The last byte of a head.
    pub const HEAD_DONE: u8 = EVENTS + 4;
    /// The colon behind `traceparent`.
    pub const TRACEPARENT: u8 = EVENTS + 5;
    /// The colon behind `Content-Length`.
    pub const LENGTH: u8 = EVENTS + 6;
    /// The colon behind `Transfer-Encoding`.
    pub const TRANSFER_ENCODING: u8 = EVENTS + 7;
    /// The colon behind `Upgrade`.
    pub const UPGRADE: u8 = EVENTS + 8;
    /// The colon behind `Expect`.
    pub const EXPECT: u8 = EVENTS + 9;
    /// A digit of the content's length.
    pub const LENGTH_DIGIT: u8 = EVENTS + 10;
    /// A digit of a chunk's size.
    pub const CHUNK_DIGIT: u8 = EVENTS + 11;
    /// The last byte before a chunk's data.
    pub const CHUNK_DATA: u8 = EVENTS + 12;
    /// The last byte of a chunked body.
    pub const BODY_DONE: u8 = EVENTS + 13;
}

/// Ports where by convention TLS is spoken, or the server speaks first and the client's blocking
/// receive comes before any send: FTP, SSH, telnet, SMTP, POP3, IMAP, `MySQL`, and with TLS HTTPS,
/// SMTP, LDAP, FTP, IMAP, POP3.
pub const PORTS_LEFT_ALONE: [u32; 15] = [
    21, 22, 23, 25, 110, 143, 443, 465, 587, 636, 990, 993, 995, 3306, 8443,
];

/// How far it is proven that a stream which was open before is HTTP/1: [`OutgoingStream::proof`].
pub mod proof {
    /// Every request from the first byte on was read, or enough of them.
    pub const DONE: u8 = 0;
    /// One request is read whole and gets no header.
    pub const WANTED: u8 = 1;
    /// It was begun; what follows it must be a request again, behind an answer.
    pub const BEGUN: u8 = 2;
}

/// Where a stream stands: [`OutgoingStream::phase`].
pub mod phase {
    /// Nothing was sent since the stream is watched.
    pub const FRESH: u8 = 0;
    /// Requests are followed byte by byte.
    pub const FOLLOWED: u8 = 1;
    /// The next request is recognised only behind bytes of the peer.
    pub const AWAITED: u8 = 2;
    /// Never looked at again.
    pub const OFF: u8 = 3;
    /// Frames of HTTP/2 are followed one by one.
    pub const FRAMES: u8 = 4;
}

wire! {
    /// What is remembered of what a client sends.
    pub struct OutgoingStream {
        /// The socket cookie.
        pub connection: u64,
        /// Bytes that the program has sent before those looked at now.
        pub position: u64,
        /// Position of the first byte of the request that is being sent.
        pub request_position: u64,
        /// Bytes of a body that come next and are not looked at.
        pub skip: u64,
        /// Bytes at the end of the last message that were not looked at.
        pub skipped: u64,
        /// The length that is being read.
        pub length: u64,
        /// TCP sequence number that the next byte will have.
        pub sequence: u32,
        /// In the current message: the next byte to look at.
        pub offset: u32,
        /// In the current message: bytes that were added before `offset`.
        pub added: u32,
        /// What the head said so far, bits of [`said`].
        pub said: u16,
        /// A row of the grammar.
        pub state: u8,
        /// One of [`phase`].
        pub phase: u8,
        /// 1 when `sequence` is known.
        pub has_sequence: u8,
        /// 1: the agent's own trial, which is not reported.
        pub is_trial: u8,
        /// How the sender ties calls to requests, bits of [`process`].
        pub mode: u8,
        /// 1: the current message must not leave.
        pub is_spoiled: u8,
        /// One of [`proof`].
        pub proof: u8,
        /// 1: another program wants the socket's callbacks for TCP options; they stay on.
        pub keeps_callback: u8,
        pub reserved: [u8; 2],
    }
}

/// Bits of [`OutgoingStream::said`].
pub mod said {
    pub const TRACEPARENT: u16 = 1 << 0;
    pub const LENGTH: u16 = 1 << 1;
    pub const TRANSFER_ENCODING: u16 = 1 << 2;
    pub const UPGRADE: u16 = 1 << 3;
    pub const EXPECT: u16 = 1 << 4;
    pub const CONNECT: u16 = 1 << 5;
    pub const OLD_VERSION: u16 = 1 << 6;
}

wire! {
    /// Ids that were made in the kernel: a header left with them, or a server's request got a
    /// trace of its own.
    pub struct ContextMinted {
        pub header: RecordHeader,
        pub connection: u64,
        /// Position of the request's first byte in its direction.
        pub position: u64,
        /// Position of the byte before which the header was put; 0 for a server's request.
        pub added_at: u64,
        /// As they are written, first byte first.
        pub trace_id: [u64; 2],
        /// 0 for a server's request.
        pub span_id: u64,
        /// Bytes that were added; 0 for a server's request.
        pub added: u32,
        /// W3C trace flags.
        pub trace_flags: u32,
    }
}

/// Bits of the table of processes whose connections are injected into.
pub mod process {
    /// Header injection is on.
    pub const HEADERS: u32 = 1 << 0;
    /// An event loop for which nginx's rules hold.
    pub const LOOP: u32 = 1 << 1;
    /// Contexts leave with TCP options.
    pub const OPTION: u32 = 1 << 2;
    /// Made by Go: goroutines tie calls to requests, threads do not.
    pub const GOROUTINES: u32 = 1 << 3;
}

/// Declares what may become of a request, or of a connection, with the name that users see.
macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Index into the per-CPU counters of injection.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum InjectionOutcome {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl InjectionOutcome {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Stable name, used in metrics and in the summary.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means, for people.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

outcomes! {
    /// A request left with a header of ours.
    Injected = "injected",
    /// A request had a `traceparent` of its own and was left alone.
    AlreadyPresent = "already_present",
    /// A connection was joined to the map of injected ones when it was established.
    Joined = "joined",
    /// A connection that was open before the agent sent what reads like a request.
    Adopted = "adopted",
    /// A request proved what an older connection carries, and was left alone.
    Proof = "proof",
    /// A connection is in another program's socket map, or the map was full; left alone.
    Refused = "refused",
    /// A blocking connection left the map behind its first request; later ones are left alone.
    Blocking = "blocking",
    /// What a connection carried is neither HTTP/1 nor HTTP/2 from its beginning on; left alone
    /// for good.
    NotHttp = "not_http",
    /// A connection switched to another protocol (CONNECT, Upgrade), or its client waits for
    /// `100 Continue`; left alone for good.
    Switched = "switched",
    /// A request's length is given twice; the connection is left alone for good.
    Ambiguous = "ambiguous",
    /// A new request did not follow an answer; the connection is left alone for good.
    OutOfTurn = "out_of_turn",
    /// Bytes left that were not looked at, or were sent again; the connection is left alone for
    /// good.
    LostTrack = "lost_track",
    /// A request's head was too long to be looked at; the connection is left alone for good.
    TooLong = "too_long",
    /// The send buffer had no room for a request's head at once; the request was left alone.
    BufferFull = "buffer_full",
    /// The kernel refused to make room for the header; the request was left alone.
    NoRoom = "no_room",
    /// A message could not be looked at; the connection is left alone for good.
    Unreadable = "unreadable",
    /// A message was withheld because its header could not be written; the program got an error.
    Withheld = "withheld",
    /// A request's context left with a TCP option.
    OptionSent = "option_sent",
    /// A request's context came with a TCP option.
    OptionReceived = "option_received",
    /// The segment of a request had no room for the TCP option; the request was left alone.
    OptionNoRoom = "option_no_room",
    /// The trace of a request was not known: this kernel does not let the agent search the request
    /// that it was made for, which came over TLS or has a long head; it was left alone.
    TraceUnknown = "trace_unknown",
    /// A segment with a TCP option was lost and sent again without.
    OptionLost = "option_lost",
    /// A request was left alone because segments with options were lost on the way to that
    /// address before.
    OptionPathClosed = "option_path_closed",
    /// HTTP/2: a head went on in a second frame; the connection is left alone for good.
    Continued = "continued",
    /// HTTP/2: the program sends `traceparent` by itself; the connection is left alone for good.
    Propagates = "propagates",
    /// HTTP/2: a request left before the server's settings were known, or known anew; it was left
    /// alone.
    SettingsAwaited = "settings_awaited",
    /// HTTP/2: with a field more, a request might have more than the server takes
    /// (`SETTINGS_MAX_HEADER_LIST_SIZE`); it was left alone.
    ListTooLong = "list_too_long",
    /// HTTP/2: a request's frame had no room for a field, or flags that are not known; it was left
    /// alone.
    FrameFull = "frame_full",
    /// HTTP/2: a request's frame was sent in pieces; it was left alone.
    FrameInPieces = "frame_in_pieces",
    /// HTTP/2: more requests left with one call than get a field; the rest was left alone.
    TooManyAtOnce = "too_many_at_once",
}

#[cfg(feature = "user")]
mod user {
    #[expect(
        unsafe_code,
        reason = "aya reads and writes map values and globals by Pod"
    )]
    // SAFETY: repr(C), integers only, no padding (IntoBytes is derived), any bit pattern valid.
    unsafe impl aya::Pod for super::OutgoingStream {}
}
