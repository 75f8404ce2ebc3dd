//! How streams of HTTP/2 end: each request is one span at each end, its error is the one that was
//! on the wire, and one that only went away is no error of who did nothing wrong.

use agent_tests::{
    process::Process,
    require_root,
    scene::{Traced, trace, trace_with},
    span::Span,
    wait::wait_until,
    workload::{
        ends::{EndsClient, EndsServer},
        nghttp2::{H2load, Load, answered},
        nginx::{Nginx, NginxOptions, Version},
    },
};

/// The client's and the server's span of a request.
#[track_caller]
fn both(traced: &Traced, path: &str) -> [Span; 2] {
    let client = traced.only("client", "CLIENT", path);
    let server = traced.only("server", "SERVER", path);
    assert!(server.is_child_of(&client), "{server:#?} {client:#?}");
    [client, server]
}

fn play(scene: &str, count: usize) -> Traced {
    let server = EndsServer::start("server");
    let client = EndsClient::start("client", server.port(), scene);
    let traced = trace(&[server.pid(), client.pid()], || client.play());
    assert_eq!(traced.spans.len(), 2 * count, "{:#?}", traced.spans);
    assert_eq!(traced.exit.ledger().lost_spans(), 0);
    traced
}

#[track_caller]
fn assert_answered(spans: &[Span]) {
    for span in spans {
        assert_eq!(span.http_status(), Some(200), "{span:#?}");
        assert_eq!(span.text("error.type"), None, "{span:#?}");
        assert_eq!(span.unobserved(), None, "{span:#?}");
    }
}

#[track_caller]
fn assert_failed(span: &Span, errors: &[&str]) {
    let error = span.text("error.type").unwrap_or("none");
    assert!(errors.contains(&error), "{span:#?}");
    assert_eq!(span.status.code, "ERROR", "{span:#?}");
}

/// A client gives one request up, beside others: there was no answer, and nobody is at fault.
#[test]
fn a_request_that_is_cancelled() {
    require_root!();
    let traced = play("cancel", 3);
    for path in ["/hello/1", "/hello/2"] {
        assert_answered(&both(&traced, path));
    }
    let earlier = traced.only("client", "CLIENT", "/hello/1");
    for span in both(&traced, "/silent/1") {
        assert_eq!(span.http_status(), None, "{span:#?}");
        assert_eq!(span.unobserved(), Some("response"), "{span:#?}");
        assert_eq!(span.status.code, "UNSET", "{span:#?}");
        assert!(span.end_ns >= earlier.end_ns, "{span:#?}");
    }
}

/// A server refuses one request and breaks another off behind its head.
#[test]
fn requests_that_are_reset() {
    require_root!();
    let traced = play("reset", 4);
    for path in ["/hello/1", "/hello/2"] {
        assert_answered(&both(&traced, path));
    }
    for span in both(&traced, "/refuse/1") {
        assert_failed(&span, &["refused_stream"]);
        assert_eq!(span.http_status(), None, "{span:#?}");
    }
    for span in both(&traced, "/broken/1") {
        assert_failed(&span, &["internal_error"]);
        assert_eq!(span.http_status(), Some(200), "{span:#?}");
    }
}

/// A server leaves in good order: what it had begun to serve it answers, after its GOAWAY.
#[test]
fn a_server_that_leaves_answers_what_it_has() {
    require_root!();
    let traced = play("leave", 4);
    for path in ["/late/1", "/late/2", "/leave/1", "/now/1"] {
        assert_answered(&both(&traced, path));
    }
    let now = traced.only("server", "SERVER", "/now/1");
    let late = traced.only("server", "SERVER", "/late/1");
    assert!(late.end_ns >= now.start_ns, "{late:#?} {now:#?}");
}

/// A server goes away because of an error: that is what its open requests failed of.
#[test]
fn a_server_that_goes_away_says_why() {
    require_root!();
    let traced = play("calm", 2);
    for path in ["/silent/1", "/calm/1"] {
        for span in both(&traced, path) {
            assert_failed(&span, &["enhance_your_calm"]);
            assert_eq!(span.http_status(), None, "{span:#?}");
        }
    }
}

/// A server dies with requests open: they broke for who made them.
#[test]
fn a_server_that_dies() {
    require_root!();
    let mut server = EndsServer::start("server");
    let mut client = EndsClient::start("client", server.port(), "wait");
    let traced = trace(&[server.pid(), client.pid()], || {
        client.play_until_it_waits();
        server.kill();
        client.go_on();
    });
    assert_eq!(traced.spans.len(), 6, "{:#?}", traced.spans);
    assert_answered(&both(&traced, "/hello/1"));
    for path in ["/silent/1", "/silent/2"] {
        let [called, accepted] = both(&traced, path);
        assert_failed(&called, &["connection_closed", "connection_reset"]);
        for span in [called, accepted] {
            assert_eq!(span.http_status(), None, "{span:#?}");
            let is_whole = span.unobserved().is_none() && span.status.code == "UNSET";
            assert!(!is_whole, "{span:#?}");
        }
    }
}

/// A client dies with requests open: nobody waits for their answers any more.
#[test]
fn a_client_that_dies() {
    require_root!();
    let server = EndsServer::start("server");
    let mut client = EndsClient::start("client", server.port(), "wait");
    let traced = trace(&[server.pid(), client.pid()], || {
        client.play_until_it_waits();
        client.kill();
    });
    assert_eq!(traced.spans.len(), 6, "{:#?}", traced.spans);
    assert_answered(&both(&traced, "/hello/1"));
    for path in ["/silent/1", "/silent/2"] {
        for span in both(&traced, path) {
            assert_eq!(span.http_status(), None, "{span:#?}");
            assert_eq!(span.unobserved(), Some("response"), "{span:#?}");
            assert_eq!(span.status.code, "UNSET", "{span:#?}");
        }
    }
}

/// nginx replaces its workers under load. Its old ones send GOAWAY and answer what they have: each
/// line of its log is a span with that status, and each request that was answered is one at the
/// client's end, too. What the client could not make any more has no answer.
#[test]
fn nginx_reloads_under_load() {
    require_root!(alone);
    let mut nginx = Nginx::start_with(&NginxOptions {
        version: Version::Http2,
        ..NginxOptions::default()
    });
    let h2load = H2load::new();
    let load = Load {
        requests: 4_000,
        connections: 4,
        streams: 20,
        rate: Some(400),
    };
    let mut command = h2load.command(&nginx.url("/small.txt"), load);
    let mut succeeded = 0;
    let master = nginx.pid();
    let traced = trace_with(
        |agent| agent.arg("--exe").arg(h2load.path()).pid(master),
        || {
            let mut running = Process::spawn("h2load", &mut command);
            wait_until("the first answers", || nginx.log().len() >= 400);
            nginx.reload();
            assert!(running.wait().success());
            succeeded = answered(&running.stdout());
        },
    );
    let accepted = traced.of("nginx", "SERVER");
    assert_eq!(accepted.len(), nginx.log().len());
    assert!(succeeded < load.requests, "the reload came in time");
    assert_answered(&accepted);
    let called = traced.of("h2load", "CLIENT");
    let (answered, lost): (Vec<Span>, Vec<Span>) = called
        .into_iter()
        .partition(|span| span.http_status() == Some(200));
    assert_eq!(answered.len() as u64, succeeded);
    assert_answered(&answered);
    for span in &lost {
        let said = span.text("error.type").is_some() || span.unobserved().is_some();
        assert!(said, "{span:#?}");
    }
    for span in &accepted {
        let parents = traced
            .spans
            .iter()
            .filter(|parent| span.is_child_of(parent));
        assert_eq!(parents.count(), 1, "{span:#?}");
    }
}
