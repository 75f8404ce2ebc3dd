//! The agent's own counters: what passed, and what was lost with the reason. Leaf, importable
//! by all.
//!
//! Counters are atomics so that the engine, the exporters and the status page share one
//! [`SelfMetrics`] without locks; only a loss, which should be rare, takes a lock to note the
//! service.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Declares an enum whose variants have a stable name and a sentence for people.
macro_rules! named {
    ($(#[$attribute:meta])* $type:ident { $($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+ }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type { $($(#[doc = $doc])+ $variant,)+ }

        impl $type {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

named! {
    /// What passed through the agent.
    Counter {
        /// Records read from the ring buffer.
        RecordsReceived = "records.received",
        /// Bytes read from the ring buffer.
        RecordBytesReceived = "records.bytes",
        /// Connections seen.
        ConnectionsSeen = "connections.seen",
        /// Connections of HTTP/2 joined late or with holes: earlier header fields are not known.
        ConnectionsJoinedLate = "connections.joined_late",
        /// Requests whose first byte was seen.
        ExchangesStarted = "exchanges.started",
        /// Spans made.
        SpansCreated = "spans.created",
        /// Spans not wanted by the sampler.
        SpansNotSampled = "spans.not_sampled",
        /// Spans that a receiver took, or that were printed.
        SpansExported = "spans.exported",
        /// Export calls that succeeded.
        ExportsSucceeded = "exports.succeeded",
        /// Export calls that were tried again.
        ExportsRetried = "exports.retried",
        /// Bytes that flowed but were not captured, by budget or by system call.
        BytesNotCaptured = "bytes.not_captured",
    }
}

named! {
    /// How many there are at this moment.
    Gauge {
        /// Connections of HTTP/2 whose header fields may refer to what was not seen.
        ConnectionsLackingFields = "connections.lacking_fields",
    }
}

named! {
    /// Why something was lost in user space. Kernel reasons are `agent_common::drop_reason`.
    Loss {
        /// A record was not of a known form.
        RecordMalformed = "record_malformed",
        /// Too many connections were open at once; the oldest idle one was forgotten.
        ConnectionTableFull = "connection_table_full",
        /// Too many processes were remembered at once; spans of one may not say whose they are.
        ProcessTableFull = "process_table_full",
        /// Holes left a parser unsure; it began anew with the next message.
        ExchangeUnparsed = "exchange_unparsed",
        /// Nothing was recorded of a request of HTTP/2 but that its number was used.
        RequestUnrecorded = "request_unrecorded",
        /// Too many spans waited for their trace to settle; the oldest left unjoined.
        TraceHoldFull = "trace_hold_full",
        /// Requests fared worse since headers were put into them; it was stopped for the service.
        InjectionStopped = "injection_stopped",
        /// The export queue was full; spans were dropped.
        ExportQueueFull = "export_queue_full",
        /// The receiver took only part of a request.
        ExportRejected = "export_rejected",
        /// The receiver refused, or could not be reached until retries ran out.
        ExportFailed = "export_failed",
        /// The final flush ran out of time.
        ShutdownTimeout = "shutdown_timeout",
    }
}

named! {
    /// What became of the trace context of a request in a call that was made for it.
    Passing {
        /// The call carried the same trace on.
        Kept = "kept",
        /// The call carried a context of another trace.
        Replaced = "replaced",
        /// The call carried none.
        Missing = "missing",
    }
}

/// Calls of one service to one destination, by [`Passing`].
pub type Passed = [u64; Passing::ALL.len()];

/// Pairs of service and destination at most; those beyond it are counted under empty names.
const PASSING_PAIRS: usize = 1_024;

/// Shared by everything that counts.
#[derive(Debug, Default)]
pub struct SelfMetrics {
    counters: [AtomicU64; Counter::ALL.len()],
    gauges: [AtomicU64; Gauge::ALL.len()],
    /// By service and destination.
    passed: Mutex<BTreeMap<(String, String), Passed>>,
    /// By reason and service; the service is empty where it is not known.
    losses: Mutex<BTreeMap<(Loss, String), u64>>,
}

impl SelfMetrics {
    pub fn add(&self, counter: Counter, count: u64) {
        if let Some(cell) = self.counters.get(counter as usize) {
            cell.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub fn total(&self, counter: Counter) -> u64 {
        self.counters
            .get(counter as usize)
            .map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    pub fn set(&self, gauge: Gauge, count: u64) {
        if let Some(cell) = self.gauges.get(gauge as usize) {
            cell.store(count, Ordering::Relaxed);
        }
    }

    pub fn now(&self, gauge: Gauge) -> u64 {
        self.gauges
            .get(gauge as usize)
            .map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    pub fn lose(&self, reason: Loss, service: &str, count: u64) {
        if count == 0 {
            return;
        }
        let mut losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        *losses.entry((reason, service.to_owned())).or_default() += count;
    }

    /// A call was made for a request that carried a trace context.
    pub fn pass(&self, passing: Passing, service: &str, destination: &str) {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (service.to_owned(), destination.to_owned());
        if passed.len() >= PASSING_PAIRS && !passed.contains_key(&key) {
            key = (String::new(), String::new());
        }
        if let Some(count) = passed.entry(key).or_default().get_mut(passing as usize) {
            *count += 1;
        }
    }

    /// What was passed on, by service and destination.
    pub fn passed(&self) -> BTreeMap<(String, String), Passed> {
        self.passed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn losses(&self) -> BTreeMap<(Loss, String), u64> {
        self.losses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
