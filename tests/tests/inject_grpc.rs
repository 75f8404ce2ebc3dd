//! A `traceparent` that the agent puts into calls of gRPC: exactly one in each, as the servers'
//! programs see it, that of the call's own span; and no call ends in another way than without.
//!
//! `INJECT_CALLS` sets how many calls each client makes (default 1,600).

use std::{collections::BTreeMap, env, process::Command};

use agent_tests::{
    agent::{AgentCommand, Exit},
    process::{Process, crate_file},
    python,
    receiver::Receiver,
    require_root,
    span::{Span, Spans as _},
    wait::wait_until,
    workload::{
        grpc::{Call, Caller, Implementation, Sends, Store},
        nghttp2::{H2load, Load, answered},
    },
};
use serde_json::Value;

/// Calls at a time, on one connection.
const PARALLEL: usize = 64;

/// Every client, with a server of another make that has a method for each number.
const PAIRS: [(Implementation, Implementation); 4] = [
    (Implementation::Go, Implementation::Python),
    (Implementation::Python, Implementation::Node),
    (Implementation::Rust, Implementation::Go),
    (Implementation::Go, Implementation::Rust),
];

fn calls() -> usize {
    env::var("INJECT_CALLS").map_or(1_600, |text| text.parse().expect("a number of calls"))
}

fn injecting(pids: &[u32]) -> AgentCommand {
    let command = AgentCommand::new().args(["--inject", "headers"]);
    pids.iter().fold(command, |command, &pid| command.pid(pid))
}

fn count_of(exit: &Exit, outcome: &str) -> usize {
    let count = exit.ledger().injections.get(outcome).copied();
    usize::try_from(count.unwrap_or(0)).expect("a count")
}

/// How calls of a kind end, whatever the time; those with a deadline may never leave.
fn assert_ended_as_asked(call: &Call) {
    let expected: &[&str] = match call.kind() {
        "Missing" => &["NOT_FOUND"],
        "Broken" => &["INTERNAL"],
        // tonic calls its own deadline a cancellation.
        "Slow" => &["DEADLINE_EXCEEDED", "CANCELLED"],
        "Gone" => &["CANCELLED"],
        _ => &["OK"],
    };
    assert!(expected.contains(&&*call.status), "{call:?}");
}

/// What arrived: each call that reached its server has one value or none; how many have none.
fn assert_one_each(calls: &[Call], seen: &BTreeMap<String, Vec<String>>) -> usize {
    let mut without = 0;
    for call in calls {
        assert_ended_as_asked(call);
        match seen.get(&call.method).map(Vec::as_slice) {
            Some([_]) => {}
            Some([]) => without += 1,
            // It ran out of time before it left, or before its server looked.
            None => assert!(["Slow", "Gone"].contains(&call.kind()), "{call:?}"),
            Some(several) => panic!("{call:?}: {several:?}"),
        }
    }
    without
}

/// Each client, 64 calls of every kind at a time on one connection.
#[test]
fn each_call_carries_its_own_span() {
    require_root!();
    for (server, client) in PAIRS {
        let mut store = Store::start(server, "store");
        let caller = Caller::injectable(
            client,
            [store.port().into(), calls(), PARALLEL],
            Sends::Nothing,
        );
        let receiver = Receiver::start();
        // Room for what comes while an unoptimised agent on a busy machine waits for its turn.
        let agent = injecting(&[caller.pid()])
            .env("EBPF_AGENT_RING_BYTES", (16 << 20).to_string())
            .grpc_to(&receiver)
            .start();
        let made = caller.run();
        let exit = agent.stop();
        let seen = store.seen();
        assert_eq!(made.len(), calls());
        let without = assert_one_each(&made, &seen);
        // Only what left before the server's settings came.
        let awaited = count_of(&exit, "settings_awaited");
        assert!(without <= awaited, "{without}: {}", exit.stderr);
        assert!(without <= PARALLEL, "{without}");
        assert_eq!(count_of(&exit, "withheld"), 0);
        let spans = receiver.spans().of("caller", "CLIENT");
        assert_spans_left(&spans, &seen, &exit);
    }
}

/// What the servers saw are the ids of the spans of the same calls. A call without a span is
/// counted as lost.
fn assert_spans_left(spans: &[Span], seen: &BTreeMap<String, Vec<String>>, exit: &Exit) {
    let by_method: BTreeMap<&str, &Span> = spans
        .iter()
        .filter_map(|span| Some((span.text("rpc.method")?, span)))
        .collect();
    let mut missing = 0;
    for (method, values) in seen {
        let [value] = &values[..] else { continue };
        let Some(span) = by_method.get(method.as_str()) else {
            missing += 1;
            continue;
        };
        let expected = format!("00-{}-{}-01", span.trace_id, span.span_id);
        assert_eq!(*value, expected, "{span:#?}");
    }
    // Behind a hole in what was captured, a path that is said by its index is not known.
    let unnamed = (spans.len() - by_method.len()) as u64;
    let lost = exit.ledger().lost_spans();
    assert!(missing <= lost + unnamed, "{missing} {:?}", exit.ledger());
}

/// Programs that send a `traceparent` by themselves: the server sees theirs and no other.
#[test]
fn a_call_with_a_header_of_its_own_is_left_alone() {
    require_root!();
    let own = ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()];
    for (server, client) in PAIRS {
        let mut store = Store::start(server, "store");
        let caller = Caller::injectable(client, [store.port().into(), 200, 8], Sends::Own);
        let agent = injecting(&[caller.pid()])
            .args(["--exporter", "none"])
            .start();
        let made = caller.run();
        let exit = agent.stop();
        made.iter().for_each(assert_ended_as_asked);
        let seen = store.seen();
        assert!(seen.len() > 100, "{seen:?}");
        for (method, values) in &seen {
            assert_eq!(*values, own, "{client:?} {method}");
        }
        assert_eq!(count_of(&exit, "injected"), 0, "{client:?}");
        let noticed = count_of(&exit, "propagates") + count_of(&exit, "already_present");
        assert!(noticed > 0, "{client:?}");
    }
}

/// Calls that have been made when an agent goes, and in all.
const BEFORE: usize = 300;
const IN_ALL: usize = 6_000;

/// Agents go in the middle of calls, killed or stopped, and others come: no call ends in another
/// way, and each carries one value or none.
#[test]
fn switching_on_and_off_breaks_no_call() {
    require_root!();
    for ((server, client), killed) in PAIRS.into_iter().zip([true, false, true, true]) {
        let mut store = Store::start(server, "store");
        let mut caller =
            Caller::injectable(client, [store.port().into(), IN_ALL, 16], Sends::Nothing);
        let start = |pid| injecting(&[pid]).args(["--exporter", "none"]).start();
        let agent = start(caller.pid());
        caller.begin();
        wait_until("some calls", || caller.ended() >= BEFORE);
        if killed {
            agent.kill();
        } else {
            agent.stop();
        }
        let next = start(caller.pid());
        let made = caller.finish();
        next.stop();
        assert_eq!(made.len(), IN_ALL);
        let seen = store.seen();
        let without = assert_one_each(&made, &seen);
        assert!((1..seen.len()).contains(&without), "{client:?}: {without}");
    }
}

/// A server by a strict library that says what it saw.
struct Strict(Process);

impl Strict {
    fn start() -> (Self, String) {
        let mut command = Command::new(python::packages_interpreter());
        command.arg(crate_file("workloads/h2_server.py"));
        let mut process = Process::spawn("h2_server", &mut command);
        let port = process.json_line(0)["port"].clone();
        (Self(process), format!("http://127.0.0.1:{port}"))
    }

    fn counts(mut self) -> Value {
        self.0.write_line("");
        self.0.json_line(1)
    }
}

/// h2load, a hundred streams at once on each connection, all without content: frames end with the
/// messages they are sent in. All but what left before the server's settings came.
#[test]
fn many_streams_at_once_get_one_field_each() {
    require_root!();
    let load = Load {
        requests: 2_000,
        connections: 4,
        streams: 100,
        rate: Some(1_000),
    };
    let h2load = H2load::new();
    let (server, url) = Strict::start();
    let mut waiting = Process::spawn("h2load", &mut h2load.waiting(load));
    let agent = injecting(&[waiting.pid()])
        .args(["--exporter", "none"])
        .start();
    waiting.write_line(&format!("{url}/hello"));
    waiting.close_stdin();
    assert!(waiting.wait().success(), "{}", waiting.stderr());
    assert_eq!(answered(&waiting.stdout()), load.requests);
    let exit = agent.stop();
    let counts = server.counts();
    assert_eq!(counts["errors"], serde_json::json!([]), "{counts}");
    assert_eq!(counts["requests"], load.requests, "{counts}");
    let injected = counts["carried"]["1"].as_u64().unwrap_or(0);
    let without = counts["carried"]["0"].as_u64().unwrap_or(0);
    assert_eq!(injected + without, load.requests, "{counts}");
    assert_eq!(injected, count_of(&exit, "injected") as u64);
    let awaited = count_of(&exit, "settings_awaited") + count_of(&exit, "too_many_at_once");
    assert!(without <= awaited as u64, "{counts} {:?}", exit.ledger());
    assert!(injected > load.requests / 2, "{counts}");
}

/// Requests of `h2_client.py` before the one with a header of its own.
const BEFORE_OWN: u64 = 100;

/// httpx, one request after the other on one connection, with content and with long heads.
#[test]
fn requests_of_httpx_get_one_field_each() {
    require_root!();
    let (server, url) = Strict::start();
    let mut command = Command::new(python::packages_interpreter());
    command.arg(crate_file("workloads/h2_client.py"));
    let mut client = Process::spawn("h2_client", &mut command);
    let agent = injecting(&[client.pid()])
        .args(["--exporter", "none"])
        .start();
    client.write_line(&url);
    assert!(client.wait().success(), "{}", client.stderr());
    let exit = agent.stop();
    let counts = server.counts();
    assert_eq!(counts["errors"], serde_json::json!([]), "{counts}");
    assert_eq!(counts["requests"], BEFORE_OWN + 2, "{counts}");
    assert_eq!(counts["own"], 1, "{counts}");
    let with = counts["carried"]["1"].as_u64().unwrap_or(0);
    let injected = count_of(&exit, "injected") as u64;
    assert_eq!(with, injected + 1, "{counts} {:?}", exit.ledger());
    let awaited = count_of(&exit, "settings_awaited") as u64;
    assert!(awaited <= 1, "{:?}", exit.ledger());
    // Behind the one with a header of its own nothing is known of the table any more.
    assert_eq!(injected + awaited, BEFORE_OWN, "{:?}", exit.ledger());
    assert_eq!(count_of(&exit, "propagates"), 1, "{:?}", exit.ledger());
}
