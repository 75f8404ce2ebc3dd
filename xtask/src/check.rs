//! `cargo xtask check`: everything that can be said about the code without running it.

use std::process::Command;

use anyhow::Result;

use crate::{
    build,
    codegen::{self, Mode},
    setup, steps, tidy,
    toolchain::Toolchain,
};

/// The eBPF programs are compiled for their own target only.
pub(crate) const HOST_PACKAGES: [&str; 3] = ["--workspace", "--exclude", "agent-ebpf"];

pub(crate) fn run() -> Result<()> {
    setup::run(&setup::Arguments { tests: false })?;
    steps::run_timed("format", steps::cargo().args(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    let mut clippy = steps::cargo();
    clippy
        .args(["clippy", "--quiet", "--all-targets"])
        .args(HOST_PACKAGES);
    steps::run_timed("lints", clippy.args(["--", "-D", "warnings"]))?;
    match Toolchain::read() {
        Some(toolchain) => steps::run_timed("lints of the eBPF programs", &mut ebpf(&toolchain))?,
        None => steps::say(
            "xtask",
            "lints of the eBPF programs: skipped, there is no compiler",
        ),
    }
    codegen::run(Mode::Check)
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
