//! `cargo xtask check`: everything that can be said about the code without running it.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{
    build,
    codegen::{self, Mode},
    setup::{self, Purpose},
    steps, tidy,
    toolchain::Toolchain,
};

/// The eBPF programs are compiled for their own target only.
pub(crate) const HOST_PACKAGES: [&str; 3] = ["--workspace", "--exclude", "agent-ebpf"];

/// Every step runs, so that one pass shows all there is to mend.
pub(crate) fn run() -> Result<()> {
    setup::prepare(Purpose::Build)?;
    let mut clippy = steps::cargo();
    clippy
        .args(["clippy", "--quiet", "--all-targets"])
        .args(HOST_PACKAGES);
    clippy.args(["--", "-D", "warnings"]);
    let results = [
        steps::run_timed("format", steps::cargo().args(["fmt", "--all", "--check"])),
        tidy::run(),
        steps::run_timed("lints", &mut clippy),
        ebpf_lints(),
        codegen::run(Mode::Check),
    ];
    let failed: Vec<String> = results
        .into_iter()
        .filter_map(|result| Some(format!("{:#}", result.err()?)))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn ebpf_lints() -> Result<()> {
    let Some(toolchain) = Toolchain::read() else {
        steps::say(
            "xtask",
            "lints of the eBPF programs: skipped, there is no compiler",
        );
        return Ok(());
    };
    steps::run_timed("lints of the eBPF programs", &mut ebpf(&toolchain))
}

/// Clippy for the kernel's target. Outside rustup its driver stands in for the compiler, as
/// cargo's own subcommand does it.
fn ebpf(toolchain: &Toolchain) -> Command {
    const WARNINGS_ARE_ERRORS: &str = "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__";

    let subcommand = if toolchain.rustc.is_some() {
        "check"
    } else {
        "clippy"
    };
    let mut command = toolchain.cargo(subcommand);
    if let Some(driver) = &toolchain.clippy {
        command.env("RUSTC_WORKSPACE_WRAPPER", driver);
    }
    command.env("CLIPPY_ARGS", WARNINGS_ARE_ERRORS);
    command.args(["--quiet", "--package", "agent-ebpf", "--target-dir"]);
    command.arg(build::target_directory().join("ebpf-lints"));
    command.current_dir(steps::workspace());
    command
}
