//! The agent's binary as users get it, and starting it with the rights it needs.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    child::Running,
    steps::{self, Privilege},
};

/// How the agent is built.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Profile {
    /// As users get it: some minutes on two cores.
    Release,
    /// For tests and to look at: less time, and it needs more processor time when it runs.
    Quick,
}

impl Profile {
    /// The name of the profile and of its directory.
    const fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Quick => "quick",
        }
    }
}

/// Builds the agent and returns the path of the binary.
pub(crate) fn agent(profile: Profile) -> Result<PathBuf> {
    let mut cargo = steps::cargo();
    cargo.args([
        "build",
        "--quiet",
        "--package",
        "agent",
        "--profile",
        profile.name(),
    ]);
    steps::run_timed("building the agent", &mut cargo)?;
    Ok(target_directory().join(profile.name()).join("agent"))
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> PathBuf {
    let chosen = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    steps::workspace().join(chosen.unwrap_or_else(|| "target".into()))
}

/// An agent that is attached and traces.
pub(crate) struct Agent {
    pub(crate) process: Running,
    /// Where it writes its ledger when it ends.
    pub(crate) summary: PathBuf,
}

impl Agent {
    /// Starts the agent as root and waits until every probe is attached.
    pub(crate) fn start(
        binary: &Path,
        directory: &Path,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        /// Attaching takes milliseconds; this much only on a very busy machine.
        const READY: Duration = Duration::from_secs(30);

        let (ready, summary) = (directory.join("agent.ready"), directory.join("agent.json"));
        let summary_path = summary.display().to_string();
        let mut all = vec![("EBPF_AGENT_SUMMARY_FILE", summary_path.as_str())];
        all.extend_from_slice(environment);
        let privilege = Privilege::detect();
        let mut command: Command = privilege
            .command(binary, &all)
            .context("tracing needs root: run this as root, or where sudo asks no question")?;
        command.args(arguments).arg("--ready-file").arg(&ready);
        let mut process = Running::start_as(privilege, "agent", directory, &mut command)?;
        process.wait_until("attached probe", READY, || ready.exists())?;
        Ok(Self { process, summary })
    }
}
