//! Programs and Python packages that tests, bench and demo run. The agent itself needs none.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{Cache, say};
use crate::steps::{self, Privilege, capture};

/// A program, the Debian package that brings it, and who runs it.
const PROGRAMS: [(&str, &str); 6] = [
    ("nginx", "nginx-light"), // tests, bench, demo
    ("wrk", "wrk"),           // tests, bench
    ("curl", "curl"),         // tests, demo
    ("ip", "iproute2"),       // tests: network namespaces
    ("node", "nodejs"),       // tests, demo
    ("python3", "python3"),   // tests, demo
];

/// Lists of Python packages, each beside what needs them. They go into one virtual environment in
/// the cache directory.
const PYTHON_REQUIREMENTS: [&str; 3] = [
    "tests/receiver/requirements.txt",
    "tests/workloads/go/requirements.txt",
    "deploy/requirements.txt",
];

pub(super) fn ensure_programs() -> Result<()> {
    let mut missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| steps::find_program(program).is_none())
        .map(|&(_, package)| package)
        .collect();
    // Debian splits `venv` from Python; others bring it. Tests install Python packages into one.
    if capture(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_err() {
        missing.push("python3-venv");
    }
    if missing.is_empty() {
        say("programs for the tests are ready");
        return Ok(());
    }
    say(&format!("installs {} with apt", missing.join(" ")));
    install(&missing)
}

fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let Some(apt) = steps::find_program("apt-get") else {
        bail!("these programs are missing and there is no apt to install them: {list}");
    };
    let privilege = Privilege::detect();
    // Offline, so that installing a server does not start it.
    let environment = [
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("SYSTEMD_OFFLINE", "1"),
    ];
    let apt_get = || {
        privilege.command(&apt, &environment).with_context(|| {
            format!("missing: {list}; install them as root (`apt-get install {list}`)")
        })
    };
    let arguments = ["-q", "-y", "--no-install-recommends", "install"];
    if capture(apt_get()?.args(arguments).args(packages)).is_ok() {
        return Ok(());
    }
    say("updates apt's package lists");
    capture(apt_get()?.args(["-q", "update"]))?;
    capture(apt_get()?.args(arguments).args(packages)).map(drop)
}

/// The interpreter of the virtual environment.
pub(super) fn python_in(cache: &Path) -> PathBuf {
    cache.join("python/bin/python")
}

pub(super) fn ensure_python(cache: &Cache) -> Result<()> {
    let workspace = steps::workspace();
    let lists: Vec<PathBuf> = PYTHON_REQUIREMENTS.map(|list| workspace.join(list)).into();
    let mut wanted = String::new();
    for list in &lists {
        wanted +=
            &fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    }
    let environment = cache.path.join("python");
    // Written last, so it says that everything before it was finished.
    let installed = environment.join("installed");
    let complete = fs::read_to_string(&installed).is_ok_and(|text| text == wanted);
    if complete && capture(Command::new(python_in(&cache.path)).arg("--version")).is_ok() {
        say("Python packages for the tests are ready");
        return Ok(());
    }
    say(&format!(
        "installs the tests' Python packages with pip into {}",
        environment.display()
    ));
    capture(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment),
    )?;
    let mut pip = Command::new(python_in(&cache.path));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    for list in &lists {
        pip.arg("--requirement").arg(list);
    }
    capture(&mut pip)?;
    fs::write(&installed, wanted).context("cannot note what was installed")
}
