//! `cargo xtask vm`: the agent in guests with real distribution kernels.
//!
//! A guest is emulated in software, so it is 10 to 250 times slower than the machine: what it
//! shows is what works there, never how fast.

mod agent_log;
mod exchange;
mod guest;
mod initramfs;
mod kernels;
mod machine;
mod results;
mod suite;
mod workload;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use guest::{FILE_SYSTEMS, Job, MARKER};
use kernels::{Freshness, Image, KERNELS, Kernel};
pub(crate) use machine::share_program;
use machine::{Clock, Machine};
use results::{Results, Row};
pub(crate) use results::{TABLE, table};

use crate::{
    bench, build,
    golang::{self, Packages},
    setup::{self, Purpose},
    steps::{self, capture, say},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these: 5.10, 6.1, 6.12, newest.
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<String>,
    /// Only the oldest and the newest kernel and the main paths, and docs/ stay as they are.
    #[arg(long, conflicts_with = "kernel")]
    quick: bool,
    /// Fetches the kernels again, for those that the archive has now.
    #[arg(long)]
    update: bool,
    /// An agent to run instead of building one.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// A command to run in the guest instead of the suite.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(clap::Args)]
pub(crate) struct GuestArguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand)]
enum Part {
    /// As the first process of a guest.
    Init,
    /// As the command of a guest; works on any machine, as root.
    Suite(suite::Arguments),
    /// As the command of a guest, as root: what an agent costs there.
    Bench(bench::guest::inside::Arguments),
}

/// For a command of a developer, who ends it by Ctrl-C.
const COMMAND_DEADLINE: Duration = Duration::from_hours(24);

/// For the suite: half a minute on an idle machine, three beside compilers, and a minute or two for
/// each time that it has to try a path again.
const SUITE_DEADLINE: Duration = Duration::from_mins(30);

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::ensure_programs()?;
    ensure_visible(arguments.agent.as_deref())?;
    let kernels = chosen(arguments)?;
    let freshness = if arguments.update {
        Freshness::Current
    } else {
        Freshness::Cached
    };
    let images = kernels::images(&kernels, freshness)?;
    let logs = log_directory()?;
    if !arguments.command.is_empty() {
        return run_command(&images, arguments, &logs);
    }
    setup::prepare(Purpose::Test)?;
    let agent = match &arguments.agent {
        Some(agent) => agent.canonicalize().context("no such agent")?,
        None => build_agent()?,
    };
    let mut results = Results::read()?;
    let verdict = run_suites(&images, &agent, &logs, arguments.quick, &mut results);
    if !arguments.quick {
        results.write()?;
    }
    verdict
}

/// The oldest and the newest kernel with an agent that is there, as a part of the tests. Where
/// guests cannot be had, it says why and passes.
pub(crate) fn run_quick(agent: &Path) -> Result<()> {
    let kernels: Vec<&Kernel> = KERNELS.iter().filter(|kernel| kernel.quick).collect();
    let images = machine::ensure_programs()
        .and_then(|()| ensure_visible(Some(agent)))
        .and_then(|()| kernels::images(&kernels, Freshness::Cached));
    let images = match images {
        Ok(images) => images,
        Err(error) => {
            say("vm", &format!("skipped, no guests here: {error:#}"));
            return Ok(());
        }
    };
    let logs = log_directory()?;
    run_suites(&images, agent, &logs, true, &mut Results::default())
}

/// Guests run what is here and what is built here, by its path.
fn ensure_visible(agent: Option<&Path>) -> Result<()> {
    let own = [steps::workspace(), build::target_directory()];
    for path in own.iter().map(PathBuf::as_path).chain(agent) {
        let hidden = FILE_SYSTEMS.iter().find(|(_, own)| path.starts_with(own));
        if let Some((_, own)) = hidden {
            bail!(
                "{} is below {own}, where guests have files of their own: move it elsewhere",
                path.display()
            );
        }
    }
    Ok(())
}

/// Every guest runs, whatever became of the one before. Those that ended are in `results`.
fn run_suites(
    images: &[Image],
    agent: &Path,
    logs: &Path,
    quick: bool,
    results: &mut Results,
) -> Result<()> {
    let job = suite_job(agent, logs, quick)?;
    let mut failures = Vec::new();
    for image in images {
        let started = Instant::now();
        let rows = match run_suite(image, &job, logs) {
            Ok(rows) => rows,
            Err(error) => {
                say("vm", &format!("{:<7} failed: {error:#}", image.name));
                failures.push(format!("{}: {error:#}", image.name));
                continue;
            }
        };
        for row in &rows {
            say("vm", &format!("{:<7} {}", image.name, row.line()));
            failures.extend(
                row.failure(&image.release)
                    .map(|why| format!("{} {why}", image.name)),
            );
        }
        let seconds = started.elapsed().as_secs_f64();
        say(
            "vm",
            &format!("{:<7} {} took {seconds:.0} s", image.name, image.release),
        );
        results.replace(image, rows);
    }
    ensure!(
        failures.is_empty(),
        "not as it must be:\n  {}",
        failures.join("\n  ")
    );
    Ok(())
}

/// Where the serial lines of guests are kept.
fn log_directory() -> Result<PathBuf> {
    let logs = build::target_directory().join("vm");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    Ok(logs)
}

pub(crate) fn run_in_guest(arguments: &GuestArguments) -> Result<()> {
    match &arguments.part {
        Part::Init => guest::run(),
        Part::Suite(arguments) => suite::run(arguments),
        Part::Bench(arguments) => bench::guest::inside::run(arguments),
    }
}

fn chosen(arguments: &Arguments) -> Result<Vec<&'static Kernel>> {
    for name in &arguments.kernel {
        let known = KERNELS.map(|kernel| kernel.name);
        ensure!(
            known.contains(&name.as_str()),
            "{name} is none of {}",
            known.join(", ")
        );
    }
    let one_guest = !arguments.command.is_empty() && arguments.kernel.is_empty();
    ensure!(!one_guest, "a command needs --kernel");
    let wanted = |kernel: &&Kernel| {
        let named =
            arguments.kernel.is_empty() || arguments.kernel.iter().any(|name| name == kernel.name);
        named && (kernel.quick || !arguments.quick)
    };
    Ok(KERNELS.iter().filter(wanted).collect())
}

/// The agent as the tests run it: a release build takes longer than the guests save by it.
fn build_agent() -> Result<PathBuf> {
    let mut cargo = steps::cargo();
    cargo.args(["build", "--quiet", "--package", "agent"]);
    steps::run_timed("building the agent", &mut cargo)?;
    Ok(build::target_directory().join("debug/agent"))
}

fn run_command(images: &[Image], arguments: &Arguments, logs: &Path) -> Result<()> {
    let job = job(arguments.command.clone())?;
    for image in images {
        let machine = Machine {
            image,
            job: &job,
            clock: Clock::Machine,
            logs,
            deadline: COMMAND_DEADLINE,
        };
        let code = machine.run(|line| println!("{line}"))?;
        ensure!(code == 0, "{}: the command ended with {code}", image.name);
    }
    Ok(())
}

/// The suite with this agent, and with what it needs of this machine.
fn suite_job(agent: &Path, logs: &Path, quick: bool) -> Result<Job> {
    let python =
        capture(Command::new("python3").args(["-c", "import sys; print(sys.executable)"]))?;
    let own = env::current_exe().context("the path of this program is not known")?;
    let go = logs.join("go-server");
    let source = steps::workspace().join("tests/workloads/go");
    golang::build(&setup::go()?, &source, &go, Packages::Standard)?;
    let command = [
        own.as_os_str(),
        "vm-guest".as_ref(),
        "suite".as_ref(),
        "--agent".as_ref(),
        agent.as_os_str(),
        "--python".as_ref(),
        python.trim().as_ref(),
        "--go".as_ref(),
        go.as_os_str(),
    ];
    let mut command = command.map(OsString::from).to_vec();
    command.extend(quick.then(|| "--quick".into()));
    job(command)
}

fn run_suite(image: &Image, job: &Job, logs: &Path) -> Result<Vec<Row>> {
    let machine = Machine {
        image,
        job,
        clock: Clock::Machine,
        logs,
        deadline: SUITE_DEADLINE,
    };
    let mut rows = Vec::new();
    let code = machine.run(|line| {
        if let Some(row) = line
            .split_once(MARKER)
            .and_then(|(_, text)| Row::parse(text))
        {
            rows.push(row);
        }
    })?;
    ensure!(
        code == 0 && !rows.is_empty(),
        "the suite ended with {code}; see {}",
        logs.display()
    );
    Ok(rows)
}

/// Runs a command in a guest with this kernel, whose clock counts the instructions of its one
/// processor, and hands on what the command reports (see [`report`]).
pub(crate) fn run_counted(
    kernel: &str,
    command: &[OsString],
    deadline: Duration,
    mut reported: impl FnMut(&str),
) -> Result<String> {
    machine::ensure_programs()?;
    let kernel = KERNELS.iter().find(|known| known.name == kernel);
    let images = kernels::images(&[kernel.context("no such kernel")?], Freshness::Cached)?;
    let image = images.first().context("no kernel came")?;
    let logs = build::target_directory().join("vm-counted");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let machine = Machine {
        image,
        job: &job(command.to_vec())?,
        clock: Clock::Instructions,
        logs: &logs,
        deadline,
    };
    let code = machine.run(|line| {
        if let Some((_, text)) = line.split_once(MARKER) {
            reported(text);
        }
    })?;
    if code != 0 {
        bail!("the command ended with {code}; see {}", logs.display());
    }
    Ok(image.release.clone())
}

/// In a guest: hands a line to whoever started it.
pub(crate) fn report(line: &str) {
    println!("{MARKER}{line}");
}

/// The command with the directory and the variables of this process.
fn job(command: Vec<OsString>) -> Result<Job> {
    let kept = ["PATH", "HOME", "LANG", "XDG_CACHE_HOME"];
    let environment = kept.iter().filter_map(|name| {
        let mut variable = OsString::from(format!("{name}="));
        variable.push(env::var_os(name)?);
        Some(variable)
    });
    Ok(Job {
        directory: env::current_dir()?.into(),
        environment: environment.collect(),
        command,
    })
}
