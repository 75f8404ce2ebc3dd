//! Go's own TLS: calls find their request by goroutine as in plain text, HTTP/2 is understood, and
//! probes that come and go break nothing.

use std::{collections::BTreeMap, process::Command};

use agent_tests::{
    agent::AgentCommand,
    go::{self, Build},
    long::factor,
    pki::Pki,
    process::output,
    require_root,
    scene::{Traced, trace, trace_with},
    wait::wait_until,
    workload::{
        server::{Runtime, Server},
        tls::{NginxTls, Twin, calling, curl_tls, run_client, text},
    },
};

/// What both ends of a connection offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    Http1,
    Both,
}

impl Offer {
    /// A flag of the workload.
    fn flag(self) -> &'static str {
        match self {
            Self::Http1 => "-http1=true",
            Self::Both => "-http1=false",
        }
    }
}

/// A server and the one that it calls, each inside TLS.
struct Pair {
    pki: Pki,
    offer: Offer,
    front: Server,
    back: Server,
}

impl Pair {
    fn start(build: Build, offer: Offer) -> Self {
        let pki = Pki::new();
        let server = |service| {
            let server = Twin::Tls.server(Runtime::Go(build), service, &pki);
            server.flag(offer.flag())
        };
        let back = server("back").start();
        let front = calling(server("front"), Twin::Tls, &back, &pki);
        Self {
            pki,
            offer,
            front,
            back,
        }
    }

    fn url(&self, path: &str) -> String {
        Twin::Tls.url(self.front.port(), path)
    }

    /// Asks the front by a Go program that is not traced; all answers are 200.
    fn load(&self, path: &str, requests: u32, clients: u32) {
        load(&self.pki, self.offer, &self.url(path), requests, clients);
    }
}

fn load(pki: &Pki, offer: Offer, url: &str, requests: u32, clients: u32) {
    let mut command = Command::new(go::server(Build::Default));
    command.args(["-load", url, offer.flag()]);
    command.args(["-requests", &requests.to_string()]);
    command.args(["-clients", &clients.to_string()]);
    command.args(["-authority", text(&pki.authority_certificate())]);
    let answers: BTreeMap<String, u32> =
        serde_json::from_str(&output(&mut command)).expect("counts by status");
    assert_eq!(answers, BTreeMap::from([("200".to_owned(), requests)]));
}

/// The number in a path: `/mixed/17`, `/17` and `/17/later` belong together.
fn number(path: &str) -> Option<u32> {
    path.split('/').find_map(|part| part.parse().ok())
}

/// Calls that `/mixed/N` makes before it answers.
fn expected_calls(number: u32) -> usize {
    [1, 1, 3, 2, 0][number as usize % 5]
}

/// Every call is joined with the server that it went to, no parent is wrong, and as many in a
/// hundred as `least` have theirs.
fn assert_joined(traced: &Traced, requests: u32, least: usize) {
    let mut asked = traced.of("front", "SERVER");
    asked.retain(|server| server.path().starts_with("/mixed/"));
    assert_eq!(asked.len(), requests as usize);
    let mut joined = 0;
    for call in traced.of("front", "CLIENT") {
        if call.is_root() {
            continue;
        }
        let parent = traced.parent(&call).expect("the parent is there");
        assert_eq!(number(parent.path()), number(call.path()), "{call:#?}");
        assert_eq!(call.evidence(), Some("goroutine"), "{call:#?}");
        joined += usize::from(!call.path().ends_with("/later"));
    }
    let expected: usize = (0..requests).map(expected_calls).sum();
    assert!(joined <= expected);
    assert!(
        joined * 100 >= expected * least,
        "{joined} of {expected} calls have a parent"
    );
    let mut ends = 0;
    for server in traced.of("back", "SERVER") {
        let Some(call) = traced.parent(&server) else {
            continue;
        };
        assert_eq!(call.path(), server.path());
        assert_eq!(server.evidence(), Some("local_wire"), "{server:#?}");
        ends += 1;
    }
    let calls = traced.of("front", "CLIENT").len();
    assert_eq!(ends, calls, "each call is joined with its server");
}

/// A pool of kept connections inside TLS, calls from handlers, from a reverse proxy, from
/// goroutines they start and from such that outlive their request: one client at a time and many,
/// however the program was linked.
#[test]
fn calls_find_their_request_by_goroutine() {
    require_root!();
    for (build, clients, requests) in [
        (Build::Default, 1, 100),
        (Build::Stripped, 64, 2_000),
        (Build::PositionIndependent, 64, 2_000),
    ] {
        let pair = Pair::start(build, Offer::Http1);
        let traced = trace(&[pair.front.pid(), pair.back.pid()], || {
            pair.load("/mixed/{}", requests, clients);
        });
        assert_joined(&traced, requests, 99);
    }
}

/// HTTP/2 between Go and Go, and from curl and Python to Go: each request is told at both ends.
#[test]
fn http2_is_understood_at_both_ends() {
    require_root!(alone);
    let pair = Pair::start(Build::Stripped, Offer::Both);
    let traced = trace_with(
        |agent| {
            let agent = agent.pid(pair.front.pid()).pid(pair.back.pid());
            agent.args(["--exe", "*/curl", "--exe", "*/python*"])
        },
        || {
            pair.load("/mixed/{}", 500, 16);
            for size in 1..=3 {
                let url = pair.url(&format!("/bytes/{size}?curl"));
                assert_eq!(curl_tls(&pair.pki, &["--http2", &url]).1, 200);
            }
            let url = pair.url("/bytes/7?httpx2");
            assert_eq!(run_client("httpx2", &pair.pki, &[url]), [200]);
        },
    );
    let servers = traced.of("front", "SERVER");
    assert_eq!(servers.len(), 504, "{:?}", traced.exit.ledger());
    for server in servers.iter().chain(&traced.of("back", "SERVER")) {
        let version = server.text("network.protocol.version");
        assert_eq!(version, Some("2"), "{server:#?}");
        assert_eq!(server.text("url.scheme"), Some("https"), "{server:#?}");
        assert_eq!(server.http_status(), Some(200), "{server:#?}");
    }
    let port = Some(i64::from(pair.front.port()));
    for (service, count) in [("curl", 3), ("client", 1)] {
        // Others may run such programs, too.
        let mut calls = traced.of(service, "CLIENT");
        calls.retain(|call| call.number("server.port") == port);
        assert_eq!(calls.len(), count, "{calls:#?}");
        for call in calls {
            let is_its = |server: &&agent_tests::span::Span| server.is_child_of(&call);
            let server = servers.iter().find(is_its).expect("a server's span below");
            assert_eq!(server.path(), call.path());
        }
    }
    assert_joined(&traced, 500, 99);
}

/// curl, nginx, Go and Python, every hop on TLS: one trace of each request.
#[test]
fn a_chain_is_one_trace() {
    require_root!();
    let pki = Pki::new();
    let back = Twin::Tls.server(Runtime::Python, "back", &pki).start();
    let front = Twin::Tls.server(Runtime::Go(Build::Stripped), "front", &pki);
    let front = calling(front, Twin::Tls, &back, &pki);
    let nginx = NginxTls::in_front_of(&pki, Twin::Tls, front.port());
    let traced = trace(&[nginx.pid(), front.pid(), back.pid()], || {
        let url = Twin::Tls.url(nginx.port(), "/call/bytes/500");
        for _ in 0..10 {
            assert_eq!(curl_tls(&pki, &["--http1.1", &url]).1, 200);
        }
    });
    let roots = traced.of("nginx", "SERVER");
    assert_eq!((roots.len(), traced.spans.len()), (10, 50));
    let expected = [
        ("nginx", "CLIENT", "loop"),
        ("front", "SERVER", "local_wire"),
        ("front", "CLIENT", "goroutine"),
        ("back", "SERVER", "local_wire"),
    ];
    for root in roots {
        let mut parent = root;
        for (service, kind, evidence) in expected {
            let child = traced.spans.iter().find(|span| span.is_child_of(&parent));
            let child = child.unwrap_or_else(|| panic!("nothing below {parent:#?}"));
            assert_eq!(
                (child.service.as_str(), child.kind.as_str()),
                (service, kind)
            );
            assert_eq!(child.evidence(), Some(evidence), "{child:#?}");
            parent = child.clone();
        }
    }
}

/// Agents come and go under load, every other one killed: every request is answered.
/// `EBPF_AGENT_SOAK_FACTOR=10` makes it a hundred times.
#[test]
fn probes_come_and_go_under_load() {
    const ROUNDS: u64 = 10;

    require_root!();
    let pair = Pair::start(Build::Default, Offer::Http1);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let over = || is_over.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !over() {
                pair.load("/mixed/{}", 2_000, 16);
            }
        });
        for round in 0..ROUNDS * factor() {
            let agent = AgentCommand::new().args(["--exporter", "none"]);
            let agent = agent.pid(pair.front.pid()).pid(pair.back.pid()).spawn();
            wait_until("the probes", || agent.stderr().contains("Go program"));
            if round % 2 == 0 {
                agent.kill();
            } else {
                agent.stop();
            }
            assert!(!load.is_finished(), "the load was answered");
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        load.join().expect("every request is answered");
    });
}
