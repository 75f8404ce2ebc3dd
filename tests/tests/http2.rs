//! HTTP/2 in clear text between real programs: every stream of every connection is seen, however
//! many there are at once and however large they are.

use agent_tests::{
    agent::{AgentCommand, Exit},
    process::Process,
    require_root,
    scene::trace_with,
    span::{Span, Spans},
    wait::wait_for,
    workload::{
        client,
        nghttp2::{H2load, Load, Nghttpd, answered},
        nginx::{FILES, Nginx, NginxOptions, Version},
    },
};

/// What the issue of many streams is about: a hundred at once on each of ten connections.
const MANY: Load = Load {
    requests: 100_000,
    connections: 10,
    streams: 100,
    rate: Some(600),
};

/// The same, as fast as the two can: more than an agent without optimisation can follow.
const FAST: Load = Load { rate: None, ..MANY };

const FEW: Load = Load {
    requests: 400,
    connections: 2,
    streams: 20,
    rate: Some(200),
};

fn nginx() -> Nginx {
    Nginx::start_with(&NginxOptions {
        version: Version::Http2,
        ..NginxOptions::default()
    })
}

/// Room for what comes while an unoptimised agent on a busy machine waits for its turn.
const ROOM: u64 = 16 << 20;

/// Room for a moment.
const LITTLE_ROOM: u64 = 64 << 10;

/// Counts the spans of both ends while a load runs.
fn count(server: u32, load: Load, url: &str) -> Exit {
    count_with(ROOM, server, load, url)
}

fn count_with(ring_bytes: u64, server: u32, load: Load, url: &str) -> Exit {
    let h2load = H2load::new();
    let agent = AgentCommand::new()
        .env("EBPF_AGENT_RING_BYTES", ring_bytes.to_string())
        .args(["--exporter", "none", "--exe"])
        .arg(h2load.path())
        .pid(server)
        .start();
    assert_eq!(h2load.run(url, load), load.requests);
    agent.stop()
}

/// Each request is a span at both ends, or it is counted as lost: exactly.
#[track_caller]
fn assert_counted(exit: &Exit, load: Load) {
    let ledger = exit.ledger();
    let (made, expected) = (ledger.counter("spans.created"), 2 * load.requests);
    let lost = ledger.loss("request_unrecorded");
    assert_eq!(made + lost, expected, "{}", exit.stderr);
    assert_eq!(ledger.lost_spans(), lost, "{}", exit.stderr);
    if ledger.kernel_losses.get("ring_full") == Some(&0) {
        assert_eq!(lost, 0, "{}", exit.stderr);
    }
    for reason in ["frames_beyond_limit", "frames_astray", "frames_forgotten"] {
        let lost = ledger.kernel_losses.get(reason);
        assert_eq!(lost, Some(&0), "{reason}: {}", exit.stderr);
    }
    assert_eq!(ledger.loss("record_malformed"), 0, "{}", exit.stderr);
}

#[test]
fn a_hundred_streams_at_once_at_nghttpd() {
    require_root!();
    let server = Nghttpd::start(&[("small", 300)]);
    let exit = count(server.pid(), MANY, &server.url("/small"));
    assert_counted(&exit, MANY);
}

#[test]
fn a_hundred_streams_at_once_at_nginx() {
    require_root!();
    let server = nginx();
    let exit = count(server.pid(), MANY, &server.url("/small.txt"));
    assert_counted(&exit, MANY);
}

/// Faster than the agent, with a ring buffer that holds little of it: what is lost is known to the
/// last request.
#[test]
fn losses_are_counted_exactly() {
    require_root!();
    let server = Nghttpd::start(&[("small", 300)]);
    let exit = count_with(LITTLE_ROOM, server.pid(), FAST, &server.url("/small"));
    assert_counted(&exit, FAST);
    let lost = exit.ledger().loss("request_unrecorded");
    assert!(
        lost > 0,
        "the load is faster than the agent: {}",
        exit.stderr
    );
}

/// Streams whose content is skipped by its length: path, status and size of each are right, and the
/// client's span is the parent of the server's.
#[test]
fn large_answers_side_by_side() {
    require_root!(alone);
    let nginx = nginx();
    let h2load = H2load::new();
    for (path, length) in FILES.iter().filter(|(_, length)| *length <= 1_000_000) {
        let traced = trace_with(
            |agent| {
                let agent = agent.arg("--exe").arg(h2load.path());
                agent.pid(nginx.pid())
            },
            || {
                let url = nginx.url(&format!("/{path}"));
                assert_eq!(h2load.run(&url, FEW), FEW.requests);
            },
        );
        let [clients, servers] = [("h2load", "CLIENT"), ("nginx", "SERVER")]
            .map(|(service, kind)| traced.of(service, kind));
        for spans in [&clients, &servers] {
            assert_eq!(spans.len() as u64, FEW.requests, "{path}");
            assert!(spans.iter().all(|span| {
                span.path() == format!("/{path}")
                    && span.http_status() == Some(200)
                    && span.response_body() == Some(*length as i64)
            }));
        }
        let children = servers.iter().filter(|span| {
            traced
                .parent(span)
                .is_some_and(|parent| parent.kind == "CLIENT")
        });
        assert_eq!(children.count() as u64, FEW.requests, "{path}");
    }
}

fn only_of<'a>(spans: &'a [Span], kind: &str) -> &'a Span {
    let mut of_kind = spans.iter().filter(|span| span.kind == kind);
    let first = of_kind.next().expect("a span of this kind");
    assert!(
        of_kind.next().is_none(),
        "one span of this kind: {spans:#?}"
    );
    first
}

/// By prior knowledge, with a body of ten megabytes.
#[test]
fn curl_downloads() {
    require_root!(alone);
    let nginx = nginx();
    let nghttpd = Nghttpd::start(&[("huge.bin", 10_000_000)]);
    for (server, url) in [
        (nginx.pid(), nginx.url("/huge.bin")),
        (nghttpd.pid(), nghttpd.url("/huge.bin")),
    ] {
        let traced = trace_with(
            |agent| agent.args(["--exe", "*/curl"]).pid(server),
            || {
                let how = ["--http2-prior-knowledge", "--output", "/dev/null", &url];
                assert_eq!(client::curl(&how).1, 200);
            },
        );
        let spans = traced.spans.at("/huge.bin");
        for kind in ["CLIENT", "SERVER"] {
            let span = only_of(&spans, kind);
            assert_eq!(span.response_body(), Some(10_000_000), "{kind}");
            assert_eq!(span.text("network.protocol.version"), Some("2"), "{kind}");
            assert_eq!(span.http_status(), Some(200), "{kind}");
        }
    }
}

/// An agent that comes when all connections are open: what it cannot know it does not say, what it
/// says is right, and from then on it misses nothing.
#[test]
fn connections_older_than_the_agent() {
    require_root!();
    let nginx = nginx();
    let h2load = H2load::new();
    let load = Load {
        requests: 4_000,
        connections: 4,
        streams: 8,
        rate: Some(100),
    };
    let mut command = h2load.command(&nginx.url("/medium.bin"), load);
    command.arg(nginx.url("/small.txt"));
    let mut running = Process::spawn("h2load", &mut command);
    wait_for("the first answers", || {
        (nginx.log().len() >= 400).then_some(())
    });
    let pid = running.pid();
    let traced = trace_with(
        |agent| agent.pid(nginx.pid()).pid(pid),
        || {
            wait_for("more answers", || {
                (nginx.log().len() >= 2_000).then_some(())
            });
            let attached = nginx.log().len();
            assert!(attached < 3_600, "the load is not over yet");
            assert!(running.wait().success());
        },
    );
    assert_eq!(answered(&running.stdout()), load.requests);
    let ledger = traced.exit.ledger();
    assert!(ledger.counter("connections.joined_late") >= 4);
    for (service, kind) in [("h2load", "CLIENT"), ("nginx", "SERVER")] {
        let spans = traced.of(service, kind);
        // The last 2,000 began after all connections had been told to be frames.
        assert!(spans.len() >= 2_000, "{kind}: {}", spans.len());
        for span in &spans {
            let (path, size) = (span.path(), span.response_body());
            let whole = [("/medium.bin", 20_000), ("/small.txt", 100)];
            assert!(
                whole
                    .iter()
                    .any(|(known, length)| ["", known].contains(&path)
                        && size.is_none_or(|size| size == *length)),
                "{span:#?}"
            );
        }
        let whole = spans
            .iter()
            .filter(|span| span.response_body().is_some())
            .count();
        assert!(whole >= 2_000, "{kind}: {whole} of {}", spans.len());
    }
}
