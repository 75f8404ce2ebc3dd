//! Debian's own Rust for browsers: its `core` comes compiled for the kernel's target, and
//! compiler and LLVM always match.
//!
//! Packages are fetched and checked by apt and unpacked into the cache directory; nothing is
//! installed system-wide, so rustup's tools and the machine's packages stay as they are.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Cache,
    ebpf::{self, Compiler},
    linker, say,
};
use crate::{steps::capture, toolchain::Toolchain};

/// What is wanted; apt adds what these need and the machine lacks.
const PACKAGES: [&str; 3] = ["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-clippy"];

/// Needed from the tree even where the machine has them installed.
const ALWAYS: [&str; 5] = [
    "rustc-web",
    "libstd-rust-web",
    "libllvm",
    "rust-web-clippy",
    "libstd-rust-web-dev",
];

/// Fetches, unpacks and links; what an earlier run finished is not done again.
pub(super) fn install(cache: &Cache) -> Result<Toolchain> {
    let apt = Apt::with_lists(cache)?;
    let packages = apt.resolve()?;
    let version = packages
        .iter()
        .find_map(|package| package.strip_prefix("rustc-web="))
        .context("apt does not name a version of rustc-web")?;
    ensure!(
        ebpf::new_enough(version),
        "rustc-web is {version}, 1.95 is needed"
    );
    let name = format!(
        "rustc-web-{}",
        version.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
    );
    let tree = cache.path.join(&name);
    if !tree.exists() {
        unpack(cache, &apt, &packages, &name)?;
    }
    let libraries = library_directory(&tree)?;
    let rustc = tree.join("usr/bin/rustc");
    let compiler = Compiler {
        version: ebpf::version_of(&rustc, Some(&libraries))?,
        llvm: llvm_version(&packages)?,
        libraries: libraries.clone(),
        from_rustup: false,
    };
    let clippy = tree.join("usr/bin/clippy-driver");
    Ok(Toolchain {
        description: format!("{} of Debian, in {}", compiler.version, tree.display()),
        rustc: Some(rustc),
        clippy: clippy.exists().then_some(clippy),
        linker: linker::ensure(cache, &compiler)?,
        libraries: Some(libraries),
        ..Toolchain::default()
    })
}

fn unpack(cache: &Cache, apt: &Apt, packages: &[String], name: &str) -> Result<()> {
    let scratch = cache.scratch()?;
    let (archives, tree) = (scratch.join("archives"), scratch.join("tree"));
    fs::create_dir_all(&archives).and_then(|()| fs::create_dir_all(&tree))?;
    say(&format!(
        "fetches Debian's Rust compiler with apt ({} packages)",
        packages.len()
    ));
    capture(
        apt.get()
            .arg("download")
            .args(packages)
            .current_dir(&archives),
    )?;
    say(&format!(
        "unpacks it into {}",
        cache.path.join(name).display()
    ));
    for archive in fs::read_dir(&archives).context("cannot list the fetched packages")? {
        capture(
            Command::new("dpkg")
                .arg("-x")
                .arg(archive?.path())
                .arg(&tree),
        )?;
    }
    cache.finish(&tree, name).map(drop)
}

/// The directory of the tree's shared libraries.
fn library_directory(tree: &Path) -> Result<PathBuf> {
    let directory = tree.join(format!("usr/lib/{}-linux-gnu", env::consts::ARCH));
    ensure!(directory.is_dir(), "{} is missing", directory.display());
    Ok(directory)
}

/// From `libllvm22=...`.
fn llvm_version(packages: &[String]) -> Result<String> {
    let named = packages
        .iter()
        .find_map(|package| package.strip_prefix("libllvm"));
    let number = named.and_then(|rest| rest.split('=').next());
    Ok(number
        .context("rustc-web does not say which LLVM it uses")?
        .to_owned())
}

/// apt with the machine's package lists, or with own ones where the machine's are missing.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn with_lists(cache: &Cache) -> Result<Self> {
        let machine = Self {
            options: Vec::new(),
        };
        if machine.resolve().is_ok() {
            return Ok(machine);
        }
        let state = cache.path.join("apt");
        fs::create_dir_all(state.join("lists/partial"))?;
        fs::create_dir_all(state.join("archives/partial"))?;
        let option = |key: &str, path: &str| format!("-o{key}={}", state.join(path).display());
        let own = Self {
            options: vec![
                option("Dir::State::Lists", "lists"),
                option("Dir::Cache", "."),
                "-oDebug::NoLocking=1".to_owned(),
            ],
        };
        say("fetches apt's package lists into the cache directory");
        capture(own.get().arg("update"))?;
        Ok(own)
    }

    fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").arg("-q").args(&self.options);
        command
    }

    /// `name=version` of each package to unpack: what an installation would add, and of the
    /// compiler's own packages those that are installed already.
    fn resolve(&self) -> Result<Vec<String>> {
        let simulated = capture(
            self.get()
                .args(["--simulate", "--no-install-recommends", "install"])
                .args(PACKAGES),
        )?;
        let mut packages: Vec<String> = simulated.lines().filter_map(added_package).collect();
        for name in ALWAYS {
            if !packages.iter().any(|package| package.starts_with(name)) {
                packages.extend(installed_packages(name)?);
            }
        }
        Ok(packages)
    }
}

/// From `Inst NAME (VERSION ...)`. `Inst NAME [OLD] (NEW ...)` is an upgrade, which the tree does
/// without: the machine has the package.
fn added_package(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let version = rest.strip_prefix('(')?.split_whitespace().next()?;
    Some(format!("{name}={version}"))
}

/// Installed packages whose name begins with `prefix`.
fn installed_packages(prefix: &str) -> Result<Vec<String>> {
    let listed = capture(Command::new("dpkg-query").args([
        "--show",
        "--showformat=${db:Status-Status} ${Package}=${Version}\n",
        &format!("{prefix}*"),
    ]))?;
    let packages: Vec<String> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .map(str::to_owned)
        .collect();
    if packages.is_empty() {
        bail!("neither apt nor dpkg knows {prefix}");
    }
    Ok(packages)
}
