//! Inside TLS in runtimes whose TLS is a library of the system: Ruby, Java with Tomcat's native
//! library; and git, which has curl with `GnuTLS`.

use std::{fs, process::Command};

use agent_tests::{
    pki::Pki,
    process::{Process, crate_file},
    require_root,
    scene::{Traced, trace_with},
    span::Spans,
    temp::TempDir,
    workload::tls::{Twin, all_said, curl_tls},
};

/// A server that is told its certificate and key, or "-" twice.
fn start(command: &mut Command, twin: Twin, pki: &Pki) -> (Process, u16) {
    command.env("OTEL_SERVICE_NAME", "server");
    command.env_remove("OTEL_RESOURCE_ATTRIBUTES");
    match twin {
        Twin::Plain => command.args(["-", "-"]),
        Twin::Tls => command.arg(pki.server_certificate()).arg(pki.server_key()),
    };
    let mut process = Process::spawn("server", command);
    let port = process.announced_port();
    (process, port)
}

/// Three requests of curl to this server on one connection, in both twins.
fn twins(server: impl Fn() -> Command) -> [Traced; 2] {
    let pki = Pki::new();
    [Twin::Plain, Twin::Tls].map(|twin| {
        let (server, port) = start(&mut server(), twin, &pki);
        trace_with(
            |agent| agent.pid(server.pid()).args(["--exe", "*/curl"]),
            || {
                let urls = SIZES.map(|size| twin.url(port, &format!("/bytes/{size}")));
                let mut arguments = vec!["--http1.1"];
                for url in &urls {
                    arguments.extend(["--output", "/dev/null", url]);
                }
                curl_tls(&pki, &arguments);
            },
        )
    })
}

const SIZES: [usize; 3] = [1, 40_000, 300];

/// What the server and curl say is the same in both twins, and their ends are joined.
fn expect_alike([plain, tls]: &[Traced; 2]) {
    for kind in ["SERVER", "CLIENT"] {
        let (plain, tls) = (all_said(plain, kind), all_said(tls, kind));
        assert_eq!(plain.len(), SIZES.len(), "{kind}: {plain:#?}");
        assert_eq!(tls, plain, "{kind}");
    }
    for server in tls.of("server", "SERVER") {
        assert_eq!(server.text("url.scheme"), Some("https"), "{server:#?}");
        assert_eq!(server.evidence(), Some("local_wire"), "{server:#?}");
    }
}

/// Ruby's own server and its OpenSSL.
#[test]
fn ruby() {
    require_root!(alone);
    expect_alike(&twins(|| {
        let mut command = Command::new("ruby");
        command.arg(crate_file("workloads/server.rb"));
        command
    }));
}

/// Tomcat's archives, those of Debian's package, as a class path.
fn tomcat() -> String {
    let entries = fs::read_dir("/usr/share/java").expect("Tomcat is installed");
    let archives = entries.flatten().filter_map(|entry| {
        let path = entry.path().to_str()?.to_owned();
        path.contains("/tomcat9-").then_some(path)
    });
    archives.collect::<Vec<String>>().join(":")
}

/// Tomcat, whose native library is given encrypted bytes by Java and hands them on to OpenSSL. One
/// thread may receive the first request and another one read it, so that only the answer proves
/// which connection it is.
#[test]
fn java_with_a_native_library() {
    require_root!(alone);
    let directory = TempDir::new("tomcat");
    expect_alike(&twins(|| {
        let mut command = Command::new("java");
        command.arg("-cp").arg(tomcat());
        command.arg("-Djava.library.path=/usr/lib/x86_64-linux-gnu");
        command.arg(crate_file("workloads/TomcatServer.java"));
        command.arg(directory.path());
        command
    }));
}

/// git asks by curl with `GnuTLS`: its call is seen and joined, whatever it makes of the answer.
#[test]
fn git() {
    require_root!(alone);
    let pki = Pki::new();
    let mut ruby = Command::new("ruby");
    ruby.arg(crate_file("workloads/server.rb"));
    let (server, port) = start(&mut ruby, Twin::Tls, &pki);
    let traced = trace_with(
        |agent| {
            agent
                .pid(server.pid())
                .args(["--exe", "*/git-remote-http*"])
        },
        || {
            let mut git = Command::new("git");
            git.env_remove("OTEL_SERVICE_NAME");
            git.env("GIT_SSL_CAINFO", pki.authority_certificate());
            git.args(["ls-remote", &Twin::Tls.url(port, "/7")]);
            // It is no repository, which git says by its status.
            git.output().expect("git runs");
        },
    );
    let servers = traced.of("server", "SERVER");
    let servers = servers.at("/7/info/refs");
    let server = servers.only();
    assert_eq!(server.evidence(), Some("local_wire"), "{server:#?}");
    let client = traced.parent(server).expect("git was traced");
    assert_eq!(client.kind, "CLIENT", "{client:#?}");
    assert_eq!(client.number("network.peer.port"), Some(i64::from(port)));
}
