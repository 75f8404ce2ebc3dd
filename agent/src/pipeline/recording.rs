//! EDGE: writes down what goes into the engine, for developers. [`crate::engine::replay`] has the
//! format. **The file holds what traced programs sent and received, secrets included**: it is made
//! readable by its owner only, and never by default.
#![expect(clippy::disallowed_methods, reason = "edge: the file and its name")]

use std::{
    env,
    fs::{File, OpenOptions},
    io::{BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

use anyhow::{Context as _, Result};

use crate::engine::replay::{self, Entry};

/// Where to write the recording, from the environment. Off when it is not set or empty.
const RECORD_FILE: &str = "EBPF_AGENT_RECORD_FILE";

/// A recording that is being written, or none, which costs one look at a flag for each entry.
pub(super) struct Recording {
    file: Option<BufWriter<File>>,
    /// An entry in its written form; kept for its memory.
    buffer: Vec<u8>,
}

impl Recording {
    /// A new recording where the environment asks for one.
    pub(super) fn from_environment(boot_seconds: u64) -> Result<Self> {
        let path = env::var_os(RECORD_FILE)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        let Some(path) = path else {
            return Ok(Self {
                file: None,
                buffer: Vec::new(),
            });
        };
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot write the recording {}", path.display()))?;
        tracing::warn!(path = %path.display(), "recording what traced programs send and receive");
        let mut recording = Self {
            file: Some(BufWriter::new(file)),
            buffer: replay::MAGIC.to_vec(),
        };
        recording.add(|| Entry::Start { boot_seconds });
        Ok(recording)
    }

    /// Appends what `entry` makes. A failure to write ends the recording, not the agent.
    pub(super) fn add(&mut self, entry: impl FnOnce() -> Entry) {
        let Some(file) = &mut self.file else { return };
        replay::write(&entry(), &mut self.buffer);
        let written = file.write_all(&self.buffer);
        self.buffer.clear();
        self.end_on_failure(written);
    }

    /// Hands what was added to the file.
    pub(super) fn flush(&mut self) {
        let Some(file) = &mut self.file else { return };
        let flushed = file.flush();
        self.end_on_failure(flushed);
    }

    fn end_on_failure(&mut self, written: std::io::Result<()>) {
        if let Err(error) = written {
            tracing::error!(%error, "the recording ends here: it cannot be written");
            self.file = None;
        }
    }
}
