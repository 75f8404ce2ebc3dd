//! Which request a request belongs to: parents that are proven, links where they are not. Pure.
//!
//! | evidence | what it proves |
//! |---|---|
//! | `header` | the parent's ids stood in the request's `traceparent` |
//! | `local_wire` | both ends of one connection were seen on this host, at the same byte |
//! | `tcp_option` | the parent's ids came with a TCP option at the request's first byte |
//! | `goroutine` | who serves a request in a Go program, or was started meanwhile, made the call |
//! | `loop` | nginx's event loop made the call while it worked for the request it had just read |
//! | `thread` | a blocking server's thread made the call between request and answer |
//! | `started` | who made the call was started for the request and ended before it |
//! | `handed_off` | who answered woke an idle thread, which made the call, and waited for it |
//! | `handed_back` | who answered had waited for the thread that made the call |
//! | `sole` | no other request was in flight when a loop made the call |
//! | `answering` | the thread that made the call wrote the request's answer, and is no loop |
//!
//! The last two are no proof, and make links only. A request whose parent is not proven has none.

pub mod answering;
pub mod goroutine;
pub mod handed_off;
pub mod lineage;
pub mod propagation;
pub mod started;
pub mod stitch;

use opentelemetry::{SpanId, TraceId};

pub use stitch::Stitcher;

/// How a parent was proven, strongest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    Header,
    LocalWire,
    TcpOption,
    Goroutine,
    Loop,
    Thread,
    Answering,
    Started,
    #[default]
    HandedOff,
    HandedBack,
    Sole,
}

impl Evidence {
    /// Value of `ebpf_agent.parent.evidence`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::LocalWire => "local_wire",
            Self::TcpOption => "tcp_option",
            Self::Goroutine => "goroutine",
            Self::Loop => "loop",
            Self::Thread => "thread",
            Self::Started => "started",
            Self::HandedOff => "handed_off",
            Self::HandedBack => "handed_back",
            Self::Sole => "sole",
            Self::Answering => "answering",
        }
    }

    /// All names, strongest first.
    pub const NAMES: &str = "header, local_wire, tcp_option, goroutine, loop, thread, answering, \
                             started, handed_off, handed_back, sole";

    /// All of them, strongest first.
    pub const ALL: [Self; 11] = [
        Self::Header,
        Self::LocalWire,
        Self::TcpOption,
        Self::Goroutine,
        Self::Loop,
        Self::Thread,
        Self::Answering,
        Self::Started,
        Self::HandedOff,
        Self::HandedBack,
        Self::Sole,
    ];
}

/// A span's context as it stood in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteContext {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    /// W3C trace flags; bit 0 is `sampled`.
    pub flags: u8,
    /// `tracestate`, empty when there was none.
    pub state: String,
}

/// Source of new ids. The edge seeds it with entropy, a replay with a constant.
#[derive(Debug)]
pub struct IdGenerator {
    random: rand::rngs::SmallRng,
}

impl IdGenerator {
    pub fn seeded(seed: u64) -> Self {
        use rand::SeedableRng as _;
        Self {
            random: rand::rngs::SmallRng::seed_from_u64(seed),
        }
    }

    pub fn trace_id(&mut self) -> TraceId {
        use rand::Rng as _;
        loop {
            let id = TraceId::from(self.random.random::<u128>());
            if id != TraceId::INVALID {
                return id;
            }
        }
    }

    pub fn span_id(&mut self) -> SpanId {
        use rand::Rng as _;
        loop {
            let id = SpanId::from(self.random.random::<u64>());
            if id != SpanId::INVALID {
                return id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists and order agree.
    #[test]
    fn grades_are_listed_by_strength() {
        assert!(Evidence::ALL.is_sorted());
        let names = Evidence::ALL.map(Evidence::name).join(", ");
        assert_eq!(names, Evidence::NAMES);
    }
}
