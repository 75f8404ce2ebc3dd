//! `cargo xtask bench`: what the agent costs the programs that it traces, and what it costs itself.
//!
//! Runs with and without the agent alternate, so that a machine that gets slower or faster
//! meanwhile weighs on both. Numbers are printed, never asserted; `--update` keeps them in
//! `docs/bench.json` and writes the tables made from them.

mod condition;
mod engine;
pub(crate) mod guest;
mod load;
mod programs;
mod results;
mod rounds;
mod sink;
mod spread;
mod subject;
mod tables;
mod usage;

use std::path::{Path, PathBuf};

use anyhow::Result;
use condition::{Condition, Counting, Parts};
use results::{GuestResult, Machine, Results};
use rounds::Rounds;
use subject::Subject;
pub(crate) use tables::tables;

use crate::{
    build,
    child::TemporaryDirectory,
    setup::{self, Purpose},
    steps::say,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these programs.
    #[arg(long, value_enum, value_delimiter = ',')]
    subject: Vec<Subject>,
    /// Only with these beside them.
    #[arg(long, value_enum, value_delimiter = ',')]
    with: Vec<Condition>,
    /// Pairs of runs for each, one without and one with.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Connections that the load generator keeps open.
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// The agent's engine alone, over a recording of nginx and over those of the tests.
    #[arg(long, conflicts_with_all = ["guest", "subject", "with"])]
    engine: bool,
    /// In a guest whose clock counts instructions, so that figures repeat. With --agent any agent
    /// that needs no arguments and exports OTLP as http/protobuf to 127.0.0.1:4318; nginx listens
    /// on port 8080 there.
    #[arg(long, conflicts_with_all = ["subject", "with"])]
    guest: bool,
    /// Keeps the results in docs/bench.json and writes the tables made from them.
    #[arg(long)]
    update: bool,
    /// An agent to measure instead of building one.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::prepare(Purpose::Bench)?;
    let binary = match &arguments.agent {
        Some(binary) => binary.clone(),
        None => build::agent(build::Profile::Release)?,
    };
    let mut results = Results::default();
    if arguments.guest {
        let (kernel, figures) = guest::run(&binary, arguments.seconds)?;
        results.guest = Some(GuestResult { kernel, figures });
    } else {
        results.machine = Some(Machine::this()?);
        let directory = TemporaryDirectory::create("bench")?;
        if arguments.engine {
            results.engine = engine::run(&binary, &directory.0)?;
        } else {
            subjects(arguments, &binary, &directory.0, &mut results)?;
        }
    }
    if arguments.update {
        // Read only now: another bench may have written meanwhile.
        let mut kept = Results::read()?;
        kept.take(results);
        kept.write()?;
        tables::write()?;
        say(
            "bench",
            "docs/bench.json, docs/bench.md and the README have these results",
        );
    }
    Ok(())
}

fn subjects(
    arguments: &Arguments,
    agent: &Path,
    directory: &Path,
    results: &mut Results,
) -> Result<()> {
    let subjects = or_all(&arguments.subject, &Subject::ALL);
    let conditions = or_all(&arguments.with, &Condition::ALL);
    let counting = conditions.contains(&Condition::Counting);
    let parts = Parts {
        agent,
        counting: counting.then(Counting::build).transpose()?,
        directory,
    };
    for subject in subjects {
        let served = subject.start(directory, arguments.connections)?;
        let measured: Vec<_> = conditions
            .iter()
            .copied()
            .filter(|condition| subject.is_measured_with(*condition))
            .collect();
        let rounds = Rounds {
            served: &served,
            parts: &parts,
            conditions: &measured,
            pairs: arguments.pairs,
            seconds: arguments.seconds,
        };
        let result = rounds.run()?;
        say(
            "bench",
            &format!("{}\n{}", subject.name(), tables::of_subject(&result)),
        );
        results.subjects.push(result);
    }
    Ok(())
}

fn or_all<'a, T>(chosen: &'a [T], all: &'a [T]) -> &'a [T] {
    if chosen.is_empty() { all } else { chosen }
}
