//! Spans to one `ExportTraceServiceRequest`: what http/json is made of, and what
//! [`protobuf`](super::protobuf) must say. Pure.
//!
//! Source: opentelemetry-proto 1.x, `trace/v1/trace.proto` and
//! `collector/trace/v1/trace_service.proto`. One request carries the spans of many services: each
//! resource is written once. Events and dropped-counts are not written: the agent has none.

use std::sync::Arc;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource as ProtoResource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span as ProtoSpan, Status as ProtoStatus, span as proto_span,
        status as proto_status,
    },
};

use crate::span::{Attribute, Kind, Link, Parent, Resource, SCHEMA_URL, Span, Status, Value};

/// Name of the instrumentation scope of every span.
pub const SCOPE_NAME: &str = "ebpf-agent";
pub(super) const SCOPE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`: bit 9 is meaningful.
const HAS_IS_REMOTE: u32 = 0x100;
/// `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`: the parent's context came over the wire.
const IS_REMOTE: u32 = 0x200;

pub fn build(spans: &[Span]) -> ExportTraceServiceRequest {
    let resource_spans = groups(spans)
        .into_iter()
        .map(|(resource, spans)| resource_spans(resource, &spans));
    ExportTraceServiceRequest {
        resource_spans: resource_spans.collect(),
    }
}

/// The spans of each resource, in the order of the first ones.
pub(super) fn groups(spans: &[Span]) -> Vec<(&Resource, Vec<&Span>)> {
    let mut groups: Vec<(&Arc<Resource>, Vec<&Span>)> = Vec::new();
    let mut last = 0;
    for span in spans {
        last = group_of(&mut groups, &span.resource, last);
        groups[last].1.push(span);
    }
    groups
        .into_iter()
        .map(|(resource, spans)| (&**resource, spans))
        .collect()
}

/// Spans of one process share one `Arc`, so pointers decide almost always. Comparing contents
/// joins what two processes say alike, and a process whose resource was made anew.
fn group_of<'a>(
    groups: &mut Vec<(&'a Arc<Resource>, Vec<&'a Span>)>,
    resource: &'a Arc<Resource>,
    last: usize,
) -> usize {
    if groups
        .get(last)
        .is_some_and(|(known, _)| Arc::ptr_eq(known, resource))
    {
        return last;
    }
    let known = groups
        .iter()
        .position(|(known, _)| Arc::ptr_eq(known, resource))
        .or_else(|| groups.iter().position(|(known, _)| *known == resource));
    known.unwrap_or_else(|| {
        groups.push((resource, Vec::new()));
        groups.len() - 1
    })
}

fn resource_spans(resource: &Resource, spans: &[&Span]) -> ResourceSpans {
    let scope = InstrumentationScope {
        name: SCOPE_NAME.to_owned(),
        version: SCOPE_VERSION.to_owned(),
        ..InstrumentationScope::default()
    };
    ResourceSpans {
        resource: Some(ProtoResource {
            attributes: key_values(&resource.attributes),
            ..ProtoResource::default()
        }),
        scope_spans: vec![ScopeSpans {
            scope: Some(scope),
            spans: spans.iter().map(|span| proto_span(span)).collect(),
            schema_url: SCHEMA_URL.to_owned(),
        }],
        schema_url: SCHEMA_URL.to_owned(),
    }
}

fn proto_span(span: &Span) -> ProtoSpan {
    ProtoSpan {
        trace_id: span.trace_id.to_bytes().to_vec(),
        span_id: span.span_id.to_bytes().to_vec(),
        trace_state: span.trace_state.clone(),
        parent_span_id: span
            .parent
            .map_or_else(Vec::new, |parent| parent.span_id.to_bytes().to_vec()),
        flags: flags(span.trace_flags, span.parent),
        name: span.name.clone().into_owned(),
        kind: match span.kind {
            Kind::Server => proto_span::SpanKind::Server,
            Kind::Client => proto_span::SpanKind::Client,
        }
        .into(),
        start_time_unix_nano: span.start_ns,
        end_time_unix_nano: span.end_ns,
        attributes: key_values(&span.attributes),
        links: span.links.iter().map(proto_link).collect(),
        status: Some(proto_status(&span.status)),
        ..ProtoSpan::default()
    }
}

/// Bits 0-7 are the W3C trace flags, bits 8 and 9 say whether the parent is remote. A root has
/// no remote parent, which is known too.
pub(super) fn flags(trace_flags: u8, parent: Option<Parent>) -> u32 {
    let is_remote = parent.is_some_and(|parent| parent.is_remote);
    u32::from(trace_flags) | HAS_IS_REMOTE | if is_remote { IS_REMOTE } else { 0 }
}

/// Flags stay zero: neither the flags nor the remoteness of a linked context are known.
fn proto_link(link: &Link) -> proto_span::Link {
    proto_span::Link {
        trace_id: link.trace_id.to_bytes().to_vec(),
        span_id: link.span_id.to_bytes().to_vec(),
        attributes: key_values(&link.attributes),
        ..proto_span::Link::default()
    }
}

fn proto_status(status: &Status) -> ProtoStatus {
    match status {
        Status::Unset => ProtoStatus {
            message: String::new(),
            code: proto_status::StatusCode::Unset.into(),
        },
        Status::Error(message) => ProtoStatus {
            message: message.clone(),
            code: proto_status::StatusCode::Error.into(),
        },
    }
}

fn key_values(attributes: &[Attribute]) -> Vec<KeyValue> {
    attributes
        .iter()
        .map(|attribute| KeyValue {
            key: attribute.key.to_string(),
            value: Some(any_value(&attribute.value)),
            ..KeyValue::default()
        })
        .collect()
}

fn any_value(value: &Value) -> AnyValue {
    let value = match value {
        Value::String(text) => any_value::Value::StringValue(text.to_string()),
        Value::Int(number) => any_value::Value::IntValue(*number),
        Value::Double(number) => any_value::Value::DoubleValue(*number),
        Value::Bool(flag) => any_value::Value::BoolValue(*flag),
        Value::StringArray(texts) => {
            let string = |text: &String| AnyValue {
                value: Some(any_value::Value::StringValue(text.clone())),
            };
            any_value::Value::ArrayValue(ArrayValue {
                values: texts.iter().map(string).collect(),
            })
        }
    };
    AnyValue { value: Some(value) }
}
