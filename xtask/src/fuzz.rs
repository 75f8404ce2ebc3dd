//! `cargo xtask fuzz`: each target of `fuzz/` for a bounded time, from the vectors and recordings
//! on, with what earlier runs kept in the build directory.
//!
//! No nightly compiler and no further tool is needed: `fuzz/rustc.sh` instruments our own crates,
//! and the crate `libfuzzer-sys` brings libFuzzer, which is C++.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::{
    build,
    steps::{self, capture, say},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this target.
    target: Option<String>,
    /// How long each target runs, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// What is fuzzed as a part of the tests, by which bytes go through every parser: to build all
/// targets takes minutes. Their seeds and regressions are run by `fuzz/tests/` each time.
const TARGET_IN_TESTS: &str = "engine";
const SECONDS_IN_TESTS: u32 = 12;

/// Targets at one time.
const TOGETHER: usize = 2;

/// The longest input in bytes: more than any seed, and short enough for thousands a second.
const INPUT_BYTES: u32 = 64 * 1024;

/// Memory of a target, in MiB. Inputs are small: what needs more grows without bound.
const MEMORY_MIB: u32 = 1024;

/// One input, in seconds. A thousandth of it is much; the machine may be busy.
const INPUT_SECONDS: u32 = 20;

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    run_targets(arguments.target.as_deref(), arguments.seconds)
}

/// One target for a few seconds.
pub(crate) fn run_briefly() -> Result<()> {
    run_targets(Some(TARGET_IN_TESTS), SECONDS_IN_TESTS)
}

fn run_targets(only: Option<&str>, seconds: u32) -> Result<()> {
    ensure!(
        steps::find_program("c++").is_some(),
        "fuzzing needs a C++ compiler (Debian: g++), as libFuzzer is C++"
    );
    let place = build::target_directory().join("fuzz");
    let mut targets = write_seeds(&place.join("seeds"))?;
    if let Some(only) = only {
        ensure!(
            targets.iter().any(|target| target == only),
            "{only} is none of {}",
            targets.join(", ")
        );
        targets.retain(|target| target == only);
    }
    build_targets(only)?;
    let count = targets.len();
    say(
        "fuzz",
        &format!("{count} targets, {seconds} s each, {TOGETHER} at a time"),
    );
    let mut failures = Vec::new();
    for together in targets.chunks(TOGETHER) {
        let results: Vec<Result<String>> = thread::scope(|scope| {
            let running: Vec<_> = together
                .iter()
                .map(|target| scope.spawn(|| run_target(target, &place, seconds)))
                .collect();
            let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
            ended
                .map(|result| result.unwrap_or_else(|_| Err(anyhow!("its thread panicked"))))
                .collect()
        });
        for (target, result) in together.iter().zip(results) {
            match result {
                Ok(line) => say("fuzz", &format!("{target:<14} {line}")),
                Err(error) => {
                    say("fuzz", &format!("{target:<14} failed"));
                    failures.push(format!("{target}: {error:#}"));
                }
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// The names of all targets; their seeds are written to a directory of each.
fn write_seeds(place: &Path) -> Result<Vec<String>> {
    steps::remove_directory(place)?;
    let mut cargo = steps::cargo();
    cargo.args(["run", "--quiet", "--package", "agent-fuzz"]);
    cargo.args(["--example", "seeds", "--"]).arg(place);
    Ok(capture(&mut cargo)?.lines().map(str::to_owned).collect())
}

fn build_targets(only: Option<&str>) -> Result<()> {
    let mut cargo = steps::cargo();
    cargo.args(["build", "--quiet", "--package", "agent-fuzz"]);
    match only {
        Some(target) => cargo.args(["--bin", target]),
        None => cargo.arg("--bins"),
    };
    cargo.args(["--features", "libfuzzer"]);
    let wrapper = steps::workspace().join("fuzz/rustc.sh");
    cargo.env("RUSTC_WORKSPACE_WRAPPER", wrapper);
    steps::run_timed("building the fuzz targets", &mut cargo)
}

/// What libFuzzer says at the end.
fn run_target(target: &str, place: &Path, seconds: u32) -> Result<String> {
    let corpus = place.join("corpus").join(target);
    let found = place.join("found").join(target);
    for directory in [&corpus, &found] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let log = place.join(format!("{target}.log"));
    let regressions = steps::workspace().join("fuzz/regressions").join(target);
    let mut command = Command::new(build::target_directory().join("debug").join(target));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_BYTES}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        // A directory: libFuzzer puts the name behind it.
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args([corpus, place.join("seeds").join(target)]);
    if regressions.exists() {
        command.arg(regressions);
    }
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .status()
        .with_context(|| format!("cannot run {target}"))?;
    let said = fs::read(&log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    if status.success() {
        return Ok(summary(&said));
    }
    let input = said
        .lines()
        .find_map(|line| line.split_once("Test unit written to "))
        .map_or_else(PathBuf::new, |(_, path)| path.into());
    let why = said
        .lines()
        .skip_while(|line| !line.contains("panicked at") && !line.contains("ERROR: libFuzzer"))
        .take(2)
        .collect::<Vec<_>>()
        .join(" ");
    let why: String = why.chars().take(400).collect();
    bail!(
        "{why}\n  the input is {}, the log {}\n  \
         once it is mended, the input belongs into fuzz/regressions/{target}/, under a name that \
         says what was wrong",
        input.display(),
        log.display()
    )
}

/// `#8713 DONE cov: 2577 ft: 11001 corp: 310/2Mb lim: 65536 exec/s: 290 rss: 64Mb` in words.
fn summary(said: &str) -> String {
    let line = said.lines().rev().find(|line| line.contains("DONE"));
    let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    let after = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    let runs = words
        .first()
        .map_or("?", |word| word.trim_start_matches('#'));
    let (places, memory) = (after("cov:").unwrap_or("?"), after("rss:").unwrap_or("?"));
    format!("{runs} inputs held, {places} places reached, {memory} of memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last line of libFuzzer is found among others and read.
    #[test]
    fn the_last_line_is_read() {
        let said = "INFO: x\n#87\tDONE   cov: 25 ft: 110 corp: 3/2Mb exec/s: 9 rss: 64Mb\n###\n";
        assert_eq!(
            summary(said),
            "87 inputs held, 25 places reached, 64Mb of memory"
        );
        assert!(summary("").starts_with('?'), "{}", summary(""));
    }
}
