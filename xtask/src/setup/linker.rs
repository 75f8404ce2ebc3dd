//! bpf-linker: the one on the search path, or one built against the compiler's own LLVM.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{Cache, ebpf::Compiler, say};
use crate::steps::{self, capture};

/// The version that `xtask setup` builds; it links against LLVM 21 to 23.
const VERSION: &str = "0.13.0";

/// A quick build matters more than a quick linker: it runs for one small program.
const PROFILE: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_LTO", "false"),
];

/// The path of a linker whose LLVM reads what `compiler` writes. A user of rustup who has a
/// linker has one that fits; for a compiler of ours one is built.
pub(super) fn ensure(cache: &Cache, compiler: &Compiler) -> Result<PathBuf> {
    if compiler.from_rustup
        && let Some(own) = steps::find_program("bpf-linker")
        && version(&own, None).is_ok()
    {
        return Ok(own);
    }
    let name = format!("bpf-linker-{VERSION}-{}", directory_name(&compiler.version));
    let root = cache.path.join(&name);
    let linker = root.join("bin/bpf-linker");
    if version(&linker, None).is_ok() {
        return Ok(linker);
    }
    let prefix = llvm_prefix(cache, compiler)?;
    build(cache, compiler, &prefix, &root)?;
    let version = version(&linker, None)?;
    say(&format!("built {version} in {}", root.display()));
    Ok(linker)
}

/// A linker runs and says its version, or it is not there.
pub(super) fn version(linker: &Path, libraries: Option<&Path>) -> Result<String> {
    let mut command = Command::new(linker);
    command.arg("--version");
    if let Some(libraries) = libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    Ok(capture(&mut command)?
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned())
}

fn build(cache: &Cache, compiler: &Compiler, prefix: &Path, root: &Path) -> Result<()> {
    say(&format!(
        "builds bpf-linker {VERSION} against LLVM {} (a minute or two)",
        compiler.llvm
    ));
    let scratch = cache.scratch()?;
    let mut cargo = steps::cargo();
    cargo.current_dir(&scratch);
    cargo.args([
        "install",
        "bpf-linker",
        "--version",
        VERSION,
        "--locked",
        "--quiet",
    ]);
    cargo.args([
        "--no-default-features",
        "--features",
        &format!("llvm-{}", compiler.llvm),
    ]);
    cargo
        .arg("--root")
        .arg(root)
        .arg("--target-dir")
        .arg(scratch.join("target"));
    cargo.envs(PROFILE).env("LLVM_PREFIX", prefix);
    capture(&mut cargo)?;
    steps::remove_directory(&scratch)
}

/// A directory in the form of an LLVM installation whose `lib` leads to the compiler's LLVM; the
/// linker's search path for libraries is set to it, so it stays.
fn llvm_prefix(cache: &Cache, compiler: &Compiler) -> Result<PathBuf> {
    let prefix = cache
        .path
        .join(format!("llvm-of-{}", directory_name(&compiler.version)));
    let lib = prefix.join("lib");
    steps::remove_directory(&prefix)?;
    fs::create_dir_all(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
    let library = llvm_library(compiler)?;
    let own_name = library.file_name().context("a library without a name")?;
    symlink(&library, lib.join("libLLVM.so"))?;
    symlink(&library, lib.join(own_name))?;
    Ok(prefix)
}

/// `libLLVM.so.22.1` or, from rustup, `libLLVM.so.22.1-rust-1.95.0-stable`: the name it is
/// loaded by.
fn llvm_library(compiler: &Compiler) -> Result<PathBuf> {
    let start = format!("libLLVM.so.{}", compiler.llvm);
    let directory = &compiler.libraries;
    let found = fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&start))
        });
    let library = found.with_context(|| format!("{start} is not in {}", directory.display()))?;
    ensure!(library.exists(), "{} leads nowhere", library.display());
    Ok(library)
}

/// `rustc 1.96.0 (ac68faa20 2026-05-25)` as part of a path: `rustc-1-96-0`.
fn directory_name(version: &str) -> String {
    let words: Vec<&str> = version.split_whitespace().take(2).collect();
    words.join("-").replace('.', "-")
}
