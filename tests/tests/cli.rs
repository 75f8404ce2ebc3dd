//! The command line: every refusal has its exit code, its cause and the next step.

use std::{fs, path::Path, process::Command};

use agent_tests::{
    agent::AgentCommand, http, port::free_port, privilege, process::Process, require_root,
    workload::server::Server,
};

/// No selection is bad usage; the five ways to choose are told.
#[test]
fn nothing_selected() {
    let exit = AgentCommand::new().run();
    exit.expect(2, &["--pid", "--port", "--exe", "--all", "-- COMMAND"]);
    assert_eq!(exit.stdout, "");
}

/// Ids that name no process that can be traced.
#[test]
fn pids_that_cannot_be_traced() {
    // Above any pid_max the kernel allows.
    AgentCommand::new()
        .pid(4_194_305)
        .run()
        .expect(2, &["4194305", "--port"]);
    AgentCommand::new()
        .args(["--pid", "12x"])
        .run()
        .expect(2, &["12x"]);
    AgentCommand::new()
        .args(["--pid", "0"])
        .run()
        .expect(2, &["0"]);

    // Where this runs in a pid namespace of its own, kernel threads are not visible.
    let comm = fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if comm.trim() == "kthreadd" {
        AgentCommand::new()
            .pid(2)
            .run()
            .expect(2, &["kernel thread", "kthreadd"]);
    }
}

/// A process that has ended but was not waited for is gone for tracing.
#[test]
fn pid_of_a_zombie() {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        // The child outlives the shell, which would have collected it; tail never does.
        "sh -c 'until grep -q tail /proc/$PPID/comm; do sleep 0.01; done' & \
         echo \"{\\\"pid\\\":$!}\"; exec tail -f /dev/null",
    ]);
    let mut parent = Process::spawn("parent", &mut command);
    let pid = parent.json_line(0)["pid"]
        .as_u64()
        .expect("the parent names its child");
    let stat = format!("/proc/{pid}/stat");
    agent_tests::wait::wait_until("a zombie", || {
        fs::read_to_string(&stat).is_ok_and(|text| text.contains(") Z "))
    });
    let exit = AgentCommand::new()
        .pid(u32::try_from(pid).expect("a pid"))
        .run();
    exit.expect(2, &[&pid.to_string(), "ended"]);
}

/// The agent does not trace itself: the id in a shell's `$$` becomes its own by `exec`.
#[test]
fn pid_of_the_agent_itself() {
    let mut shell = Command::new("sh");
    let binary = agent_tests::agent::binary();
    shell.args(["-c", "exec \"$0\" --pid $$"]).arg(binary);
    let mut process = Process::spawn("agent", &mut shell);
    assert_eq!(process.wait().code(), Some(2));
    assert!(
        process.stderr().contains("this agent"),
        "{}",
        process.stderr()
    );
}

/// Bad values name the value and say what a good one looks like.
#[test]
fn bad_values() {
    let table: &[(&[&str], &[&str])] = &[
        (&["--port", "0"], &["--port", "\"0\"", "65535"]),
        (&["--port", "9000-8000"], &["9000-8000"]),
        (&["--port", "80,http"], &["http"]),
        (&["--port", "70000"], &["70000"]),
        (&["--all", "--inject", "sideways"], &["sideways"]),
        (&["--all", "--exporter", "fax"], &["fax", "otlp"]),
        (&["--all", "--listen", "nowhere"], &["nowhere"]),
        (
            &["--all", "--config", "/no/such/file.yaml"],
            &["/no/such/file.yaml", "--config"],
        ),
        (&["--all", "--no-such-flag"], &["--no-such-flag"]),
    ];
    for (arguments, words) in table {
        AgentCommand::new().args(*arguments).run().expect(2, words);
    }
}

/// The same settings by environment are checked as strictly, and named as what they are.
#[test]
fn bad_values_in_the_environment() {
    let exit = AgentCommand::new().env("EBPF_AGENT_PORT", "9-1").run();
    exit.expect(2, &["EBPF_AGENT_PORT", "9-1"]);
}

/// A configuration file with a typing error names the key and the file.
#[test]
fn unknown_key_in_the_file() {
    let directory = agent_tests::temp::TempDir::new("config");
    let file = directory.join("agent.yaml");
    fs::write(&file, "all: true\nexportr: json\n").expect("a file of our own");
    let exit = AgentCommand::new().arg("--config").arg(&file).run();
    exit.expect(2, &["exportr", "agent.yaml"]);
}

/// Help and version go to standard output and are no error.
#[test]
fn help_and_version() {
    let help = AgentCommand::new().arg("--help").run();
    assert_eq!(help.code(), Some(0));
    for word in [
        "--pid",
        "--port",
        "--exe",
        "--all",
        "--exporter",
        "--ready-file",
        "check",
    ] {
        assert!(
            help.stdout.contains(word),
            "{word} is missing from: {}",
            help.stdout
        );
    }
    let version = AgentCommand::new().arg("--version").run();
    assert_eq!(version.code(), Some(0));
    assert!(
        version.stdout.contains(env!("CARGO_PKG_VERSION")),
        "{}",
        version.stdout
    );
}

/// Without privilege: exit 3, the missing capabilities by name, and how to grant them.
#[test]
fn without_privilege() {
    require_root!();
    let exit = AgentCommand::unprivileged()
        .args(["--all", "--exporter", "none"])
        .run();
    exit.expect(3, &["CAP_BPF", "CAP_PERFMON", "sudo", "setcap"]);
}

/// `check` tells what is possible here, to standard output, for root and for others.
#[test]
fn check_tells_what_is_possible() {
    let exit = AgentCommand::check().run();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel release");
    assert!(exit.stdout.contains(release.trim()), "{}", exit.stdout);
    if privilege::is_root() {
        assert_eq!(exit.code(), Some(0), "{}{}", exit.stdout, exit.stderr);
        let other = AgentCommand::unprivileged().arg("check").run();
        assert!(other.stdout.contains("CAP_BPF"), "{}", other.stdout);
    }
}

/// A collector that is not there is a warning with its address; tracing goes on, the end is clean,
/// and what could not be sent is in the ledger.
#[test]
fn unreachable_collector() {
    require_root!();
    let server = Server::node("node");
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let agent = AgentCommand::new()
        .pid(server.pid())
        .grpc_to_endpoint(&endpoint)
        .start();
    assert_eq!(http::get(server.port(), "/hello").status, 200);
    let exit = agent.stop();
    assert!(exit.stderr.contains(&endpoint), "{}", exit.stderr);
    assert_eq!(exit.ledger().lost_spans(), 1, "{:?}", exit.ledger());
}

/// A ready file that cannot be made is told, since whoever waits for it would wait for ever.
#[test]
fn ready_file_that_cannot_be_made() {
    require_root!();
    let path = Path::new("/no/such/directory/ready");
    let exit = AgentCommand::without_ready_file()
        .args(["--all", "--exporter", "none", "--ready-file"])
        .arg(path)
        .run();
    exit.expect(1, &["/no/such/directory/ready", "--ready-file"]);
}

/// `--listen` answers health, readiness and metrics.
#[test]
fn status_endpoint() {
    require_root!();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let agent = AgentCommand::new()
        .args(["--all", "--exporter", "none", "--listen", &address])
        .start();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(http::get(port, path).status, 200, "{path}");
    }
    agent.stop();
}
