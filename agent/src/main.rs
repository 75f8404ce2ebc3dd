//! The agent: arguments, settings, run, exit code.
#![forbid(unsafe_code)]

use std::{io::Write as _, process::ExitCode};

use agent::{
    check::{self, KernelReport},
    cli::{Action, Cli},
    config::Config,
    failure::Failure,
    launch,
    process::watch::ProcFs,
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
    let mut flags = cli.targets.flags();
    flags.extend(cli.options.flags());
    let is_check = match cli.action {
        Some(Action::LaunchGate { socket, command }) => {
            return Err(launch::gate(&socket, &command));
        }
        Some(Action::Check { targets, config }) => {
            flags = targets.flags();
            flags.extend(config.map(|path| ("config", vec![path])));
            true
        }
        None => false,
    };
    let lookup = |name: &str| std::env::var(name).ok();
    let (config, warnings) = Config::gather(&flags, cli.command, &lookup)?;
    config.start_logging();
    warnings
        .iter()
        .for_each(|warning| tracing::warn!("{warning}"));
    if is_check {
        // Seam: the kernel side gives its probe here, `kernel::features::probe`.
        let page = check::run(&config, |_| KernelReport::default())?;
        let _ = std::io::stdout().write_all(page.text.as_bytes());
        return Ok(page.exit_code);
    }
    config.require_targets()?;
    check::targets::verify(&ProcFs::open()?, &config.selection.pids, std::process::id())?;
    check::system::System::read()?
        .obstacle()
        .map_or(Ok(()), Err)?;
    trace(config)
}

/// Seam: becomes `pipeline::run(config)` when the pipeline is there.
fn trace(_config: Config) -> Result<u8, Failure> {
    Err(Failure::Runtime(anyhow::anyhow!(
        "this build has no pipeline yet"
    )))
}
