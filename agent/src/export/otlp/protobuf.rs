//! Spans to the bytes of one `ExportTraceServiceRequest`. Pure.
//!
//! Source: opentelemetry-proto 1.x (`trace/v1/trace.proto`, `common/v1/common.proto`,
//! `resource/v1/resource.proto`, `collector/trace/v1/trace_service.proto`) and the encoding of
//! Protocol Buffers. The bytes are those of [`request`]'s message, whose fields stand in the order
//! of their numbers and are left out where they have their default. They are written straight
//! from the spans: the message in between would be a dozen allocations and a copy of every key for
//! each span.

use crate::{
    export::otlp::request,
    span::{Attribute, Kind, Link, Resource, SCHEMA_URL, Span, Status, Value},
};

/// Wire types.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH_DELIMITED: u32 = 2;
const FIXED32: u32 = 5;

/// Bytes that the length of a message usually takes. Where it takes others, the message is moved.
const OF_REQUEST: usize = 3;
const OF_SPAN: usize = 2;
const OF_SHORT: usize = 1;

/// `SPAN_KIND_*` and `STATUS_CODE_ERROR`.
const SPAN_KIND_SERVER: u64 = 2;
const SPAN_KIND_CLIENT: u64 = 3;
const STATUS_CODE_ERROR: u64 = 2;

/// Appends the request to `out`.
pub(super) fn encode(spans: &[Span], out: &mut Vec<u8>) {
    for (resource, spans) in request::groups(spans) {
        message(out, 1, OF_REQUEST, |out| {
            resource_spans(out, resource, &spans);
        });
    }
}

fn resource_spans(out: &mut Vec<u8>, resource: &Resource, spans: &[&Span]) {
    message(out, 1, OF_SPAN, |out| {
        attributes(out, 1, &resource.attributes);
    });
    message(out, 2, OF_REQUEST, |out| {
        message(out, 1, OF_SHORT, |out| {
            text(out, 1, request::SCOPE_NAME);
            text(out, 2, request::SCOPE_VERSION);
        });
        for span in spans {
            message(out, 2, OF_SPAN, |out| self::span(out, span));
        }
        text(out, 3, SCHEMA_URL);
    });
    text(out, 3, SCHEMA_URL);
}

fn span(out: &mut Vec<u8>, span: &Span) {
    bytes(out, 1, &span.trace_id.to_bytes());
    bytes(out, 2, &span.span_id.to_bytes());
    text(out, 3, &span.trace_state);
    if let Some(parent) = span.parent {
        bytes(out, 4, &parent.span_id.to_bytes());
    }
    text(out, 5, &span.name);
    let kind = match span.kind {
        Kind::Server => SPAN_KIND_SERVER,
        Kind::Client => SPAN_KIND_CLIENT,
    };
    number(out, 6, kind);
    fixed64(out, 7, span.start_ns);
    fixed64(out, 8, span.end_ns);
    attributes(out, 9, &span.attributes);
    for link in &span.links {
        message(out, 13, OF_SHORT, |out| self::link(out, link));
    }
    message(out, 15, OF_SHORT, |out| {
        if let Status::Error(message) = &span.status {
            text(out, 2, message);
            number(out, 3, STATUS_CODE_ERROR);
        }
    });
    // Never zero: that there is a parent, or none, is always known.
    key(out, 16, FIXED32);
    out.extend_from_slice(&request::flags(span.trace_flags, span.parent).to_le_bytes());
}

fn link(out: &mut Vec<u8>, link: &Link) {
    bytes(out, 1, &link.trace_id.to_bytes());
    bytes(out, 2, &link.span_id.to_bytes());
    attributes(out, 4, &link.attributes);
}

fn attributes(out: &mut Vec<u8>, field: u32, attributes: &[Attribute]) {
    for attribute in attributes {
        message(out, field, OF_SHORT, |out| {
            text(out, 1, &attribute.key);
            message(out, 2, OF_SHORT, |out| value(out, &attribute.value));
        });
    }
}

/// The content of an `AnyValue`: one of several, so that none is left out for being a default.
fn value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::String(text) => bytes(out, 1, text.as_bytes()),
        Value::Bool(flag) => {
            key(out, 2, VARINT);
            varint(out, u64::from(*flag));
        }
        Value::Int(number) => {
            key(out, 3, VARINT);
            varint(out, number.cast_unsigned());
        }
        Value::Double(number) => {
            key(out, 4, FIXED64);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Value::StringArray(texts) => message(out, 5, OF_SHORT, |out| {
            for text in texts {
                message(out, 1, OF_SHORT, |out| bytes(out, 1, text.as_bytes()));
            }
        }),
    }
}

/// A message whose length is known once it is written. `length_bytes` are left for it.
fn message(out: &mut Vec<u8>, field: u32, length_bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
    key(out, field, LENGTH_DELIMITED);
    let start = out.len();
    let content = start + length_bytes;
    out.resize(content, 0);
    write(out);
    let mut length = (out.len() - content) as u64;
    let needed = varint_len(length);
    if needed != length_bytes {
        out.splice(start..content, std::iter::repeat_n(0, needed));
    }
    for byte in &mut out[start..start + needed] {
        *byte = length as u8 | 0x80;
        length >>= 7;
    }
    out[start + needed - 1] &= 0x7f;
}

fn text(out: &mut Vec<u8>, field: u32, text: &str) {
    if !text.is_empty() {
        bytes(out, field, text.as_bytes());
    }
}

fn bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    key(out, field, LENGTH_DELIMITED);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn number(out: &mut Vec<u8>, field: u32, number: u64) {
    if number != 0 {
        key(out, field, VARINT);
        varint(out, number);
    }
}

fn fixed64(out: &mut Vec<u8>, field: u32, number: u64) {
    if number != 0 {
        key(out, field, FIXED64);
        out.extend_from_slice(&number.to_le_bytes());
    }
}

#[inline]
fn key(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    varint(out, u64::from(field << 3 | wire_type));
}

#[inline]
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Seven bits to a byte, one byte at the least.
fn varint_len(value: u64) -> usize {
    (value | 1).ilog2() as usize / 7 + 1
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::{
        export::tests::{checkout, remote_span, service, spans_of},
        span::Parent,
    };

    /// The bytes of the message that is built from the same spans.
    fn assert_same(spans: &[Span]) {
        let mut out = b"before".to_vec();
        encode(spans, &mut out);
        let expected = request::build(spans).encode_to_vec();
        assert!(
            out.strip_prefix(b"before") == Some(expected.as_slice()),
            "{:?}",
            request::build(spans)
        );
    }

    /// Every field, set and at its default; several resources, interleaved.
    #[test]
    fn says_what_the_message_says() {
        assert_same(&[]);
        let mut spans = checkout();
        spans.insert(2, remote_span());
        assert_same(&spans);
        let mut bare = spans.swap_remove(0);
        bare.name = "".into();
        bare.attributes.clear();
        (bare.start_ns, bare.end_ns) = (0, 0);
        bare.status = Status::Error(String::new());
        bare.parent = Some(Parent {
            span_id: bare.span_id,
            is_remote: false,
        });
        bare.resource = std::sync::Arc::default();
        assert_same(&[bare]);
    }

    /// Values of every kind: defaults are written, and negative numbers take ten bytes.
    #[test]
    fn values_of_every_kind() {
        let numbers = [0, 1, 127, 128, i64::MAX, -1, i64::MIN];
        let mut attributes: Vec<Attribute> = numbers
            .into_iter()
            .map(|number| Attribute::new("n", number))
            .collect();
        attributes
            .extend([0.0, -0.0, f64::NAN, f64::MIN].map(|number| Attribute::new("d", number)));
        attributes.extend([false, true].map(|flag| Attribute::new("b", flag)));
        attributes.extend(["", "text"].map(|text| Attribute::new("", text)));
        for count in [0, 1, 40] {
            let texts = (0..count).map(|length| "t".repeat(length * 5)).collect();
            attributes.push(Attribute {
                key: "a".into(),
                value: Value::StringArray(texts),
            });
        }
        let mut span = remote_span();
        span.attributes = attributes;
        assert_same(&[span]);
    }

    /// Messages around the sizes at which their lengths take another byte.
    #[test]
    fn lengths_of_every_size() {
        let around = |size: usize| size - 64..size + 8;
        for length in around(1 << 7).chain(around(1 << 14)).chain([1 << 21]) {
            let mut span = remote_span();
            span.attributes = vec![Attribute::new("k", "v".repeat(length))];
            span.links[0].attributes.clone_from(&span.attributes);
            let resource = service("cart", 1);
            let mut attributes = resource.attributes.clone();
            attributes.extend(span.attributes.iter().cloned());
            span.resource = std::sync::Arc::new(Resource { attributes });
            assert_same(&[span]);
        }
        for count in [1, 30, 50, 5_000] {
            assert_same(&spans_of("cart", count));
        }
    }

    #[test]
    fn lengths_of_numbers() {
        for (value, length) in [
            (0, 1),
            (127, 1),
            (128, 2),
            (16_383, 2),
            (16_384, 3),
            (u64::MAX, 10),
        ] {
            assert_eq!(varint_len(value), length, "{value}");
            let mut out = vec![];
            varint(&mut out, value);
            assert_eq!(out.len(), length, "{value}");
        }
    }
}
