//! `traceparent` (first line) and `tracestate` (the rest).

use agent::{context::propagation, protocol::TraceHeaders};
use opentelemetry::{SpanId, TraceId};

/// Panics when an invalid context is taken, or a valid one not as it stands.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (traceparent, tracestate) = match text.split_once('\n') {
        Some((traceparent, tracestate)) => (traceparent, Some(tracestate.to_owned())),
        None => (&*text, None),
    };
    let headers = TraceHeaders {
        traceparent: Some(traceparent.to_owned()),
        tracestate,
    };
    let Some(context) = propagation::extract(&headers) else {
        return;
    };
    assert_ne!(context.trace_id, TraceId::INVALID);
    assert_ne!(context.span_id, SpanId::INVALID);
    let (trace_id, span_id, flags) = (context.trace_id, context.span_id, context.flags);
    let again = format!("-{trace_id}-{span_id}-{flags:02x}");
    let given = traceparent.trim();
    assert_eq!(given.get(2..2 + again.len()), Some(again.as_str()));
    let state = headers.tracestate.unwrap_or_default();
    assert!(context.state.is_empty() || context.state == state.trim());
}
