//! EDGE: reads the executables of traced processes, once each, and hooks those made by Go.
//!
//! A probe is on a binary, for all its processes. It goes some time after the last of them has
//! ended, so that the kernel does not keep binaries that were replaced or whose container is gone.
#![expect(clippy::disallowed_methods, reason = "edge: opens executables")]

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
};

use agent_common::{
    kernel_config::ABSENT,
    process::{GoProcess, NOT_YET},
};
use anyhow::{Context as _, Result};
use object::read::ReadCache;

use crate::{
    kernel::go::{GoHooks, ProbeId},
    process::{
        Process,
        binary::{self, GoProgram, Offsets, tls::Point},
        text,
    },
};

/// Executables remembered. Most are not made by Go: that is remembered too.
const BINARIES: usize = 4_096;

/// Probes stay for so long on a binary that nobody runs. One that is started anew is followed from
/// its first instruction then: to probe it takes up to half a second while other probes go.
const UNUSED_NS: u64 = 60_000_000_000;

/// Device and inode number of a file.
pub(super) type FileId = (u64, u64);

/// A file, and its content as far as the file system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Content {
    pub(super) file: FileId,
    size: u64,
    modified: (i64, i64),
}

impl Content {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// A Go binary and who runs it.
struct Binary {
    content: Content,
    program: GoProgram,
    probes: Vec<ProbeId>,
    /// Whether its TLS is probed; `None`: not tried yet.
    speaks_tls: Option<bool>,
    pids: HashSet<u32>,
    /// Since when nobody runs it.
    unused_ns: Option<u64>,
}

pub(super) struct Programs {
    hooks: GoHooks,
    go: HashMap<FileId, Binary>,
    others: HashSet<Content>,
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
    /// goroutines if Go made it, and notes so in its facts. Returns whether it was told.
    pub(super) fn inspect(&mut self, process: &mut Process) -> bool {
        let pid = process.id.pid;
        let mut is_described = false;
        match self.follow(pid) {
            Ok(Some((version, told))) => {
                process.facts.go_version = Some(version);
                is_described = told;
            }
            Ok(None) => {}
            Err(error) => {
                let reason = format!("{error:#}");
                tracing::debug!(pid, reason, "program not understood");
            }
        }
        if !is_described {
            self.hooks.forget(pid);
        }
        is_described
    }

    /// Probes the program's own TLS, if it has any and that was not done. Apart, because the kernel
    /// takes some 0.3 s to verify the first one's programs, and goroutines need not wait for that.
    pub(super) fn probe_tls(&mut self, pid: u32) -> bool {
        let Ok(content) = identify(pid) else {
            return false;
        };
        let Some(binary) = self.go.get_mut(&content.file) else {
            return false;
        };
        *binary.speaks_tls.get_or_insert_with(|| {
            let probe = probe(&mut self.hooks, pid, TLS, &binary.program.tls_points());
            let speaks_tls = probe.is_some();
            binary.probes.extend(probe);
            speaks_tls
        })
    }

    /// All plaintext of the process's own TLS is seen from now on, if it was not before.
    pub(super) fn note_tls(&mut self, pid: u32, now_ns: u64) -> Result<()> {
        self.hooks.note_tls(pid, now_ns)
    }

    /// Lets go of binaries that nobody has run for some time.
    pub(super) fn sweep(&mut self, now_ns: u64) {
        let Self { hooks, go, .. } = self;
        go.retain(|file, binary| {
            let runs = |pid: &u32| identify(*pid).is_ok_and(|content| content.file == *file);
            binary.pids.retain(runs);
            if !binary.pids.is_empty() {
                binary.unused_ns = None;
                return true;
            }
            let since_ns = *binary.unused_ns.get_or_insert(now_ns);
            let is_kept = now_ns.saturating_sub(since_ns) < UNUSED_NS;
            if !is_kept {
                detach(hooks, binary);
            }
            is_kept
        });
    }

    /// Version of the Go that made the process's program, and whether the kernel side was told of
    /// it; `None`: another language.
    fn follow(&mut self, pid: u32) -> Result<Option<(String, bool)>> {
        let content = identify(pid).context("cannot look at its executable")?;
        if self.others.contains(&content) {
            return Ok(None);
        }
        let known = self.go.get(&content.file);
        if known.is_none_or(|binary| binary.content != content) {
            let Some(program) = read(pid)? else {
                if self.others.len() >= BINARIES {
                    self.others.clear();
                }
                self.others.insert(content);
                return Ok(None);
            };
            self.meet(pid, content, program);
        }
        let Some(binary) = self.go.get_mut(&content.file) else {
            return Ok(None);
        };
        binary.pids.insert(pid);
        let version = binary.program.version.clone();
        let Some((offsets, _)) = &binary.program.offsets else {
            return Ok(Some((version, false)));
        };
        let process = describe(&binary.program, offsets, load_bias(pid, &binary.program));
        self.hooks.describe(pid, &process)?;
        Ok(Some((version, true)))
    }

    /// A binary not seen before, or one that was written again.
    fn meet(&mut self, pid: u32, content: Content, program: GoProgram) {
        if let Some(known) = self.go.get_mut(&content.file)
            && known.program == program
        {
            // Merely touched, as `go build` does with what is up to date: the probes are where
            // they belong, and new ones would come half a second late.
            known.content = content;
            return;
        }
        let before = self.go.remove(&content.file);
        if let Some(binary) = &before {
            detach(&mut self.hooks, binary);
        }
        report(pid, &program);
        let hooks = &mut self.hooks;
        let client = probe(hooks, pid, CLIENT, &program.client_points());
        let streams = probe(hooks, pid, STREAMS, program.stream_points());
        let binary = Binary {
            content,
            speaks_tls: None,
            probes: client.into_iter().chain(streams).collect(),
            program,
            pids: before.map(|binary| binary.pids).unwrap_or_default(),
            unused_ns: None,
        };
        self.go.insert(content.file, binary);
    }
}

/// `None`: there is nothing to probe, or it failed, which is said.
fn probe(hooks: &mut GoHooks, pid: u32, missing: &str, points: &[Point]) -> Option<ProbeId> {
    if points.is_empty() {
        return None;
    }
    match hooks.attach(&executable(pid), points) {
        Ok(probe) => Some(probe),
        Err(error) => {
            let reason = format!("{error:#}");
            tracing::warn!(pid, reason, "{missing}");
            None
        }
    }
}

/// What is missing without the probes.
const CLIENT: &str = "calls of Go's HTTP client not joined by goroutine";
const STREAMS: &str = "streams of HTTP/2 not joined by goroutine";
const TLS: &str = "Go's own TLS not captured";

/// Says what a new binary is, and what of it is not understood.
fn report(pid: u32, program: &GoProgram) {
    tracing::info!(
        pid,
        version = program.version,
        is_stripped = program.is_stripped,
        is_position_independent = program.is_position_independent,
        offsets = ?program.offsets.map(|(_, source)| source),
        has_http_client = program.client_call.is_some(),
        streams = program.streams.len(),
        has_tls = program.tls.is_some(),
        "Go program"
    );
    for shortcoming in &program.shortcomings {
        tracing::warn!(pid, reason = %shortcoming, "Go program not followed all the way");
    }
}

fn detach(hooks: &mut GoHooks, binary: &Binary) {
    for probe in &binary.probes {
        if let Err(error) = hooks.detach(probe) {
            tracing::debug!(%error, "probe not detached");
        }
    }
}

fn executable(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}

fn identify(pid: u32) -> io::Result<Content> {
    fs::metadata(executable(pid)).map(|metadata| Content::of(&metadata))
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
        tls_connection: program.tls.as_ref().map_or(0, |tls| tls.connection),
        stream_identifier: program.stream_identifier.unwrap_or(ABSENT),
        tls_since_ns: NOT_YET,
        allotted: program.counter.map_or(0, address),
        image_start: address(start),
        image_end: address(end),
    }
}
