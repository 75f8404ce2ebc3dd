//! What stays open: a WebSocket, whose span is the handshake alone, and server-sent events, whose
//! first byte and whose end are facts apart.

use agent_tests::{
    agent::AgentCommand,
    http,
    process::Process,
    require_root,
    scene::{Traced, trace, trace_with},
    span::{Span, Spans as _},
    wait::wait_until,
    workload::{
        client,
        nginx::Nginx,
        streams::{Library, StreamServer, Talker},
    },
};

const NS_PER_SECOND: f64 = 1e9;

/// A handshake that was over before `later` began, and nothing of what was said since.
#[track_caller]
fn assert_handshake(span: &Span, later: &Span) {
    assert_eq!(span.http_status(), Some(101), "{span:#?}");
    assert_eq!(span.status.code, "UNSET", "{span:#?}");
    assert_eq!(span.unobserved(), None, "{span:#?}");
    assert!(span.end_ns <= later.start_ns, "{span:#?} {later:#?}");
    assert_eq!(span.response_body(), None, "{span:#?}");
}

/// A client opens a WebSocket, another request is served, and only then it says something.
fn conversation(port: u16, path: &str, mut talker: Talker, meanwhile: impl FnOnce()) {
    talker.open();
    meanwhile();
    talker.talk();
    assert_eq!(http::get(port, path).status, 200);
}

/// Each library as server and as client: one span at each end, which is the handshake.
#[test]
fn websockets_are_their_handshake() {
    require_root!();
    for (server, client) in [
        (Library::Uvicorn, Library::Ws),
        (Library::Ws, Library::Aiohttp),
        (Library::Aiohttp, Library::Websockets),
    ] {
        let server = StreamServer::start(server, "server");
        let talker = Talker::start(client, "client", server.port(), "/socket");
        let port = server.port();
        let traced = trace(&[server.pid(), talker.pid()], || {
            conversation(port, "/finish", talker, || {
                assert_eq!(http::get(port, "/publish").status, 200);
            });
        });
        let meanwhile = traced.only("server", "SERVER", "/publish");
        let accepted = traced.only("server", "SERVER", "/socket");
        let called = traced.only("client", "CLIENT", "/socket");
        assert_handshake(&accepted, &meanwhile);
        assert_handshake(&called, &meanwhile);
        assert!(accepted.is_child_of(&called), "{accepted:#?} {called:#?}");
        // The request after the conversation is on a connection of its own.
        let after = traced.only("server", "SERVER", "/finish");
        assert_eq!(after.http_status(), Some(200));
        assert_eq!(traced.spans.len(), 4, "{:#?}", traced.spans);
        assert_eq!(traced.exit.ledger().lost_spans(), 0);
    }
}

/// A server that speaks nothing else.
#[test]
fn a_server_of_websockets_alone() {
    require_root!();
    let server = StreamServer::start(Library::Websockets, "server");
    let mut talker = Talker::start(Library::Websockets, "client", server.port(), "/");
    let traced = trace(&[server.pid(), talker.pid()], || {
        talker.open();
        talker.talk();
    });
    let accepted = traced.only("server", "SERVER", "/");
    let called = traced.only("client", "CLIENT", "/");
    for span in [&accepted, &called] {
        assert_eq!(span.http_status(), Some(101));
        assert_eq!(span.unobserved(), None);
    }
    assert!(accepted.is_child_of(&called));
    assert_eq!(traced.spans.len(), 2, "{:#?}", traced.spans);
}

/// Through nginx, which switches protocols on both sides: four spans of one trace.
#[test]
fn websockets_behind_nginx() {
    require_root!();
    let server = StreamServer::start(Library::Aiohttp, "server");
    let nginx = Nginx::in_front_of(server.port());
    let talker = Talker::start(Library::Ws, "client", nginx.port(), "/switch/socket");
    let port = nginx.port();
    let pids = [server.pid(), nginx.pid(), talker.pid()];
    let traced = trace(&pids, || {
        conversation(port, "/hello", talker, || {
            assert_eq!(http::get(port, "/empty").status, 204);
        });
    });
    let meanwhile = traced.only("nginx", "SERVER", "/empty");
    let chain = [
        traced.only("client", "CLIENT", "/switch/socket"),
        traced.only("nginx", "SERVER", "/switch/socket"),
        traced.only("nginx", "CLIENT", "/socket"),
        traced.only("server", "SERVER", "/socket"),
    ];
    for span in &chain {
        assert_handshake(span, &meanwhile);
    }
    for pair in chain.windows(2) {
        assert!(pair[1].is_child_of(&pair[0]), "{pair:#?}");
    }
    assert_eq!(traced.spans.len(), 6, "{:#?}", traced.spans);
}

/// A listener that runs until it is told, with what it heard.
fn listen(url: &str) -> Process {
    Process::spawn("curl", &mut client::curl_command(&["--no-buffer", url]))
}

fn wait_for_events(listener: &Process, count: usize) {
    wait_until("events", || {
        listener.stdout().matches("data: ").count() >= count
    });
}

/// Seconds to the first byte.
#[track_caller]
fn first_byte_ns(span: &Span) -> u64 {
    let seconds = span.attributes["ebpf_agent.time_to_first_byte"].as_f64();
    span.start_ns + (seconds.expect("a number") * NS_PER_SECOND) as u64
}

/// What a stream of events says that another request was served in the middle of.
#[track_caller]
fn assert_stream(span: &Span, meanwhile: &Span) {
    assert_eq!(span.http_status(), Some(200), "{span:#?}");
    let content_type = &span.attributes["http.response.header.content-type"];
    assert_eq!(content_type, &serde_json::json!(["text/event-stream"]));
    assert!(first_byte_ns(span) <= meanwhile.start_ns, "{span:#?}");
    assert!(meanwhile.end_ns <= span.end_ns, "{span:#?} {meanwhile:#?}");
}

/// Listens through `port`; publishes at `server` in the meantime; ends as `end` says.
fn trace_stream(
    pids: &[u32],
    port: u16,
    path: &str,
    publish: u16,
    end: impl FnOnce(&mut Process),
) -> Traced {
    let url = format!("http://127.0.0.1:{port}{path}");
    let select = |agent: AgentCommand| {
        let agent = agent.args(["--exe", "*/curl"]);
        pids.iter().fold(agent, |agent, &pid| agent.pid(pid))
    };
    trace_with(select, || {
        let mut listener = listen(&url);
        wait_for_events(&listener, 1);
        for count in 2..4 {
            assert_eq!(http::get(publish, "/publish").status, 200);
            wait_for_events(&listener, count);
        }
        end(&mut listener);
        listener.wait();
    })
}

/// The first of several, by time.
fn first_of(mut spans: Vec<Span>) -> Span {
    spans.sort_by_key(|span| span.start_ns);
    spans.into_iter().next().expect("a span")
}

/// The server ends the stream: the span lasts as long as it did, and says when it had begun.
#[test]
fn events_begin_and_end() {
    require_root!(alone);
    for library in [Library::Aiohttp, Library::Uvicorn, Library::Ws] {
        let server = StreamServer::start(library, "server");
        let port = server.port();
        let traced = trace_stream(&[server.pid()], port, "/events", port, |_| {
            assert_eq!(http::get(port, "/finish").status, 200);
        });
        let meanwhile = first_of(traced.of("server", "SERVER").at("/publish"));
        let finish = traced.only("server", "SERVER", "/finish");
        let accepted = traced.only("server", "SERVER", "/events");
        let called = traced.only("curl", "CLIENT", "/events");
        for span in [&accepted, &called] {
            assert_stream(span, &meanwhile);
            assert_eq!(span.unobserved(), None, "{library:?} {span:#?}");
            assert_eq!(span.status.code, "UNSET", "{library:?} {span:#?}");
            assert!(finish.start_ns <= span.end_ns, "{library:?}");
            assert!(span.response_body() > Some(20), "{library:?} {span:#?}");
        }
        assert!(accepted.is_child_of(&called));
        // A short answer says nothing of a stream, and has no time to a first byte of its own.
        assert!(
            !meanwhile
                .attributes
                .contains_key("http.response.header.content-type")
        );
    }
}

/// The listener leaves, as listeners do: that is no error of anyone, and the end of what was sent
/// is where the last event was. Through nginx, which then leaves its upstream.
#[test]
fn a_listener_leaves() {
    require_root!(alone);
    let server = StreamServer::start(Library::Uvicorn, "server");
    let nginx = Nginx::in_front_of(server.port());
    let publish = server.port();
    let pids = [server.pid(), nginx.pid()];
    let traced = trace_stream(&pids, nginx.port(), "/app/events", publish, |listener| {
        listener.signal("INT");
    });
    let meanwhile = first_of(traced.of("server", "SERVER").at("/publish"));
    let chain = [
        traced.only("curl", "CLIENT", "/app/events"),
        traced.only("nginx", "SERVER", "/app/events"),
        traced.only("nginx", "CLIENT", "/events"),
        traced.only("server", "SERVER", "/events"),
    ];
    for span in &chain {
        assert_stream(span, &meanwhile);
        assert_eq!(span.unobserved(), Some("response_end"), "{span:#?}");
        assert_eq!(span.text("error.type"), None, "{span:#?}");
        assert_eq!(span.response_body(), None, "{span:#?}");
    }
    for pair in chain.windows(2) {
        assert!(pair[1].is_child_of(&pair[0]), "{pair:#?}");
    }
}

/// The server dies in the middle: who listened has an error, with the status that it was given.
#[test]
fn a_server_of_events_dies() {
    require_root!(alone);
    let mut server = StreamServer::start(Library::Ws, "server");
    let (port, pid) = (server.port(), server.pid());
    let traced = trace_stream(&[pid], port, "/events", port, |_| server.kill());
    let called = traced.only("curl", "CLIENT", "/events");
    assert_eq!(called.http_status(), Some(200));
    let error = called.text("error.type").unwrap_or_default();
    assert!(
        ["connection_closed", "connection_reset"].contains(&error),
        "{called:#?}"
    );
    assert_eq!(called.status.code, "ERROR");
    let accepted = traced.only("server", "SERVER", "/events");
    assert_eq!(accepted.http_status(), Some(200));
    assert!(
        accepted.unobserved().is_some() || accepted.status.code == "ERROR",
        "{accepted:#?}"
    );
}
