//! Which request a request belongs to: parents that are proven, links where they are not. Pure.
//!
//! | evidence | what it proves |
//! |---|---|
//! | `header` | the parent's ids stood in the request's `traceparent` |
//! | `local_wire` | both ends of one connection were seen on this host, at the same byte |
//! | `goroutine` | who serves a request in a Go program, or was started meanwhile, made the call |
//! | `thread` | a blocking server's thread made the call between request and answer |
//! | `loop` | nginx's event loop made the call while it worked for the request it had just read |
//!
//! A request whose parent is not proven has none.

pub mod goroutine;
pub mod lineage;
pub mod propagation;
pub mod stitch;

use opentelemetry::{SpanId, TraceId};

pub use stitch::Stitcher;

/// How a parent was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Evidence {
    Header,
    LocalWire,
    Goroutine,
    Thread,
    Loop,
}

impl Evidence {
    /// Value of `ebpf_agent.parent.evidence`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::LocalWire => "local_wire",
            Self::Goroutine => "goroutine",
            Self::Thread => "thread",
            Self::Loop => "loop",
        }
    }
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
