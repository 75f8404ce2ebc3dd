//! EDGE: reads the executables of traced processes, once each, and hooks those made by Go.
//!
//! A probe is on a binary, for all its processes. It goes when the last of them has ended, so that
//! the kernel does not keep binaries that were replaced or whose container is gone.
#![expect(clippy::disallowed_methods, reason = "edge: opens executables")]

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, Metadata},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
};

use agent_common::{kernel_config::ABSENT, process::GoProcess};
use anyhow::{Context as _, Result};
use object::read::ReadCache;

use crate::{
    kernel::{
        go::{GoHooks, ProbeId},
        maps::Processes,
    },
    process::{
        Process,
        binary::{self, GoProgram, Offsets},
        text,
    },
};

/// Executables remembered. Most are not made by Go: that is remembered too.
const BINARIES: usize = 4_096;

/// A file's content, as far as the file system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// A Go binary and who runs it.
struct Binary {
    program: GoProgram,
    probe: Option<ProbeId>,
    pids: HashSet<u32>,
}

pub(super) struct Programs {
    hooks: GoHooks,
    go: HashMap<FileId, Binary>,
    others: HashSet<FileId>,
}

impl Programs {
    pub(super) fn new(hooks: GoHooks) -> Self {
        Self {
            hooks,
            go: HashMap::new(),
            others: HashSet::new(),
        }
    }

    /// Looks at the executable of a traced process, tells the kernel side how to read its
    /// goroutines if Go made it, and notes so in its facts.
    pub(super) fn inspect(&mut self, process: &mut Process, traced: &mut Processes) {
        let pid = process.id.pid;
        let followed = self.follow(pid);
        if let Err(error) = &followed {
            tracing::warn!(pid, error = %format!("{error:#}"), "program not understood");
        }
        process.facts.go_version = followed.unwrap_or(None);
        let is_go = process.facts.go_version.is_some() && self.is_described(pid);
        if !is_go {
            self.hooks.forget(pid);
        }
        if let Err(error) = traced.mark_go(process.id, is_go) {
            tracing::warn!(pid, %error, "goroutines not followed");
        }
    }

    /// Lets go of binaries that nobody runs any more.
    pub(super) fn sweep(&mut self) {
        let Self { hooks, go, .. } = self;
        go.retain(|id, binary| {
            binary
                .pids
                .retain(|pid| identify(*pid).is_ok_and(|now| now == *id));
            if !binary.pids.is_empty() {
                return true;
            }
            if let Some(probe) = &binary.probe
                && let Err(error) = hooks.detach(probe)
            {
                tracing::debug!(%error, "probe not detached");
            }
            false
        });
    }

    fn is_described(&self, pid: u32) -> bool {
        self.go
            .values()
            .any(|binary| binary.pids.contains(&pid) && binary.program.offsets.is_some())
    }

    /// Version of the Go that made the process's program; `None`: another language.
    fn follow(&mut self, pid: u32) -> Result<Option<String>> {
        let id = identify(pid).context("cannot look at its executable")?;
        for (other, binary) in &mut self.go {
            if *other != id {
                binary.pids.remove(&pid);
            }
        }
        if self.others.contains(&id) {
            return Ok(None);
        }
        if !self.go.contains_key(&id) {
            let Some(program) = read(pid)? else {
                if self.others.len() >= BINARIES {
                    self.others.clear();
                }
                self.others.insert(id);
                return Ok(None);
            };
            let probe = self.probe(pid, &program);
            let pids = HashSet::new();
            self.go.insert(
                id,
                Binary {
                    program,
                    probe,
                    pids,
                },
            );
        }
        let Some(binary) = self.go.get_mut(&id) else {
            return Ok(None);
        };
        binary.pids.insert(pid);
        if let Some((offsets, _)) = &binary.program.offsets {
            let described = describe(&binary.program, offsets, load_bias(pid, &binary.program));
            self.hooks.describe(pid, &described)?;
        }
        Ok(Some(binary.program.version.clone()))
    }

    /// Probes a new binary, and says what of it is not understood.
    fn probe(&mut self, pid: u32, program: &GoProgram) -> Option<ProbeId> {
        tracing::info!(
            pid,
            version = program.version,
            is_stripped = program.is_stripped,
            is_position_independent = program.is_position_independent,
            offsets = ?program.offsets.map(|(_, source)| source),
            has_http_client = program.client_call.is_some(),
            "Go program"
        );
        for shortcoming in &program.shortcomings {
            tracing::warn!(pid, reason = %shortcoming, "goroutines not followed all the way");
        }
        let offset = program.client_call.filter(|_| program.offsets.is_some())?;
        self.hooks
            .attach(&executable(pid), offset)
            .inspect_err(|error| {
                let reason = format!("{error:#}");
                tracing::warn!(
                    pid,
                    reason,
                    "calls of Go's HTTP client not joined by goroutine"
                );
            })
            .ok()
    }
}

fn executable(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}

fn identify(pid: u32) -> std::io::Result<FileId> {
    fs::metadata(executable(pid)).map(|metadata| FileId::of(&metadata))
}

fn read(pid: u32) -> Result<Option<GoProgram>> {
    let file = File::open(executable(pid)).context("cannot open its executable")?;
    Ok(binary::analyse(&ReadCache::new(file))?)
}

/// How far from its own addresses the program was loaded. `None` where that cannot be told.
fn load_bias(pid: u32, program: &GoProgram) -> Option<u64> {
    if !program.is_position_independent {
        return Some(0);
    }
    let path = fs::read_link(executable(pid)).ok()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let start = text::mapped_at(&maps, path.to_str()?)?;
    Some(start.wrapping_sub(program.image.0 & !0xfff))
}

fn describe(program: &GoProgram, offsets: &Offsets, bias: Option<u64>) -> GoProcess {
    let address = |own: u64| bias.map_or(0, |bias| own.wrapping_add(bias));
    let (start, end) = program.image;
    GoProcess {
        thread: offsets.thread,
        id: offsets.id,
        parent_id: offsets.parent_id.unwrap_or(ABSENT),
        running: offsets.running,
        processor: offsets.processor,
        left_processor: offsets.left_processor,
        next_id: offsets.next_id,
        connection: offsets.connection,
        allotted: program.counter.map_or(0, address),
        image_start: address(start),
        image_end: address(end),
    }
}
