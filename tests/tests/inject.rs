//! Headers that the agent puts into requests: exactly one for each request, nothing else changed,
//! and nothing at all where it is not HTTP/1 in plain text.
//!
//! `INJECT_REQUESTS` sets how many requests each of the ways to call sends in the long test
//! (default 3,000, which makes some 20,000 in all).

use std::{
    collections::{BTreeMap, VecDeque},
    env,
    process::Command,
};

use agent_tests::{
    agent::{Agent, AgentCommand, Exit},
    namespace::Namespace,
    pki::Pki,
    process::{Process, crate_file},
    python,
    receiver::Receiver,
    require_root,
    span::{Span, Spans},
    workload::{
        client,
        hop::{self, Joined},
        nginx::Nginx,
        recorder::{Arrived, Caller, Recorder},
        tls::{NginxTls, Twin, curl_tls},
    },
};
use serde_json::Value;

/// How often every form is sent.
const ROUNDS: usize = 3;

/// Requests to a server that refuses headers: far more than are on their way before that is
/// noticed.
const REFUSED_REQUESTS: u64 = 20_000;

/// Connections that a caller keeps open at most.
const POOL: u64 = 16;

/// A caller answers within the patience of the harness when asked for so many at a time.
const AT_ONCE: u64 = 500;

fn requests() -> u64 {
    env::var("INJECT_REQUESTS").map_or(3_000, |text| text.parse().expect("a number of requests"))
}

fn injecting(pids: &[u32]) -> Agent {
    let command = AgentCommand::new().args(["--inject", "headers", "--exporter", "none"]);
    pids.iter()
        .fold(command, |command, &pid| command.pid(pid))
        .start()
}

fn injected(exit: &Exit, outcome: &str) -> u64 {
    exit.ledger().injections.get(outcome).copied().unwrap_or(0)
}

fn call(caller: &mut Caller, mode: &str, count: u64) {
    let mut left = count;
    while left > 0 {
        let now = left.min(AT_ONCE);
        caller.call(mode, now);
        left -= now;
    }
}

/// The same requests without and with the agent: the same bytes, and so many headers.
fn compare(before: &Arrived, after: &Arrived, added: u32, count: u64) {
    assert_eq!(before.with_added(0), before.total(), "{before:?}");
    assert_eq!(after.content(), before.content());
    assert_eq!((after.total(), after.broken), (count, 0), "{after:?}");
    assert_eq!(after.with_added(added), count, "{after:?}");
}

/// Requests in every form (pieces, pipelined, bodies by length, in chunks and from files, long
/// heads, headers of their own) get exactly one header; streams that are no requests get none; and
/// no byte of either is changed.
#[test]
fn every_form_arrives_as_it_was_sent() {
    require_root!();
    let rounds = ROUNDS.to_string();
    let (exit, forms) = compare_forms(&["send", &rounds]);
    assert!(forms >= 25 * ROUNDS, "{forms}");
    assert!(injected(&exit, "not_http") > 0 && injected(&exit, "withheld") == 0);
}

/// Connections that were in use before the agent came, in the middle of something or of another
/// protocol: no byte is changed but for one header in each request behind the one that proved
/// what they carry.
#[test]
fn what_was_begun_before_arrives_as_it_was_sent() {
    require_root!();
    let (exit, forms) = compare_forms(&["before"]);
    assert!(forms >= 8, "{forms}");
    assert!(injected(&exit, "adopted") > 0 && injected(&exit, "injected") > 0);
}

/// Runs `forms.py` with an agent and compares what was sent with what arrived. Returns how many
/// connections there were.
fn compare_forms(arguments: &[&str]) -> (Exit, usize) {
    let script = |mode: &str| {
        let mut command = Command::new(python::interpreter());
        command.arg(crate_file("workloads/forms.py")).arg(mode);
        command
    };
    let mut tap = Process::spawn("tap", &mut script("tap"));
    let port = tap.json_line(0)["port"].to_string();
    let mut command = script(arguments[0]);
    command.arg(port).args(&arguments[1..]);
    let mut sender = Process::spawn("sender", &mut command);
    sender.json_line(0);
    let agent = injecting(&[sender.pid()]);
    sender.write_line("");
    assert!(sender.wait().success(), "{}", sender.stderr());
    let sent: Vec<Value> = lines(&sender, 1);
    tap.json_line(sent.len());
    let exit = agent.stop();

    let mut arrived: BTreeMap<u64, VecDeque<Value>> = BTreeMap::new();
    for line in lines(&tap, 1) {
        let port = line["port"].as_u64().expect("a port");
        arrived.entry(port).or_default().push_back(line);
    }
    for line in &sent {
        let port = line["port"].as_u64().expect("a port");
        let there = arrived
            .get_mut(&port)
            .and_then(VecDeque::pop_front)
            .unwrap_or_else(|| panic!("nothing arrived of {line}"));
        assert_eq!(
            (&line["error"], &there["error"]),
            (&Value::Null, &Value::Null),
            "{line} {there}"
        );
        for what in ["hash", "added"] {
            assert_eq!(line[what], there[what], "{what} of {line} {there}");
        }
    }
    (exit, sent.len())
}

fn lines(process: &Process, from: usize) -> Vec<Value> {
    let lines = process.lines().into_iter().skip(from);
    lines
        .map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Python's ways to call, on kept and on single connections, head and body in separate sends.
#[test]
fn requests_of_python_get_one_header_each() {
    require_root!();
    let mut recorder = Recorder::start();
    let mut caller = Caller::python(recorder.port());
    let modes = ["kept", "single", "urllib"];
    for mode in modes {
        caller.call(mode, 20);
    }
    let before = recorder.take();
    let agent = injecting(&[caller.pid()]);
    for mode in modes {
        call(&mut caller, mode, requests());
    }
    let exit = agent.stop();
    let count = requests() * modes.len() as u64;
    compare(&before, &recorder.take(), 1, count);
    assert_eq!(injected(&exit, "injected"), count);
}

/// Node over kept connections: bodies by length, in chunks, and none.
#[test]
fn requests_of_node_get_one_header_each() {
    require_root!();
    let mut recorder = Recorder::start();
    let mut caller = Caller::node(recorder.port());
    caller.call("any", 30);
    let before = recorder.take();
    let mut fresh = Caller::node(recorder.port());
    let agent = injecting(&[fresh.pid()]);
    call(&mut fresh, "any", requests());
    agent.stop();
    compare(&before, &recorder.take(), 1, requests());
}

/// Go over kept connections: bodies by length, in chunks, and none.
#[test]
fn requests_of_go_get_one_header_each() {
    require_root!();
    let mut recorder = Recorder::start();
    let mut caller = Caller::go(recorder.port());
    caller.call("any", 30);
    let before = recorder.take();
    let mut fresh = Caller::go(recorder.port());
    let agent = injecting(&[fresh.pid()]);
    call(&mut fresh, "any", requests());
    let exit = agent.stop();
    compare(&before, &recorder.take(), 1, requests());
    assert_eq!(injected(&exit, "injected"), requests());
}

/// Pools of connections that were open before the agent: the first request of each connection
/// that follows an answer proves what it carries, and all after it get one header.
#[test]
fn connections_opened_before_are_adopted() {
    require_root!();
    let mut recorder = Recorder::start();
    for mut caller in [Caller::node(recorder.port()), Caller::go(recorder.port())] {
        call(&mut caller, "any", 300);
        let before = recorder.take();
        let agent = injecting(&[caller.pid()]);
        call(&mut caller, "any", requests());
        let exit = agent.stop();
        let after = recorder.take();
        assert_eq!((after.content(), after.broken), (before.content(), 0));
        let (with, without) = (after.with_added(1), after.with_added(0));
        assert_eq!(with + without, requests(), "{after:?}");
        let proofs = injected(&exit, "proof");
        assert!((1..=POOL).contains(&proofs), "{proofs}");
        assert!(
            (proofs..=2 * proofs).contains(&without),
            "{without} {proofs}"
        );
    }
}

/// A curl that waits for what it is to ask.
fn curl() -> Process {
    let mut command = Command::new("curl");
    command.args(["--silent", "--noproxy", "*", "--config", "-"]);
    Process::spawn("curl", &mut command)
}

fn config(url: &str, count: u64) -> String {
    format!("url = \"{url}\"\noutput = \"/dev/null\"\n").repeat(count as usize)
}

/// curl over one kept connection.
#[test]
fn requests_of_curl_get_one_header_each() {
    require_root!();
    let mut recorder = Recorder::start();
    let url = format!("http://127.0.0.1:{}/curl", recorder.port());
    let finish = |mut curl: Process, count| {
        curl.write_line(&config(&url, count));
        curl.close_stdin();
        assert!(curl.wait().success(), "{}", curl.stderr());
    };
    finish(curl(), 3);
    let before = recorder.take();
    let waiting = curl();
    let agent = injecting(&[waiting.pid()]);
    finish(waiting, requests());
    agent.stop();
    compare(&before, &recorder.take(), 1, requests());
}

/// nginx: a request without context gets one header, one with context keeps its own.
#[test]
fn requests_through_nginx_get_one_header_each() {
    require_root!();
    let mut recorder = Recorder::start();
    let nginx = Nginx::in_front_of(recorder.port());
    let (plain, own) = (nginx.url("/app/plain"), nginx.url("/app/own"));
    let with_own = |count: u64| {
        let mut arguments = vec![
            "-H",
            "TraceParent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        ];
        for _ in 0..count {
            arguments.extend(["--output", "/dev/null", &own]);
        }
        client::curl(&arguments);
    };
    client::load(&plain, 20, 4);
    let before_plain = recorder.take();
    with_own(3);
    let before_own = recorder.take();

    let agent = injecting(&[nginx.pid()]);
    // The first request of pooled connections gets no header: new workers open new ones.
    let mut nginx = nginx;
    nginx.reload();
    let mut left = requests() * 2;
    while left > 0 {
        let now = left.min(AT_ONCE * 4);
        client::load(&plain, now as u32, 8);
        left -= now;
    }
    compare(&before_plain, &recorder.take(), 1, requests() * 2);
    with_own(200);
    compare(&before_own, &recorder.take(), 0, 200);
    let exit = agent.stop();
    assert_eq!(injected(&exit, "already_present"), 200);
}

/// Agents come and go, some of them killed, while requests are on their way: none breaks, and each
/// has one header or none.
#[test]
fn switching_on_and_off_breaks_nothing() {
    require_root!();
    let mut recorder = Recorder::start();
    let mut caller = Caller::python(recorder.port());
    let nginx = Nginx::in_front_of(recorder.port());
    let url = nginx.url("/app/plain");
    caller.begin("until", 0);
    for round in 0..6 {
        let agent = injecting(&[caller.pid(), nginx.pid()]);
        assert_eq!(client::load(&url, 200, 8)["200"], 200);
        if round % 2 == 0 {
            agent.kill();
        } else {
            agent.stop();
        }
        assert_eq!(client::load(&url, 100, 8)["200"], 100);
    }
    caller.stop_calling();
    let done = caller.finish();
    let arrived = recorder.take();
    assert_eq!((arrived.total(), arrived.broken), (done + 6 * 300, 0));
    let (without, with) = (arrived.with_added(0), arrived.with_added(1));
    assert!(without > 0 && with > 0, "{without} {with}");
    assert_eq!(without + with, arrived.total(), "{arrived:?}");
    for hashes in arrived.paths.values() {
        assert_eq!(hashes.len(), 1, "{arrived:?}");
    }
}

/// A program that may ask how many bytes wait is left alone, and named with the reason.
#[test]
fn programs_that_may_ask_for_waiting_bytes_are_left_alone() {
    require_root!();
    let mut recorder = Recorder::start();
    let mut ruby = Command::new("ruby");
    let script = format!(
        "gets; require 'net/http'; 5.times {{ puts Net::HTTP.get('127.0.0.1', '/ruby', {}) }}",
        recorder.port()
    );
    ruby.args(["-e", &script]);
    let mut ruby = Process::spawn("ruby", &mut ruby);
    let agent = injecting(&[ruby.pid()]);
    ruby.write_line("");
    assert!(ruby.wait().success(), "{}", ruby.stderr());
    let arrived = recorder.take();
    let exit = agent.stop();
    assert_eq!((arrived.with_added(0), arrived.total()), (5, 5));
    assert!(exit.stderr.contains("FIONREAD"), "{}", exit.stderr);
}

/// A server that refuses every request with a header of ours: the agent notices, stops, and says
/// so; requests go through again, on the same connection.
#[test]
fn a_program_whose_requests_are_refused_is_left_alone() {
    require_root!();
    let mut command = Command::new(python::interpreter());
    command.arg(crate_file("workloads/refuser.py"));
    let mut refuser = Process::spawn("refuser", &mut command);
    let url = format!("http://127.0.0.1:{}/", refuser.json_line(0)["port"]);
    let mut curl = curl();
    let agent = injecting(&[curl.pid()]);
    curl.write_line(&config(&url, REFUSED_REQUESTS));
    curl.close_stdin();
    assert!(curl.wait().success(), "{}", curl.stderr());
    let exit = agent.stop();
    refuser.write_line("");
    let counts = refuser.json_line(1);
    assert!(counts["refused"].as_u64() >= Some(5), "{counts}");
    assert!(
        counts["served"].as_u64() > Some(REFUSED_REQUESTS / 2),
        "{counts}"
    );
    assert_eq!(exit.ledger().loss("injection_stopped"), 1);
    assert!(exit.stderr.contains("no more headers"), "{}", exit.stderr);
}

const BEFORE: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Two services on two sides of a network, each under an agent of its own: one trace, joined by
/// the header that one agent put in and the other one read. With and without a context from
/// before, and from a thread that was started for the request.
#[test]
fn two_agents_make_one_trace_across_the_network() {
    require_root!();
    let namespace = Namespace::create();
    let (back, back_port) = hop::start(namespace.command(), "back", &[namespace.far()]);
    let behind = format!("{}:{back_port}", namespace.far());
    let (front, port) = hop::start(Command::new("env"), "front", &["127.0.0.1", &behind]);

    let receiver = Receiver::start();
    let start = |command: AgentCommand, pid| command.grpc_to(&receiver).pid(pid).start();
    let near = start(
        AgentCommand::new().args(["--inject", "headers"]),
        front.pid(),
    );
    let far = start(AgentCommand::new(), back.pid());
    let paths = ["/plain", "/thread/plain", "/in", "/thread/in"];
    for path in paths {
        let url = format!("http://127.0.0.1:{port}{path}");
        let mut arguments = vec![url.as_str()];
        if path.ends_with("/in") {
            arguments.extend(["-H", BEFORE]);
        }
        assert_eq!(client::curl(&arguments).1, 200);
    }
    near.stop();
    far.stop();

    let spans = receiver.spans();
    for path in paths {
        let Joined {
            at_front, at_back, ..
        } = hop::joined(&spans, path);
        assert_eq!(
            at_back.text("ebpf_agent.parent.evidence"),
            Some("header"),
            "{at_back:?}"
        );
        let is_continued = at_front.trace_id == "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(is_continued, path.ends_with("/in"), "{at_front:?}");
    }
}

/// The same behind TLS: a service and nginx get a request in a TLS library and pass it on to
/// another host in plain text. The trace is the request's own, or the one that it came with.
#[test]
fn what_came_over_tls_goes_on_in_a_header() {
    require_root!();
    let namespace = Namespace::create();
    let pki = Pki::new();
    let (back, back_port) = hop::start(namespace.command(), "back", &[namespace.far()]);
    let behind = format!("{}:{back_port}", namespace.far());
    let arguments = ["127.0.0.1", behind.as_str()];
    let (front, port) = hop::start_over_tls(Command::new("env"), "front", &arguments, &pki);
    let nginx = NginxTls::in_front_of_host(&pki, Twin::Plain, &behind);

    let receiver = Receiver::start();
    let near = AgentCommand::new().args(["--inject", "headers"]);
    let near = near.pid(front.pid()).pid(nginx.pid());
    let near = near.grpc_to(&receiver).start();
    let far = AgentCommand::new().grpc_to(&receiver);
    let far = far.pid(back.pid()).start();
    let paths = ["/1", "/2", "/3/in", "/4", "/5/in", "/6"];
    for (port, prefix) in [(port, ""), (nginx.port(), "/proxied")] {
        for path in paths {
            let url = Twin::Tls.url(port, &format!("{prefix}{path}"));
            let mut arguments = vec!["--http1.1", url.as_str()];
            if path.ends_with("/in") {
                arguments.extend(["-H", BEFORE]);
            }
            assert_eq!(curl_tls(&pki, &arguments).1, 200);
        }
    }
    near.stop();
    far.stop();

    let spans = receiver.spans();
    let check = |at_front: &Span, call: &Span, at_back: &Span, path: &str| {
        assert!(call.is_child_of(at_front), "{call:?} {at_front:?}");
        // nginx passes on the header that it was sent, and that is left alone.
        let is_passed = path.starts_with("/proxied") && path.ends_with("/in");
        assert_ne!(at_back.is_child_of(call), is_passed, "{at_back:?} {call:?}");
        assert_eq!(at_back.evidence(), Some("header"), "{at_back:?}");
        let is_continued = call.trace_id == "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(is_continued, path.ends_with("/in"), "{call:?}");
        assert_eq!(at_back.trace_id, call.trace_id);
    };
    for path in paths {
        let joined = hop::joined(&spans, path);
        check(&joined.at_front, &joined.call, &joined.at_back, path);
        let path = format!("/proxied{path}");
        let [at_front, call, at_back] =
            [("nginx", "SERVER"), ("nginx", "CLIENT"), ("back", "SERVER")]
                .map(|(service, kind)| spans.of(service, kind).at(&path).only().clone());
        check(&at_front, &call, &at_back, &path);
    }
}
