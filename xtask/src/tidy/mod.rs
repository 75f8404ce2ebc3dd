//! `cargo xtask tidy`: rules of the house that neither compiler nor clippy know.

mod edges;
pub(crate) mod imports;
mod text;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::steps::{self, capture, say};

/// A file of the project: its path from the workspace's root with `/`, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The path below `agent/src`, for files of the agent.
    fn in_agent(&self) -> Option<&str> {
        self.path.strip_prefix("agent/src/")
    }

    fn is_rust(&self) -> bool {
        Path::new(&self.path)
            .extension()
            .is_some_and(|extension| extension == "rs")
    }
}

/// A broken rule: where, and what to do about it.
struct Finding {
    path: String,
    /// Counted from 1; 0 for the file as a whole.
    line: usize,
    what: String,
}

pub(crate) fn run() -> Result<()> {
    let sources = sources(&steps::workspace())?;
    let mut findings = Vec::new();
    for source in &sources {
        imports::check(source, &mut findings);
        edges::check(source, &mut findings);
        text::check(source, &mut findings);
    }
    for finding in &findings {
        say(
            "tidy",
            &format!("{}:{}: {}", finding.path, finding.line, finding.what),
        );
    }
    if !findings.is_empty() {
        bail!("{} broken rules in {} files", findings.len(), sources.len());
    }
    say("tidy", &format!("{} files keep the rules", sources.len()));
    Ok(())
}

/// Every text file that git tracks or would track.
fn sources(workspace: &Path) -> Result<Vec<Source>> {
    let listed = capture(
        Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(workspace),
    )
    .context("tidy looks at the files that git knows")?;
    let paths = listed.split('\0').filter(|path| !path.is_empty());
    let readable = paths.filter_map(|path| {
        // Deleted files are still listed, and binary ones hold no text.
        let text = fs::read_to_string(PathBuf::from(workspace).join(path)).ok()?;
        Some(Source {
            path: path.to_owned(),
            text,
        })
    });
    Ok(readable.collect())
}
