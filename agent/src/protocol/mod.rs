//! Bytes to exchanges, exchanges to span details. Pure.
//!
//! A protocol is a folder with the same files: `mod.rs` (spec, limits, what is not covered),
//! `parse.rs` (bytes to messages), `exchange.rs` (request and response paired), `describe.rs`
//! (names, status, attributes) and `vectors/`. Adding one touches that folder and one row of
//! [`REGISTRY`]; the parts that follow see only [`Progress`].
//!
//! Input from the network never panics: no indexing and no unwrap on it below this module.
#![deny(clippy::indexing_slicing)]

pub mod detect;
pub mod http1;
pub mod http2;
pub mod other_end;
pub mod reader;
mod rpc;
mod semantics;
#[cfg(test)]
mod vectors;

use std::net::IpAddr;

use crate::span::{Details, Kind};

/// The two flows of a connection, whichever end we observe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flow {
    /// From client to server.
    Request,
    /// From server to client.
    Response,
}

impl Flow {
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Request => Self::Response,
            Self::Response => Self::Request,
        }
    }
}

/// What happened next in one flow. Positions count bytes of that flow; time is `CLOCK_BOOTTIME`
/// nanoseconds.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Contiguous bytes: the first one follows the last input of this flow.
    Bytes {
        data: &'a [u8],
        position: u64,
        time_ns: u64,
        /// The last bytes before these flowed the other way: a new message may begin here.
        turn_start: bool,
    },
    /// Bytes that flowed but were not captured.
    Skipped {
        length: u64,
        position: u64,
        /// When the last of them flowed.
        last_ns: u64,
        /// The last bytes of them, right aligned, zeros before; all zero when unknown.
        tail: [u8; 8],
    },
    /// This flow has ended: its sender closed, or the connection broke.
    End { cause: EndCause, time_ns: u64 },
}

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// The sender of this flow closed its direction in good order.
    Closed,
    /// The connection was reset; nothing more comes in either flow.
    Reset,
    /// The connection timed out in the kernel.
    TimedOut,
    /// The observation ends (agent stops, connection state lost); the connection itself may go on.
    Unobserved,
}

/// Numbers the exchanges of one connection in the order their requests began, from 0.
pub type ExchangeNumber = u64;

/// What a session learned from an input. Order for one exchange: `RequestStarted`,
/// then `RequestHead` (not for a head that was never seen whole), then `ResponseStarted` (not
/// when no response byte was seen), then `Finished` exactly once.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// The first byte of a request was seen.
    RequestStarted {
        exchange: ExchangeNumber,
        /// What the protocol numbers it, where exchanges run side by side.
        stream: Option<u32>,
        position: u64,
        time_ns: u64,
    },
    /// The request's head is complete: what it says of its trace context.
    RequestHead {
        exchange: ExchangeNumber,
        headers: TraceHeaders,
    },
    /// The first byte of the (final or interim) response was seen.
    ResponseStarted {
        exchange: ExchangeNumber,
        time_ns: u64,
    },
    /// Nothing more will be learned. `end_ns` is the last byte of the response where it was
    /// observed, else the last thing that was.
    Finished {
        exchange: ExchangeNumber,
        start_ns: u64,
        end_ns: u64,
        details: Details,
    },
}

/// Propagation headers as they stood in a request, not validated. The first `traceparent` counts
/// only if it is the only one (W3C Trace Context, section 3.2: more than one is invalid);
/// `tracestate` fields are joined by commas in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceHeaders {
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
}

/// What the protocol may say about the connection, fixed when the session begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Which end we observe: a server's spans are SERVER spans.
    pub kind: Kind,
    pub local: Address,
    pub peer: Address,
    /// Bytes were seen from the connection's first one on, in both flows.
    pub complete: bool,
    /// What we see travels encrypted.
    pub encrypted: bool,
}

impl Endpoint {
    /// The scheme of what does not say it.
    pub const fn scheme(&self) -> &'static str {
        if self.encrypted { "https" } else { "http" }
    }
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Inet {
        ip: IpAddr,
        port: u16,
    },
    /// Empty for an unnamed socket; an abstract name begins with `@`.
    Unix {
        path: String,
    },
    /// It could not be told.
    Unknown,
}

/// One connection's understanding of one protocol. Inputs come in the order things happened;
/// what was learned is polled after each.
pub trait Session: Send {
    fn handle(&mut self, flow: Flow, input: Input<'_>);

    /// Call until `None` after each `handle`.
    fn poll(&mut self) -> Option<Progress>;

    /// Bytes of this flow from its current position on whose end is not known yet but would let
    /// an exchange finish: user space then asks the kernel how far the flow has come and feeds
    /// `Skipped`. `None` when nothing is awaited.
    fn awaited(&self, flow: Flow) -> Option<Awaited>;

    /// Whether more input is wanted.
    fn standing(&self) -> Standing;

    /// After [`Standing::Over`]: the protocol that both sides agreed to go on with, once.
    fn take_successor(&mut self) -> Option<Successor> {
        None
    }

    /// What could not be followed since the last call.
    fn take_shortfall(&mut self) -> Shortfall {
        Shortfall::default()
    }

    /// Where requests are numbered: the highest number so far, lost ones that are counted as such
    /// included. `None` where it is not known how many came before, or nothing is numbered.
    fn highest_stream(&self) -> Option<u32> {
        None
    }

    /// Fields that are referred to may not be known, because what they were named in was not seen.
    fn may_lack_fields(&self) -> bool {
        false
    }

    /// What the server says of itself, where every word of it was seen.
    fn server_settings(&self) -> Option<ServerSettings> {
        None
    }
}

/// What a server of HTTP/2 has said that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// Frames of settings so far.
    pub seen: u32,
    /// What a list of fields may count at most, the least of what was said; `None` when nothing
    /// was.
    pub list_limit: Option<u32>,
}

/// What is spoken after an upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Successor {
    /// Name of a row of [`REGISTRY`].
    pub protocol: &'static str,
    /// Bytes of it that came with the last input, in that input's flow, and where they begin.
    pub rest: Vec<u8>,
    pub position: u64,
}

/// What a session could not follow, for the agent's own counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shortfall {
    /// Exchanges without a span.
    pub exchanges: u64,
    /// 1 when it turned out that what went before on the connection, and is needed, was not seen.
    pub late_joins: u64,
}

/// Whether a session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Going,
    /// Holes left it unsure which message is which. Everything it began is finished; a new session
    /// may begin with the next turn that looks like the beginning of a message.
    Lost,
    /// The connection no longer speaks this protocol (CONNECT, Upgrade), never did, or has ended.
    Over,
}

/// What a session waits for in a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// This many more bytes.
    Bytes(u64),
    /// An end that only the tail of the flow, the next turn or the close will show.
    End,
}

/// What a protocol thinks of the first bytes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// These bytes cannot begin this protocol.
    No,
    /// More bytes are needed to say.
    NeedMore,
    /// They could, and other protocols could look the same; the other flow decides.
    Maybe,
    /// No other protocol begins so.
    Certain,
}

/// One row per protocol.
pub struct Protocol {
    /// Lower case, as in `network.protocol.name`.
    pub name: &'static str,
    /// What the bytes at the start of a turn say, when they flow from client to server
    /// (`Flow::Request`) or back.
    pub detect: fn(Flow, &[u8]) -> Verdict,
    pub session: fn(Endpoint) -> Box<dyn Session>,
    /// Exchanges run side by side on one connection: turns and order say nothing about them.
    pub is_multiplexed: bool,
}

pub static REGISTRY: &[Protocol] = &[
    Protocol {
        name: "http",
        detect: http1::detect,
        session: http1::session,
        is_multiplexed: false,
    },
    Protocol {
        name: "http2",
        detect: http2::detect,
        session: http2::session,
        is_multiplexed: true,
    },
];
