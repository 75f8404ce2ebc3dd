//! Clients: what the client span says of requests made by real HTTP libraries.

use agent_tests::{
    http::{Connection, Holder},
    require_root,
    scene::{trace, trace_with},
    span::Spans,
    workload::{
        client::{self, Steps},
        nginx::Nginx,
        server::{Runtime, Server, ServerBuilder},
    },
};

/// The attributes, name and status of a client span, for an answer that is an error to a client.
#[test]
fn curl_asks_for_what_is_not_there() {
    require_root!(alone);
    let server = Server::node("node");
    let traced = trace_with(
        |agent| agent.args(["--exe", "*/curl"]),
        || {
            let with_secrets = format!("user:secret@127.0.0.1:{}", server.port());
            let url = format!("http://{with_secrets}/status/404?sig=abc&q=1");
            assert_eq!(client::curl(&[&url]).1, 404);
        },
    );
    let span = traced.spans.only();
    assert_eq!((span.name.as_str(), span.kind.as_str()), ("GET", "CLIENT"));
    assert_eq!(span.status.code, "ERROR");
    assert_eq!(span.text("error.type"), Some("404"));
    assert_eq!(span.text("http.request.method"), Some("GET"));
    let full = format!(
        "http://127.0.0.1:{}/status/404?sig=REDACTED&q=1",
        server.port()
    );
    assert_eq!(span.text("url.full"), Some(full.as_str()));
    assert_eq!(span.text("server.address"), Some("127.0.0.1"));
    assert_eq!(span.number("server.port"), Some(i64::from(server.port())));
    assert_eq!(span.text("network.peer.address"), Some("127.0.0.1"));
    assert_eq!(span.response_body(), Some(7));
    assert!(span.is_root());
}

/// curl with a body, with `Expect: 100-continue`, with two requests on one connection, by HEAD:
/// one span per request on the wire.
#[test]
fn curl_in_its_many_ways() {
    require_root!(alone);
    let python = Server::python("python");
    let traced = trace_with(
        |agent| agent.args(["--exe", "*/curl"]),
        || {
            let body = "b".repeat(3000);
            client::curl(&[
                "--header",
                "Expect: 100-continue",
                "--data",
                &body,
                &python.url("/echo"),
            ]);
            client::curl(&["--head", &python.url("/bytes/77")]);
            let (first, second) = (python.url("/bytes/1"), python.url("/chunked/50000"));
            client::curl(&[
                "--output",
                "/dev/null",
                &first,
                "--output",
                "/dev/null",
                &second,
            ]);
        },
    );
    let posted = traced.only("curl", "CLIENT", "/echo");
    assert_eq!((posted.method(), posted.http_status()), ("POST", Some(200)));
    assert_eq!(
        (posted.request_body(), posted.response_body()),
        (Some(3000), Some(3000))
    );
    let head = traced.only("curl", "CLIENT", "/bytes/77");
    assert_eq!(
        (head.method(), head.response_body().unwrap_or(0)),
        ("HEAD", 0)
    );
    assert_eq!(
        traced
            .only("curl", "CLIENT", "/chunked/50000")
            .http_status(),
        Some(200)
    );
    assert_eq!(traced.spans.len(), 4);
}

/// A large answer to curl: the whole size, and a span that lasts until the end of it.
#[test]
fn curl_downloads_and_uploads() {
    require_root!(alone);
    let nginx = Nginx::start();
    let node = Server::node("node");
    let traced = trace_with(
        |agent| {
            agent
                .args(["--exe", "*/curl"])
                .pid(node.pid())
                .pid(nginx.pid())
        },
        || {
            client::curl(&["--output", "/dev/null", &nginx.url("/huge.bin")]);
            let upload = format!("@{}", agent_tests::agent::binary().display());
            client::curl(&["--data-binary", &upload, &node.url("/sink")]);
        },
    );
    let down = traced.only("curl", "CLIENT", "/huge.bin");
    assert_eq!(down.response_body(), Some(10_000_000));
    let up = traced.only("curl", "CLIENT", "/sink");
    let server = traced.only("node", "SERVER", "/sink");
    assert_eq!(up.request_body(), Some(node.log()[0].request_body));
    assert_eq!(server.request_body(), up.request_body());
}

/// Python's and Node's own clients, keep-alive: one span per request, equal to what the server
/// they called logged.
#[test]
fn language_clients() {
    require_root!();
    let backend = Server::python("backend");
    for runtime in [Runtime::Python, Runtime::Node] {
        let front = ServerBuilder::new(runtime)
            .service("front")
            .backend(backend.port())
            .start();
        let before = backend.log().len();
        let paths = [
            "/hello",
            "/status/404",
            "/status/204",
            "/chunked/30000",
            "/status/503",
        ];
        let traced = trace(&[front.pid()], || {
            let mut connection = Connection::open(front.port());
            for path in paths {
                connection.get(&format!("/call{path}"));
            }
        });
        let mut spans = traced.of("front", "CLIENT");
        spans.sort_by_key(|span| span.start_ns);
        let seen: Vec<_> = spans
            .iter()
            .map(|span| (span.path().to_owned(), span.http_status()))
            .collect();
        let logged: Vec<_> = backend.log()[before..]
            .iter()
            .map(|line| (line.path.clone(), Some(line.status)))
            .collect();
        assert_eq!(seen, logged, "{runtime:?}");
    }
}

/// CONNECT: the proxy's span and the client's are the handshake; inside the tunnel the proxy sees
/// nothing, and the server behind it sees its request.
#[test]
fn connect_through_a_proxy() {
    require_root!(alone);
    let server = Server::node("node");
    let (proxy, port) = client::connect_proxy("proxy");
    let traced = trace_with(
        |agent| {
            agent
                .pid(proxy.pid())
                .pid(server.pid())
                .args(["--exe", "*/curl"])
        },
        || {
            let through = format!("http://127.0.0.1:{port}");
            let tunnel = ["--proxytunnel", "--noproxy", "", "--proxy", &through];
            let (_, status) = client::curl(&[&tunnel[..], &[&server.url("/hello")]].concat());
            assert_eq!(status, 200);
        },
    );
    let of_proxy = traced.of("proxy", "SERVER");
    assert_eq!(
        (of_proxy.only().method(), of_proxy.only().http_status()),
        ("CONNECT", Some(200))
    );
    assert_eq!(of_proxy.only().name, "CONNECT");
    let of_curl = traced.of("curl", "CLIENT");
    let handshakes: Vec<_> = of_curl
        .iter()
        .filter(|span| span.method() == "CONNECT")
        .collect();
    assert_eq!(handshakes.len(), 1);
    assert_eq!(
        traced.only("node", "SERVER", "/hello").http_status(),
        Some(200)
    );
}

/// A client that is killed while it waits for a server that holds its request: its span has no
/// status, since it never got one.
#[test]
fn client_killed_while_it_waits() {
    require_root!();
    let mut holder = Holder::start();
    let mut client = Steps::connect(&holder.url(), "client");
    let traced = trace(&[client.pid()], || {
        client.start_asking("/held");
        assert!(holder.wait_for_request().contains("/held"));
        client.kill();
    });
    let cut = traced.only("client", "CLIENT", "/held");
    assert_eq!(cut.http_status(), None);
    assert!(
        cut.unobserved().is_some() || cut.status.code == "ERROR",
        "{cut:#?}"
    );
}

/// The server dies while the client waits, and half way through its answer.
#[test]
fn server_dies_on_its_client() {
    require_root!(alone);
    let server = Server::python("python");
    let traced = trace_with(
        |agent| agent.args(["--exe", "*/curl"]),
        || {
            let status = client::curl_command(&[&server.url("/die/100000")]).status();
            assert!(!status.expect("curl starts").success(), "curl notices");
        },
    );
    let span = traced.only("curl", "CLIENT", "/die/100000");
    assert_eq!(span.http_status(), Some(200));
    assert_eq!(span.status.code, "ERROR");
    assert!(span.text("error.type").is_some(), "{span:#?}");
}
