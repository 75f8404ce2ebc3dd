//! Programs, and packages of Python, Node and Go, that tests, bench and demo run. The agent itself
//! needs none.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{Cache, Purpose, say};
use crate::{
    steps::{self, Privilege, capture},
    vm,
};

/// A program, the Debian package that brings it, and who runs it.
const PROGRAMS: [(&str, &str); 15] = [
    ("nginx", "nginx-light"),      // tests, bench, demo
    ("wrk", "wrk"),                // tests, bench
    ("curl", "curl"),              // tests, demo
    ("h2load", "nghttp2-client"),  // tests, bench, guests
    ("nghttpd", "nghttp2-server"), // tests
    ("wget", "wget"),              // tests: a client that uses GnuTLS
    ("ip", "iproute2"),            // tests: network namespaces
    ("nft", "nftables"),           // tests: firewalls, translated addresses
    ("node", "nodejs"),            // tests, bench, demo
    ("npm", "npm"),                // tests, bench: packages of Node
    ("python3", "python3"),        // tests, demo
    ("openssl", "openssl"),        // tests: certificates
    ("ruby", "ruby"),              // tests: a client over TLS
    ("bpftool", "bpftool"),        // tests: what is left in the kernel
    ("c++", "g++"),                // tests: libFuzzer
];

/// What boots guests, as [`PROGRAMS`].
const GUEST_PROGRAMS: [(&str, &str); 2] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("xz", "xz-utils"),
];

/// Runtimes that only `cargo xtask fidelity` starts, in the same form.
const RUNTIMES: [(&str, &str); 4] = [
    ("java", "openjdk-17-jdk-headless"),
    ("javac", "openjdk-17-jdk-headless"), // a source file is compiled when it is started
    ("ruby", "ruby"),
    ("puma", "puma"),
];

/// Where Debian puts the sources of Go packages.
pub(crate) const GO_PACKAGES: &str = "/usr/share/gocode";

/// Of Debian, for programs of the tests that need more than Go's standard library, and what each
/// brings below [`GO_PACKAGES`].
const GO_SOURCES: [(&str, &str); 1] = [("src/google.golang.org/grpc", "golang-google-grpc-dev")];

/// Files that only tests need, and the Debian package that brings each.
const FILES: [(&str, &str); 5] = [
    ("/usr/include/openssl/ssl.h", "libssl-dev"), // linked into a program
    ("/usr/bin/git", "git"),                      // curl with GnuTLS
    ("/usr/bin/java", "openjdk-17-jdk-headless"), // Tomcat, whose TLS is OpenSSL's
    ("/usr/share/java/tomcat9-catalina.jar", "libtomcat9-java"),
    (
        "/usr/lib/x86_64-linux-gnu/libtcnative-1.so",
        "libtcnative-1",
    ),
];

/// As [`PROGRAMS`], of bench alone.
const BENCH_PROGRAMS: [(&str, &str); 2] = [
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
];

/// A virtual environment in the cache directory.
pub(super) struct PythonEnvironment {
    /// Of its directory.
    name: &'static str,
    /// Lists of packages, each beside what needs them.
    requirements: &'static [&'static str],
}

pub(super) const TESTS: PythonEnvironment = PythonEnvironment {
    name: "python",
    requirements: &[
        "tests/receiver/requirements.txt",
        "tests/workloads/go/requirements.txt",
        "tests/workloads/python/requirements.txt",
        "deploy/requirements.txt",
    ],
};

/// Apart, since it is large: it has a Go compiler.
pub(super) const FIDELITY: PythonEnvironment = PythonEnvironment {
    name: "python-fidelity",
    requirements: &["tests/fidelity/requirements.txt"],
};

impl PythonEnvironment {
    pub(super) fn interpreter(&self, cache: &Path) -> PathBuf {
        cache.join(self.name).join("bin/python")
    }
}

pub(super) fn ensure_programs(purpose: Purpose) -> Result<()> {
    let mut missing = missing(&PROGRAMS);
    if purpose >= Purpose::Fidelity {
        missing.extend(self::missing(&RUNTIMES));
    }
    // Debian splits `venv` from Python; others bring it. Tests install Python packages into one.
    if capture(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_err() {
        missing.push("python3-venv");
    }
    // Ruby 3.0 and newer do not bring it.
    let has_webrick = || capture(Command::new("ruby").args(["-e", "require 'webrick'"])).is_ok();
    if purpose >= Purpose::Test && !has_webrick() {
        missing.push("ruby-webrick");
    }
    if purpose >= Purpose::Bench {
        let absent = GO_SOURCES
            .iter()
            .filter(|(path, _)| !Path::new(GO_PACKAGES).join(path).is_dir());
        missing.extend(absent.map(|(_, package)| package));
    }
    if purpose >= Purpose::Test {
        let absent = FILES.iter().filter(|(path, _)| !Path::new(path).exists());
        missing.extend(absent.map(|(_, package)| package));
    }
    missing.dedup();
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

fn install_missing(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    install(packages)
}

pub(super) fn ensure_bench_programs() -> Result<()> {
    install_missing(&missing(&BENCH_PROGRAMS))
}

/// The packages of programs that are not there.
fn missing(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    let absent = programs
        .iter()
        .filter(|(program, _)| steps::find_program(program).is_none());
    absent.map(|&(_, package)| package).collect()
}

fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    say(&format!("installs {list} with apt"));
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

pub(super) fn ensure_python(cache: &Cache, wanted: &PythonEnvironment) -> Result<()> {
    let python = wanted.interpreter(&cache.path);
    let environment = cache.path.join(wanted.name);
    let workspace = steps::workspace();
    let lists: Vec<PathBuf> = wanted
        .requirements
        .iter()
        .map(|list| workspace.join(list))
        .collect();
    let mut listed = String::new();
    for list in &lists {
        listed +=
            &fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    }
    // Written last, so it says that everything before it was finished.
    let installed = environment.join("installed");
    let complete = fs::read_to_string(&installed).is_ok_and(|text| text == listed);
    if complete && capture(Command::new(&python).arg("--version")).is_ok() {
        say(&format!("Python packages in {} are ready", wanted.name));
        return Ok(());
    }
    say(&format!(
        "installs Python packages with pip into {}",
        environment.display()
    ));
    capture(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment),
    )?;
    let mut pip = Command::new(&python);
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
    fs::write(&installed, listed).context("cannot note what was installed")
}

/// What Node needs beside itself, in a directory of its own.
pub(super) fn ensure_node(cache: &Cache) -> Result<()> {
    let list = steps::workspace().join("tests/workloads/grpc/package.json");
    let wanted =
        fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let environment = cache.path.join("node");
    // Written last, so it says that everything before it was finished.
    let installed = environment.join("installed");
    if fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
        say("packages of Node are ready");
        return Ok(());
    }
    say(&format!(
        "installs packages of Node with npm into {}",
        environment.display()
    ));
    steps::remove_directory(&environment)?;
    fs::create_dir_all(&environment)?;
    fs::copy(&list, environment.join("package.json"))?;
    let mut npm = Command::new("npm");
    // No program of a package runs when it is installed.
    npm.args(["install", "--silent", "--no-audit", "--no-fund"]);
    npm.args(["--ignore-scripts", "--prefix"]).arg(&environment);
    capture(&mut npm)?;
    fs::write(&installed, wanted).context("cannot note what was installed")
}
