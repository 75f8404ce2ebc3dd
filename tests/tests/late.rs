//! An agent that comes when connections of gRPC are in use: what their ends named before is not
//! known, and is not guessed. How many connections are in that state is shown.

use std::collections::BTreeSet;

use agent_tests::{
    agent::AgentCommand,
    http,
    port::free_port,
    receiver::Receiver,
    require_root,
    span::{Span, Spans as _},
    wait::wait_until,
    workload::grpc::{Call, Caller, Implementation, KINDS, Store},
};

/// Of each round.
const CALLS: usize = 400;
const PARALLEL: usize = 8;
/// As many methods as there are kinds: each is named in the first round.
const KINDS_ONLY: usize = KINDS.len();

/// Gauges of an agent that serves its status on this port.
fn lacking(port: u16) -> u64 {
    let text = http::get(port, "/metrics").text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("ebpf_agent_connections_lacking_fields "));
    let number = line.and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no such gauge: {text}"))
}

/// The one status that calls of this kind end with; the caller gives the others up.
fn status_of(kind: &str) -> Option<&'static str> {
    match kind {
        "Unary" | "Collect" | "Watch" | "Chat" => Some("OK"),
        "Missing" => Some("NOT_FOUND"),
        "Broken" => Some("INTERNAL"),
        _ => None,
    }
}

/// What a span says of its method is right or it is nothing; returns whether it says it.
#[track_caller]
fn assert_not_guessed(span: &Span, methods: &BTreeSet<String>) -> bool {
    // Without its content type a call is not known as one, and its path is a path.
    let path = span.path().strip_prefix('/');
    let Some(method) = span.text("rpc.method").or(path) else {
        let unobserved = span.unobserved().unwrap_or_default();
        assert!(unobserved.contains("request_head"), "{span:#?}");
        return false;
    };
    assert!(methods.contains(method), "{span:#?}");
    let call = Call::named(method);
    let said = span.text("rpc.response.status_code");
    if let (Some(said), Some(expected)) = (said, status_of(call.kind())) {
        assert_eq!(said, expected, "{span:#?}");
    }
    true
}

/// A path that is said anew is known from then on. One that was named before and is only referred
/// to is known on the next connection.
#[test]
fn calls_of_connections_older_than_the_agent() {
    require_root!();
    for (client, names) in [
        (Implementation::Python, 2 * CALLS),
        (Implementation::Go, KINDS_ONLY),
    ] {
        let store = Store::start(Implementation::Python, "store");
        let numbers = [CALLS, PARALLEL, names];
        let mut caller = Caller::start_in_rounds(client, "caller", store.port(), numbers);
        caller.begin();
        wait_until("the first round", || caller.ended() == CALLS);
        let (receiver, status) = (Receiver::start(), free_port());
        let agent = AgentCommand::new()
            .args(["--listen", &format!("127.0.0.1:{status}")])
            .pid(store.pid())
            .pid(caller.pid())
            .grpc_to(&receiver)
            .start();
        caller.begin();
        wait_until("the second round", || caller.ended() == 2 * CALLS);
        wait_until("both ends to be known as late", || lacking(status) == 2);
        caller.begin();
        let calls = caller.finish();
        let methods: BTreeSet<String> = calls.iter().map(|call| call.method.clone()).collect();
        wait_until("the connection's end to be told", || lacking(status) == 0);
        let again = Caller::start(Implementation::Go, "again", store.port(), 17, 1).run();
        assert_eq!(lacking(status), 0);
        let exit = agent.stop();
        assert_eq!(exit.ledger().counter("connections.joined_late"), 2);

        let spans = receiver.spans();
        let observed = calls.iter().skip(CALLS);
        let after = observed
            .filter(|call| status_of(call.kind()).is_some())
            .count();
        for (service, kind) in [("caller", "CLIENT"), ("store", "SERVER")] {
            let (new, old): (Vec<Span>, Vec<Span>) = spans
                .of(service, kind)
                .into_iter()
                .partition(|span| span.start_ns > again[0].start_ns);
            let mut told = 0;
            for span in &old {
                told += usize::from(assert_not_guessed(span, &methods));
            }
            assert!(old.len() >= after, "{kind}: {} of {after}", old.len());
            assert!(old.len() <= CALLS, "{kind}: {}", old.len());
            match names {
                // Until the client's table is full, and it names them anew.
                KINDS_ONLY => assert!(told < old.len(), "{kind}: they were named before"),
                _ => assert!(told >= after, "{kind}: {told} of {after}"),
            }
            let expected = if kind == "SERVER" { again.len() } else { 0 };
            assert_eq!(new.len(), expected, "{kind}");
            for span in &new {
                assert!(
                    again.iter().any(|call| span.name == call.method),
                    "{span:#?}"
                );
            }
        }
    }
}
