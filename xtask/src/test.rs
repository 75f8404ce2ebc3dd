//! `cargo xtask test`: the README's test command, and all that CI runs.
//!
//! Fuzz targets and guests come before the tests, so that it ends with cargo's own report. Guests
//! run beside what is compiled. What needs root runs when this is root or sudo asks no question;
//! else it says so, and the tests that need it say so one by one.

use std::{env, path::Path, process::Command, thread};

use anyhow::{Result, anyhow};

use crate::{
    build::{self, Profile},
    check, fidelity, fuzz,
    setup::{self, Purpose},
    steps::{self, Privilege, say},
    vm,
};

pub(crate) fn run() -> Result<()> {
    setup::prepare(Purpose::Test)?;
    // With fewer optimisations than users get, which saves minutes; the kernel half is the same.
    let agent = build::agent(Profile::Quick)?;
    let python = setup::python()?;
    // Guests leave most of two processors idle.
    thread::scope(|scope| {
        let guests = scope.spawn(|| vm::run_quick(&agent));
        let rest = compile_and_check(&python);
        if let Err(error) = &rest {
            say("xtask", &format!("{error:#}; the guests are still to end"));
        }
        let guests = guests.join().map_err(|_| anyhow!("the guests: a panic"))?;
        rest.and(guests)
    })?;
    if Privilege::detect() != Privilege::Missing {
        fidelity::run_quick(&agent)?;
    }
    run_tests(&agent, &python)
}

/// What needs no guest and no root.
fn compile_and_check(python: &Path) -> Result<()> {
    check::run()?;
    let mut manifests = Command::new(python);
    manifests.arg(steps::workspace().join("deploy/validate.py"));
    steps::run_timed("manifests and examples in deploy/", &mut manifests)?;

    let mut build = steps::cargo();
    build
        .args(["test", "--quiet", "--no-run"])
        .args(check::HOST_PACKAGES);
    steps::run_timed("building the tests", &mut build)?;
    fuzz::run_briefly()
}

fn run_tests(agent: &Path, python: &Path) -> Result<()> {
    let mut tests = steps::cargo();
    tests.arg("test").args(check::HOST_PACKAGES);
    let mut settings = vec![
        ("AGENT_BIN", agent.display().to_string()),
        ("OTLP_RECEIVER_PYTHON", python.display().to_string()),
        (
            "TEST_NODE_MODULES",
            setup::node_modules()?.display().to_string(),
        ),
        // Tests on the running kernel wait more than they compute. Those that must be alone see to
        // that themselves.
        ("RUST_TEST_THREADS", "2".to_owned()),
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
