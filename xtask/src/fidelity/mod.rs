//! `cargo xtask fidelity`: are the traces right?
//!
//! A front in each runtime forwards every request to a back. Each request carries the number of
//! its case in its path all the way, so which spans belong together is known from outside, and
//! every parent that the agent gave can be judged. Spans come over OTLP by a receiver that shares
//! no code with the agent. Everything of a run, the spans too, stays in `target/fidelity/` until
//! the next.

mod judge;
mod load;
mod receiver;
mod report;
mod runtime;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::builder::PossibleValuesParser;
use judge::{Cell, Role, Span, Subject};
use receiver::Receiver;
use report::Results;
pub(crate) use report::{TABLE, table};
use runtime::{BackgroundJob, Place, Programs, RUNTIMES, Runtime, Speaks};
use serde::Deserialize;

use crate::{
    build::{self, Agent},
    child,
    setup::{self, Purpose},
    steps::{Privilege, remove_directory, say},
};

#[derive(clap::Args, Default)]
pub(crate) struct Arguments {
    /// Only these.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(value_parser = PossibleValuesParser::new(RUNTIMES.map(|runtime| runtime.name)))]
    runtimes: Vec<String>,
    /// Clients at a time [default: 1,8,64].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    clients: Vec<u32>,
    /// Requests of each runtime and number of clients [default: 1000].
    #[arg(long, value_name = "COUNT")]
    requests: Option<u32>,
    /// For every change: 8 clients, 200 requests, and no runtime that the tests do without.
    #[arg(long)]
    quick: bool,
    /// Prints the table as docs/fidelity.md has it.
    #[arg(long)]
    markdown: bool,
    /// Writes the results into docs/fidelity.json and docs/fidelity.md.
    #[arg(long, conflicts_with = "quick")]
    update: bool,
    /// An agent to judge instead of building one.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// What `--quick` runs: a thread that proves its calls, nginx's loop, and a loop that must not.
const QUICK: [&str; 3] = ["python_threads", "nginx", "node"];

/// Background calls that must have been seen before a cell ends, so that a short one judges some.
const BACKGROUND_CALLS: usize = 20;

/// For spans after the last answer. The agent holds a span for a second at most; what is not there
/// after this is missing.
const SPANS_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let runtimes = chosen(arguments)?;
    let clients = match &arguments.clients[..] {
        [] if arguments.quick => &[8],
        [] => &[1, 8, 64][..],
        chosen => chosen,
    };
    let requests = arguments
        .requests
        .unwrap_or(if arguments.quick { 200 } else { 1_000 });
    ensure!(
        requests > 0 && !clients.contains(&0),
        "without clients or requests there is nothing to judge"
    );
    ensure!(
        Privilege::detect() != Privilege::Missing,
        "tracing needs root: run `sudo -v` first, or this as root"
    );
    let of_tests = |runtime: &&Runtime| runtime.programs == Programs::OfTests;
    setup::prepare(if runtimes.iter().all(of_tests) {
        Purpose::Test
    } else {
        Purpose::Fidelity
    })?;
    let agent = match &arguments.agent {
        Some(agent) => agent.canonicalize().context("no such agent")?,
        None => build::agent(build::Profile::Release)?,
    };

    let mut results = Results::of(&kernel_version());
    for runtime in runtimes {
        for &clients in clients {
            let what = || format!("{} with {clients} clients", runtime.title);
            let cell = run_cell(runtime, clients, requests, &agent).with_context(what)?;
            say("fidelity", &report::line(runtime, &cell));
            results.insert(runtime, cell);
        }
        results.note_version(runtime, &(runtime.version)()?);
    }
    if arguments.markdown {
        println!("{}", results.table());
    }
    if arguments.update {
        let mut kept = Results::read()?;
        kept.update(&results);
        kept.write()?;
    }
    let failures = results.failures();
    ensure!(
        failures.is_empty(),
        "not as it must be:\n  {}",
        failures.join("\n  ")
    );
    Ok(())
}

/// What `cargo xtask test` asks of every change.
pub(crate) fn run_quick(agent: &Path) -> Result<()> {
    run(&Arguments {
        quick: true,
        agent: Some(agent.to_owned()),
        ..Arguments::default()
    })
}

/// The numbers only: what follows them names a build.
fn kernel_version() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    release.chars().take_while(|&c| is_number(c)).collect()
}

fn chosen(arguments: &Arguments) -> Result<Vec<&'static Runtime>> {
    let named = arguments.runtimes.iter().map(|name| Runtime::named(name));
    match (arguments.runtimes.is_empty(), arguments.quick) {
        (false, _) => named.collect(),
        (true, true) => QUICK.iter().map(|name| Runtime::named(name)).collect(),
        (true, false) => Ok(RUNTIMES.iter().collect()),
    }
}

/// Fresh services, a fresh receiver and a fresh agent for each cell, so that none explains another.
fn run_cell(runtime: &Runtime, clients: u32, requests: u32, agent: &Path) -> Result<Cell> {
    let directory = build::target_directory().join(format!("fidelity/{}-{clients}", runtime.name));
    remove_directory(&directory)?;
    fs::create_dir_all(&directory)?;
    let [port, back_port] = child::free_ports()?;
    let mut receiver = Receiver::start(&setup::python()?, &directory)?;
    let back = runtime.start_back(&directory, back_port)?;
    let place = Place {
        directory: &directory,
        port,
        back_port,
    };
    let front = runtime.start(&place)?;

    let (front_pid, back_pid) = (front.pid().to_string(), back.pid().to_string());
    let selection = [
        "--pid",
        &front_pid,
        "--pid",
        &back_pid,
        "--exporter",
        "otlp",
    ];
    let endpoint = receiver.endpoint();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
    ];
    let mut agent = Agent::start(
        agent,
        &directory,
        &selection.map(str::to_owned),
        &environment,
    )?;
    runtime.connect_anew(&back)?;
    let answered = match runtime.speaks {
        Speaks::Http1 | Speaks::Https => load::run(port, clients, requests),
        Speaks::Grpc => load::run_grpc(port, clients, requests),
    };
    let answered = answered.with_context(|| format!("the front said: {}", front.said()))?;
    // What is missing after the deadline is for the judge.
    receiver.wait_until(SPANS_DEADLINE, |spans| {
        is_complete(spans, requests, runtime.background)
    });
    agent.process.stop()?;

    let (mut cell, faults) = judge::judge(clients, &answered, &receiver.spans()?);
    cell.lost = lost(&agent.summary)?;
    for fault in faults.iter().take(5) {
        say("fidelity", &format!("WRONG: {fault}"));
    }
    fs::write(directory.join("faults"), faults.join("\n"))?;
    Ok(cell)
}

/// Whether there are as many spans as there must be.
fn is_complete(spans: &[Span], requests: u32, background: BackgroundJob) -> bool {
    let count =
        |is_counted: fn(&Span) -> bool| spans.iter().filter(|span| is_counted(span)).count();
    let cases = count(|span| matches!(span.subject, Subject::Case(_)));
    let calls = count(|span| {
        matches!(span.subject, Subject::Background(_)) && span.role == Role::FrontClient
    });
    let enough_calls = background == BackgroundJob::Absent || calls >= BACKGROUND_CALLS;
    cases >= 3 * requests as usize && enough_calls
}

/// What the agent wrote of itself when it ended.
#[derive(Deserialize)]
struct Summary {
    losses: Vec<Loss>,
    kernel_losses: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Loss {
    reason: String,
    count: u64,
}

/// Losses by reason; nothing where there were none.
fn lost(summary: &Path) -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(summary).context("the agent wrote no ledger")?;
    let summary: Summary = serde_json::from_str(&text).context("the agent's ledger is damaged")?;
    let mut lost = summary.kernel_losses;
    for loss in summary.losses {
        *lost.entry(loss.reason).or_default() += loss.count;
    }
    lost.retain(|_, count| *count > 0);
    Ok(lost)
}
