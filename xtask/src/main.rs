//! The project's own commands. `cargo xtask --help` lists them.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "commands speak to people"
)]

mod bench;
mod build;
mod check;
mod child;
mod codegen;
mod demo;
mod fidelity;
mod fuzz;
mod golang;
mod record;
mod setup;
mod steps;
mod test;
mod tidy;
mod toolchain;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use codegen::Mode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, checks, tests and shows the agent."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what is missing to build the agent, and with --tests to test it.
    Setup(setup::Arguments),
    /// Checks imports, edges, file lengths and words.
    Tidy,
    /// Writes the tables of docs/ that come from the code.
    Codegen {
        /// Fails on a stale table instead of writing it.
        #[arg(long)]
        check: bool,
    },
    /// Runs format, tidy, lints and codegen --check.
    Check,
    /// Runs check and every test; those on the running kernel need root.
    Test,
    /// Runs the agent in guests with other kernels, or a command in one of them.
    Vm(vm::Arguments),
    /// What runs inside a guest.
    #[command(hide = true)]
    VmGuest(vm::GuestArguments),
    /// Searches for inputs that break a parser or the engine.
    Fuzz(fuzz::Arguments),
    /// Measures what the agent costs nginx and itself.
    Bench(bench::Arguments),
    /// Judges whether the traces of real services in many runtimes are right.
    Fidelity(fidelity::Arguments),
    /// Traces a small shop of unmodified programs and shows its traces.
    Demo(demo::Arguments),
    /// Records a scene of real programs for the replay tests.
    Record(record::Arguments),
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Setup(arguments) => setup::run(arguments),
        Command::Tidy => tidy::run(),
        Command::Codegen { check: true } => codegen::run(Mode::Check),
        Command::Codegen { check: false } => codegen::run(Mode::Write),
        Command::Check => check::run(),
        Command::Test => test::run(),
        Command::Vm(arguments) => vm::run(arguments),
        Command::VmGuest(arguments) => vm::run_in_guest(arguments),
        Command::Fuzz(arguments) => fuzz::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Fidelity(arguments) => fidelity::run(arguments),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Record(arguments) => record::run(arguments),
    }
}
