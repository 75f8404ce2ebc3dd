//! Long runs in short: connections and processes come and go by the thousand, and the agent stays
//! as it was. `EBPF_AGENT_SOAK_FACTOR` multiplies the numbers.

use std::{collections::BTreeMap, process::Command, thread};

use agent_tests::{
    agent::AgentCommand,
    long::factor,
    process::{output, own_memory_kib},
    receiver::{Keep, Receiver, ReceiverOptions},
    require_root,
    span::Span,
    workload::{
        client,
        mix::{self, Connections},
        nginx::{Nginx, NginxOptions},
    },
};

/// Connections of one request each.
const SHORT_CONNECTIONS: u64 = 20_000;

/// Processes that ask once and end.
const PROCESSES: u64 = 500;

/// Processes that do nothing and end.
const IDLE_PROCESSES: u64 = 4_000;

/// What the agent's own memory may grow by after the first quarter of a run, in KiB: on a busy
/// machine the tables fill further before they are emptied. 200,000 connections grew it by 4,300,
/// so that what would be kept of each of 15,000 shows from 0.7 KiB on, and in longer runs sooner.
const GROWTH_KIB: u64 = 10 * 1024;

/// What is remembered of a process for a minute after its end, in KiB: some 0.7.
const PROCESS_KIB: u64 = 1;

/// Spans that wait for the receiver, at most: a queue of the usual size takes longer to fill than
/// these runs last, and looks like a leak until then.
const QUEUE: (&str, &str) = ("OTEL_BSP_MAX_QUEUE_SIZE", "2048");
const BATCH: (&str, &str) = ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512");

fn counting_receiver() -> Receiver {
    Receiver::start_with(ReceiverOptions {
        keep: Keep::Counts,
        ..ReceiverOptions::default()
    })
}

fn assert_flat(before_kib: u64, after_kib: u64, remembered_kib: u64) {
    assert!(
        after_kib <= before_kib + GROWTH_KIB + remembered_kib,
        "own memory went from {before_kib} to {after_kib} KiB"
    );
}

/// 20,000 connections of one request each: every request is a span or counted, none is wrong, and
/// memory is flat from the first quarter on.
#[test]
fn short_connections() {
    require_root!();
    ask_and_watch(Connections::Short, AgentCommand::grpc_to);
}

/// The same on four connections: parsers and streams that live long keep nothing of what is over.
#[test]
fn kept_connections() {
    require_root!();
    ask_and_watch(Connections::Kept, AgentCommand::http_to);
}

fn ask_and_watch(
    connections: Connections,
    export_to: impl Fn(AgentCommand, &Receiver) -> AgentCommand,
) {
    let total = SHORT_CONNECTIONS * factor();
    let receiver = counting_receiver();
    let nginx = Nginx::start();
    let agent = export_to(AgentCommand::new().pid(nginx.pid()), &receiver)
        .env(QUEUE.0, QUEUE.1)
        .env(BATCH.0, BATCH.1)
        .start();
    mix::ask(&nginx, total / 4, connections);
    let before = own_memory_kib(agent.pid());
    mix::ask(&nginx, total - total / 4, connections);
    let after = own_memory_kib(agent.pid());
    let exit = agent.stop();
    let ledger = exit.ledger();
    let arrived = mix::assert_right(&receiver.counts(), "nginx");
    assert!(
        arrived <= total && arrived + ledger.accounted_spans() >= total,
        "{arrived} of {total}: {ledger:?}"
    );
    assert_flat(before, after, 0);
}

/// 500 processes that live for one request each: each request is one client span and, its child,
/// one server span.
#[test]
fn processes_of_one_request() {
    require_root!(alone);
    let total = PROCESSES * factor();
    let receiver = Receiver::start();
    let nginx = Nginx::start_with(&NginxOptions {
        service: Some("soaked".to_owned()),
        ..NginxOptions::default()
    });
    let agent = AgentCommand::new()
        .args(["--exe", "*/curl", "--exe", "*/nginx"])
        .grpc_to(&receiver)
        .start();
    ask_by_processes(&nginx, 0, total / 4);
    let before = own_memory_kib(agent.pid());
    ask_by_processes(&nginx, total / 4, total);
    let after = own_memory_kib(agent.pid());
    let exit = agent.stop();

    // Others may run the same programs.
    let port = i64::from(nginx.port());
    let mut clients = receiver.spans_of("curl", "CLIENT");
    clients.retain(|span| span.number("server.port") == Some(port));
    let (clients, servers) = (
        by_query(&clients),
        by_query(&receiver.spans_of("soaked", "SERVER")),
    );
    let expected: Vec<String> = (0..total).map(|number| format!("n={number}")).collect();
    let missing = expected
        .iter()
        .filter(|query| !clients.contains_key(*query));
    let missing = missing.count() as u64;
    let cut = clients.values().filter(|span| span.unobserved().is_some());
    let missing = missing + cut.count() as u64;
    assert!(
        missing <= exit.ledger().accounted_spans(),
        "{missing} of {total}: {:?}",
        exit.ledger()
    );
    for (query, client) in &clients {
        assert!(expected.contains(query), "never asked for: {client:#?}");
        let status = client.http_status().or(client.unobserved().map(|_| 404));
        assert_eq!(status, Some(404), "{client:#?}");
        if let Some(server) = servers.get(query) {
            assert!(server.is_child_of(client), "{client:#?}\n{server:#?}");
        }
    }
    assert_flat(before, after, total * PROCESS_KIB);
}

/// Each request by a curl of its own, some at a time.
fn ask_by_processes(nginx: &Nginx, from: u64, to: u64) {
    const TOGETHER: u64 = 4;
    thread::scope(|scope| {
        for first in 0..TOGETHER {
            scope.spawn(move || {
                for number in (from + first..to).step_by(TOGETHER as usize) {
                    let url = nginx.url(&format!("/status/404?n={number}"));
                    assert_eq!(client::curl(&[&url]).1, 404);
                }
            });
        }
    });
}

/// Spans by their query; panics when two have the same.
fn by_query(spans: &[Span]) -> BTreeMap<String, Span> {
    let mut found = BTreeMap::new();
    for span in spans {
        let query = span.text("url.query").or_else(|| {
            let (_, query) = span.text("url.full")?.split_once('?')?;
            Some(query)
        });
        // nginx is asked once without, when it starts.
        let Some(query) = query else { continue };
        let before = found.insert(query.to_owned(), span.clone());
        assert!(before.is_none(), "two spans of one request: {span:#?}");
    }
    found
}

/// Thousands of traced programs start and end, and none of them speaks: what is remembered of them
/// for a while is small.
#[test]
fn processes_that_say_nothing() {
    require_root!(alone);
    let agent = AgentCommand::new()
        .args(["--exe", "*/true", "--exporter", "none"])
        .start();
    let total = IDLE_PROCESSES * factor();
    start_and_end(total / 4);
    let before = own_memory_kib(agent.pid());
    start_and_end(total - total / 4);
    let after = own_memory_kib(agent.pid());
    agent.stop();
    assert_flat(before, after, total * PROCESS_KIB);
}

fn start_and_end(processes: u64) {
    let script = "i=0; while [ $i -lt \"$1\" ]; do /bin/true; i=$((i + 1)); done";
    output(Command::new("sh").args(["-c", script, "sh", &processes.to_string()]));
}
