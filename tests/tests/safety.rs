//! No harm: what the traced programs and the kernel notice of the agent's life and death.

use std::{collections::BTreeSet, fs, process::Command};

use agent_tests::{
    agent::{Agent, AgentCommand},
    http,
    process::{Process, output},
    receiver::Receiver,
    require_root,
    wait::wait_until,
    workload::{client, nginx::Nginx, server::Server},
};
use serde_json::Value;

/// Ids of the eBPF programs that this process holds, by program or by link.
fn programs_of(pid: u32) -> BTreeSet<u64> {
    let directory = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the agent is running");
    directory
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .filter_map(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
        })
        .collect()
}

/// Ids of every program loaded in this kernel.
fn programs_loaded() -> BTreeSet<u64> {
    let list = output(Command::new("bpftool").args(["--json", "prog", "list"]));
    let list: Vec<Value> = serde_json::from_str(&list).expect("bpftool's own JSON");
    list.iter()
        .filter_map(|program| program["id"].as_u64())
        .collect()
}

/// Panics unless every one of these programs leaves the kernel, which frees them with a delay.
fn assert_gone(programs: &BTreeSet<u64>) {
    assert!(!programs.is_empty(), "the agent held no program at all");
    wait_until("the agent's programs to go", || {
        programs_loaded().is_disjoint(programs)
    });
}

fn serves_itself(agent: &Agent) -> BTreeSet<u64> {
    let programs = programs_of(agent.pid());
    assert!(programs.is_subset(&programs_loaded()));
    programs
}

/// SIGKILL in the middle of load: not one error for the clients, and no program left.
#[test]
fn killed_under_load() {
    require_root!();
    let receiver = Receiver::start();
    let nginx = Nginx::start();
    let agent = AgentCommand::new()
        .pid(nginx.pid())
        .grpc_to(&receiver)
        .start();
    let programs = serves_itself(&agent);

    let mut wrk = Process::spawn(
        "wrk",
        &mut client::wrk_command(&nginx.url("/small.txt"), 16, 3),
    );
    receiver.wait_for_spans(1_000);
    assert!(wrk.exited().is_none(), "the load outlasts the agent");
    agent.kill();
    assert_gone(&programs);
    assert!(wrk.wait().success());
    let report = client::read_wrk(&wrk.stdout());
    assert_eq!((report.refused, report.socket_errors), (0, 0));
    assert_eq!(http::get(nginx.port(), "/hello").status, 200);
}

/// SIGINT in the middle of load: everything made so far is flushed, the end is clean and soon, and
/// no program is left.
#[test]
fn interrupted_under_load() {
    require_root!();
    let receiver = Receiver::start();
    let nginx = Nginx::start();
    let agent = AgentCommand::new()
        .pid(nginx.pid())
        .grpc_to(&receiver)
        .start();
    let programs = serves_itself(&agent);
    let mut wrk = Process::spawn(
        "wrk",
        &mut client::wrk_command(&nginx.url("/small.txt"), 16, 3),
    );
    receiver.wait_for_spans(1_000);
    let exit = agent.stop();
    assert_gone(&programs);
    let ledger = exit.ledger();
    assert_eq!(ledger.counter("spans.exported"), receiver.span_count());
    assert_eq!(
        ledger.counter("spans.created"),
        receiver.span_count() + ledger.lost_spans(),
        "{ledger:?}"
    );
    assert!(wrk.wait().success());
    assert_eq!(client::read_wrk(&wrk.stdout()).socket_errors, 0);
}

/// A collector that never answers does not keep the agent alive: the flush is bounded, and what
/// was not delivered is counted.
#[test]
fn flush_is_bounded() {
    require_root!();
    let receiver = Receiver::start();
    receiver.fault_with(&serde_json::json!({"kind": "unavailable", "times": 1_000_000}));
    let server = Server::python("python");
    let agent = AgentCommand::new()
        .pid(server.pid())
        .grpc_to(&receiver)
        .start();
    client::load(&server.url("/hello"), 100, 2);
    // `stop` itself waits with a deadline.
    let exit = agent.stop();
    assert_eq!(exit.ledger().lost_spans(), 100, "{:?}", exit.ledger());
    assert_eq!(receiver.span_count(), 0);
}

/// A second interrupt ends an agent that is still flushing at once.
#[test]
fn second_interrupt_aborts_the_flush() {
    require_root!();
    let receiver = Receiver::start();
    receiver.fault_with(&serde_json::json!({"kind": "slow", "times": 1_000, "delay_s": 3600}));
    let server = Server::python("python");
    let mut agent = AgentCommand::new()
        .pid(server.pid())
        .http_to(&receiver)
        .start();
    client::load(&server.url("/hello"), 10, 1);
    agent.process().signal("INT");
    let exit = agent.interrupt();
    assert!(
        exit.code().is_none_or(|code| code != 0) || exit.summary.is_some(),
        "{exit:?}"
    );
}

/// Two agents on one process see the same requests and do not disturb each other.
#[test]
fn two_agents_at_once() {
    require_root!();
    let (first, second) = (Receiver::start(), Receiver::start());
    let server = Server::python("python");
    let one = AgentCommand::new()
        .pid(server.pid())
        .grpc_to(&first)
        .start();
    let two = AgentCommand::new()
        .pid(server.pid())
        .http_to(&second)
        .start();
    client::load(&server.url("/hello"), 200, 4);
    one.stop();
    client::load(&server.url("/hello"), 100, 4);
    two.stop();
    assert_eq!((first.span_count(), second.span_count()), (200, 300));
}

/// An agent that comes, goes and comes again traces the same processes anew.
#[test]
fn agent_comes_again() {
    require_root!();
    let receiver = Receiver::start();
    let nginx = Nginx::start();
    for round in 1..=3 {
        let agent = AgentCommand::new()
            .pid(nginx.pid())
            .grpc_to(&receiver)
            .start();
        let programs = serves_itself(&agent);
        assert_eq!(http::get(nginx.port(), "/hello").status, 200);
        agent.stop();
        assert_gone(&programs);
        assert_eq!(receiver.span_count(), round);
    }
}

/// The bytes of both directions are the same with and without the agent.
#[test]
fn traffic_is_not_changed() {
    require_root!();
    let server = Server::python("python");
    let ask = || {
        let mut connection = http::Connection::open(server.port());
        let body = "b".repeat(100_000);
        connection.request(
            "POST",
            "/echo",
            &format!("Content-Length: {}\r\n", body.len()),
        );
        connection.send(body);
        let mut response = connection.response("POST");
        response.headers.retain(|(name, _)| name != "date");
        response
    };
    let without = ask();
    let agent = AgentCommand::new()
        .pid(server.pid())
        .args(["--exporter", "none"])
        .start();
    let with = ask();
    agent.stop();
    assert_eq!(with, without);
}
