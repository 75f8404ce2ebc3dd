//! Running programs: one line for each step, the program's words only when it fails.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

/// Says what is being done, in the form all commands share.
pub(crate) fn say(area: &str, what: &str) {
    println!("{area}: {what}");
}

/// Runs `command` with its output passed through; an error names `what` failed.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{what}: cannot run {command:?}"))?;
    if !status.success() {
        bail!("{what} failed ({status})");
    }
    Ok(())
}

/// As [`run`], and says before what is done and after how long it took.
pub(crate) fn run_timed(what: &str, command: &mut Command) -> Result<()> {
    say("xtask", what);
    let started = Instant::now();
    run(what, command)?;
    say(
        "xtask",
        &format!("{what}: passed in {:.1} s", started.elapsed().as_secs_f64()),
    );
    Ok(())
}

/// Runs `command` and returns what it wrote; when it fails, the error carries its last words.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}):\n{}",
            output.status,
            last_words(&output)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The end of what a failed program wrote, which is where the reason stands.
fn last_words(output: &Output) -> String {
    const LINES: usize = 30;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// The path of a program, also where only root's search path leads.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// The workspace's root, wherever the command was started; cargo names xtask's own directory.
pub(crate) fn workspace() -> PathBuf {
    let xtask =
        env::var_os("CARGO_MANIFEST_DIR").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    let root = xtask.join("..");
    root.canonicalize().unwrap_or(root)
}

/// The cargo that runs this command, or the one on the search path.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// How to act as root: directly, through sudo without a question, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    Root,
    Sudo,
    Missing,
}

impl Privilege {
    pub(crate) fn detect() -> Self {
        let identity = capture(Command::new("id").arg("-u"));
        if identity.is_ok_and(|identity| identity.trim() == "0") {
            return Self::Root;
        }
        match capture(Command::new("sudo").args(["-n", "true"])) {
            Ok(_) => Self::Sudo,
            Err(_) => Self::Missing,
        }
    }

    /// `program` as root with `environment` added, or nothing when that is not possible.
    pub(crate) fn command(self, program: &Path, environment: &[(&str, &str)]) -> Option<Command> {
        let mut command = match self {
            Self::Root => Command::new("env"),
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.args(["-n", "env"]);
                command
            }
            Self::Missing => return None,
        };
        command.args(
            environment
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        command.arg(program);
        Some(command)
    }
}

/// Removes a directory that may not exist.
pub(crate) fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
