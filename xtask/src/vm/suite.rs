//! Inside a guest: the agent on each capture path, the same requests each time, one row a path.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    agent_log::{self, AgentLog},
    exchange,
    guest::MARKER,
    results::{Row, Verdict},
    workload::Workload,
};
use crate::child::{Running, TemporaryDirectory};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The agent to run.
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// The interpreter that runs the server.
    #[arg(long, value_name = "FILE")]
    python: PathBuf,
    /// The server by Go.
    #[arg(long, value_name = "FILE")]
    go: PathBuf,
    /// For every change: neither uprobes on their own, nor fexit where there is something better.
    #[arg(long)]
    quick: bool,
}

/// As `--capture` names them, best first.
pub(super) const PATHS: [&str; 3] = ["tracepoint", FEXIT, "kretprobe"];
const FEXIT: &str = "fexit";

/// What takes a second natively takes up to a minute in a guest, and several where compilers run
/// beside it. After these it hangs.
const READY: Duration = Duration::from_mins(5);
const SPANS: Duration = Duration::from_secs(90);
const END: Duration = Duration::from_mins(3);

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let directory = TemporaryDirectory::create("vm-suite")?;
    let workload = Workload::start(&directory.0, &arguments.python, &arguments.go)?;
    let suite = Suite {
        arguments,
        directory: &directory.0,
        workload: &workload,
    };

    // The agent's own choice first: it says why the better ones cannot be had.
    let (mut chosen, log) = suite.row("auto")?;
    chosen.chosen = true;
    if !arguments.quick {
        chosen.hooks.extend(suite.uprobes()?);
    }
    for (path, reason) in log.rejected() {
        say(&Row::missing(path, reason));
    }
    say(&chosen);
    let tried = |path: &str| path == chosen.path || log.rejected().any(|(name, _)| name == path);
    let left_out = |path: &str| arguments.quick && path == FEXIT;
    let others = |path: &&str| !tried(path) && !left_out(path);
    for path in PATHS.into_iter().filter(others) {
        say(&suite.row(path)?.0);
    }
    Ok(())
}

fn say(row: &Row) {
    println!("{MARKER}{}", row.to_text());
}

struct Suite<'a> {
    arguments: &'a Arguments,
    directory: &'a Path,
    workload: &'a Workload,
}

impl Suite<'_> {
    /// The agent has to be right, or to say that the kernel left hooks out (`hook_skipped`,
    /// `return_missing`) or took nothing into a map. Then it is tried again: in a guest, whose time
    /// passes while it does not run, that is nothing rare.
    fn row(&self, capture: &str) -> Result<(Row, AgentLog)> {
        const TRIES: u32 = 3;
        let mut tried = 1;
        loop {
            let (row, log) = self.try_row(capture)?;
            if tried == TRIES || !row.is_faulty() || !log.has_kernel_losses() {
                return Ok((row, log));
            }
            println!("{capture}: tried again, {}", row.line());
            tried += 1;
        }
    }

    /// Whether this kernel takes the programs that go into traced ones, as `agent check` says it.
    fn uprobes(&self) -> Result<Vec<Verdict>> {
        let output = Command::new(&self.arguments.agent)
            .args(["check", "--quick"])
            .output();
        let page = output.context("cannot run the agent")?.stdout;
        let verdicts = agent_log::uprobes(&String::from_utf8_lossy(&page));
        ensure!(!verdicts.is_empty(), "the agent says nothing of uprobes");
        Ok(verdicts)
    }

    fn try_row(&self, capture: &str) -> Result<(Row, AgentLog)> {
        let ready = self.directory.join(format!("{capture}.ready"));
        let _ = fs::remove_file(&ready);
        let mut command = Command::new(&self.arguments.agent);
        command.args([
            "--all",
            "--exporter",
            "json",
            "--log-level",
            "debug",
            "--capture",
            capture,
        ]);
        command.arg("--ready-file").arg(&ready);
        let mut agent = Running::start(&format!("agent-{capture}"), self.directory, &mut command)?;
        if let Err(error) = agent.wait_until("attached probe", READY, || ready.exists()) {
            let log = AgentLog::new(agent.said());
            let reason = log.failure().unwrap_or_else(|| format!("{error:#}"));
            return Ok((Row::missing(capture, &reason), log));
        }
        let waiting = self.workload.wait_in_receive()?;
        let answered: Result<()> =
            exchange::exchanges().try_for_each(|each| self.workload.ask(each));
        let spans = || {
            exchange::spans(
                &fs::read_to_string(agent_output(self.directory, capture)).unwrap_or_default(),
            )
        };
        let complete = || {
            let spans = spans();
            exchange::exchanges().all(|exchange| exchange.fault(&spans).is_none())
        };
        // When they do not come in time, the row says which are missing.
        let _ = agent.wait_until("expected spans", SPANS, complete);
        agent.stop_within(END)?;
        answered?;
        // Hooks left while a thread was inside the hooked function: it must come back unharmed.
        waiting.finish()?;
        let log = AgentLog::new(agent.said());
        let spans = spans();
        let faults = exchange::exchanges().map(|each| (each.name.to_owned(), each.fault(&spans)));
        Ok((Row::of(&log, faults.collect()), log))
    }
}

fn agent_output(directory: &Path, capture: &str) -> PathBuf {
    directory.join(format!("agent-{capture}.out"))
}
