//! What goes wrong around the agent: receivers that leave, hang or dawdle, a ring buffer that is
//! too small, and an agent that is restarted. Nothing is lost without a count, and nothing wrong
//! is said. Faults of single export calls are in `export.rs`.

use std::net::{Ipv4Addr, TcpListener};

use agent_tests::{
    agent::AgentCommand,
    process::own_memory_kib,
    receiver::{Keep, Receiver, ReceiverOptions},
    require_root,
    scene::trace_with,
    span::Span,
    summary::Summary,
    wait::wait_until,
    workload::{
        client,
        mix::{self, Background, Connections},
        nginx::Nginx,
        server::{Runtime, Server, ServerBuilder},
    },
};
use serde_json::json;

/// More records than a ring buffer of this many bytes holds at any pace.
const TINY_RING: &str = "8192";

fn counting_receiver() -> Receiver {
    Receiver::start_with(ReceiverOptions {
        keep: Keep::Counts,
        ..ReceiverOptions::default()
    })
}

/// Every span that was made was sent, or is counted as lost on its way.
fn assert_adds_up(ledger: &Summary) {
    let lost: u64 = [
        "export_queue_full",
        "export_rejected",
        "export_failed",
        "shutdown_timeout",
    ]
    .iter()
    .map(|reason| ledger.loss(reason))
    .sum();
    assert_eq!(
        ledger.counter("spans.created"),
        ledger.counter("spans.exported") + lost,
        "{ledger:?}"
    );
}

/// As [`assert_adds_up`], and every request is a span, or a record of it is counted as lost.
fn assert_accounted(ledger: &Summary, requests: u64) {
    assert_adds_up(ledger);
    let made = ledger.counter("spans.created");
    let unseen: u64 = ledger.kernel_losses.values().sum();
    assert!(
        made <= requests && made + unseen >= requests,
        "{made} spans of {requests} requests: {ledger:?}"
    );
}

/// The collector goes away under load and another one comes in its place: no span is lost, and none
/// arrives at both.
#[test]
fn collector_goes_and_comes_back() {
    const REQUESTS: u64 = 1_000;
    require_root!();
    for protocol in ["grpc", "http/protobuf"] {
        let first = counting_receiver();
        let endpoint = match protocol {
            "grpc" => first.grpc_endpoint(),
            _ => first.http_endpoint(),
        };
        let port = |url: &str| url.rsplit(':').next().and_then(|port| port.parse().ok());
        let ports = ReceiverOptions {
            grpc_port: port(&first.grpc_endpoint()).expect("a port"),
            http_port: first.http_port(),
            keep: Keep::Counts,
            ..ReceiverOptions::default()
        };
        let nginx = Nginx::start();
        let agent = AgentCommand::new()
            .pid(nginx.pid())
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .start();
        mix::ask(&nginx, REQUESTS, Connections::Kept);
        first.wait_for_spans(REQUESTS);
        let before = mix::assert_right(&first.counts(), "nginx");
        drop(first);
        mix::ask(&nginx, REQUESTS, Connections::Short);
        wait_until("a word about the collector", || {
            agent.stderr().contains(&endpoint)
        });
        let second = Receiver::start_with(ports);
        mix::ask(&nginx, REQUESTS, Connections::Kept);
        second.wait_for_spans(2 * REQUESTS);
        let exit = agent.stop();
        let after = mix::assert_right(&second.counts(), "nginx");
        assert_eq!((before, after), (REQUESTS, 2 * REQUESTS), "{protocol}");
        assert_eq!(exit.ledger().lost_spans(), 0, "{:?}", exit.ledger());
        assert_adds_up(exit.ledger());
    }
}

/// A collector that answers late holds up the export, and the queue in front of it overflows: what
/// does not fit is counted, what fits arrives.
#[test]
fn slow_collector_overflows_the_queue() {
    const REQUESTS: u64 = 4_000;
    const SLOW: usize = 2;
    require_root!();
    let receiver = counting_receiver();
    receiver.fault_with(&json!({"kind": "slow", "times": SLOW, "delay_s": 1.0}));
    let nginx = Nginx::start();
    let agent = AgentCommand::new()
        .pid(nginx.pid())
        .grpc_to(&receiver)
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "256")
        .env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "64")
        .start();
    mix::ask(&nginx, REQUESTS, Connections::Kept);
    wait_until("an export that was not held up", || {
        receiver.calls().len() > SLOW
    });
    let exit = agent.stop();
    let ledger = exit.ledger();
    let arrived = mix::assert_right(&receiver.counts(), "nginx");
    assert_eq!(arrived, ledger.counter("spans.exported"), "{ledger:?}");
    assert!(ledger.loss("export_queue_full") > 0, "{ledger:?}");
    assert_accounted(ledger, REQUESTS);
}

/// A collector that takes the connection and never says a word: the agent goes on tracing, in
/// bounded memory, ends in bounded time and counts every span as lost.
#[test]
fn silent_collector() {
    const REQUESTS: u64 = 20_000;
    require_root!();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("a bound socket").port();
    for protocol in ["grpc", "http/protobuf"] {
        let nginx = Nginx::start();
        let agent = AgentCommand::new()
            .pid(nginx.pid())
            .env(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                format!("http://127.0.0.1:{port}"),
            )
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .env("OTEL_EXPORTER_OTLP_TIMEOUT", "500")
            .env("OTEL_BSP_MAX_QUEUE_SIZE", "1024")
            .start();
        mix::ask(&nginx, REQUESTS / 4, Connections::Kept);
        let before = own_memory_kib(agent.pid());
        mix::ask(&nginx, REQUESTS - REQUESTS / 4, Connections::Kept);
        let after = own_memory_kib(agent.pid());
        let exit = agent.stop();
        let ledger = exit.ledger();
        assert_eq!(ledger.counter("spans.exported"), 0, "{ledger:?}");
        assert_accounted(ledger, REQUESTS);
        assert!(
            after <= before + 10 * 1024,
            "own memory went from {before} to {after} KiB"
        );
    }
}

/// A ring buffer of two pages loses most records. What is lost is counted, and what is left never
/// says of one request what was true of another.
#[test]
fn tiny_ring() {
    const REQUESTS: u64 = 20_000;
    require_root!();
    let receiver = counting_receiver();
    let nginx = Nginx::start();
    let agent = AgentCommand::new()
        .pid(nginx.pid())
        .grpc_to(&receiver)
        .env("EBPF_AGENT_RING_BYTES", TINY_RING)
        .start();
    mix::ask(&nginx, REQUESTS / 2, Connections::Kept);
    mix::ask(&nginx, REQUESTS / 2, Connections::Short);
    let exit = agent.stop();
    let ledger = exit.ledger();
    let arrived = mix::assert_right(&receiver.counts(), "nginx");
    assert!(ledger.kernel_losses["ring_full"] > 0, "{ledger:?}");
    assert_eq!(arrived, ledger.counter("spans.exported"), "{ledger:?}");
    assert_accounted(ledger, REQUESTS);
}

/// The same with two services that call each other: with half of the records gone, a span has its
/// own caller for a parent, or none.
#[test]
fn tiny_ring_makes_no_wrong_parents() {
    require_root!();
    let node = Server::node("node");
    let python = ServerBuilder::new(Runtime::Python)
        .service("python")
        .backend(node.port())
        .start();
    let traced = trace_with(
        |agent| {
            agent
                .pid(python.pid())
                .pid(node.pid())
                .env("EBPF_AGENT_RING_BYTES", TINY_RING)
        },
        || {
            client::load(&python.url("/call/bytes/{}"), 4_000, 16);
        },
    );
    let ledger = traced.exit.ledger();
    assert!(ledger.kernel_losses["ring_full"] > 0, "{ledger:?}");
    assert!(!traced.spans.is_empty(), "{ledger:?}");
    let case = |span: &Span| span.path().rsplit('/').next().map(str::to_owned);
    let mut joined = 0;
    for child in &traced.spans {
        if let Some(parent) = traced.parent(child) {
            assert_eq!(case(child), case(parent), "{child:#?}\n{parent:#?}");
            joined += 1;
        }
    }
    assert!(joined > 0, "nothing to judge: {ledger:?}");
    // Each request is at most one span of each kind.
    for (service, kind) in [
        ("python", "SERVER"),
        ("python", "CLIENT"),
        ("node", "SERVER"),
    ] {
        let spans = traced.of(service, kind);
        let mut paths: Vec<&str> = spans.iter().map(Span::path).collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), spans.len(), "{service} {kind}");
    }
}

/// A size that the kernel would refuse is refused with words.
#[test]
fn ring_of_an_odd_size() {
    require_root!(alone);
    for size in ["10000", "2048", "many", "4294967296"] {
        let exit = AgentCommand::new()
            .arg("--all")
            .env("EBPF_AGENT_RING_BYTES", size)
            .run();
        exit.expect(2, &["EBPF_AGENT_RING_BYTES", size, "powers of two"]);
    }
}

/// The agent is restarted again and again under load, politely and by SIGKILL: no client sees an
/// error, and every span of every run is of a request that was made.
#[test]
fn restarted_under_load() {
    const ROUNDS: u64 = 6;
    require_root!();
    let receiver = counting_receiver();
    let nginx = Nginx::start();
    let load = Background::start(&nginx);
    for round in 0..ROUNDS {
        let agent = AgentCommand::new()
            .pid(nginx.pid())
            .grpc_to(&receiver)
            .start();
        let (asked, arrived) = (load.asked(), receiver.span_count());
        wait_until("load and spans", || {
            load.asked() > asked + 500 && receiver.span_count() > arrived + 200
        });
        if round % 2 == 0 {
            agent.kill();
        } else {
            assert_adds_up(agent.stop().ledger());
        }
    }
    let asked = load.stop();
    let arrived = mix::assert_right(&receiver.counts(), "nginx");
    assert!(arrived <= asked, "{arrived} spans of {asked} requests");
}
