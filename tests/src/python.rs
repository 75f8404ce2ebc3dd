//! Which Python runs what.

use std::{
    env,
    fs::{self, File},
    path::PathBuf,
    process::Command,
};

use crate::process::{crate_file, output, target_directory};

/// The interpreter for workloads: the real executable, not a wrapper script that starts it, since
/// tests select and name processes by it.
pub fn interpreter() -> PathBuf {
    let mut ask = Command::new("python3");
    ask.args([
        "-c",
        "import os, sys; print(os.path.realpath(sys.executable))",
    ]);
    PathBuf::from(output(&mut ask).trim())
}

/// Lists of the packages that tests need, relative to this crate.
const REQUIREMENTS: [&str; 3] = [
    "receiver/requirements.txt",
    "workloads/go/requirements.txt",
    "workloads/python/requirements.txt",
];

/// The interpreter with the packages of the receiver and of workloads: `OTLP_RECEIVER_PYTHON`, else
/// a virtual environment under the build directory, made on first use.
pub fn packages_interpreter() -> PathBuf {
    if let Some(path) = env::var_os("OTLP_RECEIVER_PYTHON") {
        return path.into();
    }
    let target = target_directory();
    let environment = target.join("receiver-venv");
    let requirements = REQUIREMENTS.map(crate_file);
    let wanted: Vec<u8> = requirements
        .iter()
        .flat_map(|list| fs::read(list).expect("a list of requirements"))
        .collect();
    let stamp = environment.join("requirements.installed");

    fs::create_dir_all(&target).expect("the build directory");
    let lock = File::create(target.join("receiver-venv.lock")).expect("a lock file");
    lock.lock()
        .expect("other test processes let go of the lock when they end");
    if !fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        output(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&environment),
        );
        let mut install = Command::new(environment.join("bin/pip"));
        install.args(["install", "--quiet"]);
        for list in &requirements {
            install.arg("--requirement").arg(list);
        }
        output(&mut install);
        fs::write(&stamp, wanted).expect("a stamp beside what was installed");
    }
    environment.join("bin/python")
}
