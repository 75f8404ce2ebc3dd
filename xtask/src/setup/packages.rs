//! Programs and Python packages that tests, bench and demo run. The agent itself needs none.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{Cache, say};
use crate::{
    steps::{self, Privilege, capture},
    vm,
};

/// A program, the Debian package that brings it, and who runs it.
const PROGRAMS: [(&str, &str); 9] = [
    ("nginx", "nginx-light"), // tests, bench, demo
    ("wrk", "wrk"),           // tests, bench
    ("curl", "curl"),         // tests, demo
    ("ip", "iproute2"),       // tests: network namespaces
    ("node", "nodejs"),       // tests, demo
    ("python3", "python3"),   // tests, demo
    ("openssl", "openssl"),   // tests: certificates
    ("bpftool", "bpftool"),   // tests: what is left in the kernel
    ("c++", "g++"),           // tests: libFuzzer
];

/// What boots guests, as [`PROGRAMS`].
const GUEST_PROGRAMS: [(&str, &str); 2] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("xz", "xz-utils"),
];

/// Lists of Python packages, each beside what needs them. They go into one virtual environment in
/// the cache directory.
const PYTHON_REQUIREMENTS: [&str; 2] =
    ["tests/receiver/requirements.txt", "deploy/requirements.txt"];

pub(super) fn ensure_programs() -> Result<()> {
    let mut missing = missing(&PROGRAMS);
    // Debian splits `venv` from Python; others bring it. Tests install Python packages into one.
    if capture(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_err() {
        missing.push("python3-venv");
    }
    if missing.is_empty() {
        say("programs for the tests are ready");
        return Ok(());
    }
    install_missing(&missing)
}

/// Guests are a part of the tests that not every machine can run: without them the rest goes on,
/// and `vm` says what is missing.
pub(super) fn ensure_guest_programs() {
    let installed = install_missing(&missing(&GUEST_PROGRAMS)).and_then(|()| {
        // Since Debian 13 it is a package of its own; before, it comes with QEMU.
        match vm::share_program() {
            Ok(_) => Ok(()),
            Err(_) => install_missing(&["virtiofsd"]),
        }
    });
    if let Err(error) = installed {
        say(&format!("there will be no guests: {error:#}"));
    }
}

/// Packages of the programs that are not there.
fn missing(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    let absent = programs
        .iter()
        .filter(|(program, _)| steps::find_program(program).is_none());
    absent.map(|&(_, package)| package).collect()
}

fn install_missing(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    say(&format!("installs {} with apt", packages.join(" ")));
    install(packages)
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
