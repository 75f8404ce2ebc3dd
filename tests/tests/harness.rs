//! The harness itself, judged without the agent: what these show of receiver, workloads and
//! process handling, the other tests rely on. No root needed.

use std::{path::Path, process::Command};

use agent_tests::{
    agent::AgentCommand,
    http::{self, Connection},
    pki::{CLIENT_NAME, Pki},
    process::{crate_file, output},
    python,
    receiver::{ClientCertificates, Receiver, ReceiverOptions},
    span::Spans,
    wait::{wait_for, wait_until},
    workload::{
        LogLine,
        client::{self, IoPaths, Steps, WrkReport},
        nginx::{Nginx, NginxOptions, Sendfile},
        server::{Runtime, Server, ServerBuilder},
    },
};

fn fake_agent() -> AgentCommand {
    let mut command = Command::new(python::packages_interpreter());
    command.arg(crate_file("workloads/fake_agent.py"));
    AgentCommand::of(command)
}

/// The receiver's own unit tests pass.
#[test]
fn receiver_keeps_its_contract() {
    let mut command = Command::new(python::packages_interpreter());
    command
        .args(["-m", "unittest", "discover", "-s"])
        .arg(crate_file("receiver"));
    output(&mut command);
}

/// An agent is started, interrupted, and its spans, exit code and ledger are read.
#[test]
fn agent_is_run_by_its_contract() {
    let receiver = Receiver::start();
    let exit = fake_agent()
        .http_to(&receiver)
        .args(["--spans", "3"])
        .start()
        .stop();
    assert_eq!(exit.ledger().lost_spans(), 3);
    assert_eq!(exit.ledger().counter("spans.exported"), 3);
    let spans = receiver.spans_of("fake", "CLIENT");
    assert_eq!(spans.len(), 3);
    assert_eq!(spans.at("/1").only().name, "GET");
}

/// An agent that ends early is reported with its exit code and words.
#[test]
fn agent_errors_are_read() {
    let exit = fake_agent().args(["--pid", "999999999"]).run();
    exit.expect(2, &["no process 999999999", "ps"]);
    assert!(exit.summary.is_none());
}

/// Each route answers alike on both runtimes, and the log has what was served.
#[test]
fn servers_serve_and_count() {
    for runtime in [Runtime::Python, Runtime::Node] {
        let server = ServerBuilder::new(runtime).start();
        let mut connection = Connection::open(server.port());
        assert_eq!(connection.get("/hello?q=1").text(), "hello\n");
        assert_eq!(connection.get("/bytes/100000").body.len(), 100_000);
        assert_eq!(connection.get("/chunked/40000").body.len(), 40_000);
        for status in [204, 304, 404, 503] {
            assert_eq!(connection.get(&format!("/status/{status}")).status, status);
        }
        assert_eq!(connection.get("/slow/1").text(), "slow\n");
        connection.request("HEAD", "/bytes/10", "");
        assert_eq!(connection.response("HEAD").status, 200);
        connection.request("POST", "/echo", "Transfer-Encoding: chunked\r\n");
        connection.send("3\r\nabc\r\n0\r\nX-Trailer: t\r\n\r\n");
        assert_eq!(connection.response("POST").text(), "abc");

        wait_until("the server's log", || server.log().len() == 10);
        let log = server.log();
        let sizes: Vec<_> = log
            .iter()
            .map(|line| (line.path.as_str(), line.request_body, line.response_body))
            .collect();
        assert_eq!(
            sizes,
            [
                ("/hello", 0, 6),
                ("/bytes/100000", 0, 100_000),
                ("/chunked/40000", 0, 40_000),
                ("/status/204", 0, 0),
                ("/status/304", 0, 0),
                ("/status/404", 0, 7),
                ("/status/503", 0, 7),
                ("/slow/1", 0, 5),
                ("/bytes/10", 0, 0),
                ("/echo", 3, 3),
            ],
            "{runtime:?}"
        );
        assert!(
            log.iter()
                .all(|line| line.port == i64::from(connection.local_port()))
        );
    }
}

/// nginx passes on to Python, which calls Node: every hop logs its part.
#[test]
fn chain_reaches_the_last_server() {
    let node = ServerBuilder::new(Runtime::Node).start();
    let python = ServerBuilder::new(Runtime::Python)
        .backend(node.port())
        .start();
    let nginx = Nginx::in_front_of(python.port());
    assert_eq!(http::get(nginx.port(), "/call/status/404").status, 404);
    // Servers write their logs after they have answered.
    let first = |log: Vec<LogLine>| log.into_iter().next().map(|line| line.path);
    assert_eq!(
        wait_for("nginx's log", || first(nginx.log())),
        "/call/status/404"
    );
    assert_eq!(
        wait_for("Python's log", || first(python.log())),
        "/call/status/404"
    );
    assert_eq!(wait_for("Node's log", || first(node.log())), "/status/404");
}

/// Files, IPv6, unix sockets, both values of sendfile, and no process left behind.
#[test]
fn nginx_serves_and_leaves_nothing() {
    for sendfile in [Sendfile::On, Sendfile::Off] {
        let mut nginx = Nginx::start_with(&NginxOptions {
            sendfile,
            ..NginxOptions::default()
        });
        let (body, status) = client::curl(&[&nginx.url("/large.bin")]);
        assert_eq!((body.len(), status), (1_000_000, 200));
        assert_eq!(client::curl(&[&nginx.url_v6("/status/503")]).1, 503);
        let socket = nginx.unix_path();
        let socket = socket.to_str().expect("ASCII");
        let (body, _) = client::curl(&["--unix-socket", socket, "http://test/hello"]);
        assert_eq!(body, "hello\n");
        wait_until("the access log", || nginx.log().len() == 3);
        assert_eq!(nginx.log()[0].response_body, 1_000_000);

        let first = nginx.workers();
        assert_eq!(first.len(), 2);
        nginx.reload();
        let workers = nginx.workers();
        assert!(workers.iter().all(|worker| !first.contains(worker)));
        nginx.stop();
        for pid in workers {
            assert!(
                !Path::new(&format!("/proc/{pid}")).exists(),
                "worker {pid} outlives nginx"
            );
        }
    }
}

/// wrk's count and nginx's own agree up to what was in flight at the end.
#[test]
fn wrk_counts_what_nginx_logs() {
    let nginx = Nginx::start();
    let report = client::wrk(&nginx.url("/small.txt"), 4, 1);
    assert_eq!((report.refused, report.socket_errors), (0, 0));
    wait_until("the access log", || {
        nginx.log().len() as u64 >= report.requests
    });
    assert!(nginx.log().len() as u64 <= report.requests + 4);
    let report = client::wrk(&nginx.url("/status/503"), 2, 1);
    assert_eq!(report.refused, report.requests);
}

/// wrk's own words for errors are understood.
#[test]
fn wrk_errors_are_read() {
    let report = client::read_wrk(
        "  120 requests in 1.00s, 1.2MB read\n  \
         Socket errors: connect 1, read 2, write 3, timeout 4\n  \
         Non-2xx or 3xx responses: 7\n",
    );
    assert_eq!(
        report,
        WrkReport {
            requests: 120,
            refused: 7,
            socket_errors: 10
        }
    );
}

/// The load client sends exactly what it is told to.
#[test]
fn load_client_is_exact() {
    let server = ServerBuilder::new(Runtime::Node).start();
    let statuses = client::load(&server.url("/status/404"), 103, 4);
    assert_eq!(statuses["404"], 103);
    wait_until("the server's log", || server.log().len() == 103);
}

/// A stepping client keeps its one connection.
#[test]
fn stepping_client_keeps_its_connection() {
    let server = Server::python("py");
    let mut steps = Steps::connect(&server.url(""), "client");
    assert_eq!(steps.ask("/hello"), 200);
    assert_eq!(steps.ask("/status/404"), 404);
    assert!(
        server
            .log()
            .iter()
            .all(|line| line.port == i64::from(steps.port()))
    );
}

/// Every I/O path works, among them the batched calls.
#[test]
fn io_paths_all_answer() {
    let paths = IoPaths::start("io").run();
    assert_eq!(paths.len(), 7);
    assert!(paths.contains(&"/sendmmsg-recvmmsg".to_owned()));
}

/// CONNECT opens a tunnel that carries a request.
#[test]
fn connect_proxy_relays() {
    let server = Server::node("node");
    let (_proxy, port) = client::connect_proxy("proxy");
    let proxy = format!("http://127.0.0.1:{port}");
    let (body, status) = client::curl(&[
        "--proxytunnel",
        "--noproxy",
        "",
        "--proxy",
        &proxy,
        &server.url("/hello"),
    ]);
    assert_eq!((body.as_str(), status), ("hello\n", 200));
}

/// Mutual TLS: the receiver refuses strangers and names the client it took.
#[test]
fn receiver_speaks_tls() {
    let pki = Pki::new();
    let receiver = Receiver::start_with(ReceiverOptions {
        tls: Some(&pki),
        client_certificates: ClientCertificates::Demanded,
        ..ReceiverOptions::default()
    });
    let paths = [
        pki.authority_certificate(),
        pki.client_certificate(),
        pki.client_key(),
    ];
    let [authority, certificate, key] = paths.map(|path| path.to_string_lossy().into_owned());
    let url = format!("{}/v1/traces", receiver.http_endpoint());
    let post = ["--cacert", &authority, "--data", "", &url];
    assert!(
        !client::curl_command(&post)
            .status()
            .expect("curl starts")
            .success()
    );
    let with_client = ["--cert", certificate.as_str(), "--key", &key];
    let (_, status) = client::curl(&[&with_client[..], &post[..]].concat());
    assert_eq!(status, 200);
    let calls = receiver.calls();
    assert_eq!(
        calls.last().expect("the call").client_certificate,
        CLIENT_NAME
    );
}
