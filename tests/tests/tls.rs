//! Inside TLS: spans of what is encrypted are those of what is not, ends are joined, and nothing is
//! lost by probes that come and go.

use std::{fs, process::Command};

use agent_tests::{
    agent::{Agent, AgentCommand},
    go::Build,
    long::factor,
    pki::Pki,
    process::{Process, output},
    receiver::Receiver,
    require_root,
    scene::{Traced, trace, trace_with},
    span::{Span, Spans},
    temp::TempDir,
    wait::wait_until,
    workload::{
        server::Runtime,
        tls::{
            NginxTls, Twin, all_said, asyncio_server, calling, client_command, curl_tls,
            run_client, text,
        },
    },
};
use serde_json::json;

/// Everything curl asks of both twins.
fn ask_in_many_ways(pki: &Pki, twin: Twin, port: u16) {
    let url = |path: &str| twin.url(port, path);
    let body = "b".repeat(3000);
    let asked: [&[&str]; 6] = [
        &[&url("/bytes/100000")],
        &["--data", &body, &url("/echo")],
        &["--head", &url("/bytes/77")],
        &[&url("/status/404")],
        &[&url("/chunked/200")],
        &[
            "--output",
            "/dev/null",
            &url("/bytes/1"),
            "--output",
            "/dev/null",
            &url("/hello?x=1"),
        ],
    ];
    for arguments in asked {
        curl_tls(pki, &[["--http1.1"].as_slice(), arguments].concat());
    }
}

/// Clients and servers of each library say of TLS what they say of plain text, each pair of ends is
/// joined, and both ends name the other.
#[test]
fn spans_are_those_of_plain_text() {
    require_root!(alone);
    let pki = Pki::new();
    for runtime in [Runtime::Python, Runtime::Node, Runtime::Go(Build::Stripped)] {
        let [plain, tls] = [Twin::Plain, Twin::Tls].map(|twin| {
            let server = twin.server(runtime, "server", &pki).start();
            trace_with(
                |agent| agent.pid(server.pid()).args(["--exe", "*/curl"]),
                || ask_in_many_ways(&pki, twin, server.port()),
            )
        });
        for kind in ["SERVER", "CLIENT"] {
            let (plain, tls) = (all_said(&plain, kind), all_said(&tls, kind));
            assert_eq!(plain.len(), 7, "{runtime:?} {kind}: {plain:#?}");
            assert_eq!(tls, plain, "{runtime:?} {kind}");
        }
        for server in tls.of("server", "SERVER") {
            assert_eq!(server.text("url.scheme"), Some("https"), "{server:#?}");
            assert_eq!(server.evidence(), Some("local_wire"), "{server:#?}");
            let client = tls.parent(&server).expect("its client was traced");
            assert_eq!(client.path(), server.path());
            let full = client.text("url.full").expect("a URL");
            assert!(full.starts_with("https://localhost:"), "{full}");
            assert!(server.number("network.peer.port").is_some());
        }
    }
}

/// The root's descendants, one below the other, as service, kind and evidence.
fn chain(traced: &Traced, root: &Span) -> Vec<(String, String, String)> {
    let mut steps = Vec::new();
    let mut parent = root.clone();
    while let Some(child) = traced.spans.iter().find(|span| span.is_child_of(&parent)) {
        let evidence = child.evidence().unwrap_or("none").to_owned();
        steps.push((child.service.clone(), child.kind.clone(), evidence));
        parent = child.clone();
    }
    steps
}

/// curl, nginx, Python and Python again, every hop on TLS: one trace of each request, with a
/// connection that is kept between all of them.
#[test]
fn a_chain_is_one_trace() {
    require_root!();
    let pki = Pki::new();
    let back = Twin::Tls.server(Runtime::Python, "back", &pki).start();
    let front = Twin::Tls.server(Runtime::Python, "front", &pki);
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
        ("front", "CLIENT", "thread"),
        ("back", "SERVER", "local_wire"),
    ]
    .map(|(service, kind, evidence)| (service.into(), kind.into(), evidence.into()));
    for root in roots {
        assert_eq!(root.text("url.scheme"), Some("https"));
        assert_eq!(chain(&traced, &root), expected, "{root:#?}");
    }
}

/// HTTP/2 over TLS goes through the parser of HTTP/2: two requests on one connection.
#[test]
fn http2_over_tls() {
    require_root!(alone);
    let pki = Pki::new();
    let back = Twin::Plain.server(Runtime::Python, "back", &pki).start();
    let nginx = NginxTls::in_front_of(&pki, Twin::Plain, back.port());
    let traced = trace_with(
        |agent| agent.pid(nginx.pid()).args(["--exe", "*/curl"]),
        || {
            let (own, behind) = (
                Twin::Tls.url(nginx.port(), "/own"),
                Twin::Tls.url(nginx.port(), "/bytes/10"),
            );
            let quiet = "/dev/null";
            curl_tls(
                &pki,
                &[
                    "--http2", "--output", quiet, &own, "--output", quiet, &behind,
                ],
            );
        },
    );
    for path in ["/own", "/bytes/10"] {
        let server = traced.only("nginx", "SERVER", path);
        assert_eq!(server.text("network.protocol.version"), Some("2"));
        assert_eq!(server.text("url.scheme"), Some("https"));
        assert_eq!(server.http_status(), Some(200));
        let client = traced.only("curl", "CLIENT", path);
        assert!(server.is_child_of(&client), "{server:#?} {client:#?}");
    }
}

/// Asks for each URL on one connection; the first argument is the authority.
const RUBY: &str = "
    require 'net/http'
    authority, *urls = ARGV
    first = URI(urls.first)
    Net::HTTP.start(first.host, first.port, use_ssl: true, ca_file: authority) do |http|
      urls.each { |url| exit 1 unless http.get(URI(url).request_uri).code == '200' }
    end
";

/// Clients of Python, Ruby and wget, which uses `GnuTLS`, keep or do not keep their connection:
/// each request has its span at both ends, joined.
#[test]
fn clients_of_many_libraries() {
    require_root!(alone);
    let pki = Pki::new();
    let server = Twin::Tls.server(Runtime::Python, "server", &pki).start();
    let urls = |library: &str| -> Vec<String> {
        (1..=3)
            .map(|size| Twin::Tls.url(server.port(), &format!("/bytes/{size}00?{library}")))
            .collect()
    };
    let libraries = ["http.client", "requests", "httpx", "aiohttp"];
    let traced = trace_with(
        |agent| {
            let agent = agent.pid(server.pid()).args(["--exe", "*/python*"]);
            agent.args(["--exe", "*/wget", "--exe", "*/ruby*"])
        },
        || {
            for library in libraries {
                assert_eq!(run_client(library, &pki, &urls(library)), [200, 200, 200]);
            }
            let mut wget = Command::new("wget");
            wget.args(["--quiet", "--output-document", "/dev/null"]);
            wget.arg("--ca-certificate")
                .arg(pki.authority_certificate());
            output(wget.args(urls("wget")).env_remove("OTEL_SERVICE_NAME"));
            let mut ruby = Command::new("ruby");
            ruby.args(["-e", RUBY]).arg(pki.authority_certificate());
            output(ruby.args(urls("ruby")).env_remove("OTEL_SERVICE_NAME"));
        },
    );
    let servers = traced.of("server", "SERVER");
    assert_eq!(servers.len(), 3 * (libraries.len() + 2), "{servers:#?}");
    for span in &servers {
        assert_eq!(span.evidence(), Some("local_wire"), "{span:#?}");
        let client = traced.parent(span).expect("its client was traced");
        let port = Some(i64::from(server.port()));
        assert_eq!(client.number("network.peer.port"), port, "{client:#?}");
    }
}

/// Programs that move the encrypted bytes themselves: their connections are proven, by both ends.
#[test]
fn programs_that_move_the_bytes_themselves() {
    require_root!(alone);
    let pki = Pki::new();
    let back = Twin::Tls.server(Runtime::Node, "back", &pki).start();
    let (front, port) = asyncio_server(&pki, Some(back.port()));
    let traced = trace_with(
        |agent| {
            let agent = agent.pid(front.pid()).pid(back.pid());
            agent.args(["--exe", "*/curl"])
        },
        || {
            for size in 1..=10 {
                let url = Twin::Tls.url(port, &format!("/call/{size}"));
                assert_eq!(curl_tls(&pki, &[&url]).1, 200);
            }
        },
    );
    for (service, count) in [("asyncio", 10), ("back", 10)] {
        let servers = traced.of(service, "SERVER");
        assert_eq!(servers.len(), count, "{servers:#?}");
        for server in servers {
            assert_eq!(server.evidence(), Some("local_wire"), "{server:#?}");
        }
    }
    for call in traced.of("asyncio", "CLIENT") {
        let expected = Some(i64::from(back.port()));
        assert_eq!(call.number("network.peer.port"), expected, "{call:#?}");
        assert!(call.is_root(), "a loop's calls have no parent: {call:#?}");
    }
}

/// A library of its own, in a place of its own, that a program loads long after the agent has
/// looked at it: what goes through it is seen from then on.
#[test]
fn a_library_that_is_loaded_late() {
    require_root!();
    let pki = Pki::new();
    let server = Twin::Tls.server(Runtime::Python, "server", &pki).start();
    let directory = TempDir::new("library");
    let library = fs::canonicalize("/usr/lib/x86_64-linux-gnu/libssl.so.3");
    fs::copy(
        library.expect("OpenSSL is installed"),
        directory.join("libssl.so.3"),
    )
    .expect("a directory of our own");
    let url = |path: &str| Twin::Tls.url(server.port(), path);
    let urls = [url("/bytes/1"), url("/bytes/2"), url("/bytes/3")];
    let mut command = client_command("late", &pki, &urls);
    command.env("LD_LIBRARY_PATH", directory.path());
    let mut client = Process::spawn("client", &mut command);
    client.json_line(0);

    let receiver = Receiver::start();
    let agent = AgentCommand::new()
        .grpc_to(&receiver)
        .pid(client.pid())
        .start();
    client.write_line("load it");
    client.json_line(1);
    let place = text(directory.path()).to_owned();
    wait_until("the library to be probed", || {
        agent.stderr().contains(&place)
    });
    client.write_line("go on");
    assert!(client.wait().success(), "{}", client.stderr());
    agent.stop();
    let spans = receiver.spans();
    for path in ["/bytes/2", "/bytes/3"] {
        let span = spans.of("client", "CLIENT").at(path).only().clone();
        assert_eq!(span.http_status(), Some(200));
    }
}

/// Agents come and go twelve times, four at once, while clients ask: every answer is whole, and no
/// program ends. Every other agent is killed. `EBPF_AGENT_SOAK_FACTOR=9` makes it a hundred times.
#[test]
fn probes_that_come_and_go_break_nothing() {
    const ROUNDS: u64 = 3;
    const AT_ONCE: usize = 4;

    require_root!();
    let pki = Pki::new();
    let back = Twin::Tls.server(Runtime::Node, "back", &pki).start();
    let nginx = NginxTls::in_front_of(&pki, Twin::Tls, back.port());
    let urls = [Twin::Tls.url(nginx.port(), "/bytes/2000")];
    let mut clients: Vec<Process> = (0..2)
        .map(|_| Process::spawn("client", &mut client_command("endless", &pki, &urls)))
        .collect();
    for client in &mut clients {
        client.json_line(0);
    }
    for _ in 0..ROUNDS * factor() {
        let start = |_| {
            let agent = AgentCommand::new().args(["--exporter", "none"]);
            agent.pid(nginx.pid()).pid(back.pid()).spawn()
        };
        let agents: Vec<Agent> = (0..AT_ONCE).map(start).collect();
        for (index, agent) in agents.into_iter().enumerate() {
            wait_until("the probes", || {
                agent.stderr().matches("TLS library probed").count() >= 2
            });
            if index % 2 == 0 {
                agent.kill();
            } else {
                agent.stop();
            }
        }
    }
    for mut client in clients {
        client.close_stdin();
        let counted = client.json_line(1);
        assert!(client.wait().success(), "{}", client.stderr());
        assert!(counted["count"].as_u64() > Some(100), "{counted}");
        assert_eq!(counted["answers"], json!([[200, 2000]]), "{counted}");
    }
}
