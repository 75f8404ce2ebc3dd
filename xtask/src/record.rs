//! `cargo xtask record NAME`: one of the scenes of `tests/recordings/scenes.py` under the real
//! agent; what went into its engine becomes `tests/recordings/NAME.rec`.
//!
//! The recording holds what the programs of the scene sent, and what was known of them; scenes
//! keep to loopback, system programs and made-up content. `tests/tests/replay.rs` writes the
//! expected spans beside it when `UPDATE_RECORDINGS` is set; they are for a person to judge.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build::{self, Agent},
    child::TemporaryDirectory,
    steps::{self, say},
};

/// A recording is for the repository: larger ones say that the scene should be smaller.
const SIZE_LIMIT: usize = 200 * 1024;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A scene of tests/recordings/scenes.py.
    name: String,
    /// An agent to record with instead of building one.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let binary = match &arguments.agent {
        Some(binary) => binary.clone(),
        None => build::agent(build::Profile::Release)?,
    };
    let recordings = steps::workspace().join("tests/recordings");
    let directory = TemporaryDirectory::create("record")?;
    let raw = directory.0.join("raw.rec");

    let mut scene = Scene(
        Command::new("python3")
            .arg(recordings.join("scenes.py"))
            .arg(&arguments.name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the scene")?,
    );
    let mut said = BufReader::new(scene.0.stdout.take().context("the scene has no output")?);
    let mut line = String::new();
    said.read_line(&mut line)?;
    let mut selection = vec!["--exporter".to_owned(), "none".to_owned()];
    for pid in line
        .split(|c: char| !c.is_ascii_digit())
        .filter(|pid| !pid.is_empty())
    {
        selection.extend(["--pid".to_owned(), pid.to_owned()]);
    }
    ensure!(selection.len() > 2, "the scene did not start");

    let path = raw.display().to_string();
    let environment = [("EBPF_AGENT_RECORD_FILE", path.as_str())];
    let mut agent = Agent::start(&binary, &directory.0, &selection, &environment)?;
    scene
        .0
        .stdin
        .take()
        .context("the scene has no input")?
        .write_all(b"attached\n")?;
    line.clear();
    said.read_line(&mut line)?;
    ensure!(line.trim() == "done", "the scene ended early");
    agent.process.stop()?;
    print!("{}", agent.process.said());

    let mut recording = fs::read(&raw).context("the agent recorded nothing")?;
    hide_names(&mut recording);
    ensure!(
        recording.len() <= SIZE_LIMIT,
        "the recording has {} bytes",
        recording.len()
    );
    let kept = recordings.join(format!("{}.rec", arguments.name));
    fs::write(&kept, &recording)?;
    say(
        "record",
        &format!("{} bytes in {}", recording.len(), kept.display()),
    );
    say(
        "record",
        "look at the spans: UPDATE_RECORDINGS=1 cargo test -p agent-tests --test replay",
    );
    Ok(())
}

/// Overwrites this checkout's path, lengths unchanged: it stands in command lines.
fn hide_names(recording: &mut [u8]) {
    let path = steps::workspace().display().to_string().into_bytes();
    let mut hidden = b"/srv".to_vec();
    hidden.resize(path.len().max(hidden.len()), b'/');
    let mut at = 0;
    while let Some(found) = recording
        .get(at..)
        .and_then(|rest| rest.windows(path.len()).position(|name| name == path))
    {
        at += found;
        if let Some(name) = recording.get_mut(at..at + path.len()) {
            name.copy_from_slice(&hidden[..path.len()]);
        }
        at += path.len();
    }
}

/// Ended with this, if it did not end by itself.
struct Scene(Child);

impl Drop for Scene {
    fn drop(&mut self) {
        // Its input ends with it, which it takes as a word to go on; then it ends.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
