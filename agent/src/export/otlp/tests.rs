//! The whole exporter against receivers on loopback.

mod differential;
pub(super) mod receiver;

use std::{collections::BTreeMap, path::PathBuf};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::runtime::Handle;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::export::{
    self, Exporters, SpanSink,
    tests::{checkout, spans_of, wait_until},
};
use receiver::{Receiver, Reply, Speaks};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
/// Far more than any step of a test takes.
const PATIENCE: Duration = Duration::from_mins(1);

struct Agent {
    sink: SpanSink,
    exporters: Exporters,
    metrics: Arc<SelfMetrics>,
}

fn start(environment: &[(&str, &str)]) -> Result<Agent> {
    let mut settings = BTreeMap::from([("OTEL_BSP_SCHEDULE_DELAY", "1")]);
    settings.extend(environment.iter().copied());
    let lookup = |name: &str| settings.get(name).map(|value| (*value).to_owned());
    let (config, warnings) = export::Config::from_lookup(&[export::Kind::Otlp], &lookup)?;
    assert_eq!(warnings, Vec::<String>::new());
    let metrics = Arc::new(SelfMetrics::default());
    let (sink, exporters) = export::start(&config, &metrics, &Handle::current())?;
    Ok(Agent {
        sink,
        exporters,
        metrics,
    })
}

fn agent_for(receiver: &Receiver, speaks: Speaks, more: &[(&str, &str)]) -> Agent {
    let endpoint = format!("http://{}", receiver.address);
    let protocol = if speaks == Speaks::Grpc {
        "grpc"
    } else {
        "http/protobuf"
    };
    let mut environment = vec![(ENDPOINT, endpoint.as_str()), (PROTOCOL, protocol)];
    environment.extend(more);
    start(&environment).expect("the environment is valid")
}

impl Agent {
    fn exported(&self) -> u64 {
        self.metrics.total(Counter::SpansExported)
    }

    fn lost(&self) -> BTreeMap<(Loss, String), u64> {
        self.metrics.losses()
    }

    async fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        wait_until(what, || condition(self)).await;
    }
}

fn losses<const N: usize>(rows: [(Loss, &str, u64); N]) -> BTreeMap<(Loss, String), u64> {
    rows.into_iter()
        .map(|(loss, service, count)| ((loss, service.to_owned()), count))
        .collect()
}

/// Spans arrive by either protocol, in each encoding, with the headers of both sides.
#[tokio::test]
async fn spans_arrive() {
    for speaks in [Speaks::Http, Speaks::Grpc] {
        for compression in ["none", "gzip", "zstd"] {
            let receiver = Receiver::start(speaks, None, []).await;
            let agent = agent_for(
                &receiver,
                speaks,
                &[
                    ("OTEL_EXPORTER_OTLP_COMPRESSION", compression),
                    ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20token"),
                ],
            );
            agent.sink.try_send(checkout());
            agent
                .wait_for("the export", |agent| agent.exported() == 5)
                .await;
            let requests = receiver.received();
            let [request] = requests.as_slice() else {
                panic!("one request: {requests:?}")
            };
            assert_eq!(
                request.decode(),
                request::build(&checkout()),
                "{speaks:?} {compression}"
            );
            assert_eq!(request.header("authorization"), "Bearer token");
            assert_eq!(
                request.header("user-agent"),
                concat!("ebpf-agent/", env!("CARGO_PKG_VERSION"))
            );
            let (path, content_type, encoding) = match speaks {
                Speaks::Grpc => (
                    "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
                    "application/grpc",
                    "grpc-encoding",
                ),
                _ => ("/v1/traces", "application/x-protobuf", "content-encoding"),
            };
            assert_eq!(request.path, path);
            assert_eq!(request.header("content-type"), content_type);
            assert_eq!(
                request.header(encoding),
                compression.trim_start_matches("none")
            );
            assert_eq!(agent.lost(), losses([]));
        }
    }
}

/// OTLP/JSON has hexadecimal ids, numbers for enumerations and strings for 64-bit integers.
#[tokio::test]
async fn json_arrives() {
    let receiver = Receiver::start(Speaks::Http, None, [Reply::Http(200, None, "{}")]).await;
    let agent = agent_for(&receiver, Speaks::Http, &[(PROTOCOL, "http/json")]);
    agent.sink.try_send(vec![export::tests::remote_span()]);
    agent
        .wait_for("the export", |agent| agent.exported() == 1)
        .await;
    let requests = receiver.received();
    assert_eq!(requests[0].header("content-type"), "application/json");
    let body: serde_json::Value =
        serde_json::from_slice(&requests[0].body).expect("the body is JSON");
    let span = &body["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    assert_eq!(span["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(span["parentSpanId"], "1122334455667788");
    assert_eq!(span["startTimeUnixNano"], "1795262400000000001");
    assert_eq!((&span["kind"], &span["flags"]), (&2.into(), &0x301.into()));
    assert_eq!(span["status"]["code"], 2);
    assert_eq!(
        span["attributes"][1]["value"],
        serde_json::json!({ "intValue": "500" })
    );
    assert_eq!(
        span["attributes"][4]["value"]["arrayValue"]["values"],
        serde_json::json!([{ "stringValue": "a" }, { "stringValue": "b" }])
    );
    assert_eq!(
        json::decode_response(br#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"x"}}"#)
            .map(|response| Answer::from(response.partial_success)),
        Some(Answer {
            rejected: 3,
            message: "x".to_owned()
        })
    );
    assert_eq!(json::decode_response(b"<html>"), None);
    assert_eq!(json::decode_response(b"[]"), None);
}

/// What may be tried again is tried again, once, with the same spans, and nothing is lost.
#[tokio::test]
async fn transient_failures_are_retried() {
    let throttled = || Reply::Grpc(8, retry::retry_info_details(0, 1));
    let table = [
        (
            Speaks::Http,
            Reply::Http(503, Some(("retry-after", "1")), "busy"),
        ),
        (Speaks::Http, Reply::Http(429, None, "")),
        (Speaks::Http, Reply::Close),
        (Speaks::Http, Reply::Hang),
        (Speaks::Grpc, Reply::Grpc(14, vec![])),
        (Speaks::Grpc, throttled()),
        (Speaks::Grpc, Reply::Close),
        (Speaks::Grpc, Reply::Hang),
    ];
    let mut running = vec![];
    for (speaks, reply) in table {
        let receiver = Receiver::start(speaks, None, [reply.clone()]).await;
        // Long enough for a busy machine to answer the second try.
        let agent = agent_for(&receiver, speaks, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "2000")]);
        agent.sink.try_send(checkout());
        running.push((receiver, agent, reply));
    }
    for (receiver, agent, reply) in running {
        agent
            .wait_for(&format!("{reply:?}"), |agent| agent.exported() == 5)
            .await;
        assert_eq!(receiver.span_counts(), [5, 5], "{reply:?}");
        assert_eq!(agent.metrics.total(Counter::ExportsRetried), 1, "{reply:?}");
        assert_eq!(agent.lost(), losses([]), "{reply:?}");
    }
}

/// A connection that went silent is not waited on again: the retry makes a new one.
#[tokio::test]
async fn a_silent_connection_is_left() {
    let receiver = Receiver::start(Speaks::GrpcAfterSilence, None, []).await;
    let timeout = [("OTEL_EXPORTER_OTLP_TIMEOUT", "200")];
    let agent = agent_for(&receiver, Speaks::Grpc, &timeout);
    agent.sink.try_send(checkout());
    agent
        .wait_for("the export", |agent| agent.exported() == 5)
        .await;
    assert_eq!(agent.metrics.total(Counter::ExportsRetried), 1);
    assert_eq!(receiver.span_counts(), [5]);
}

/// What the receiver will never take is given up at once, counted by service, and the next batch
/// goes its way.
#[tokio::test]
async fn permanent_failures_are_counted() {
    let table = [
        (Speaks::Http, Reply::Http(400, None, "bad")),
        (Speaks::Http, Reply::Http(401, None, "")),
        (Speaks::Http, Reply::Http(500, None, "")),
        (
            Speaks::Http,
            Reply::Http(302, Some(("location", "/elsewhere")), ""),
        ),
        (Speaks::Grpc, Reply::Grpc(3, vec![])),
        (Speaks::Grpc, Reply::Grpc(8, vec![])),
        (Speaks::Grpc, Reply::Grpc(16, vec![])),
        (Speaks::Grpc, Reply::Garbage),
    ];
    for (speaks, reply) in table {
        let receiver = Receiver::start(speaks, None, [reply.clone()]).await;
        let agent = agent_for(&receiver, speaks, &[]);
        agent.sink.try_send(checkout());
        let expected = losses([
            (Loss::ExportFailed, "cart", 1),
            (Loss::ExportFailed, "frontend", 3),
            (Loss::ExportFailed, "payment", 1),
        ]);
        agent
            .wait_for(&format!("{reply:?}"), |agent| agent.lost() == expected)
            .await;
        agent.sink.try_send(spans_of("later", 2));
        agent
            .wait_for(&format!("{reply:?}"), |agent| agent.exported() == 2)
            .await;
        assert_eq!(receiver.span_counts(), [5, 2], "{reply:?}: no retry");
        assert_eq!(agent.lost(), expected, "{reply:?}");
    }
}

/// Spans the receiver rejects are counted as rejected, the others as exported.
#[tokio::test]
async fn partial_success_is_counted() {
    for speaks in [Speaks::Http, Speaks::Grpc] {
        let receiver = Receiver::start(speaks, None, [Reply::Partial(3, "too old")]).await;
        let agent = agent_for(&receiver, speaks, &[]);
        agent.sink.try_send(spans_of("cart", 10));
        agent
            .wait_for("the export", |agent| agent.exported() == 7)
            .await;
        assert_eq!(agent.lost(), losses([(Loss::ExportRejected, "cart", 3)]));
        assert_eq!(receiver.span_counts(), [10]);
    }
}

/// An HTTP success is the receiver's word, even with an answer that is not OTLP.
#[tokio::test]
async fn success_with_garbage_is_success() {
    let receiver = Receiver::start(Speaks::Http, None, [Reply::Garbage]).await;
    let agent = agent_for(&receiver, Speaks::Http, &[]);
    agent.sink.try_send(checkout());
    agent
        .wait_for("the export", |agent| agent.exported() == 5)
        .await;
    assert_eq!(agent.lost(), losses([]));
}

/// Nobody there, or somebody who speaks neither protocol: retried until the limit, then counted.
#[tokio::test]
async fn unreachable_receivers_are_retried_then_counted() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let refused = free.local_addr().expect("it is bound");
    drop(free);
    let nonsense = Receiver::start(Speaks::Nonsense, None, []).await.address;
    for address in [refused, nonsense] {
        for protocol in ["grpc", "http/protobuf"] {
            let endpoint = format!("http://{address}");
            let agent = start(&[
                (ENDPOINT, &endpoint),
                (PROTOCOL, protocol),
                ("OTEL_BSP_EXPORT_TIMEOUT", "1500"),
            ])
            .expect("the environment is valid");
            agent.sink.try_send(spans_of("cart", 4));
            let expected = losses([(Loss::ExportFailed, "cart", 4)]);
            let what = format!("{address} {protocol}");
            agent
                .wait_for(&what, |agent| agent.lost() == expected)
                .await;
            assert!(agent.metrics.total(Counter::ExportsRetried) > 0, "{what}");
            assert_eq!(agent.exported(), 0, "{what}");
        }
    }
}

/// While the receiver hangs the queue holds what it can and counts the rest exactly; afterwards
/// everything held is delivered in batches.
#[tokio::test]
async fn an_outage_is_bounded_and_counted() {
    let receiver = Receiver::start(Speaks::Http, None, [Reply::Hang]).await;
    let agent = agent_for(
        &receiver,
        Speaks::Http,
        &[
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "40"),
        ],
    );
    agent.sink.try_send(spans_of("first", 40));
    wait_until("the first request", || receiver.received().len() == 1).await;
    agent.sink.try_send(spans_of("second", 90));
    agent.sink.try_send(spans_of("third", 25));
    let expected = losses([(Loss::ExportQueueFull, "third", 15)]);
    assert_eq!(agent.lost(), expected, "counted at once");
    agent
        .wait_for("the rest", |agent| agent.exported() == 140)
        .await;
    assert_eq!(receiver.span_counts(), [40, 40, 40, 40, 20]);
    assert_eq!(agent.lost(), expected);
}

/// Shutdown sends what waits for company.
#[tokio::test]
async fn shutdown_flushes() {
    let receiver = Receiver::start(Speaks::Grpc, None, []).await;
    let agent = agent_for(
        &receiver,
        Speaks::Grpc,
        &[
            ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3"),
        ],
    );
    agent.sink.try_send(spans_of("cart", 2));
    agent.exporters.shutdown(PATIENCE).await;
    assert_eq!(receiver.span_counts(), [2]);
    assert_eq!(agent.metrics.total(Counter::SpansExported), 2);
    agent.sink.try_send(spans_of("late", 1));
    assert_eq!(
        agent.metrics.losses(),
        losses([(Loss::ShutdownTimeout, "late", 1)])
    );
}

/// Shutdown ends in time although the receiver hangs, and counts in-flight and queued spans.
#[tokio::test]
async fn shutdown_is_bounded() {
    let receiver = Receiver::start(Speaks::Http, None, [Reply::Hang]).await;
    let agent = agent_for(
        &receiver,
        Speaks::Http,
        &[("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")],
    );
    agent.sink.try_send(spans_of("flying", 10));
    wait_until("the first request", || receiver.received().len() == 1).await;
    agent.sink.try_send(spans_of("waiting", 7));
    agent.exporters.shutdown(Duration::from_millis(50)).await;
    assert_eq!(
        agent.metrics.losses(),
        losses([
            (Loss::ShutdownTimeout, "flying", 10),
            (Loss::ShutdownTimeout, "waiting", 7)
        ])
    );
    assert_eq!(agent.metrics.total(Counter::SpansExported), 0);
}

fn certificate(name: &str) -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest
        .join("src/export/otlp/tests/certificates")
        .join(name)
}

fn path_text(name: &str) -> String {
    certificate(name)
        .to_str()
        .expect("the path is UTF-8")
        .to_owned()
}

/// Asks clients for a certificate of the test authority.
fn acceptor(speaks: Speaks) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pem = |name| CertificateDer::from_pem_file(certificate(name)).expect("PEM");
    let mut roots = RootCertStore::empty();
    roots.add(pem("ca.pem")).expect("a usable authority");
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .expect("a usable verifier");
    let key = PrivateKeyDer::from_pem_file(certificate("server.key")).expect("PEM");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![pem("server.pem")], key)
        .expect("the key fits");
    if speaks == Speaks::Grpc {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    TlsAcceptor::from(Arc::new(config))
}

/// A private authority and a client certificate work for both protocols; without either, the
/// spans do not leave.
#[tokio::test]
async fn mutual_tls() {
    let (ca, other) = (path_text("ca.pem"), path_text("other-ca.pem"));
    let (client, key) = (path_text("client.pem"), path_text("client.key"));
    let identity = [
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", client.as_str()),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", key.as_str()),
    ];
    for (speaks, protocol) in [(Speaks::Http, "http/protobuf"), (Speaks::Grpc, "grpc")] {
        let receiver = Receiver::start(speaks, Some(acceptor(speaks)), []).await;
        let endpoint = format!("https://localhost:{}", receiver.address.port());
        let common = [
            (ENDPOINT, endpoint.as_str()),
            (PROTOCOL, protocol),
            ("OTEL_BSP_EXPORT_TIMEOUT", "400"),
        ];
        let trusting = [("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.as_str())];
        let mistrusting = [("OTEL_EXPORTER_OTLP_CERTIFICATE", other.as_str())];

        for refused in [
            [&common[..], &trusting].concat(),
            [&common[..], &mistrusting, &identity].concat(),
        ] {
            let agent = start(&refused).expect("the environment is valid");
            agent.sink.try_send(spans_of("cart", 1));
            let expected = losses([(Loss::ExportFailed, "cart", 1)]);
            agent
                .wait_for("the failure", |agent| agent.lost() == expected)
                .await;
            assert_eq!(receiver.received().len(), 0, "{protocol}");
        }
        let accepted = [&common[..2], &trusting, &identity].concat();
        let agent = start(&accepted).expect("the environment is valid");
        agent.sink.try_send(checkout());
        agent
            .wait_for("the export", |agent| agent.exported() == 5)
            .await;
        assert_eq!(receiver.span_counts(), [5], "{protocol}");
    }
}

/// A certificate file that is missing, or is something else, stops the start with the variable,
/// the file and the next step.
#[tokio::test]
async fn unusable_certificate_files_are_errors() {
    let (pem, key) = (path_text("client.pem"), path_text("client.key"));
    let (readme, other_key) = (path_text("README.md"), path_text("server.key"));
    let certificate = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    let client = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE";
    let client_key = "OTEL_EXPORTER_OTLP_CLIENT_KEY";
    let table: &[(&[(&str, &str)], &str)] = &[
        (
            &[(certificate, "/no/such.pem")],
            "CERTIFICATE names /no/such.pem, which cannot be read",
        ),
        (
            &[(certificate, &readme)],
            "does not hold a certificate; give a PEM file",
        ),
        (
            &[(client, &pem), (client_key, "/no/key")],
            "CLIENT_KEY names /no/key, which cannot",
        ),
        (
            &[(client, &pem), (client_key, &readme)],
            "does not hold a private key",
        ),
        (
            &[(client, &readme), (client_key, &key)],
            "does not hold a certificate",
        ),
        (
            &[(client, &pem), (client_key, &other_key)],
            "does not work with the key of",
        ),
    ];
    for (environment, cause) in table {
        let environment = [&[(ENDPOINT, "https://localhost:1")], *environment].concat();
        let message = match start(&environment) {
            Ok(_) => panic!("{environment:?} must not start"),
            Err(error) => format!("{error:#}"),
        };
        assert!(message.contains(cause), "{message}");
        assert!(message.contains("OTEL_EXPORTER_OTLP_"), "{message}");
    }
}
