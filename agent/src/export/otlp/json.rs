//! OTLP/JSON. Pure.
//!
//! Source: OTLP specification, "JSON Protobuf Encoding": the proto3 JSON mapping with lowerCamel
//! names, except that trace and span ids are hexadecimal and enumerations are numbers. 64-bit
//! integers are strings.

use std::fmt::Write as _;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    },
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::{ResourceSpans, ScopeSpans, Span, span::Link},
};
use serde_json::{Value, json};

pub(super) fn encode(request: &ExportTraceServiceRequest) -> Vec<u8> {
    let groups: Vec<Value> = request.resource_spans.iter().map(resource_spans).collect();
    json!({ "resourceSpans": groups }).to_string().into_bytes()
}

/// `None` when it is not JSON of the right form.
pub(super) fn decode_response(body: &[u8]) -> Option<ExportTraceServiceResponse> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let Some(partial) = answer.as_object()?.get("partialSuccess") else {
        return Some(ExportTraceServiceResponse::default());
    };
    let rejected = partial.get("rejectedSpans");
    // Receivers write 64-bit integers as the mapping says and as plain numbers.
    let rejected_spans = rejected
        .and_then(|count| count.as_i64().or_else(|| count.as_str()?.parse().ok()))
        .unwrap_or(0);
    let error_message = partial
        .get("errorMessage")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let partial = ExportTracePartialSuccess {
        rejected_spans,
        error_message,
    };
    Some(ExportTraceServiceResponse {
        partial_success: Some(partial),
    })
}

fn resource_spans(group: &ResourceSpans) -> Value {
    let attributes = group
        .resource
        .as_ref()
        .map_or(&[][..], |resource| &resource.attributes);
    json!({
        "resource": { "attributes": key_values(attributes) },
        "scopeSpans": group.scope_spans.iter().map(scope_spans).collect::<Vec<_>>(),
        "schemaUrl": group.schema_url,
    })
}

fn scope_spans(group: &ScopeSpans) -> Value {
    let scope = group.scope.clone().unwrap_or_default();
    json!({
        "scope": { "name": scope.name, "version": scope.version },
        "spans": group.spans.iter().map(span).collect::<Vec<_>>(),
        "schemaUrl": group.schema_url,
    })
}

fn span(span: &Span) -> Value {
    let status = span.status.clone().unwrap_or_default();
    json!({
        "traceId": hex(&span.trace_id),
        "spanId": hex(&span.span_id),
        "traceState": span.trace_state,
        "parentSpanId": hex(&span.parent_span_id),
        "flags": span.flags,
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": span.start_time_unix_nano.to_string(),
        "endTimeUnixNano": span.end_time_unix_nano.to_string(),
        "attributes": key_values(&span.attributes),
        "links": span.links.iter().map(link).collect::<Vec<_>>(),
        "status": { "code": status.code, "message": status.message },
    })
}

fn link(link: &Link) -> Value {
    json!({
        "traceId": hex(&link.trace_id),
        "spanId": hex(&link.span_id),
        "traceState": link.trace_state,
        "attributes": key_values(&link.attributes),
        "flags": link.flags,
    })
}

fn key_values(attributes: &[KeyValue]) -> Vec<Value> {
    let value = |value: &Option<AnyValue>| value.as_ref().map_or(Value::Null, any_value);
    attributes
        .iter()
        .map(|attribute| json!({ "key": attribute.key, "value": value(&attribute.value) }))
        .collect()
}

/// The kinds of value that `request` makes; others become an empty value, as "not set" is.
fn any_value(value: &AnyValue) -> Value {
    match &value.value {
        Some(any_value::Value::StringValue(text)) => json!({ "stringValue": text }),
        Some(any_value::Value::BoolValue(flag)) => json!({ "boolValue": flag }),
        Some(any_value::Value::IntValue(number)) => json!({ "intValue": number.to_string() }),
        Some(any_value::Value::DoubleValue(number)) => json!({ "doubleValue": double(*number) }),
        Some(any_value::Value::ArrayValue(array)) => {
            let values: Vec<Value> = array.values.iter().map(any_value).collect();
            json!({ "arrayValue": { "values": values } })
        }
        _ => json!({}),
    }
}

/// The mapping writes what JSON numbers cannot say as strings.
fn double(number: f64) -> Value {
    if number.is_nan() {
        json!("NaN")
    } else if number.is_infinite() {
        json!(if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        })
    } else {
        json!(number)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
