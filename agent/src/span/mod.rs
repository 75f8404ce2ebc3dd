//! What the agent says about one request. Pure, and a leaf: it knows no other module of ours.
//!
//! Names and values follow the OpenTelemetry semantic conventions; [`attribute`] holds every key.

pub mod attribute;
pub mod redact;

use std::{borrow::Cow, sync::Arc};

pub use attribute::{Attribute, Value};
pub use opentelemetry::{SpanId, TraceId};

/// Version of the semantic conventions that names and values follow.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";

/// A finished span, ready for export.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub parent: Option<Parent>,
    /// W3C trace flags; bit 0 is `sampled`.
    pub trace_flags: u8,
    /// W3C `tracestate` as it was received; empty when there was none.
    pub trace_state: String,
    /// Nanoseconds since the Unix epoch.
    pub start_ns: u64,
    /// Nanoseconds since the Unix epoch.
    pub end_ns: u64,
    pub kind: Kind,
    pub name: Cow<'static, str>,
    pub status: Status,
    pub attributes: Vec<Attribute>,
    pub links: Vec<Link>,
    /// Who did it: one per process, shared by its spans.
    pub resource: Arc<Resource>,
}

/// The span this one is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    pub span_id: SpanId,
    /// The parent's context came over the wire.
    pub is_remote: bool,
}

/// A related span that is not proven to be the parent.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub attributes: Vec<Attribute>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Server,
    Client,
}

/// No error leaves the status unset: an instrumentation never says Ok by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Status {
    #[default]
    Unset,
    /// With a description only where it adds to `error.type`; may be empty.
    Error(String),
}

/// The entity that made the spans: OpenTelemetry resource attributes, `service.name` included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resource {
    pub attributes: Vec<Attribute>,
}

impl Resource {
    /// `service.name`, or the empty string where it is missing.
    pub fn service_name(&self) -> &str {
        attribute::find(&self.attributes, attribute::SERVICE_NAME)
            .and_then(Value::as_str)
            .unwrap_or("")
    }
}

/// What a protocol says about one exchange: a span less its identity and its place in a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub name: Cow<'static, str>,
    pub status: Status,
    pub attributes: Vec<Attribute>,
}
