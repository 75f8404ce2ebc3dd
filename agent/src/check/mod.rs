//! `agent check`: what this kernel, these capabilities and these targets allow, and what to do
//! about the rest.
//!
//! [`system`] reads the machine, [`render`] writes the page, [`targets`] looks at the processes.
//! What only loading a program can tell comes from the kernel side as a [`KernelReport`].

pub mod inside;
pub mod render;
pub mod system;
pub mod targets;

use system::System;

use crate::{
    config::Config,
    failure::{EXIT_NOT_PERMITTED, Failure},
    process::watch::ProcFs,
};

/// Which hooks load here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelReport {
    pub hooks: Vec<Hook>,
    /// Name of the hooks that socket calls would be captured with; `None` where none works.
    pub capture: Option<String>,
    /// Kernel fields that BTF lacks, each with the feature that is off without it.
    pub missing_fields: Vec<(String, String)>,
}

/// One hook, or a pair that works together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// As the kernel names it: `sock_send_length, sock_recv_length`.
    pub name: String,
    /// What it is for: `socket data`.
    pub purpose: String,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Works,
    Fails { cause: String },
    NotTried { reason: String },
}

/// A page for standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub text: String,
    /// 0 when tracing would work.
    pub exit_code: u8,
}

/// Refuses what cannot be traced, before anything is loaded: nothing chosen, a process that
/// cannot be, and then what stands in the way on this machine.
pub fn require(config: &Config) -> Result<(), Failure> {
    config.require_targets()?;
    targets::verify(&ProcFs::open()?, &config.selection.pids, std::process::id())?;
    System::read()?.obstacle().map_or(Ok(()), Err)
}

/// Looks at everything. `probe` loads programs, and is asked only when nothing stands in its way.
pub fn run(config: &Config, probe: impl FnOnce(&System) -> KernelReport) -> Result<Page, Failure> {
    let system = System::read()?;
    let obstacle = system.obstacle();
    let kernel = if obstacle.is_none() {
        probe(&system)
    } else {
        KernelReport::default()
    };
    let proc_fs = ProcFs::open()?;
    targets::verify(&proc_fs, &config.selection.pids, std::process::id())?;
    let targets = targets::look_at(&proc_fs, &config.selection)?;

    let no_hook = !kernel.hooks.is_empty()
        && kernel
            .hooks
            .iter()
            .all(|hook| matches!(hook.outcome, Outcome::Fails { .. }));
    let exit_code = if obstacle.is_some() || no_hook {
        EXIT_NOT_PERMITTED
    } else {
        0
    };
    let text = render::page(&system, obstacle.as_ref(), &kernel, &targets);
    Ok(Page { text, exit_code })
}
