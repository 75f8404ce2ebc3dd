//! Which spans become one trace, by which evidence, and which must not.

use agent_tests::{
    http::{self, Connection},
    require_root,
    scene::{Traced, trace},
    span::{FLAG_HAS_IS_REMOTE, FLAG_IS_REMOTE, FLAG_SAMPLED, Span, Spans},
    workload::{
        client,
        nginx::Nginx,
        server::{Runtime, Server, ServerBuilder},
    },
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
/// What `server.py` sends as its own.
const OWN_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const OWN_PARENT: &str = "b7ad6b7169203331";

/// nginx in front of Python in front of Node.
struct Chain {
    node: Server,
    python: Server,
    nginx: Nginx,
}

impl Chain {
    fn start() -> Self {
        let node = Server::node("node");
        let python = ServerBuilder::new(Runtime::Python)
            .service("python")
            .backend(node.port())
            .start();
        let nginx = Nginx::in_front_of(python.port());
        Self {
            node,
            python,
            nginx,
        }
    }

    fn pids(&self) -> [u32; 3] {
        [self.nginx.pid(), self.python.pid(), self.node.pid()]
    }
}

/// Panics unless `root` is at the top of nginx -> Python -> Node, each the child of the one before
/// by the evidence that suits it.
fn assert_chain(traced: &Traced, root: &Span) {
    let steps = [
        ("nginx", "CLIENT", "loop"),
        ("python", "SERVER", "local_wire"),
        ("python", "CLIENT", "thread"),
        ("node", "SERVER", "local_wire"),
    ];
    let mut parent = root.clone();
    for (service, kind, evidence) in steps {
        let children: Vec<Span> = traced
            .spans
            .iter()
            .filter(|span| span.is_child_of(&parent))
            .cloned()
            .collect();
        let child = children.only();
        assert_eq!(
            (child.service.as_str(), child.kind.as_str()),
            (service, kind),
            "{child:#?}"
        );
        assert_eq!(child.evidence(), Some(evidence), "{child:#?}");
        parent = child.clone();
    }
}

/// One request through three programs is one trace of five spans.
#[test]
fn chain_is_one_trace() {
    require_root!();
    let chain = Chain::start();
    let traced = trace(&chain.pids(), || {
        for _ in 0..20 {
            assert_eq!(http::get(chain.nginx.port(), "/call/hello").status, 200);
        }
    });
    let roots = traced.of("nginx", "SERVER");
    assert_eq!((roots.len(), traced.spans.len()), (20, 100));
    for root in roots {
        assert!(root.is_root() && root.evidence().is_none(), "{root:#?}");
        assert_chain(&traced, &root);
    }
}

/// The same with 16 requests at a time, each with a path of its own by which a wrong parent would
/// show.
#[test]
fn chain_under_load_mixes_nothing_up() {
    require_root!();
    let chain = Chain::start();
    let traced = trace(&chain.pids(), || {
        client::load(&chain.nginx.url("/call/bytes/{}"), 1_000, 16);
    });
    for root in traced.of("nginx", "SERVER") {
        assert_chain(&traced, &root);
        let leaf = root.path().replace("/call", "");
        let of_trace = traced
            .spans
            .iter()
            .filter(|span| span.trace_id == root.trace_id)
            .collect::<Vec<_>>();
        assert_eq!(of_trace.len(), 5);
        assert!(
            of_trace.iter().all(|span| span.path().ends_with(&leaf)),
            "{of_trace:#?}"
        );
    }
    assert_eq!(traced.of("nginx", "SERVER").len(), 1_000);
}

/// A `traceparent` that comes in is the parent, with its flag and its `tracestate`.
#[test]
fn inbound_header_is_the_parent() {
    require_root!();
    let server = Server::python("python");
    let traced = trace(&[server.pid()], || {
        let mut connection = Connection::open(server.port());
        let headers = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: a=1,b=2\r\n");
        connection.request("GET", "/hello", &headers);
        connection.response("GET");
    });
    let span = traced.spans.only();
    assert_eq!(
        (span.trace_id.as_str(), span.parent_span_id.as_str()),
        (TRACE, PARENT)
    );
    assert_eq!(span.trace_state, "a=1,b=2");
    let flags = FLAG_SAMPLED | FLAG_HAS_IS_REMOTE | FLAG_IS_REMOTE;
    assert_eq!(span.flags & flags, flags, "{:#x}", span.flags);
    assert_eq!(span.evidence(), Some("header"));
}

/// What another service decided not to sample is not exported, and is counted.
#[test]
fn unsampled_header_is_honoured() {
    require_root!();
    let server = Server::python("python");
    let traced = trace(&[server.pid()], || {
        let mut connection = Connection::open(server.port());
        let headers = format!("traceparent: 00-{TRACE}-{PARENT}-00\r\n");
        connection.request("GET", "/bytes/1", &headers);
        connection.response("GET");
        connection.get("/bytes/2");
    });
    assert_eq!(traced.spans.only().path(), "/bytes/2");
    assert_eq!(traced.exit.ledger().counter("spans.not_sampled"), 1);
}

/// Invalid headers are as good as none: W3C Trace Context, sections 2.2.2 and 3.2.
#[test]
fn invalid_header_is_ignored() {
    require_root!();
    let server = Server::python("python");
    let zero_trace = "0".repeat(32);
    let upper = TRACE.to_uppercase();
    let twice = format!("00-{TRACE}-{PARENT}-01\r\ntraceparent: 00-{TRACE}-{OWN_PARENT}-01");
    let invalid = [
        format!("00-{zero_trace}-{PARENT}-01"),
        format!("00-{TRACE}-0000000000000000-01"),
        format!("ff-{TRACE}-{PARENT}-01"),
        format!("00-{upper}-{PARENT}-01"),
        format!("00-{TRACE}-{PARENT}-01-more"),
        format!("00-{TRACE}-{PARENT}"),
        "nonsense".to_owned(),
        twice,
    ];
    let traced = trace(&[server.pid()], || {
        let mut connection = Connection::open(server.port());
        for (number, value) in invalid.iter().enumerate() {
            let path = format!("/bytes/{number}");
            connection.request("GET", &path, &format!("traceparent: {value}\r\n"));
            connection.response("GET");
        }
    });
    for (number, value) in invalid.iter().enumerate() {
        let span = traced.only("python", "SERVER", &format!("/bytes/{number}"));
        assert!(
            span.is_root() && span.trace_id != TRACE,
            "{value}: {span:#?}"
        );
        assert_eq!(span.flags & FLAG_SAMPLED, FLAG_SAMPLED, "{value}");
    }
}

/// A program that sends its own `traceparent`: our client span joins that trace, and the server's
/// span is the child of the nearer of the two, our client span.
#[test]
fn own_header_of_a_client_is_joined() {
    require_root!();
    let chain = Chain::start();
    let traced = trace(&chain.pids(), || {
        http::get(chain.python.port(), "/call/hello?traceparent=own");
    });
    let client = traced.only("python", "CLIENT", "/hello");
    assert_eq!(
        (client.trace_id.as_str(), client.parent_span_id.as_str()),
        (OWN_TRACE, OWN_PARENT)
    );
    assert_eq!(client.evidence(), Some("header"));
    let server = traced.only("node", "SERVER", "/hello");
    assert!(server.is_child_of(&client), "{server:#?}");
}

/// A header that is merely passed on does not make the call a child of the far sender: it is the
/// child of the request it serves.
#[test]
fn forwarded_header_is_not_the_callers_own() {
    require_root!();
    let chain = Chain::start();
    let traced = trace(&chain.pids(), || {
        let mut connection = Connection::open(chain.python.port());
        let header = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n");
        connection.request("GET", "/call/hello?traceparent=forward", &header);
        assert_eq!(connection.response("GET").status, 200);
    });
    let front = traced.only("python", "SERVER", "/call/hello");
    assert_eq!(
        (front.trace_id.as_str(), front.parent_span_id.as_str()),
        (TRACE, PARENT)
    );
    let client = traced.only("python", "CLIENT", "/hello");
    assert!(client.is_child_of(&front), "{client:#?}");
    let back = traced.only("node", "SERVER", "/hello");
    assert!(back.is_child_of(&client), "{back:#?}");
}

/// nginx passes headers on untouched and still appears between its neighbours.
#[test]
fn proxy_appears_although_it_forwards_headers() {
    require_root!();
    let chain = Chain::start();
    let traced = trace(&chain.pids(), || {
        let mut connection = Connection::open(chain.nginx.port());
        let header = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n");
        connection.request("GET", "/call/hello", &header);
        assert_eq!(connection.response("GET").status, 200);
    });
    let root = traced.only("nginx", "SERVER", "/call/hello");
    assert_eq!(
        (root.trace_id.as_str(), root.parent_span_id.as_str()),
        (TRACE, PARENT)
    );
    assert_chain(&traced, &root);
}

/// An event loop with overlapping requests, a pool too small for them, and calls of its own by
/// timer: no call has a wrong parent. None at all is allowed.
#[test]
fn event_loop_makes_no_wrong_parents() {
    require_root!();
    let backend = Server::python("backend");
    let front = ServerBuilder::new(Runtime::Node)
        .service("front")
        .backend(backend.port())
        .option("--sockets", "2")
        .option("--timer-ms", "10")
        .start();
    let traced = trace(&[front.pid(), backend.pid()], || {
        client::load(&front.url("/call/bytes/{}"), 400, 16);
    });
    let mut timer_calls = 0;
    for call in traced.of("front", "CLIENT") {
        if call.path() == "/hello" {
            timer_calls += 1;
            assert!(call.is_root(), "no request asked for this: {call:#?}");
        } else if let Some(parent) = traced.parent(&call) {
            assert_eq!(parent.path(), format!("/call{}", call.path()), "{call:#?}");
        } else {
            assert!(call.is_root(), "the parent is nowhere: {call:#?}");
        }
    }
    assert!(timer_calls > 0);
    // Both ends are joined all the same.
    let calls = traced.of("front", "CLIENT");
    for served in traced
        .of("backend", "SERVER")
        .iter()
        .filter(|span| span.path() != "/hello")
    {
        assert!(
            calls.iter().any(|call| served.is_child_of(call)),
            "{served:#?}"
        );
    }
}

/// A thread of its own that calls out belongs to no request, however busy the others are.
#[test]
fn background_calls_are_roots() {
    require_root!();
    let backend = Server::node("backend");
    let front = ServerBuilder::new(Runtime::Python)
        .service("front")
        .backend(backend.port())
        .option("--background", &backend.url("/status/202"))
        .option("--background-ms", "5")
        .start();
    let traced = trace(&[front.pid()], || {
        client::load(&front.url("/call/bytes/{}"), 400, 8);
    });
    let background = traced.of("front", "CLIENT").at("/status/202");
    assert!(!background.is_empty());
    for call in background {
        assert!(call.is_root(), "{call:#?}");
    }
    for call in traced
        .of("front", "CLIENT")
        .iter()
        .filter(|span| span.path() != "/status/202")
    {
        let parent = traced
            .parent(call)
            .unwrap_or_else(|| panic!("no parent: {call:#?}"));
        assert_eq!(parent.path(), format!("/call{}", call.path()));
    }
}

/// What a handler starts and waits for works for its request: commands and threads. Workers of a
/// pool, which stay, are not taken for those, although the pool grew while requests were served.
#[test]
fn what_was_started_for_a_request_belongs_to_it() {
    require_root!();
    let backend = Server::node("backend");
    let front = ServerBuilder::new(Runtime::Python)
        .service("front")
        .backend(backend.port())
        .start();
    let traced = trace(&[front.pid(), backend.pid()], || {
        client::load(&front.url("/command/bytes/1{}"), 20, 4);
        client::load(&front.url("/helpers/bytes/2{}"), 100, 8);
        client::load(&front.url("/pool/bytes/3{}"), 200, 8);
    });
    let calls: Vec<Span> = traced
        .spans
        .iter()
        .filter(|span| span.kind == "CLIENT")
        .cloned()
        .collect();
    let mut of_pool = 0;
    for call in &calls {
        let route = match call.path().as_bytes().get("/bytes/".len()) {
            Some(b'1') => "/command",
            Some(b'2') => "/helpers",
            _ => {
                assert_ne!(call.evidence(), Some("started"), "{call:#?}");
                of_pool += 1;
                continue;
            }
        };
        let parent = traced
            .parent(call)
            .unwrap_or_else(|| panic!("no parent: {call:#?}\n{:#?}", traced.exit.ledger()));
        assert_eq!(parent.path(), format!("{route}{}", call.path()));
        assert_eq!(call.evidence(), Some("started"));
    }
    assert_eq!((calls.len(), of_pool), (20 + 2 * 100 + 200, 200));
}

/// Scenario: requests hand their calls to a pool and wait, while others have the same pool work for
/// them without a call. Guarantee: no call belongs to a request that is not its own, however many
/// there are at a time; when few are, most belong to their own, and what is not certain has a link
/// or nothing.
#[test]
fn work_handed_to_a_pool_belongs_to_who_waits() {
    require_root!();
    let backend = Server::node("backend");
    let front = ServerBuilder::new(Runtime::Python)
        .service("front")
        .backend(backend.port())
        .start();
    let traced = trace(&[front.pid(), backend.pid()], || {
        client::load(&front.url("/pool/bytes/1{}"), 200, 1);
        std::thread::scope(|scope| {
            scope.spawn(|| client::load(&front.url("/sum/200{}"), 400, 8));
            client::load(&front.url("/pool/bytes/2{}"), 400, 16);
        });
    });
    let calls = traced.of("front", "CLIENT");
    assert_eq!(calls.len(), 600);
    let mut one_by_one = 0;
    for call in &calls {
        let Some(parent) = traced.parent(call) else {
            assert!(call.is_root(), "the parent is nowhere: {call:#?}");
            continue;
        };
        assert_eq!(parent.path(), format!("/pool{}", call.path()), "{call:#?}");
        assert_eq!(call.evidence(), Some("handed_off"));
        one_by_one += u32::from(call.path().starts_with("/bytes/1"));
    }
    assert!(one_by_one > 100, "{one_by_one}");
}

/// Ids are as the specification wants them: right length, not zero, and no two spans share one.
#[test]
fn ids_are_valid_and_unique() {
    require_root!();
    let server = Server::node("node");
    let traced = trace(&[server.pid()], || {
        client::load(&server.url("/hello"), 1_000, 8);
    });
    let mut ids: Vec<&str> = traced
        .spans
        .iter()
        .map(|span| span.span_id.as_str())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 1_000);
    for span in &traced.spans {
        assert_eq!((span.trace_id.len(), span.span_id.len()), (32, 16));
        assert!(span.trace_id.bytes().any(|digit| digit != b'0'));
        assert!(span.start_ns <= span.end_ns, "{span:#?}");
    }
}
