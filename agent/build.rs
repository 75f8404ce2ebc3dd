//! Compiles `agent-ebpf` for the kernel and leaves the object in `OUT_DIR/agent-ebpf`, from where
//! the agent embeds it.
//!
//! - `AGENT_EBPF_OBJECT=FILE`: that object is embedded, nothing is compiled.
//! - `AGENT_EBPF_SKIP=1`: an empty object is embedded; the pure code and its tests build with
//!   stable Rust alone.
//! - else with the compiler that `cargo xtask setup` chose.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a build script reads its environment and files, and speaks to cargo's user"
)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use toolchain::{TARGET, Toolchain};

#[path = "../xtask/src/toolchain.rs"]
#[expect(dead_code, reason = "shared with xtask, which also writes the choice")]
mod toolchain;

/// The name of the package, of its binary and of the file that is embedded.
const PROGRAM: &str = "agent-ebpf";

/// What the object is made from, relative to the workspace.
const SOURCES: [&str; 4] = ["agent-ebpf", "agent-common", "Cargo.toml", "Cargo.lock"];

/// Said by cargo as the whole error when no compiler was chosen yet.
const NO_TOOLCHAIN: &str = "no compiler for the eBPF programs yet: run `cargo xtask setup`";

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<()> {
    for variable in [
        "AGENT_EBPF_OBJECT",
        "AGENT_EBPF_SKIP",
        "XDG_CACHE_HOME",
        "HOME",
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let object = path_from("OUT_DIR")?.join(PROGRAM);
    if let Some(ready) = env::var_os("AGENT_EBPF_OBJECT").filter(|path| !path.is_empty()) {
        let ready = Path::new(&ready);
        println!("cargo::rerun-if-changed={}", ready.display());
        return copy(ready, &object);
    }
    if env::var_os("AGENT_EBPF_SKIP").is_some_and(|skip| skip == "1") {
        return fs::write(&object, []).context("cannot write the empty eBPF object");
    }
    if let Some(choice) = toolchain::choice_file() {
        println!("cargo::rerun-if-changed={}", choice.display());
    }
    let Some(toolchain) = Toolchain::read() else {
        println!("cargo::error={NO_TOOLCHAIN}");
        return Ok(());
    };
    compile(&toolchain, &object)
}

/// Runs cargo for the kernel's target in a target directory of its own, because the outer cargo
/// holds the lock of this one.
fn compile(toolchain: &Toolchain, object: &Path) -> Result<()> {
    let workspace = path_from("CARGO_MANIFEST_DIR")?.join("..");
    for source in SOURCES {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    let target_directory = path_from("OUT_DIR")?.join("ebpf-target");
    let mut cargo = toolchain.cargo("build");
    cargo.args([
        "--quiet",
        "--package",
        PROGRAM,
        "--bin",
        PROGRAM,
        "--target-dir",
    ]);
    cargo.arg(&target_directory).current_dir(&workspace);
    if env::var_os("CARGO_FEATURE_DEBUG").is_some() {
        cargo.args(["--features", "debug"]);
    }
    let status = cargo
        .status()
        .with_context(|| format!("cannot run {cargo:?}"))?;
    ensure!(
        status.success(),
        "the eBPF programs do not compile (with {})",
        toolchain.description
    );
    copy(
        &target_directory.join(TARGET).join("release").join(PROGRAM),
        object,
    )
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = fs::copy(from, to).map(drop);
    copied.with_context(|| format!("cannot embed {}", from.display()))
}

fn path_from(variable: &str) -> Result<PathBuf> {
    let value = env::var_os(variable).with_context(|| format!("cargo did not set {variable}"))?;
    Ok(PathBuf::from(value))
}
