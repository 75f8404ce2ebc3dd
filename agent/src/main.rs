//! The agent: arguments, settings, run, exit code.
#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_methods,
    reason = "edge: hands the environment to `config`"
)]

use std::{io::Write as _, process::ExitCode};

use agent::{
    check,
    cli::{Action, Cli},
    config::Config,
    failure::Failure,
    launch, pipeline,
};
use clap::Parser as _;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // Nothing can be done when standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<u8, Failure> {
    let flags = cli.flags();
    let check = match cli.action {
        Some(Action::LaunchGate { socket, command }) => {
            return Err(launch::gate(&socket, &command));
        }
        Some(Action::Check { quick, .. }) => Some(!quick),
        None => None,
    };
    let lookup = |name: &str| std::env::var(name).ok();
    let (config, warnings) = Config::gather(&flags, cli.command, &lookup)?;
    config.start_logging();
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if let Some(with_injection) = check {
        let page = check::run(&config, |_| pipeline::probe(with_injection))?;
        let _ = std::io::stdout().write_all(page.text.as_bytes());
        return Ok(page.exit_code);
    }
    check::require(&config)?;
    pipeline::run(config)
}
