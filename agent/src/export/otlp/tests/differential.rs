//! Our requests against those of the stock exporter for the same spans.

use std::time::{Duration, SystemTime};

use opentelemetry::{
    InstrumentationScope, KeyValue, StringValue,
    trace::{Link, SpanContext, SpanId, SpanKind, Status as SdkStatus, TraceFlags, TraceState},
};
use opentelemetry_otlp::{Protocol, WithExportConfig as _};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, trace::v1::ResourceSpans,
};
use opentelemetry_sdk::{
    Resource as SdkResource,
    trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks},
};

use prost::Message as _;

use super::receiver::{Receiver, Speaks};
use crate::{
    export::{
        otlp::{protobuf, request},
        tests::{checkout, remote_span},
    },
    span::{Attribute, Kind, SCHEMA_URL, Span, Status, Value},
};

fn key_values(attributes: &[Attribute]) -> Vec<KeyValue> {
    let value = |value: &Value| match value {
        Value::String(text) => text.to_string().into(),
        Value::Int(number) => (*number).into(),
        Value::Double(number) => (*number).into(),
        Value::Bool(flag) => (*flag).into(),
        Value::StringArray(texts) => {
            let texts: Vec<StringValue> = texts.iter().cloned().map(Into::into).collect();
            opentelemetry::Value::Array(texts.into())
        }
    };
    attributes
        .iter()
        .map(|attribute| KeyValue::new(attribute.key.to_string(), value(&attribute.value)))
        .collect()
}

fn context(
    trace_id: opentelemetry::TraceId,
    span_id: SpanId,
    flags: u8,
    state: &str,
) -> SpanContext {
    let state: TraceState = state.parse().expect("the tests have valid states");
    SpanContext::new(trace_id, span_id, TraceFlags::new(flags), false, state)
}

fn span_data(span: &Span) -> SpanData {
    let time = |ns| SystemTime::UNIX_EPOCH + Duration::from_nanos(ns);
    let mut links = SpanLinks::default();
    links.links = span
        .links
        .iter()
        .map(|link| {
            let context = context(link.trace_id, link.span_id, 0, "");
            Link::new(context, key_values(&link.attributes), 0)
        })
        .collect();
    SpanData {
        span_context: context(
            span.trace_id,
            span.span_id,
            span.trace_flags,
            &span.trace_state,
        ),
        parent_span_id: span.parent.map_or(SpanId::INVALID, |parent| parent.span_id),
        parent_span_is_remote: span.parent.is_some_and(|parent| parent.is_remote),
        span_kind: match span.kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
        },
        name: span.name.clone(),
        start_time: time(span.start_ns),
        end_time: time(span.end_ns),
        attributes: key_values(&span.attributes),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links,
        status: match &span.status {
            Status::Unset => SdkStatus::Unset,
            Status::Error(message) => SdkStatus::error(message.clone()),
        },
        instrumentation_scope: InstrumentationScope::builder(request::SCOPE_NAME)
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(SCHEMA_URL)
            .build(),
    }
}

/// In an order that does not depend on the path taken.
fn sorted(request: ExportTraceServiceRequest) -> Vec<ResourceSpans> {
    let mut groups = request.resource_spans;
    for group in &mut groups {
        if let Some(resource) = &mut group.resource {
            resource.attributes.sort_by(|a, b| a.key.cmp(&b.key));
        }
        for scope in &mut group.scope_spans {
            scope.spans.sort_by(|a, b| a.span_id.cmp(&b.span_id));
        }
    }
    groups.sort_by_key(|group| group.scope_spans[0].spans[0].span_id.clone());
    groups
}

/// Both exporters say the same about the same spans. One difference is meant: the stock one says
/// that a linked context is known not to be remote, which the agent does not know.
#[tokio::test]
async fn the_stock_exporter_says_the_same() {
    let mut spans = checkout();
    let mut odd = remote_span();
    // Of the same resource as another span, but not the same allocation.
    odd.resource = std::sync::Arc::new((*spans[2].resource).clone());
    spans.insert(1, odd);

    let receiver = Receiver::start(Speaks::Http, None, []).await;
    for service in ["frontend", "cart", "payment"] {
        let of_service: Vec<&Span> = spans
            .iter()
            .filter(|span| span.resource.service_name() == service)
            .collect();
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("http://{}/v1/traces", receiver.address))
            .build()
            .expect("the stock exporter starts");
        let attributes = key_values(&of_service[0].resource.attributes);
        let resource = SdkResource::builder_empty()
            .with_schema_url(attributes, SCHEMA_URL)
            .build();
        exporter.set_resource(&resource);
        let batch = of_service.into_iter().map(span_data).collect();
        exporter.export(batch).await.expect("the receiver takes it");
    }
    let mut stock = ExportTraceServiceRequest::default();
    for received in receiver.received() {
        stock
            .resource_spans
            .extend(received.decode().resource_spans);
    }
    for group in &mut stock.resource_spans {
        for link in group.scope_spans[0]
            .spans
            .iter_mut()
            .flat_map(|span| &mut span.links)
        {
            assert_eq!(std::mem::take(&mut link.flags), 0x100);
        }
    }
    let mut ours = vec![];
    protobuf::encode(&spans, &mut ours);
    let ours = ExportTraceServiceRequest::decode(ours.as_slice()).expect("a request");
    assert_eq!(sorted(ours), sorted(stock));
}
