//! Spans as the receiver saw them.

use serde::Deserialize;
use serde_json::{Map, Value};

/// One span with its resource and scope; field names are those of the receiver's JSON.
#[derive(Clone, Debug, Deserialize)]
pub struct Span {
    pub service: String,
    pub resource: Map<String, Value>,
    pub resource_schema_url: String,
    pub scope: Scope,
    pub trace_id: String,
    pub span_id: String,
    /// Empty for a root.
    pub parent_span_id: String,
    pub flags: u32,
    pub trace_state: String,
    pub name: String,
    /// `SERVER` or `CLIENT`, as in the protocol's enum.
    pub kind: String,
    pub start_ns: u64,
    pub end_ns: u64,
    pub attributes: Map<String, Value>,
    pub status: Status,
    pub links: Vec<Link>,
    /// Which export call brought it.
    pub request: usize,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Scope {
    pub name: String,
    pub version: String,
    pub schema_url: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// `UNSET`, `OK` or `ERROR`.
    pub code: String,
    pub message: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Link {
    pub trace_id: String,
    pub span_id: String,
    pub attributes: Map<String, Value>,
}

/// Bits of the OTLP `flags` field: `SpanFlags` in opentelemetry/proto/trace/v1/trace.proto.
pub const FLAG_SAMPLED: u32 = 0x01;
pub const FLAG_HAS_IS_REMOTE: u32 = 0x100;
pub const FLAG_IS_REMOTE: u32 = 0x200;

impl Span {
    pub fn text(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).and_then(Value::as_str)
    }

    pub fn number(&self, key: &str) -> Option<i64> {
        self.attributes.get(key).and_then(Value::as_i64)
    }

    /// `http.response.status_code`.
    pub fn http_status(&self) -> Option<i64> {
        self.number("http.response.status_code")
    }

    /// `url.path` of a server span, the path within `url.full` of a client span.
    pub fn path(&self) -> &str {
        self.text("url.path").unwrap_or_else(|| {
            let full = self.text("url.full").unwrap_or("");
            let rest = full.split_once("://").map_or(full, |(_, rest)| rest);
            let path = rest.find('/').map_or("", |start| &rest[start..]);
            path.split(['?', '#']).next().unwrap_or("")
        })
    }

    pub fn method(&self) -> &str {
        self.text("http.request.method").unwrap_or("")
    }

    pub fn request_body(&self) -> Option<i64> {
        self.number("http.request.body.size")
    }

    pub fn response_body(&self) -> Option<i64> {
        self.number("http.response.body.size")
    }

    pub fn evidence(&self) -> Option<&str> {
        self.text("ebpf_agent.parent.evidence")
    }

    pub fn unobserved(&self) -> Option<&str> {
        self.text("ebpf_agent.unobserved")
    }

    pub fn is_root(&self) -> bool {
        self.parent_span_id.is_empty()
    }

    pub fn is_child_of(&self, parent: &Self) -> bool {
        self.trace_id == parent.trace_id && self.parent_span_id == parent.span_id
    }

    pub fn duration_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }

    /// Whether this span's time lies within the other's.
    pub fn is_within(&self, outer: &Self) -> bool {
        outer.start_ns <= self.start_ns && self.end_ns <= outer.end_ns
    }
}

/// Questions to a set of spans.
pub trait Spans {
    /// Those of one service and kind.
    fn of(&self, service: &str, kind: &str) -> Vec<Span>;
    /// Those with this path.
    fn at(&self, path: &str) -> Vec<Span>;
    /// The one span there is; panics with all of them otherwise.
    fn only(&self) -> &Span;
}

impl Spans for [Span] {
    fn of(&self, service: &str, kind: &str) -> Vec<Span> {
        self.iter()
            .filter(|span| span.service == service && span.kind == kind)
            .cloned()
            .collect()
    }

    fn at(&self, path: &str) -> Vec<Span> {
        self.iter()
            .filter(|span| span.path() == path)
            .cloned()
            .collect()
    }

    fn only(&self) -> &Span {
        match self {
            [span] => span,
            spans => panic!("expected one span, not {}: {spans:#?}", spans.len()),
        }
    }
}
