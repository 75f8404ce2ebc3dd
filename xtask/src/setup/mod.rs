//! `cargo xtask setup`: installs what is missing and says so. A second run finds nothing to do.
//!
//! The compiler of the eBPF programs goes into the user's cache directory and needs no root.
//! `--tests` adds the programs that tests and demo run, by the system's package manager.

mod debian;
mod ebpf;
mod linker;
mod packages;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
pub(crate) use packages::GO_PACKAGES;

use crate::{steps, toolchain};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Also installs the programs that tests, bench and demo run.
    #[arg(long)]
    pub(crate) tests: bool,
    /// Also installs the runtimes that `cargo xtask fidelity` judges.
    #[arg(long)]
    pub(crate) fidelity: bool,
}

/// What has to be there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Compiling the agent.
    Build,
    /// Running real programs under the agent, as the demo does.
    Show,
    /// Measuring it.
    Bench,
    /// All tests.
    Test,
    /// Services in every runtime of `cargo xtask fidelity`.
    Fidelity,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    prepare(match (arguments.fidelity, arguments.tests) {
        (true, _) => Purpose::Fidelity,
        (false, true) => Purpose::Test,
        (false, false) => Purpose::Build,
    })
}

/// Installs what is missing for `purpose`.
pub(crate) fn prepare(purpose: Purpose) -> Result<()> {
    let cache = Cache::open()?;
    ebpf::ensure_toolchain(&cache)?;
    if purpose >= Purpose::Show {
        packages::ensure_programs(purpose)?;
    }
    if purpose == Purpose::Bench {
        packages::ensure_bench_programs()?;
    }
    if purpose >= Purpose::Bench {
        packages::ensure_node(&cache)?;
        packages::ensure_python(&cache, &packages::TESTS)?;
    }
    if purpose >= Purpose::Test {
        packages::ensure_guest_programs();
    }
    if purpose >= Purpose::Fidelity {
        packages::ensure_python(&cache, &packages::FIDELITY)?;
    }
    Ok(())
}

/// The interpreter that has the tests' Python packages.
pub(crate) fn python() -> Result<PathBuf> {
    Ok(packages::TESTS.interpreter(&cache_directory()?))
}

/// The Go compiler that the tests' Python packages bring: a Debian release has a Go of its year.
pub(crate) fn go() -> Result<PathBuf> {
    Ok(python()?.with_file_name("go"))
}

/// As [`go`], of the services.
pub(crate) fn fidelity_go() -> Result<PathBuf> {
    Ok(fidelity_python()?.with_file_name("go"))
}

/// What tests give Node as `NODE_PATH`.
pub(crate) fn node_modules() -> Result<PathBuf> {
    Ok(cache_directory()?.join("node/node_modules"))
}

/// The interpreter that has the packages of the services; other programs they bring are beside it.
pub(crate) fn fidelity_python() -> Result<PathBuf> {
    Ok(packages::FIDELITY.interpreter(&cache_directory()?))
}

/// Where things stay that are slow to make again.
pub(crate) fn cache_directory() -> Result<PathBuf> {
    toolchain::cache_directory().context("neither XDG_CACHE_HOME nor HOME is set")
}

/// The project's cache directory, held by one setup at a time.
struct Cache {
    path: PathBuf,
    /// Unlocks when dropped.
    _lock: File,
}

impl Cache {
    fn open() -> Result<Self> {
        let path = toolchain::cache_directory()
            .context("neither XDG_CACHE_HOME nor HOME says where to keep compilers")?;
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let lock = File::create(path.join("lock")).context("cannot create the lock file")?;
        if lock.try_lock().is_err() {
            say("waits for another setup to end");
            lock.lock().context("cannot lock the cache directory")?;
        }
        Ok(Self { path, _lock: lock })
    }

    /// An empty directory for work that may be interrupted; the next run empties it again.
    fn scratch(&self) -> Result<PathBuf> {
        let path = self.path.join("unfinished");
        steps::remove_directory(&path)?;
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// Moves finished work to its place in one step.
    fn finish(&self, scratch: &Path, name: &str) -> Result<PathBuf> {
        let place = self.path.join(name);
        steps::remove_directory(&place)?;
        fs::rename(scratch, &place)
            .with_context(|| format!("cannot move {} into place", place.display()))?;
        Ok(place)
    }
}

fn say(what: &str) {
    steps::say("setup", what);
}
