//! Inside TLS where the library is part of the program: OpenSSL in one without symbols, and rustls.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use agent_tests::{
    agent::AgentCommand,
    pki::Pki,
    process::{Process, crate_file, output},
    receiver::Receiver,
    require_root,
    scene::{Traced, trace_with},
    temp::TempDir,
    wait::wait_until,
    workload::{
        grpc::example,
        tls::{Twin, all_said, text},
    },
};

/// `workloads/linked.c`, linked with a static OpenSSL and without symbols.
struct Linked {
    directory: TempDir,
}

impl Linked {
    fn build() -> Self {
        let directory = TempDir::new("linked");
        let mut compiler = Command::new("cc");
        compiler
            .args(["-O2", "-s", "-o"])
            .arg(directory.join("linked"));
        compiler.arg(crate_file("workloads/linked.c"));
        output(compiler.args(["-l:libssl.a", "-l:libcrypto.a"]));
        Self { directory }
    }

    fn command(&self, service: &str) -> Command {
        let mut command = Command::new(self.directory.join("linked"));
        command.env("OTEL_SERVICE_NAME", service);
        command.env_remove("OTEL_RESOURCE_ATTRIBUTES");
        command
    }

    fn server(&self, twin: Twin, pki: &Pki) -> (Process, u16) {
        let mut command = self.command("server");
        command.arg("server");
        match twin {
            Twin::Plain => command.args(["-", "-"]),
            Twin::Tls => command.arg(pki.server_certificate()).arg(pki.server_key()),
        };
        let mut process = Process::spawn("linked", &mut command);
        let port = process.announced_port();
        (process, port)
    }

    /// Asks for each path on one connection.
    fn ask(&self, twin: Twin, pki: &Pki, port: u16, paths: &[&str]) {
        let authority = pki.authority_certificate();
        let authority = match twin {
            Twin::Plain => "-",
            Twin::Tls => text(&authority),
        };
        let mut command = self.command("client");
        let port = port.to_string();
        command.args(["client", authority, &port]).args(paths);
        output(&mut command);
    }
}

/// A client and a server with a stripped OpenSSL in them, by `SSL_read` and `SSL_write` and by
/// their newer variants: what they say is what they say in plain text, and both ends are joined.
#[test]
fn a_stripped_program_says_what_it_says_in_plain_text() {
    const PATHS: [&str; 3] = ["/bytes/1", "/bytes/40000?x=1", "/bytes/0"];

    require_root!(alone);
    let pki = Pki::new();
    let linked = Linked::build();
    let [plain, tls]: [Traced; 2] = [Twin::Plain, Twin::Tls].map(|twin| {
        let (server, port) = linked.server(twin, &pki);
        trace_with(
            |agent| agent.pid(server.pid()).args(["--exe", "*/linked"]),
            || linked.ask(twin, &pki, port, &PATHS),
        )
    });
    for kind in ["SERVER", "CLIENT"] {
        let (plain, tls) = (all_said(&plain, kind), all_said(&tls, kind));
        assert_eq!(plain.len(), PATHS.len(), "{kind}: {plain:#?}");
        assert_eq!(tls, plain, "{kind}");
    }
    for server in tls.of("server", "SERVER") {
        assert_eq!(server.text("url.scheme"), Some("https"), "{server:#?}");
        assert_eq!(server.evidence(), Some("local_wire"), "{server:#?}");
        assert!(tls.parent(&server).is_some(), "{server:#?}");
    }
}

/// A stripped program whose sessions carry no protocol of ours: whether its functions are what they
/// were taken for is not known, so they are let go of, which is said; what comes later is silent.
#[test]
fn what_is_found_without_symbols_must_be_understood() {
    const SESSIONS: usize = 16;

    require_root!();
    let pki = Pki::new();
    let linked = Linked::build();
    let (server, port) = linked.server(Twin::Tls, &pki);
    let receiver = Receiver::start();
    let agent = AgentCommand::new().grpc_to(&receiver).pid(server.pid());
    let agent = agent.start();
    for _ in 0..SESSIONS {
        say_something_else(port);
    }
    wait_until("the probes' end", || {
        agent.stderr().contains("TLS library not followed any more")
    });
    linked.ask(Twin::Tls, &pki, port, &["/bytes/1"]);
    agent.stop();
    let spans = receiver.spans();
    assert_eq!(spans.len(), 0, "{spans:#?}");
}

/// A session that carries what looks like MQTT, and is ended without an answer.
fn say_something_else(port: u16) {
    let mut client = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl starts");
    let mut input = client.stdin.take().expect("its input is piped");
    input
        .write_all(b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0")
        .expect("it reads");
    drop(input);
    assert!(client.wait().expect("it ends").success());
}

/// `workloads/rustls`: its server, and its clients on one connection.
fn rustls_hop(program: &Path, service: &str) -> Command {
    let mut command = Command::new(program);
    command.env("OTEL_SERVICE_NAME", service);
    command.env_remove("OTEL_RESOURCE_ATTRIBUTES");
    command
}

fn rustls_server(program: &Path, twin: Twin, pki: &Pki) -> (Process, u16) {
    let mut command = rustls_hop(program, "server");
    command.arg("server");
    match twin {
        Twin::Plain => command.args(["-", "-"]),
        Twin::Tls => command.arg(pki.server_certificate()).arg(pki.server_key()),
    };
    let mut process = Process::spawn("rustls_hop", &mut command);
    let port = process.announced_port();
    (process, port)
}

/// Servers and clients of hyper on rustls, by HTTP/1 and HTTP/2, and one on a blocking stream: what
/// they say is what they say in plain text, and both ends are joined.
#[test]
fn rustls_says_what_is_said_in_plain_text() {
    // A frame of HTTP/2 that fills more than one record is not followed to its end.
    const CLIENTS: [(&str, [usize; 4]); 3] = [
        ("http1", [1, 40_000, 0, 300]),
        ("http2", [1, 9_000, 0, 300]),
        ("blocking", [1, 40_000, 0, 300]),
    ];

    require_root!(alone);
    let pki = Pki::new();
    let authority = pki.authority_certificate();
    let program = example("rustls_hop");
    for (client, sizes) in CLIENTS {
        let [plain, tls]: [Traced; 2] = [Twin::Plain, Twin::Tls].map(|twin| {
            let (server, port) = rustls_server(&program, twin, &pki);
            let authority = match twin {
                Twin::Plain => "-",
                Twin::Tls => text(&authority),
            };
            trace_with(
                |agent| agent.pid(server.pid()).args(["--exe", "*/rustls_hop"]),
                || {
                    let urls = sizes.map(|size| twin.url(port, &format!("/bytes/{size}")));
                    let mut command = rustls_hop(&program, "client");
                    output(command.args([client, authority]).args(urls));
                },
            )
        });
        for kind in ["SERVER", "CLIENT"] {
            let (plain, tls) = (all_said(&plain, kind), all_said(&tls, kind));
            assert_eq!(plain.len(), sizes.len(), "{client} {kind}: {plain:#?}");
            assert_eq!(tls, plain, "{client} {kind}");
        }
        for server in tls.of("server", "SERVER") {
            assert_eq!(server.text("url.scheme"), Some("https"), "{server:#?}");
            assert_eq!(server.evidence(), Some("local_wire"), "{server:#?}");
            assert!(tls.parent(&server).is_some(), "{server:#?}");
        }
    }
}

/// A program on rustls without symbols, which are in a file of their own (`objcopy
/// --only-keep-debug`) where its build id says: it is captured by them, and neither by another
/// program's under its build id, nor by its own under another's.
#[test]
fn symbols_may_be_in_a_file_of_their_own() {
    const NOTE: &str = ".note.gnu.build-id";

    require_root!();
    let pki = Pki::new();
    let directory = TempDir::new("symbols");
    let [program, own, others, place] =
        ["server", "own", "others", "place"].map(|name| directory.join(name));
    let objcopy = |arguments: &[&str]| output(Command::new("objcopy").args(arguments));
    for (name, symbols) in [("rustls_hop", &own), ("grpc_store", &others)] {
        let example = example(name);
        objcopy(&["--only-keep-debug", text(&example), text(symbols)]);
        let note = format!("{NOTE}={}.id", text(symbols));
        objcopy(&["--dump-section", &note, text(&example), "/dev/null"]);
    }
    // Each with the other's build id.
    for (symbols, id) in [(&own, &others), (&others, &own)] {
        let note = format!("{NOTE}={}.id", text(id));
        let exchanged = format!("{}.exchanged", text(symbols));
        objcopy(&["--update-section", &note, text(symbols), &exchanged]);
    }
    let mut strip = Command::new("strip");
    output(strip.arg("-o").arg(&program).arg(example("rustls_hop")));
    let notes = output(Command::new("readelf").arg("--notes").arg(&program));
    let id = notes.split_once("Build ID: ").expect("linkers write it").1;
    let (first, rest) = id.lines().next().expect("hexadecimal").split_at(2);
    let below = place.join(".build-id").join(first);
    fs::create_dir_all(&below).expect("a directory");

    let (server, port) = rustls_server(&program, Twin::Tls, &pki);
    for (symbols, is_captured) in [
        ("own", true),
        ("own.exchanged", false),
        ("others.exchanged", false),
    ] {
        fs::copy(directory.join(symbols), below.join(format!("{rest}.debug"))).expect("a copy");
        let told = |agent: AgentCommand| {
            let agent = agent.env("EBPF_AGENT_DEBUG_FILE_DIRECTORY", &place);
            agent.pid(server.pid())
        };
        let traced = trace_with(told, || {
            let mut command = rustls_hop(&program, "client");
            command.arg("http1").arg(pki.authority_certificate());
            command.arg(Twin::Tls.url(port, "/bytes/7"));
            output(&mut command);
        });
        let servers = traced.of("server", "SERVER");
        let expected = usize::from(is_captured);
        assert_eq!(servers.len(), expected, "{symbols}: {servers:#?}");
        let checked = told(AgentCommand::check().arg("--quick")).run();
        let says_so = checked.stdout.contains("those in its debug file");
        assert_eq!(says_so, is_captured, "{symbols}: {}", checked.stdout);
    }
}
