//! Servers: what HTTP/1 does on the wire, and what the server span says of it.

use std::{
    net::Ipv6Addr,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use agent_tests::{
    http::{self, Connection},
    require_root,
    scene::{Traced, assert_spans_match_log, trace},
    span::{Span, Spans},
    workload::{
        client::{self, IoPaths, Steps},
        nginx::{FILES, Nginx, NginxOptions, Sendfile},
        server::{Runtime, Server, ServerBuilder},
    },
};

/// Runs the same conversation against both runtimes and compares spans with the server's log.
fn on_both_runtimes(drive: impl Fn(&Server)) -> Vec<Traced> {
    [Runtime::Python, Runtime::Node]
        .into_iter()
        .map(|runtime| {
            let server = ServerBuilder::new(runtime).service("server").start();
            let traced = trace(&[server.pid()], || drive(&server));
            assert_spans_match_log(&traced.of("server", "SERVER"), &server.log());
            traced
        })
        .collect()
}

/// One keep-alive connection through methods and statuses, with and without bodies: HEAD, 204 and
/// 304 have none whatever their headers say.
#[test]
fn keep_alive_with_every_kind_of_body() {
    require_root!();
    let all = on_both_runtimes(|server| {
        let mut connection = Connection::open(server.port());
        for path in [
            "/hello?q=1",
            "/status/204",
            "/bytes/5",
            "/status/304",
            "/chunked/40000",
        ] {
            connection.get(path);
        }
        connection.request("HEAD", "/bytes/1000", "");
        connection.response("HEAD");
        connection.request("DELETE", "/status/404", "");
        connection.response("DELETE");
        connection.request("POST", "/echo", "Content-Length: 3\r\n");
        connection.send("abc");
        connection.response("POST");
        connection.request("POST", "/echo", "Transfer-Encoding: chunked\r\n");
        connection.send("3\r\nabc\r\n2;extension=1\r\nde\r\n0\r\nX-Trailer: t\r\n\r\n");
        assert_eq!(connection.response("POST").text(), "abcde");
        connection.get("/status/503");
    });
    for traced in all {
        assert_eq!(traced.spans.len(), 10);
        let span = traced.only("server", "SERVER", "/hello");
        assert_eq!(span.name, "GET");
        assert_eq!(span.text("url.query"), Some("q=1"));
        assert_eq!(span.text("url.scheme"), Some("http"));
        assert_eq!(span.text("network.protocol.version"), Some("1.1"));
        assert_eq!(span.text("server.address"), Some("test"));
        assert_eq!(span.text("network.peer.address"), Some("127.0.0.1"));
        assert_eq!(span.unobserved(), None);
        // A server is not in error because a client asked for what is not there.
        assert_eq!(
            traced.only("server", "SERVER", "/status/404").status.code,
            "UNSET"
        );
        let failed = traced.only("server", "SERVER", "/status/503");
        assert_eq!(
            (failed.status.code.as_str(), failed.text("error.type")),
            ("ERROR", Some("503"))
        );
    }
}

/// Requests sent before the first is answered are answered in order, one span each.
#[test]
fn pipelined_requests() {
    require_root!();
    for traced in on_both_runtimes(|server| {
        let mut connection = Connection::open(server.port());
        let request = |size| format!("GET /bytes/{size} HTTP/1.1\r\nHost: test\r\n\r\n");
        connection.send((1..=5).map(request).collect::<Vec<_>>().concat());
        for size in 1..=5 {
            assert_eq!(connection.response("GET").body.len(), size);
        }
    }) {
        assert_eq!(traced.spans.len(), 5);
    }
}

/// A request that dribbles in byte by byte is one request, and its span begins at the first byte.
#[test]
fn one_byte_at_a_time() {
    require_root!();
    for traced in on_both_runtimes(|server| {
        let mut connection = Connection::open(server.port());
        let request = b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody";
        for byte in request {
            connection.send([*byte]);
        }
        assert_eq!(connection.response("POST").text(), "body");
    }) {
        assert_eq!(traced.spans.len(), 1);
    }
}

/// Heads of more than a packet, more than a usual buffer, and more than a turn's capture.
#[test]
fn long_heads() {
    require_root!();
    let padding = |count| format!("X-Padding: {}\r\n", "p".repeat(1000)).repeat(count);
    for traced in on_both_runtimes(|server| {
        let mut connection = Connection::open(server.port());
        connection.request("GET", "/bytes/1", &padding(10));
        assert_eq!(connection.response("GET").status, 200);
        assert_eq!(connection.get("/bytes/2").status, 200);
    }) {
        assert_eq!(traced.spans.len(), 2);
    }

    // Node refuses this size itself, so nginx and Python take it.
    let (nginx, python) = (Nginx::start(), Server::python("python"));
    let traced = trace(&[nginx.pid(), python.pid()], || {
        for port in [nginx.port(), python.port()] {
            let mut connection = Connection::open(port);
            connection.request("GET", "/hello?long", &padding(40));
            assert_eq!(connection.response("GET").status, 200);
            assert_eq!(connection.get("/status/404").status, 404);
        }
    });
    for service in ["nginx", "python"] {
        assert_eq!(
            traced.only(service, "SERVER", "/hello").http_status(),
            Some(200)
        );
        assert_eq!(
            traced.only(service, "SERVER", "/status/404").http_status(),
            Some(404)
        );
    }
}

/// `Expect: 100-continue`: the interim answer is not the answer.
#[test]
fn expect_continue() {
    require_root!();
    for traced in on_both_runtimes(|server| {
        let body = "b".repeat(5000);
        let expect = ["--header", "Expect: 100-continue", "--data", &body];
        let url = server.url("/echo");
        let (answer, status) = client::curl(&[&expect[..], &[url.as_str()]].concat());
        assert_eq!((answer.len(), status), (5000, 200));
    }) {
        assert_eq!(traced.spans.len(), 1);
    }
}

const SIZE: usize = 10_000_000;

/// The most that the test's clock and the agent's wall time may differ.
const CLOCKS_APART: Duration = Duration::from_millis(10);

/// 10 MB up and down: sizes are whole, and the span covers the first byte to the last.
#[test]
fn large_bodies_are_covered_to_the_end() {
    require_root!();
    let clock = || {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a clock after 1970");
        u64::try_from(now.as_nanos()).expect("a clock before 2554")
    };
    for runtime in [Runtime::Python, Runtime::Node] {
        let server = ServerBuilder::new(runtime).service("server").start();
        let (mut upload_half, mut download_half) = (0, 0);
        let traced = trace(&[server.pid()], || {
            let mut connection = Connection::open(server.port());
            connection.request("POST", "/sink", &format!("Content-Length: {SIZE}\r\n"));
            // More than the sockets hold: the server has begun to read when all of it is sent.
            connection.send(vec![b'u'; SIZE / 2]);
            upload_half = clock();
            thread::sleep(10 * CLOCKS_APART);
            connection.send(vec![b'u'; SIZE / 2]);
            assert_eq!(connection.response("POST").status, 200);

            connection.request("GET", &format!("/bytes/{SIZE}"), "");
            // More than the sockets hold: the server cannot be done before we go on reading.
            connection
                .read_exactly(1000)
                .expect("the head and some of the body");
            download_half = clock();
            connection
                .read_exactly(SIZE - 1000)
                .expect("the rest of the body");
        });
        let apart_ns = u64::try_from(CLOCKS_APART.as_nanos()).expect("a short time");
        let upload = traced.only("server", "SERVER", "/sink");
        assert_eq!(upload.request_body(), Some(10_000_000));
        assert!(upload.start_ns <= upload_half + apart_ns, "{upload:#?}");
        assert!(upload.end_ns + apart_ns >= upload_half, "{upload:#?}");
        let download = traced.only("server", "SERVER", "/bytes/10000000");
        assert_eq!(download.response_body(), Some(10_000_000));
        assert!(download.end_ns + apart_ns >= download_half, "{download:#?}");
        assert_eq!((upload.unobserved(), download.unobserved()), (None, None));
    }
}

/// nginx: files by sendfile and by write, error routes, no content, redirects, and the sizes of
/// its own access log.
#[test]
fn nginx_serves_files() {
    require_root!();
    for sendfile in [Sendfile::On, Sendfile::Off] {
        let nginx = Nginx::start_with(&NginxOptions {
            sendfile,
            ..NginxOptions::default()
        });
        let traced = trace(&[nginx.pid()], || {
            let mut connection = Connection::open(nginx.port());
            for (name, length) in FILES {
                assert_eq!(connection.get(&format!("/{name}")).body.len(), length);
            }
            for path in [
                "/hello",
                "/status/404",
                "/status/503",
                "/empty",
                "/moved",
                "/none",
            ] {
                connection.get(path);
            }
        });
        assert_spans_match_log(&traced.of("nginx", "SERVER"), &nginx.log());
        assert_eq!(traced.spans.len(), FILES.len() + 6);
    }
}

/// A response whose end is the end of the connection, and a client that stops sending first.
#[test]
fn ends_by_close_and_half_close() {
    require_root!();
    let server = Server::python("python");
    let traced = trace(&[server.pid()], || {
        assert_eq!(http::get(server.port(), "/close/70000").body.len(), 70_000);
        let mut connection = Connection::open(server.port());
        connection.request("GET", "/bytes/9", "");
        connection.shut_down_sending();
        assert_eq!(connection.response("GET").body.len(), 9);
    });
    assert_spans_match_log(&traced.of("python", "SERVER"), &server.log());
    for span in &traced.spans {
        assert_eq!(span.status.code, "UNSET", "{span:#?}");
    }
}

/// HTTP/1.0: closes unless told otherwise, and says its version.
#[test]
fn http_1_0() {
    require_root!();
    let nginx = Nginx::start();
    let traced = trace(&[nginx.pid()], || {
        let (body, _) = client::curl(&["--http1.0", &nginx.url("/hello")]);
        assert_eq!(body, "hello\n");
    });
    let span = traced.only("nginx", "SERVER", "/hello");
    assert_eq!(span.text("network.protocol.version"), Some("1.0"));
    assert_eq!(span.http_status(), Some(200));
}

/// IPv6 loopback and unix sockets are traced like IPv4.
#[test]
fn other_address_families() {
    require_root!();
    let nginx = Nginx::start();
    let python = ServerBuilder::new(Runtime::Python)
        .service("python")
        .unix()
        .start();
    let traced = trace(&[nginx.pid(), python.pid()], || {
        let address = (Ipv6Addr::LOCALHOST, nginx.port());
        assert_eq!(Connection::open_to(address).get("/hello").status, 200);
        let mut unix = Connection::open_unix(&nginx.unix_path());
        assert_eq!(unix.get("/status/404").status, 404);
        let socket = python.unix_path().to_str().expect("ASCII");
        let (_, status) = client::curl(&["--unix-socket", socket, "http://test/status/503"]);
        assert_eq!(status, 503);
    });
    let over_v6 = traced.only("nginx", "SERVER", "/hello");
    assert_eq!(over_v6.text("network.peer.address"), Some("::1"));
    assert_eq!(
        traced.only("nginx", "SERVER", "/status/404").http_status(),
        Some(404)
    );
    let over_unix = traced.only("python", "SERVER", "/status/503");
    assert_eq!(over_unix.http_status(), Some(503));
    assert_eq!(over_unix.number("network.peer.port"), None);
}

/// A connection that was open, and used, before the agent came is understood from its next
/// request on; what came before is not invented.
#[test]
fn connections_older_than_the_agent() {
    require_root!();
    for runtime in [Runtime::Python, Runtime::Node] {
        let server = ServerBuilder::new(runtime).service("server").start();
        let mut used = Steps::connect(&server.url(""), "used");
        let mut idle = Steps::connect(&server.url(""), "idle");
        assert_eq!(used.ask("/bytes/1"), 200);
        let traced = trace(&[server.pid(), used.pid(), idle.pid()], || {
            for client in [&mut used, &mut idle] {
                assert_eq!(client.ask("/bytes/2"), 200);
                assert_eq!(client.ask("/status/404"), 404);
            }
        });
        assert_spans_match_log(&traced.of("server", "SERVER"), &server.log()[1..]);
        for service in ["used", "idle"] {
            let mut spans = traced.of(service, "CLIENT");
            spans.sort_by_key(|span| span.start_ns);
            let statuses: Vec<_> = spans.iter().map(Span::http_status).collect();
            assert_eq!(statuses, [Some(200), Some(404)], "{service}");
        }
        for client in traced.spans.iter().filter(|span| span.kind == "CLIENT") {
            assert!(
                traced.spans.iter().any(|server| server.is_child_of(client)),
                "the other end of an old connection is joined to it: {client:#?}"
            );
        }
    }
}

/// Whatever system call moves the bytes, both ends see the request, and sendfile bodies count.
#[test]
fn every_io_path() {
    require_root!();
    let io = IoPaths::start("io");
    let pid = io.pid();
    let mut paths = Vec::new();
    let traced = trace(&[pid], || paths = io.run());
    for path in paths {
        for kind in ["SERVER", "CLIENT"] {
            let span = traced.only("io", kind, &path);
            assert_eq!(span.http_status(), Some(200), "{kind} {path}");
            assert_eq!(span.unobserved(), None, "{kind} {path}");
        }
    }
    let sent = traced.only("io", "SERVER", "/sendfile");
    assert_eq!(
        (sent.request_body(), sent.response_body()),
        (Some(100_000), Some(100_000))
    );
}

/// The Upgrade handshake is a span that ends with its answer; what follows is not HTTP, even where
/// it looks like it.
#[test]
fn upgrade_to_websocket() {
    require_root!();
    let server = Server::node("node");
    let traced = trace(&[server.pid()], || {
        let mut connection = Connection::open(server.port());
        connection.request(
            "GET",
            "/socket",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
        );
        assert_eq!(connection.response("GET").status, 101);
        let frame = b"GET /inside HTTP/1.1\r\n\r\n";
        connection.send(frame);
        assert_eq!(
            connection.read_exactly(frame.len()).as_deref(),
            Some(&frame[..])
        );
    });
    let span = traced.spans.only();
    assert_eq!((span.path(), span.http_status()), ("/socket", Some(101)));
    assert_eq!(span.status.code, "UNSET");
}

/// A server that dies before it answers, and one that dies half way: no status is made up, and the
/// span says that it is not whole.
#[test]
fn server_dies_in_the_middle() {
    require_root!();
    let mut server = Server::python("python");
    let traced = trace(&[server.pid()], || {
        let mut connection = Connection::open(server.port());
        assert_eq!(connection.get("/hello").status, 200);
        connection.request("GET", "/exit", "");
        assert_eq!(connection.try_response("GET"), None);
        server.process().wait();
    });
    let cut = traced.only("python", "SERVER", "/exit");
    assert_eq!(cut.http_status(), None);
    assert!(
        cut.unobserved().is_some() || cut.status.code == "ERROR",
        "{cut:#?}"
    );
    assert_eq!(
        traced.only("python", "SERVER", "/hello").http_status(),
        Some(200)
    );

    let mut server = Server::python("python");
    let traced = trace(&[server.pid()], || {
        assert_eq!(Connection::open(server.port()).get("/hello").status, 200);
        let mut connection = Connection::open(server.port());
        connection.request("GET", "/die/1000", "");
        assert_eq!(connection.try_response("GET"), None);
        server.process().wait();
    });
    let cut = traced.only("python", "SERVER", "/die/1000");
    assert_eq!(cut.http_status(), Some(200));
    assert!(
        cut.unobserved().is_some() || cut.status.code == "ERROR",
        "{cut:#?}"
    );
}

/// A client that goes away in the middle of its request: there was no answer, so there is none.
#[test]
fn client_gone_in_the_middle() {
    require_root!();
    let nginx = Nginx::start();
    let traced = trace(&[nginx.pid()], || {
        let mut connection = Connection::open(nginx.port());
        connection.request("POST", "/hello?cut", "Content-Length: 100000\r\n");
        connection.send("only this");
        drop(connection);
        let mut connection = Connection::open(nginx.port());
        connection.send("GET /never-whole HTT");
        drop(connection);
        assert_eq!(http::get(nginx.port(), "/empty").status, 204);
    });
    assert_eq!(traced.of("nginx", "SERVER").at("/never-whole").len(), 0);
    for span in traced.of("nginx", "SERVER").at("/hello") {
        let sent = nginx
            .log()
            .iter()
            .any(|line| Some(line.status) == span.http_status());
        assert!(span.http_status().is_none() || sent, "{span:#?}");
    }
    assert_eq!(
        traced.only("nginx", "SERVER", "/empty").http_status(),
        Some(204)
    );
}
