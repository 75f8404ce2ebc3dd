//! `cargo xtask test`: the README's test command, and all that CI runs.
//!
//! Fuzz targets and guests come before the tests, so that it ends with cargo's own report. What
//! needs root runs when this is root or sudo asks no question; else it says so, and the tests that
//! need it say so one by one.

use std::{env, process::Command};

use anyhow::Result;

use crate::{
    build::{self, Profile},
    check, fidelity, fuzz,
    setup::{self, Purpose},
    steps::{self, Privilege, say},
    vm,
};

pub(crate) fn run() -> Result<()> {
    setup::prepare(Purpose::Test)?;
    check::run()?;
    // With fewer optimisations than users get, which saves minutes; the kernel half is the same.
    let agent = build::agent(Profile::Quick)?;
    let python = setup::python()?;

    let mut manifests = Command::new(&python);
    manifests.arg(steps::workspace().join("deploy/validate.py"));
    steps::run_timed("manifests and examples in deploy/", &mut manifests)?;

    if Privilege::detect() != Privilege::Missing {
        fidelity::run_quick(&agent)?;
    }

    let mut build = steps::cargo();
    build
        .args(["test", "--quiet", "--no-run"])
        .args(check::HOST_PACKAGES);
    steps::run_timed("building the tests", &mut build)?;

    fuzz::run_briefly()?;
    vm::run_quick(&agent)?;

    let mut tests = steps::cargo();
    tests.arg("test").args(check::HOST_PACKAGES);
    let mut settings = vec![
        ("AGENT_BIN", agent.display().to_string()),
        ("OTLP_RECEIVER_PYTHON", python.display().to_string()),
        (
            "TEST_NODE_MODULES",
            setup::node_modules()?.display().to_string(),
        ),
        // Tests on the running kernel load the machine; one after the other they are judged alone.
        ("RUST_TEST_THREADS", "1".to_owned()),
    ];
    match Privilege::detect() {
        Privilege::Root => settings.push(("REQUIRE_ROOT", "1".to_owned())),
        Privilege::Sudo => {
            settings.push(("REQUIRE_ROOT", "1".to_owned()));
            tests.env(runner_variable(), sudo_runner(&settings));
        }
        Privilege::Missing => {
            say(
                "xtask",
                "not root, and sudo would ask: tests on the running kernel are skipped",
            );
        }
    }
    say(
        "xtask",
        "unit tests, vectors, replay and, as root, tests on the running kernel",
    );
    steps::run("the tests", tests.envs(settings))
}

/// The variable that tells cargo how to start what it built for this machine.
fn runner_variable() -> String {
    format!(
        "CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER",
        env::consts::ARCH.to_uppercase()
    )
}

/// sudo starts programs in a fresh environment, so what tests need is named.
fn sudo_runner(settings: &[(&str, String)]) -> String {
    let inherited = ["PATH", "HOME"].map(|name| (name, env::var(name).unwrap_or_default()));
    let all = inherited.iter().chain(settings);
    let assignments: Vec<String> = all.map(|(name, value)| format!("{name}={value}")).collect();
    format!("sudo -n env {}", assignments.join(" "))
}
