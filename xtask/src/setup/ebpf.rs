//! Which compiler builds the eBPF programs: the first way that works on this machine.
//!
//! What is needed is `core` for the kernel's target, ready-made or as source of exactly the
//! compiler's version, and a `bpf-linker` whose LLVM is at least as new as the compiler's.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Cache, debian, linker, say};
use crate::{
    steps::{self, capture},
    toolchain::{self, Toolchain},
};

/// The workspace's `rust-version`: aya-ebpf 0.2 and the agent's syntax need it.
const OLDEST_RUSTC: (u32, u32) = (1, 95);

/// Used when no way works.
const WAYS: &str = "no compiler for the eBPF programs can be set up here; any of these helps:
  - rustup toolchain install nightly --component rust-src
  - rustup component add rust-src
  - a Debian or Ubuntu release whose `rustc-web` is 1.95 or newer (apt must reach its mirror)
  - AGENT_EBPF_OBJECT=FILE with an object built elsewhere";

/// Leaves a choice that `agent/build.rs` can use.
pub(super) fn ensure_toolchain(cache: &Cache) -> Result<()> {
    if let Some(object) = env::var_os("AGENT_EBPF_OBJECT").filter(|object| !object.is_empty()) {
        say(&format!(
            "eBPF programs are taken from {}",
            object.display()
        ));
        return Ok(());
    }
    let wanted = env::var("AGENT_EBPF_TOOLCHAIN")
        .ok()
        .filter(|name| !name.is_empty());
    if let Some(toolchain) = Toolchain::read()
        && (wanted.is_none() || toolchain.rustup == wanted)
        && works(&toolchain)
    {
        say(&format!(
            "eBPF compiler is ready: {}",
            toolchain.description
        ));
        return Ok(());
    }
    let toolchain = choose(cache, wanted.as_deref())?;
    write_choice(&toolchain)?;
    say(&format!("eBPF compiler: {}", toolchain.description));
    Ok(())
}

fn choose(cache: &Cache, wanted: Option<&str>) -> Result<Toolchain> {
    if let Some(name) = wanted {
        return from_rustup(cache, name)?
            .with_context(|| format!("AGENT_EBPF_TOOLCHAIN={name} has no rust-src of its own"));
    }
    if let Some(toolchain) = from_rustup(cache, "nightly")? {
        return Ok(toolchain);
    }
    if steps::find_program("apt-get").is_some() {
        match debian::install(cache) {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => say(&format!("Debian's compiler is no way here: {error:#}")),
        }
    }
    match from_current(cache)? {
        Some(toolchain) => Ok(toolchain),
        None => bail!(WAYS),
    }
}

/// A rustup toolchain that has the source of its `core`.
fn from_rustup(cache: &Cache, name: &str) -> Result<Option<Toolchain>> {
    let rustc = || {
        let mut rustc = Command::new("rustup");
        // Asking must not install the toolchain.
        rustc
            .env("RUSTUP_AUTO_INSTALL", "0")
            .args(["run", name, "rustc"]);
        rustc
    };
    let Some(compiler) = Compiler::ask(rustc)? else {
        return Ok(None);
    };
    let linker = linker::ensure(cache, &compiler)?;
    Ok(Some(Toolchain {
        description: format!(
            "{} with rust-src (rustup toolchain {name})",
            compiler.version
        ),
        rustup: Some(name.to_owned()),
        linker,
        build_core: true,
        ..Toolchain::default()
    }))
}

/// The toolchain that builds the rest, if it has the source of its `core`.
fn from_current(cache: &Cache) -> Result<Option<Toolchain>> {
    let Some(compiler) = Compiler::ask(|| Command::new("rustc"))? else {
        return Ok(None);
    };
    let linker = linker::ensure(cache, &compiler)?;
    Ok(Some(Toolchain {
        description: format!("{} with rust-src (the current toolchain)", compiler.version),
        linker,
        build_core: true,
        ..Toolchain::default()
    }))
}

/// A compiler with the source of `core`, and the LLVM it brings.
pub(super) struct Compiler {
    /// As it names itself: `rustc 1.95.0 (...)`.
    pub(super) version: String,
    /// Major version of its LLVM.
    pub(super) llvm: String,
    /// Where its shared libraries are.
    pub(super) libraries: PathBuf,
    /// rustup manages it, with the tools its user put beside it.
    pub(super) from_rustup: bool,
}

impl Compiler {
    /// Nothing when it does not run, is too old or has no source of `core`.
    fn ask(rustc: impl Fn() -> Command) -> Result<Option<Self>> {
        let Ok(text) = capture(rustc().arg("-vV")) else {
            return Ok(None);
        };
        let sysroot = PathBuf::from(capture(rustc().args(["--print", "sysroot"]))?.trim());
        let version = text.lines().next().unwrap_or_default().to_owned();
        let llvm = text
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "));
        let llvm = llvm.with_context(|| format!("{version} does not name its LLVM"))?;
        let core = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
        if !core.exists() || !new_enough(&version) {
            return Ok(None);
        }
        let llvm = llvm.split('.').next().unwrap_or_default().to_owned();
        Ok(Some(Self {
            version,
            llvm,
            libraries: sysroot.join("lib"),
            from_rustup: true,
        }))
    }
}

/// Whether the version in `text` ("rustc 1.96.0 ..." or "1.96.0+dfsg1-1") suffices.
pub(super) fn new_enough(text: &str) -> bool {
    let number = text.trim_start_matches("rustc ");
    let mut parts = number.split(|character: char| !character.is_ascii_digit());
    let mut next = || parts.next().and_then(|part| part.parse::<u32>().ok());
    matches!((next(), next()), (Some(major), Some(minor)) if (major, minor) >= OLDEST_RUSTC)
}

/// Whether compiler and linker of a choice made earlier still run.
fn works(toolchain: &Toolchain) -> bool {
    let linker = linker::version(&toolchain.linker, toolchain.libraries.as_deref()).is_ok();
    let compiler = match (&toolchain.rustc, &toolchain.rustup) {
        (Some(rustc), _) => version_of(rustc, toolchain.libraries.as_deref()).is_ok(),
        (None, Some(name)) => {
            capture(Command::new("rustup").args(["run", name, "rustc", "-V"])).is_ok()
        }
        (None, None) => capture(Command::new("rustc").arg("-V")).is_ok(),
    };
    linker && compiler
}

/// What a compiler outside rustup says its version is.
pub(super) fn version_of(rustc: &Path, libraries: Option<&Path>) -> Result<String> {
    let mut command = Command::new(rustc);
    command.arg("-V");
    if let Some(libraries) = libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let version = capture(&mut command)?.trim().to_owned();
    ensure!(new_enough(&version), "{version} is too old, 1.95 is needed");
    Ok(version)
}

/// Written beside its place and moved, so that a build never reads half of it.
fn write_choice(toolchain: &Toolchain) -> Result<()> {
    let file = toolchain::choice_file().context("no cache directory")?;
    let beside = file.with_extension("new");
    fs::write(&beside, toolchain.to_text())
        .and_then(|()| fs::rename(&beside, &file))
        .with_context(|| format!("cannot write {}", file.display()))
}
