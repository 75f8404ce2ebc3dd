//! Export: every transport, encoding and credential delivers every span, faults delay but do not
//! lose, and what is printed can be read.

use agent_tests::{
    agent::{AgentCommand, Exit},
    pki::{CLIENT_NAME, Pki},
    port::free_port,
    receiver::{ClientCertificates, Receiver, ReceiverOptions},
    require_root,
    wait::wait_until,
    workload::{client, server::Server},
};
use serde_json::{Value, json};

const REQUESTS: u32 = 200;

fn drive(server: &Server) {
    let statuses = client::load(&server.url("/hello"), REQUESTS, 4);
    assert_eq!(statuses["200"], u64::from(REQUESTS));
}

/// Runs an agent over the usual requests; every span must have arrived when it has ended.
fn deliver(receiver: &Receiver, configure: impl FnOnce(AgentCommand) -> AgentCommand) -> Exit {
    let server = Server::python("python");
    let before = receiver.span_count();
    let agent = configure(AgentCommand::new().pid(server.pid())).start();
    drive(&server);
    let exit = agent.stop();
    assert_eq!(
        receiver.span_count() - before,
        u64::from(REQUESTS),
        "{:?}",
        exit.ledger()
    );
    assert_eq!(exit.ledger().counter("spans.exported"), u64::from(REQUESTS));
    assert_eq!(exit.ledger().lost_spans(), 0);
    exit
}

/// Both protocols with each compression they take, and headers given by the environment, percent
/// decoded.
#[test]
fn protocols_compressions_and_headers() {
    require_root!();
    let receiver = Receiver::start();
    let variants = [
        ("grpc", "none"),
        ("grpc", "gzip"),
        ("http", "none"),
        ("http", "gzip"),
        ("http", "zstd"),
    ];
    for (protocol, compression) in variants {
        let before = receiver.calls().len();
        deliver(&receiver, |agent| {
            let agent = match protocol {
                "grpc" => agent.grpc_to(&receiver),
                _ => agent.http_to(&receiver),
            };
            agent
                .env("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
                .env("OTEL_EXPORTER_OTLP_HEADERS", "x-team=red%20team,x-key=k")
        });
        for call in &receiver.calls()[before..] {
            assert_eq!(call.transport, protocol);
            assert_eq!(call.headers["x-team"], "red team", "{call:?}");
            assert_eq!(call.headers["x-key"], "k");
            if protocol == "http" {
                let encoding = call
                    .headers
                    .get("content-encoding")
                    .map_or("none", String::as_str);
                assert_eq!(encoding, compression);
            }
        }
    }
}

/// The endpoint for traces alone is taken as it stands and wins over the common one.
#[test]
fn endpoint_for_traces() {
    require_root!();
    let receiver = Receiver::start();
    deliver(&receiver, |agent| {
        agent
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            .env(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                format!("http://127.0.0.1:{}", free_port()),
            )
            .env(
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                format!("{}/v1/traces", receiver.http_endpoint()),
            )
    });
}

/// TLS with an authority of one's own, over both protocols.
#[test]
fn tls() {
    require_root!();
    let pki = Pki::new();
    let receiver = Receiver::start_with(ReceiverOptions {
        tls: Some(&pki),
        ..ReceiverOptions::default()
    });
    for transport in [AgentCommand::grpc_to, AgentCommand::http_to] {
        deliver(&receiver, |agent| {
            transport(agent, &receiver).env(
                "OTEL_EXPORTER_OTLP_CERTIFICATE",
                pki.authority_certificate(),
            )
        });
    }
}

/// Mutual TLS: the receiver learns who sent.
#[test]
fn mutual_tls() {
    require_root!();
    let pki = Pki::new();
    let receiver = Receiver::start_with(ReceiverOptions {
        tls: Some(&pki),
        client_certificates: ClientCertificates::Demanded,
        ..ReceiverOptions::default()
    });
    for transport in [AgentCommand::grpc_to, AgentCommand::http_to] {
        deliver(&receiver, |agent| {
            transport(agent, &receiver)
                .env(
                    "OTEL_EXPORTER_OTLP_CERTIFICATE",
                    pki.authority_certificate(),
                )
                .env(
                    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
                    pki.client_certificate(),
                )
                .env("OTEL_EXPORTER_OTLP_CLIENT_KEY", pki.client_key())
        });
    }
    for call in receiver.calls() {
        assert_eq!(call.client_certificate, CLIENT_NAME, "{call:?}");
    }
}

/// A certificate of an unknown authority is not accepted: nothing is sent, and it is said why.
#[test]
fn untrusted_receiver_gets_nothing() {
    require_root!();
    let (pki, other) = (Pki::new(), Pki::new());
    let receiver = Receiver::start_with(ReceiverOptions {
        tls: Some(&pki),
        ..ReceiverOptions::default()
    });
    let server = Server::python("python");
    let agent = AgentCommand::new()
        .pid(server.pid())
        .http_to(&receiver)
        .env(
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            other.authority_certificate(),
        )
        .start();
    drive(&server);
    let exit = agent.stop();
    assert_eq!(receiver.span_count(), 0);
    assert_eq!(exit.ledger().lost_spans(), u64::from(REQUESTS));
    assert!(
        exit.stderr.to_lowercase().contains("certificate"),
        "{}",
        exit.stderr
    );
}

/// A collector that comes up after the agent gets what happened before.
#[test]
fn collector_comes_late() {
    require_root!();
    let (grpc_port, http_port) = (free_port(), free_port());
    for protocol in ["grpc", "http/protobuf"] {
        let server = Server::python("python");
        let port = if protocol == "grpc" {
            grpc_port
        } else {
            http_port
        };
        let agent = AgentCommand::new()
            .pid(server.pid())
            .env(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                format!("http://127.0.0.1:{port}"),
            )
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .start();
        drive(&server);
        // Its first attempt has failed by the time it says so.
        wait_until("a word about the collector", || {
            agent.stderr().contains(&port.to_string())
        });
        let receiver = Receiver::start_with(ReceiverOptions {
            grpc_port,
            http_port,
            ..Default::default()
        });
        receiver.wait_for_spans(REQUESTS.into());
        let exit = agent.stop();
        assert_eq!(receiver.span_count(), u64::from(REQUESTS), "{protocol}");
        assert_eq!(exit.ledger().lost_spans(), 0, "{:?}", exit.ledger());
    }
}

/// Answers that ask to come again are obeyed: every span arrives, once.
#[test]
fn retries_lose_nothing() {
    require_root!();
    let receiver = Receiver::start();
    let faults = [
        json!({"kind": "unavailable", "times": 2, "retry_after_s": 1}),
        json!({"kind": "unavailable"}),
        json!({"kind": "throttled", "retry_after_s": 1}),
    ];
    for transport in [AgentCommand::grpc_to, AgentCommand::http_to] {
        for fault in &faults {
            receiver.fault_with(fault);
            let server = Server::python("python");
            let before = receiver.span_count();
            let agent = transport(AgentCommand::new().pid(server.pid()), &receiver).start();
            drive(&server);
            // The end of the agent bounds its retries, so they are awaited before it.
            receiver.wait_for_spans(before + u64::from(REQUESTS));
            let exit = agent.stop();
            assert_eq!(
                receiver.span_count() - before,
                u64::from(REQUESTS),
                "{fault}"
            );
            assert!(exit.ledger().counter("exports.retried") >= 1, "{fault}");
        }
    }
}

/// A connection that breaks in the middle of a call is no reason to lose the batch.
#[test]
fn broken_connection_is_retried() {
    require_root!();
    let receiver = Receiver::start();
    receiver.fault("close", 1);
    let server = Server::python("python");
    let agent = AgentCommand::new()
        .pid(server.pid())
        .http_to(&receiver)
        .start();
    drive(&server);
    receiver.wait_for_spans(REQUESTS.into());
    agent.stop();
    assert_eq!(receiver.span_count(), u64::from(REQUESTS));
}

/// What the receiver refuses for good is not tried again, and is counted.
#[test]
fn refusals_are_counted() {
    require_root!();
    let receiver = Receiver::start();
    for transport in [AgentCommand::grpc_to, AgentCommand::http_to] {
        receiver.fault("refused", 1000);
        let server = Server::python("python");
        let agent = transport(AgentCommand::new().pid(server.pid()), &receiver).start();
        drive(&server);
        let exit = agent.stop();
        assert_eq!(receiver.span_count(), 0);
        assert_eq!(
            exit.ledger().loss("export_failed"),
            u64::from(REQUESTS),
            "{:?}",
            exit.ledger()
        );
        assert_eq!(exit.ledger().counter("exports.retried"), 0);
    }
}

/// The part that a receiver did not take is counted, and not sent again.
#[test]
fn partial_success_is_counted() {
    require_root!();
    let receiver = Receiver::start();
    receiver.fault_with(&json!({"kind": "partial", "rejected_spans": 3}));
    let server = Server::python("python");
    let agent = AgentCommand::new()
        .pid(server.pid())
        .grpc_to(&receiver)
        .start();
    drive(&server);
    let exit = agent.stop();
    assert_eq!(receiver.span_count(), u64::from(REQUESTS) - 3);
    assert_eq!(
        exit.ledger().loss("export_rejected"),
        3,
        "{:?}",
        exit.ledger()
    );
}

/// `json`: one object a line on standard output, and nothing else there.
#[test]
fn json_lines() {
    require_root!();
    let server = Server::python("python");
    let agent = AgentCommand::new()
        .pid(server.pid())
        .args(["--exporter", "json"])
        .start();
    drive(&server);
    let exit = agent.stop();
    let lines: Vec<Value> = exit
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert_eq!(lines.len(), REQUESTS as usize);
    for line in lines {
        assert!(line.is_object());
        let text = line.to_string();
        for word in ["python", "/hello", "200"] {
            assert!(text.contains(word), "{word} is missing from {text}");
        }
    }
}

/// `console`: service, method, path and status of each request can be read.
#[test]
fn console_waterfall() {
    require_root!();
    let server = Server::python("python");
    let agent = AgentCommand::new()
        .pid(server.pid())
        .args(["--exporter", "console"])
        .start();
    client::load(&server.url("/status/503"), 1, 1);
    let exit = agent.stop();
    for word in ["python", "GET", "/status/503", "503"] {
        assert!(
            exit.stdout.contains(word),
            "{word} is missing from: {}",
            exit.stdout
        );
    }
    assert!(
        !exit.stdout.contains('\u{1b}'),
        "no colours where nobody sees them"
    );
}

/// Two exporters in one run each get every span.
#[test]
fn two_exporters() {
    require_root!();
    let receiver = Receiver::start();
    let exporters = ["--exporter", "otlp", "--exporter", "json"];
    let exit = deliver_with_stdout(&receiver, &exporters);
    assert_eq!(exit.stdout.lines().count(), REQUESTS as usize);
}

fn deliver_with_stdout(receiver: &Receiver, exporters: &[&str]) -> Exit {
    let server = Server::python("python");
    let agent = AgentCommand::new()
        .pid(server.pid())
        .grpc_to(receiver)
        .args(exporters)
        .start();
    drive(&server);
    let exit = agent.stop();
    assert_eq!(receiver.span_count(), u64::from(REQUESTS));
    exit
}
