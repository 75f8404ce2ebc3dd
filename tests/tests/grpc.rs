//! gRPC by real programs in four implementations, each as client and as server: methods, statuses,
//! messages and times are what the programs themselves say, and each server span is the child of
//! its own call, however many run side by side on one connection.

use std::collections::BTreeMap;

use agent_tests::{
    pki::Pki,
    require_root,
    scene::{Traced, trace},
    span::Span,
    workload::grpc::{Call, Caller, Implementation, KINDS, Store},
};

/// The agent reads the wall clock now and then, and the programs in their own way.
const CLOCK_SLACK_NS: u64 = 20_000_000;

/// Every implementation as server once and as client once.
const PAIRS: [(Implementation, Implementation); 4] = [
    (Implementation::Python, Implementation::Node),
    (Implementation::Node, Implementation::Python),
    (Implementation::Go, Implementation::Rust),
    (Implementation::Rust, Implementation::Go),
];

/// Statuses that are a server's own doing: semantic conventions, docs/rpc/grpc.md.
const SERVER_ERRORS: [&str; 6] = [
    "UNKNOWN",
    "DEADLINE_EXCEEDED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
];

/// A server and a client of these implementations, traced from before the first call. The last call
/// must be one that ends by itself: the client leaves right after it.
fn calls_between(
    server: Implementation,
    client: Implementation,
    count: usize,
    parallel: usize,
) -> (Traced, Vec<Call>) {
    let store = Store::start(server, "store");
    let caller = Caller::start(client, "caller", store.port(), count, parallel);
    let mut calls = Vec::new();
    let traced = trace(&[store.pid(), caller.pid()], || calls = caller.run());
    assert_eq!(calls.len(), count);
    (traced, calls)
}

/// Spans by method; each call has a name of its own.
fn by_method(spans: Vec<Span>) -> BTreeMap<String, Span> {
    let count = spans.len();
    let spans: BTreeMap<String, Span> = spans
        .into_iter()
        .map(|span| (span.text("rpc.method").unwrap_or("").to_owned(), span))
        .collect();
    assert_eq!(spans.len(), count, "each call is one span");
    spans
}

/// Panics unless the spans say what the program says of its calls.
fn assert_right(traced: &Traced, calls: &[Call]) {
    let clients = by_method(traced.of("caller", "CLIENT"));
    let servers = by_method(traced.of("store", "SERVER"));
    let is_told = |call: &Call| {
        let ends = [&clients, &servers].map(|spans| spans.contains_key(&call.method));
        // A call whose deadline passed before it could leave was never on the wire.
        ends == [true, true] || (call.kind() == "Slow" && ends == [false, false])
    };
    let missing: Vec<_> = calls.iter().filter(|call| !is_told(call)).collect();
    assert!(
        missing.is_empty(),
        "{} calls lack a span: {missing:?}: {:?}",
        missing.len(),
        traced.exit.ledger()
    );
    assert_eq!(clients.len(), servers.len());
    let (mut slow, mut cut) = (0, 0);
    for call in calls {
        let (Some(client), Some(server)) = (clients.get(&call.method), servers.get(&call.method))
        else {
            continue;
        };
        slow += usize::from(call.kind() == "Slow");
        // What the client gave up just before it left may have ended with the connection.
        let gave_up = matches!(call.kind(), "Slow" | "Gone");
        if gave_up && client.text("error.type").is_none() {
            assert!(client.unobserved().is_some(), "{client:#?}");
            cut += 1;
            continue;
        }
        assert_client(call, client);
        assert_server(call, server);
        assert!(
            server.is_child_of(client),
            "{client:#?}\n{server:#?}\n{call:?}"
        );
        assert_eq!(server.evidence(), Some("local_wire"));
        assert!(client.is_root(), "{client:#?}");
    }
    assert!(cut <= 8, "{cut} calls have no end");
    assert!(slow > 0, "no call reached its server before its deadline");
}

fn assert_call(span: &Span) {
    assert_eq!(span.text("rpc.system.name"), Some("grpc"), "{span:#?}");
    assert_eq!(Some(span.name.as_str()), span.text("rpc.method"));
    assert_eq!(span.text("server.address"), Some("127.0.0.1"), "{span:#?}");
}

fn assert_client(call: &Call, span: &Span) {
    assert_call(span);
    assert!(
        call.start_ns <= span.start_ns + CLOCK_SLACK_NS,
        "{call:?} {span:#?}"
    );
    let gave_up = matches!(call.kind(), "Slow" | "Gone");
    if gave_up {
        // The server's word may have been faster.
        let said = span.text("rpc.response.status_code");
        let error = span.text("error.type").unwrap_or("none");
        // By the server's own status, by the deadline that had passed, or by the reset alone.
        let expected = match call.kind() {
            "Slow" => &["DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "cancel"][..],
            _ => &["CANCELLED", "UNKNOWN", "cancel"],
        };
        assert!(expected.contains(&error), "{span:#?}");
        assert!(said.is_none_or(|said| said == error), "{span:#?}");
    } else {
        assert_eq!(span.text("rpc.response.status_code"), Some(&*call.status));
        let error = (call.status != "OK").then_some(&*call.status);
        assert_eq!(span.text("error.type"), error, "{span:#?}");
        assert_eq!(span.unobserved(), None, "{span:#?}");
        assert!(
            span.end_ns <= call.end_ns + CLOCK_SLACK_NS,
            "{call:?} {span:#?}"
        );
        assert_messages(call, span);
    }
    if call.kind() == "Slow" {
        let timeout = span.attributes["ebpf_agent.rpc.timeout"].as_f64();
        let timeout = timeout.expect("seconds");
        assert!((0.0..0.1).contains(&timeout), "{span:#?}");
    }
    assert_eq!(span.status.code == "ERROR", call.status != "OK");
}

fn assert_server(call: &Call, span: &Span) {
    assert_call(span);
    assert_eq!(
        span.status.code == "ERROR",
        span.text("error.type").is_some()
    );
    if matches!(call.kind(), "Slow" | "Gone") {
        return;
    }
    assert_eq!(span.text("rpc.response.status_code"), Some(&*call.status));
    let error = SERVER_ERRORS
        .contains(&&*call.status)
        .then_some(&*call.status);
    assert_eq!(span.text("error.type"), error, "{span:#?}");
    assert_messages(call, span);
}

fn assert_messages(call: &Call, span: &Span) {
    let sent = span.number("ebpf_agent.rpc.request.messages");
    let received = span.number("ebpf_agent.rpc.response.messages");
    let down = if call.kind() == "Broken" {
        1
    } else {
        call.received
    };
    assert_eq!((sent, received), (Some(call.sent), Some(down)), "{span:#?}");
}

/// Each implementation as server of the next, every kind of call, one at a time.
#[test]
fn every_kind_of_call_is_told_as_it_was() {
    require_root!();
    for (server, client) in PAIRS {
        let (traced, calls) = calls_between(server, client, 2 * KINDS.len() + 1, 1);
        assert_right(&traced, &calls);
    }
}

/// 64 calls at a time on one connection.
#[test]
fn calls_side_by_side_are_told_apart() {
    require_root!();
    for (server, client) in PAIRS {
        let (traced, calls) = calls_between(server, client, 257, 64);
        assert_right(&traced, &calls);
    }
}

/// grpc-go inside Go's own TLS, and grpcio inside the `BoringSSL` that is part of it, each at both
/// ends: the same is told, one call at a time and 64.
#[test]
fn calls_inside_tls_are_told_as_in_plain_text() {
    require_root!();
    for implementation in [Implementation::Go, Implementation::Python] {
        for (count, parallel) in [(2 * KINDS.len() + 1, 1), (257, 64)] {
            let pki = Pki::new();
            let store = Store::start_tls(implementation, "store", &pki);
            let numbers = [store.port().into(), count, parallel];
            let caller = Caller::start_tls(implementation, "caller", &pki, numbers);
            let mut calls = Vec::new();
            let traced = trace(&[store.pid(), caller.pid()], || calls = caller.run());
            assert_eq!(calls.len(), count);
            assert_right(&traced, &calls);
        }
    }
}

/// Functions found without symbols are let go of where what they carry is never understood. In a
/// process with two libraries, sessions of the other are no word about them.
#[test]
fn sessions_by_another_library_are_no_word_about_grpcio() {
    const SESSIONS: usize = 40;
    /// The first kinds of calls are ended by neither side before their time.
    const COMPLETE: usize = 4;

    require_root!();
    let pki = Pki::new();
    let store = Store::start_tls(Implementation::Python, "store", &pki);
    let numbers = [store.port().into(), COMPLETE, 1];
    let caller = Caller::start_after_sessions(SESSIONS, "caller", &pki, numbers);
    let mut calls = Vec::new();
    let traced = trace(&[caller.pid()], || calls = caller.run());
    assert_eq!(calls.len(), COMPLETE);
    let mut clients = by_method(traced.of("caller", "CLIENT"));
    for call in &calls {
        let span = clients.remove(&call.method);
        assert_client(call, &span.unwrap_or_else(|| panic!("no span of {call:?}")));
    }
}
