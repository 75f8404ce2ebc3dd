//! Who did it: the resource of the traced process, and which processes a selection takes in.

use std::{path::Path, process::Command};

use agent_tests::{
    agent::AgentCommand,
    http,
    port::free_port,
    process::output,
    receiver::Receiver,
    require_root,
    scene::{trace, trace_with},
    span::{Span, Spans},
    workload::{
        client::{self, IoPaths},
        nginx::{Nginx, NginxOptions},
        server::{Runtime, Server, ServerBuilder, script_command},
    },
};

fn resource<'a>(span: &'a Span, key: &str) -> &'a str {
    span.resource
        .get(key)
        .and_then(|value| value.as_str())
        .unwrap_or("")
}

/// `OTEL_SERVICE_NAME` names the service and wins; `OTEL_RESOURCE_ATTRIBUTES` adds to it, percent
/// decoded; two processes in one run keep apart.
#[test]
fn environment_of_the_target_names_it() {
    require_root!();
    let attributes = "service.name=loser,service.namespace=shop%20floor,service.version=1.2";
    let first = ServerBuilder::new(Runtime::Python)
        .service("first")
        .env("OTEL_RESOURCE_ATTRIBUTES", attributes)
        .start();
    let second = ServerBuilder::new(Runtime::Node)
        .env("OTEL_RESOURCE_ATTRIBUTES", "service.name=second")
        .start();
    let traced = trace(&[first.pid(), second.pid()], || {
        http::get(first.port(), "/hello");
        http::get(second.port(), "/hello");
    });
    let span = traced.only("first", "SERVER", "/hello");
    assert_eq!(resource(&span, "service.namespace"), "shop floor");
    assert_eq!(resource(&span, "service.version"), "1.2");
    assert_eq!(resource(&span, "telemetry.sdk.language"), "python");
    assert_eq!(resource(&span, "telemetry.distro.name"), "ebpf-agent");
    assert_eq!(span.resource["process.pid"], first.pid());
    assert!(!span.resource_schema_url.is_empty() || !span.scope.schema_url.is_empty());
    assert!(!span.scope.name.is_empty());
    let span = traced.only("second", "SERVER", "/hello");
    assert_eq!(resource(&span, "telemetry.sdk.language"), "nodejs");
    assert!(!span.resource.contains_key("receiver.duplicate_keys"));
}

/// Without those variables the script names an interpreted program (or its directory, where the
/// script's own name is as common as `server`), and the executable any other.
#[test]
fn names_without_environment() {
    require_root!();
    let io = IoPaths::start("");
    let python = ServerBuilder::new(Runtime::Python).start();
    let nginx = Nginx::start();
    let pids = [io.pid(), python.pid(), nginx.pid()];
    let traced = trace(&pids, || {
        io.run();
        http::get(python.port(), "/hello");
        http::get(nginx.port(), "/hello");
    });
    assert!(!traced.of("io_paths", "CLIENT").is_empty());
    assert_eq!(traced.of("workloads", "SERVER").len(), 1);
    assert_eq!(traced.of("nginx", "SERVER").len(), 1);
}

/// nginx overwrites its environment block to set its title: the name given there at its start
/// still counts when the agent saw the start.
#[test]
fn environment_read_before_it_is_overwritten() {
    require_root!(alone);
    let mut kept = None;
    let traced = trace_with(
        |agent| agent.args(["--exe", "*/nginx"]),
        || {
            let service = Some("front-door".to_owned());
            let nginx = Nginx::start_with(&NginxOptions {
                service,
                ..NginxOptions::default()
            });
            http::get(nginx.port(), "/status/404");
            kept = Some(nginx);
        },
    );
    assert_eq!(traced.of("front-door", "SERVER").at("/status/404").len(), 1);
    // The other request is the harness's own, to see that nginx serves.
    assert_eq!(traced.spans.len(), 2);
}

/// `--port` takes the processes that listen there, before or after the agent began, and no other.
#[test]
fn selection_by_port() {
    require_root!();
    let inside = Server::node("inside");
    let outside = Server::node("outside");
    let later = free_port();
    let ports = format!("{},{later}", inside.port());
    let mut kept = None;
    let traced = trace_with(
        |agent| agent.args(["--port", &ports]),
        || {
            let port = later.to_string();
            let late = ServerBuilder::new(Runtime::Python)
                .service("late")
                .option("--port", &port)
                .start();
            for server in [&inside, &outside, &late] {
                http::get(server.port(), "/hello");
            }
            kept = Some(late);
        },
    );
    assert_eq!(traced.of("inside", "SERVER").len(), 1);
    assert_eq!(traced.of("late", "SERVER").len(), 1);
    assert_eq!(traced.of("outside", "SERVER").len(), 0);
}

/// `--exe` takes processes that start after the agent.
#[test]
fn selection_by_executable() {
    require_root!(alone);
    let python = Server::python("python");
    let mut kept = None;
    let traced = trace_with(
        |agent| agent.args(["--exe", "*/node"]),
        || {
            let late = Server::node("late");
            http::get(late.port(), "/hello");
            http::get(python.port(), "/hello");
            kept = Some(late);
        },
    );
    assert_eq!(traced.of("late", "SERVER").len(), 1);
    assert_eq!(traced.of("python", "SERVER").len(), 0);
}

/// A program may be the one that `--exe` names until that is decided. One that is not is left
/// alone, and so is what it forked in the meantime, which runs on without an exec of its own.
#[test]
fn children_of_programs_not_chosen_are_left_alone() {
    const ASK: &str = "(sleep 1; exec 3<>/dev/tcp/127.0.0.1/$1
        printf 'GET /hello HTTP/1.0\\r\\n\\r\\n' >&3; read -u 3 -r version status _; echo $status) &";

    require_root!();
    let server = Server::python("python");
    let traced = trace_with(
        |agent| agent.args(["--exe", "/nobody/has/this"]),
        || {
            for _ in 0..5 {
                let mut shell = Command::new("bash");
                shell.args(["-c", ASK, "bash", &server.port().to_string()]);
                assert_eq!(output(&mut shell), "200\n");
            }
        },
    );
    assert_eq!(traced.spans.len(), 0, "{:#?}", traced.spans);
}

/// `--pid` takes the descendants, forked before the agent began and after, and nobody else.
#[test]
fn selection_by_pid_takes_descendants() {
    require_root!();
    let forked = ServerBuilder::new(Runtime::Python)
        .service("forked")
        .option("--workers", "3")
        .start();
    let outside = Server::python("outside");
    let mut nginx = Nginx::start();
    let traced = trace(&[forked.pid(), nginx.pid()], || {
        client::load(&forked.url("/hello"), 60, 12);
        http::get(outside.port(), "/hello");
        // New workers replace the old ones: they are forked after the agent began.
        nginx.reload();
        http::get(nginx.port(), "/status/404");
    });
    assert_eq!(traced.of("forked", "SERVER").len(), 60);
    assert_eq!(
        traced.only("nginx", "SERVER", "/status/404").http_status(),
        Some(404)
    );
    assert_eq!(traced.of("outside", "SERVER").len(), 0);
}

/// `--all` takes everything but the agent itself, whose own export is HTTP as well.
#[test]
fn selection_of_all_leaves_the_agent_out() {
    require_root!(alone);
    let receiver = Receiver::start();
    let server = Server::python("python");
    let agent = AgentCommand::new().arg("--all").http_to(&receiver).start();
    client::load(&server.url("/hello"), 50, 2);
    receiver.wait_for_spans(100);
    agent.stop();
    assert_eq!(receiver.spans_of("python", "SERVER").len(), 50);
    for span in receiver.spans() {
        assert_ne!(span.service, "agent", "{span:#?}");
        assert_ne!(
            resource(&span, "process.executable.name"),
            "agent",
            "{span:#?}"
        );
    }
}

/// `-- COMMAND`: it runs with its arguments and streams, is traced with its children, and its exit
/// code is the agent's.
#[test]
fn command_is_run_and_traced() {
    require_root!();
    let receiver = Receiver::start();
    let server = Server::node("node");
    let script = format!(
        "curl -s {} && echo done >&2 && exit 7",
        server.url("/status/404")
    );
    let exit = AgentCommand::new()
        .http_to(&receiver)
        .args(["--", "sh", "-c", &script])
        .run();
    assert_eq!(exit.code(), Some(7), "{}", exit.stderr);
    assert_eq!(exit.stdout, "status\n");
    assert!(exit.stderr.contains("done"));
    let spans = receiver.spans_of("curl", "CLIENT");
    assert_eq!(spans.only().http_status(), Some(404));
    assert_eq!(receiver.span_count(), 1, "the server was not selected");
}

/// A command that serves is told to end when the agent is, and its spans are there.
#[test]
fn command_ends_with_the_agent() {
    require_root!();
    let receiver = Receiver::start();
    let port = free_port();
    let command = script_command(Runtime::Node);
    let mut agent = AgentCommand::new()
        .http_to(&receiver)
        .arg("--")
        .arg(command.get_program());
    agent = agent
        .args(command.get_args())
        .args(["--port", &port.to_string()]);
    let mut agent = agent.env("OTEL_SERVICE_NAME", "served").start();
    let line = agent.process().json_line(0);
    assert_eq!(line["port"], port);
    http::get(port, "/hello");
    agent.interrupt();
    let pid = line["pid"].as_u64().expect("the server names its pid");
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "the command outlives the agent"
    );
    assert_eq!(receiver.spans_of("served", "SERVER").len(), 1);
}

/// What cannot be run is said, with the codes that shells use.
#[test]
fn command_that_cannot_run() {
    require_root!();
    let none = AgentCommand::new()
        .args(["--exporter", "none", "--"])
        .arg("/no/such/command")
        .run();
    none.expect(127, &["/no/such/command", "not found"]);
    // Every system has it, and it is not executable.
    let file = AgentCommand::new()
        .args(["--exporter", "none", "--"])
        .arg("/etc/passwd")
        .run();
    file.expect(126, &["/etc/passwd"]);
}

/// Under sudo the command runs as the user who called it, not as root.
#[test]
fn command_runs_as_the_invoking_user() {
    require_root!();
    let exit = AgentCommand::new()
        .env("SUDO_UID", "65534")
        .env("SUDO_GID", "65534")
        .args(["--exporter", "none", "--", "id", "-u"])
        .run();
    assert_eq!(
        (exit.code(), exit.stdout.trim()),
        (Some(0), "65534"),
        "{}",
        exit.stderr
    );
    let as_root = AgentCommand::new()
        .args(["--exporter", "none", "--", "id", "-u"])
        .run();
    assert_eq!(as_root.stdout, String::from_utf8_lossy(&own_id()));
}

fn own_id() -> Vec<u8> {
    Command::new("id")
        .arg("-u")
        .output()
        .expect("id is everywhere")
        .stdout
}
