//! Packages of Node that workloads need.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::{crate_file, output, target_directory};

/// What is installed, relative to this crate.
const PACKAGES: &str = "workloads/grpc/package.json";

/// The directory for `NODE_PATH`: `TEST_NODE_MODULES`, else one under the build directory, filled
/// on first use.
pub fn modules() -> PathBuf {
    if let Some(path) = env::var_os("TEST_NODE_MODULES") {
        return path.into();
    }
    let environment = target_directory().join("node");
    fs::create_dir_all(&environment).expect("the build directory");
    let lock = File::create(environment.join("lock")).expect("a lock file");
    lock.lock()
        .expect("other test processes let go of the lock when they end");
    let wanted = fs::read(crate_file(PACKAGES)).expect("a list of packages");
    let stamp = environment.join("installed");
    if !fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        fs::write(environment.join("package.json"), &wanted).expect("a copy of the list");
        install(&environment);
        fs::write(&stamp, wanted).expect("a stamp beside what was installed");
    }
    environment.join("node_modules")
}

fn install(environment: &Path) {
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund"]);
    output(npm.args(["--ignore-scripts", "--prefix"]).arg(environment));
}
