//! Calls of Connect and gRPC-Web, in either version of HTTP, and gRPC by the same program: each is
//! a call with its method, and says of its status what stands where it can be read.

use agent_tests::{
    require_root,
    scene::{Traced, trace},
    span::Span,
    workload::connect::{ConnectClient, ConnectServer},
};

const METHODS: [&str; 4] = ["Get", "Miss", "List", "Break"];

fn calls(protocol: &str, version: &str) -> Traced {
    let server = ConnectServer::start("server", version);
    let client = ConnectClient::start("client", server.port(), protocol, version);
    let traced = trace(&[server.pid(), client.pid()], || client.call());
    assert_eq!(traced.spans.len(), 8, "{:#?}", traced.spans);
    traced
}

/// Both ends of the call of this method.
#[track_caller]
fn both(traced: &Traced, system: &str, method: &str) -> [Span; 2] {
    let name = format!("shop.Store/{method}");
    let ends = [("client", "CLIENT"), ("server", "SERVER")].map(|(service, kind)| {
        let mut spans = traced.of(service, kind);
        spans.retain(|span| span.name == name);
        assert_eq!(spans.len(), 1, "{name}: {:#?}", traced.spans);
        spans.remove(0)
    });
    assert!(ends[1].is_child_of(&ends[0]), "{ends:#?}");
    for span in &ends {
        assert_eq!(span.text("rpc.system.name"), Some(system), "{span:#?}");
        assert_eq!(span.text("rpc.method"), Some(&*name), "{span:#?}");
        assert_eq!(span.text("server.address"), Some("127.0.0.1"), "{span:#?}");
        assert_eq!(span.text("http.request.method"), None, "{span:#?}");
    }
    ends
}

/// Messages are counted in frames of HTTP/2 only.
#[track_caller]
fn assert_messages(span: &Span, version: &str, up: i64, down: i64) {
    let counted = [
        "ebpf_agent.rpc.request.messages",
        "ebpf_agent.rpc.response.messages",
    ]
    .map(|key| span.number(key));
    let expected = (version == "2").then_some([up, down]);
    assert_eq!(
        counted,
        expected.map_or([None; 2], |two| two.map(Some)),
        "{span:#?}"
    );
}

/// One message each way has the status of HTTP; of streams it stands in the body.
#[test]
fn connect() {
    require_root!();
    for version in ["1.1", "2"] {
        let traced = calls("connect", version);
        for method in METHODS {
            let [client, server] = both(&traced, "connectrpc", method);
            let statuses = [&client, &server].map(Span::http_status);
            let errors = [&client, &server].map(|span| span.text("error.type"));
            let missing = [&client, &server].map(Span::unobserved);
            if method == "Miss" {
                assert_eq!(statuses, [Some(404); 2], "{client:#?}");
                assert_eq!(errors, [Some("404"), None]);
            } else {
                assert_eq!(statuses, [None; 2], "{client:#?}");
                assert_eq!(errors, [None; 2]);
            }
            // The client resets a stream when it has read the error at its end.
            let allowed: &[Option<&str>] = match method {
                "List" => &[Some("rpc_status")],
                "Break" => &[Some("rpc_status"), Some("response_end")],
                _ => &[None],
            };
            let are_allowed = missing.iter().all(|missing| allowed.contains(missing));
            assert!(are_allowed, "{version}: {client:#?} {server:#?}");
            if method == "List" {
                assert_messages(&client, version, 1, 3);
                assert_messages(&server, version, 1, 3);
            }
        }
    }
}

#[test]
fn grpc_web() {
    require_root!();
    for version in ["1.1", "2"] {
        let traced = calls("grpc-web", version);
        for method in METHODS {
            for span in both(&traced, "grpc", method) {
                assert_eq!(span.text("error.type"), None, "{span:#?}");
                let missing = span.unobserved();
                // As in `connect`: the client resets a stream when it has read the error.
                if (version, method, missing) != ("2", "Break", Some("response_end")) {
                    assert_eq!(missing, Some("rpc_status"), "{span:#?}");
                }
                assert_eq!(span.text("rpc.response.status_code"), None, "{span:#?}");
                if method == "List" {
                    assert_messages(&span, version, 1, 3);
                }
            }
        }
    }
}

/// The same service and program, with the status in trailers.
#[test]
fn grpc() {
    require_root!();
    let traced = calls("grpc", "2");
    let statuses = ["OK", "NOT_FOUND", "OK", "INTERNAL"];
    for (method, status) in METHODS.into_iter().zip(statuses) {
        for span in both(&traced, "grpc", method) {
            assert_eq!(
                span.text("rpc.response.status_code"),
                Some(status),
                "{span:#?}"
            );
            assert_eq!(span.unobserved(), None, "{span:#?}");
        }
    }
}
