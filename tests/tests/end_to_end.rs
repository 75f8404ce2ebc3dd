//! Every request is accounted for: spans received are the requests served, less an exact count in
//! the agent's ledger.

use agent_tests::{
    agent::AgentCommand,
    receiver::{Keep, Receiver, ReceiverOptions},
    require_root,
    scene::{assert_spans_match_log, trace, trace_with},
    span::Spans,
    wait::wait_until,
    workload::{
        client,
        nginx::Nginx,
        server::{Runtime, Server, ServerBuilder},
    },
};

const REQUESTS: u32 = 10_000;
const CONNECTIONS: u32 = 16;

/// wrk at 16 connections against nginx: as many spans as nginx logged requests, less what the
/// ledger says; wrk itself does not count what was in flight when its time ran out.
#[test]
fn every_request_of_wrk_to_nginx_is_a_span() {
    require_root!();
    let receiver = Receiver::start_with(ReceiverOptions {
        keep: Keep::Counts,
        ..ReceiverOptions::default()
    });
    let nginx = Nginx::start();
    let agent = AgentCommand::new()
        .pid(nginx.pid())
        .grpc_to(&receiver)
        .start();

    let mut counted = 0;
    while counted < u64::from(REQUESTS) {
        let report = client::wrk(&nginx.url("/small.txt"), CONNECTIONS, 1);
        assert_eq!((report.refused, report.socket_errors), (0, 0));
        counted += report.requests;
    }
    wait_until("nginx's log", || nginx.log().len() as u64 >= counted);
    let exit = agent.stop();

    let served = nginx.log().len() as u64;
    assert_eq!(
        receiver.span_count() + exit.ledger().lost_spans(),
        served,
        "{:?}",
        exit.ledger()
    );
    let whole: u64 = receiver
        .counts()
        .iter()
        .filter(|row| {
            (row.service.as_str(), row.kind.as_str()) == ("nginx", "SERVER")
                && row.path.as_deref() == Some("/small.txt")
                && row.status == Some(200)
        })
        .map(|row| row.count)
        .sum();
    assert_eq!(whole, receiver.span_count(), "{:?}", receiver.counts());
    assert!(whole + exit.ledger().lost_spans() >= counted);
}

/// An exact number of requests at 16 keep-alive connections: each span equals its line of the
/// server's own log, and nothing is lost.
#[test]
fn every_request_to_python_is_its_log_line() {
    require_root!();
    every_request_is_its_log_line(Runtime::Python);
}

/// The same on an event loop.
#[test]
fn every_request_to_node_is_its_log_line() {
    require_root!();
    every_request_is_its_log_line(Runtime::Node);
}

fn every_request_is_its_log_line(runtime: Runtime) {
    let server = ServerBuilder::new(runtime).service("served").start();
    let traced = trace(&[server.pid()], || {
        let statuses = client::load(&server.url("/bytes/{}"), REQUESTS, CONNECTIONS);
        assert_eq!(statuses["200"], u64::from(REQUESTS));
    });
    assert_eq!(
        traced.exit.ledger().lost_spans(),
        0,
        "{:?}",
        traced.exit.ledger()
    );
    assert_spans_match_log(&traced.of("served", "SERVER"), &server.log());
    assert_eq!(traced.spans.len(), REQUESTS as usize);
}

/// Each run of curl is one client span with the status that curl printed, although each is a
/// process that lives for milliseconds.
#[test]
fn every_curl_is_a_span() {
    require_root!(alone);
    let server = Server::node("node");
    let mut asked = Vec::new();
    let traced = trace_with(
        |agent| agent.args(["--exe", "*/curl"]),
        || {
            for number in 0..100 {
                let status = [200, 204, 404, 503][number % 4];
                let url = server.url(&format!("/status/{status}?n={number}"));
                assert_eq!(client::curl(&[&url]).1, status);
                asked.push((url, Some(i64::from(status))));
            }
        },
    );
    let mut spans = traced.of("curl", "CLIENT");
    spans.sort_by_key(|span| span.start_ns);
    let seen: Vec<_> = spans
        .iter()
        .map(|span| {
            (
                span.text("url.full").unwrap_or("").to_owned(),
                span.http_status(),
            )
        })
        .collect();
    assert_eq!(seen, asked);
}

/// Both ends at once: 2,000 requests through python to node, each client span with the one server
/// span it caused.
#[test]
fn clients_and_servers_pair_up() {
    require_root!();
    let node = Server::node("node");
    let python = ServerBuilder::new(Runtime::Python)
        .service("python")
        .backend(node.port())
        .start();
    let traced = trace(&[python.pid(), node.pid()], || {
        client::load(&python.url("/call/bytes/{}"), 2_000, 8);
    });
    assert_spans_match_log(&traced.of("python", "SERVER"), &python.log());
    assert_spans_match_log(&traced.of("node", "SERVER"), &node.log());
    let servers = traced.of("node", "SERVER");
    for client in traced.of("python", "CLIENT") {
        let server = servers.at(client.path());
        assert!(
            server.only().is_child_of(&client),
            "{client:#?}\n{server:#?}"
        );
    }
    assert_eq!(traced.of("python", "CLIENT").len(), 2_000);
}
