//! Programs of the tests and measurements that Go makes.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{setup, steps::capture};

/// What else a program is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packages {
    /// Only the standard library, and nothing of the user's.
    Standard,
    /// Those that the system has.
    System,
}

/// Builds `source`, a file or the directory of a module, into `binary`. Nothing is downloaded.
pub(crate) fn build(
    compiler: &Path,
    source: &Path,
    binary: &Path,
    packages: Packages,
) -> Result<()> {
    let cache = setup::cache_directory()?.join("go");
    let mut build = Command::new(compiler);
    build.args(["build", "-o"]).arg(binary);
    if source.is_dir() {
        build
            .current_dir(source)
            .arg(".")
            .env("GOFLAGS", "-mod=mod");
    } else {
        build.arg(source);
    }
    build
        .env("GOCACHE", cache.join("build"))
        .envs([("GOTOOLCHAIN", "local"), ("GOENV", "off")]);
    let path: PathBuf = match packages {
        Packages::Standard => {
            build.env("GOPROXY", "off");
            cache.join("path")
        }
        Packages::System => {
            build.env("GO111MODULE", "off");
            setup::GO_PACKAGES.into()
        }
    };
    capture(build.env("GOPATH", path))?;
    Ok(())
}
