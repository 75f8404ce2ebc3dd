//! Spans the tests of all exporters share, and tests of the whole.

use std::sync::Arc;

use opentelemetry::{SpanId, TraceId};

use super::*;
use crate::span::{Attribute, Kind as SpanKind, Link, Parent, Resource, Status, attribute};

/// 2026-11-21T12:00:00Z.
pub(crate) const NOON_NS: u64 = 1_795_262_400_000_000_000;
const MS: u64 = 1_000_000;

pub(crate) fn service(name: &'static str, pid: i64) -> Arc<Resource> {
    let attributes = vec![
        Attribute::new(attribute::SERVICE_NAME, name),
        Attribute::new(attribute::PROCESS_PID, pid),
    ];
    Arc::new(Resource { attributes })
}

/// A server span with everything a span can have.
pub(crate) fn remote_span() -> Span {
    Span {
        trace_id: TraceId::from(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736),
        span_id: SpanId::from(0x00f0_67aa_0ba9_02b7),
        parent: Some(Parent {
            span_id: SpanId::from(0x1122_3344_5566_7788),
            is_remote: true,
        }),
        trace_flags: 1,
        trace_state: "vendor=1,other=2".to_owned(),
        start_ns: NOON_NS + 1,
        end_ns: NOON_NS + 12 * MS + 500_001,
        kind: SpanKind::Server,
        name: "GET /cart/{id}".into(),
        status: Status::Error("quote \" and \n line".to_owned()),
        attributes: vec![
            Attribute::new(attribute::HTTP_REQUEST_METHOD, "GET"),
            Attribute::new(attribute::HTTP_RESPONSE_STATUS_CODE, 500_i64),
            Attribute::new("x.double", 1.5),
            Attribute::new("x.bool", true),
            Attribute {
                key: "x.array".into(),
                value: crate::span::Value::StringArray(["a".to_owned(), "b".to_owned()].into()),
            },
        ],
        links: vec![Link {
            trace_id: TraceId::from(0xaa),
            span_id: SpanId::from(0xbb),
            attributes: vec![Attribute::new(attribute::LINK_REASON, "thread")],
        }],
        resource: service("cart", 42),
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Http {
    pub(crate) id: u64,
    pub(crate) parent: u64,
    pub(crate) kind: SpanKind,
    pub(crate) target: &'static str,
    pub(crate) status: i64,
    /// Milliseconds after noon.
    pub(crate) from_ms: u64,
    pub(crate) to_ms: u64,
}

pub(crate) fn http_span(resource: &Arc<Resource>, http: Http) -> Span {
    let is_error = http.status >= 500;
    let target = match http.kind {
        SpanKind::Server => Attribute::new(attribute::URL_PATH, http.target),
        SpanKind::Client => Attribute::new(attribute::URL_FULL, http.target),
    };
    Span {
        trace_id: TraceId::from(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736),
        span_id: SpanId::from(http.id),
        parent: (http.parent != 0).then(|| Parent {
            span_id: SpanId::from(http.parent),
            is_remote: false,
        }),
        trace_flags: 1,
        trace_state: String::new(),
        start_ns: NOON_NS + http.from_ms * MS,
        end_ns: NOON_NS + http.to_ms * MS,
        kind: http.kind,
        name: "GET".into(),
        status: if is_error {
            Status::Error(String::new())
        } else {
            Status::Unset
        },
        attributes: vec![
            Attribute::new(attribute::HTTP_REQUEST_METHOD, "GET"),
            target,
            Attribute::new(attribute::HTTP_RESPONSE_STATUS_CODE, http.status),
        ],
        links: vec![],
        resource: Arc::clone(resource),
    }
}

/// A front end asks two back ends one after the other; the second fails.
pub(crate) fn checkout() -> Vec<Span> {
    use SpanKind::{Client, Server};
    let (front, cart, pay) = (
        service("frontend", 1),
        service("cart", 2),
        service("payment", 3),
    );
    let row = |id, parent, kind, target, status, from_ms, to_ms| Http {
        id,
        parent,
        kind,
        target,
        status,
        from_ms,
        to_ms,
    };
    vec![
        http_span(&front, row(1, 0, Server, "/checkout", 500, 0, 312)),
        http_span(
            &front,
            row(2, 1, Client, "http://cart:8080/items", 200, 10, 130),
        ),
        http_span(&cart, row(3, 2, Server, "/items", 200, 20, 120)),
        http_span(
            &front,
            row(4, 1, Client, "http://payment:8080/pay", 503, 200, 310),
        ),
        http_span(&pay, row(5, 4, Server, "/pay", 503, 210, 300)),
    ]
}

pub(crate) fn span_of_trace(trace: u128) -> Span {
    Span {
        trace_id: TraceId::from(trace),
        ..checkout().swap_remove(0)
    }
}

/// `count` spans of `name`.
pub(crate) fn spans_of(name: &'static str, count: usize) -> Vec<Span> {
    let resource = service(name, 7);
    let span = Span {
        resource,
        ..checkout().swap_remove(0)
    };
    (0..count)
        .map(|id| Span {
            span_id: SpanId::from(id as u64 + 1),
            ..span.clone()
        })
        .collect()
}

/// Waits for a condition that other tasks or threads bring about.
pub(crate) async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn batch_config(queue_spans: usize) -> batch::Config {
    batch::Config {
        queue_spans,
        delay: Duration::ZERO,
        ..batch::Config::default()
    }
}

/// Names are told in any case; others are an error that lists the choice.
#[test]
fn kinds() {
    for kind in Kind::ALL {
        assert_eq!(kind.name().parse(), Ok(*kind));
        assert_eq!(
            format!(" {} ", kind.name().to_uppercase()).parse(),
            Ok(*kind)
        );
    }
    let error = "zipkin"
        .parse::<Kind>()
        .expect_err("there is no such exporter");
    assert_eq!(
        error.to_string(),
        "`zipkin` is not an exporter; use otlp, console, json or none"
    );
}

/// Only what is wanted is read: a bad endpoint is no error for the console.
#[test]
fn configuration_of_the_wanted_exporters() {
    let lookup = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("nonsense".to_owned()),
        "NO_COLOR" => Some("1".to_owned()),
        _ => None,
    };
    let (config, warnings) =
        Config::from_lookup(&[Kind::Console, Kind::Json], &lookup).expect("no OTLP, no error");
    assert_eq!(
        (config.json, config.otlp.is_none(), warnings.len()),
        (true, true, 0)
    );
    assert_eq!(
        config.console,
        Some(stdout::Config {
            colour: stdout::waterfall::Colour::Off
        })
    );
    assert!(Config::from_lookup(&[Kind::Otlp], &lookup).is_err());
    let (config, _) = Config::from_lookup(&[Kind::None], &lookup).expect("nothing to read");
    assert!(config.otlp.is_none() && config.console.is_none() && !config.json);
}

/// Without exporters spans go nowhere, and that is no loss.
#[tokio::test]
async fn no_exporters() {
    let metrics = Arc::new(SelfMetrics::default());
    let (sink, exporters) =
        start(&Config::default(), &metrics, &Handle::current()).expect("nothing can fail");
    sink.try_send(checkout());
    exporters.shutdown(Duration::from_mins(1)).await;
    assert!(metrics.losses().is_empty());
}

/// Each exporter has its own queue: one that is full loses alone.
#[test]
fn exporters_do_not_share_fate() {
    let metrics = Arc::new(SelfMetrics::default());
    let queue = |spans| {
        Arc::new(Queue::new(
            &batch_config(spans),
            usize::MAX,
            Arc::clone(&metrics),
        ))
    };
    let (small, large) = (queue(2), queue(100));
    let sink = SpanSink {
        queues: Arc::new([Arc::clone(&small), Arc::clone(&large)]),
    };
    std::thread::spawn(move || sink.try_send(spans_of("cart", 5)))
        .join()
        .expect("no panic");
    assert_eq!(small.next_batch_blocking(None), Some(spans_of("cart", 2)));
    assert_eq!(large.next_batch_blocking(None), Some(spans_of("cart", 5)));
    assert_eq!(
        metrics.losses()[&(Loss::ExportQueueFull, "cart".to_owned())],
        3
    );
}

/// A thread that hangs in a write does not hold up the shutdown, and its spans are counted.
#[tokio::test]
async fn a_stalled_terminal_does_not_hold_up_the_shutdown() {
    let metrics = Arc::new(SelfMetrics::default());
    let queue = Arc::new(Queue::new(
        &batch_config(10),
        usize::MAX,
        Arc::clone(&metrics),
    ));
    queue.try_send(spans_of("printing", 2));
    assert_eq!(
        queue.next_batch_blocking(None).map(|spans| spans.len()),
        Some(2)
    );
    queue.try_send(spans_of("waiting", 3));
    let (_never, done) = oneshot::channel();
    let running = Running {
        name: "console",
        queue,
        end: End::Thread(done),
    };
    Exporters {
        running: vec![running],
    }
    .shutdown(Duration::from_millis(20))
    .await;
    let losses: Vec<_> = metrics.losses().into_iter().collect();
    assert_eq!(
        losses,
        [
            ((Loss::ShutdownTimeout, "printing".to_owned()), 2),
            ((Loss::ShutdownTimeout, "waiting".to_owned()), 3),
        ]
    );
}
