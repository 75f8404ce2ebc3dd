//! EDGE: TLS libraries of traced processes, found in what they have mapped and probed once for each
//! file.
//!
//! A library is looked for when a process is selected or runs a new program, in what it has mapped
//! and in the usual places of its file system: a command like curl has made its request before
//! anyone could look at its memory. It is looked for again while a program starts, and when a
//! process is seen to speak TLS that is not understood: that is how one is found that was loaded
//! late. Probes go when no process has the file any more, and where functions were found without
//! symbols and nothing that came out of them was understood.
#![expect(clippy::disallowed_methods, reason = "edge: reads /proc and libraries")]

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use object::read::ReadCache;

use super::programs::{Content, FileId};
use crate::{
    kernel::tls::{ProbesId, TlsHooks},
    process::{
        binary::tls::{self, FoundBy, TlsLibrary},
        text, tls_file,
    },
};

/// Files remembered that have no TLS library in them.
const OTHERS: usize = 4_096;

/// Where distributions keep libraries of x86-64.
const DIRECTORIES: [&str; 6] = [
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/lib",
    "usr/local/lib64",
];

/// A program's libraries are mapped within milliseconds of its start, but interpreters load theirs
/// when a script asks for them.
const RESCANS_NS: [u64; 3] = [30_000_000, 200_000_000, 1_000_000_000];

/// A process that speaks TLS in a way that is not understood is looked at this often at most.
const TRIGGER_NS: u64 = 1_000_000_000;

/// Sessions of a library found without symbols that carry nothing of ours, before its probes go.
const OPAQUE_SESSIONS: u32 = 16;

/// Whether functions that were found without symbols of the file's own are what they were taken
/// for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    /// With the sessions so far that carried nothing of ours.
    Pending(u32),
    /// One carried a protocol of ours; the file's own symbols are as good.
    Over,
}

impl Trial {
    const fn of(found_by: FoundBy) -> Self {
        match found_by {
            FoundBy::Symbols => Self::Over,
            FoundBy::SeparateSymbols | FoundBy::Reports => Self::Pending(0),
        }
    }

    /// What a session carries is understood, or not. Returns whether the probes are to go.
    fn handle(&mut self, is_understood: bool) -> bool {
        match self {
            Self::Pending(_) if is_understood => *self = Self::Over,
            Self::Pending(sessions) => *sessions += 1,
            Self::Over => {}
        }
        *self == Self::Pending(OPAQUE_SESSIONS)
    }
}

struct Probed {
    content: Content,
    probes: Option<ProbesId>,
    trial: Trial,
    /// For people.
    file: String,
    /// Who has it mapped, or in whose file system it is.
    pids: HashSet<u32>,
}

pub(super) struct Libraries {
    hooks: TlsHooks,
    probed: HashMap<FileId, Probed>,
    others: HashSet<Content>,
    /// Mount namespaces whose usual places were looked at, each with a process in it.
    places: HashMap<PathBuf, u32>,
    /// When to look at which process again.
    due: BTreeSet<(u64, u32)>,
    /// When a process was last looked at because it speaks TLS.
    triggered: HashMap<u32, u64>,
}

impl Libraries {
    pub(super) fn new(hooks: TlsHooks) -> Self {
        Self {
            hooks,
            probed: HashMap::new(),
            others: HashSet::new(),
            places: HashMap::new(),
            due: BTreeSet::new(),
            triggered: HashMap::new(),
        }
    }

    /// A process that is traced from now on.
    pub(super) fn meet(&mut self, pid: u32) {
        self.scan(pid);
    }

    /// A traced process that runs a new program, or is about to.
    pub(super) fn meet_program(&mut self, pid: u32, now_ns: u64) {
        self.look_at_places(pid);
        self.scan(pid);
        let later = RESCANS_NS.map(|after_ns| (now_ns.saturating_add(after_ns), pid));
        self.due.extend(later);
    }

    /// A traced process speaks TLS, and what it says is not known.
    pub(super) fn meet_tls(&mut self, pid: u32, now_ns: u64) {
        let before = self.triggered.insert(pid, now_ns);
        if before.is_none_or(|before| now_ns.saturating_sub(before) > TRIGGER_NS) {
            self.scan(pid);
        }
    }

    /// What a session of a traced process carries is understood, or not.
    pub(super) fn handle_plaintext(&mut self, pid: u32, is_understood: bool) {
        let Some(file) = self.on_trial(pid) else {
            return;
        };
        let Self { hooks, probed, .. } = self;
        let Some(library) = probed.get_mut(&file) else {
            return;
        };
        if library.trial.handle(is_understood) {
            detach(hooks, library);
            let file = &library.file;
            let reason = "its symbols were stripped, and nothing that its functions carried is a \
                          protocol of ours";
            tracing::warn!(pid, file, reason, "TLS library not followed any more");
        }
    }

    /// The library on trial that a session of this process went through. A record does not name
    /// its library, so none is judged by a process that has two: where Python has grpcio and
    /// libssl, a database's session is no word about grpcio.
    fn on_trial(&self, pid: u32) -> Option<FileId> {
        let probed = |library: &&Probed| library.probes.is_some();
        let in_process = |library: &Probed| library.pids.contains(&pid);
        let libraries = self.probed.values().filter(probed);
        let mut on_trial = libraries.filter(|library| library.trial != Trial::Over);
        if !on_trial.any(in_process) {
            return None;
        }
        // Those in the usual places of its file system may not be in it.
        let has_probes = |file: &FileId| self.probed.get(file).as_ref().is_some_and(probed);
        let files = mapped(pid).into_iter().map(|(_, content)| content.file);
        let mut files: BTreeSet<FileId> = files.filter(has_probes).collect();
        let only = files.pop_first()?;
        files.is_empty().then_some(only)
    }

    /// Time passes.
    pub(super) fn handle_tick(&mut self, now_ns: u64) {
        while let Some(&(due_ns, pid)) = self.due.first()
            && due_ns <= now_ns
        {
            self.due.pop_first();
            self.scan(pid);
        }
    }

    /// Lets go of files that nobody has mapped any more. `traced` are all traced processes: a
    /// child may have inherited what its parent was seen to have.
    pub(super) fn sweep(&mut self, traced: impl Fn() -> Vec<u32>) {
        let exists = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        self.places.retain(|_, pid| exists(pid));
        self.triggered.retain(|pid, _| exists(pid));
        let mut is_abandoned = false;
        for library in self.probed.values_mut() {
            library.pids.retain(exists);
            is_abandoned |= library.pids.is_empty();
        }
        if !is_abandoned {
            return;
        }
        for pid in traced() {
            for (_, content) in mapped(pid) {
                if let Some(library) = self.probed.get_mut(&content.file) {
                    library.pids.insert(pid);
                }
            }
        }
        let Self { hooks, probed, .. } = self;
        probed.retain(|_, library| {
            if library.pids.is_empty() {
                detach(hooks, library);
            }
            !library.pids.is_empty()
        });
    }

    fn scan(&mut self, pid: u32) {
        for (path, content) in mapped(pid) {
            self.handle_file(pid, &path, content);
        }
    }

    /// Libraries in the usual places of the process's file system, once for each.
    pub(super) fn look_at_places(&mut self, pid: u32) {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else {
            return;
        };
        if self.places.contains_key(&namespace) {
            return;
        }
        self.places.insert(namespace, pid);
        for directory in DIRECTORIES {
            let Ok(entries) = fs::read_dir(
                Path::new("/proc")
                    .join(format!("{pid}/root"))
                    .join(directory),
            ) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                if !name.to_str().is_some_and(tls::is_library_name) {
                    continue;
                }
                let path = entry.path();
                if let Ok(metadata) = fs::metadata(&path) {
                    self.handle_file(pid, &path, Content::of(&metadata));
                }
            }
        }
    }

    fn handle_file(&mut self, pid: u32, path: &Path, content: Content) {
        if self.others.contains(&content) {
            return;
        }
        if let Some(known) = self.probed.get_mut(&content.file) {
            if known.content == content {
                known.pids.insert(pid);
                return;
            }
            // Written again: the probes are where other functions are now.
            detach(&mut self.hooks, known);
            self.probed.remove(&content.file);
        }
        match read(path) {
            Ok(Some(library)) => {
                let file = fs::read_link(path).unwrap_or_else(|_| path.to_owned());
                let file = file.display().to_string();
                let found = Probed {
                    content,
                    probes: self.probe(pid, path, &file, &library),
                    trial: Trial::of(library.found_by),
                    file,
                    pids: HashSet::from([pid]),
                };
                self.probed.insert(content.file, found);
            }
            Ok(None) => self.note_other(content),
            Err(error) => {
                let reason = format!("{error:#}");
                tracing::debug!(pid, path = %path.display(), reason, "library not understood");
                self.note_other(content);
            }
        }
    }

    fn note_other(&mut self, content: Content) {
        if self.others.len() >= OTHERS {
            self.others.clear();
        }
        self.others.insert(content);
    }

    fn probe(
        &mut self,
        pid: u32,
        path: &Path,
        file: &str,
        library: &TlsLibrary,
    ) -> Option<ProbesId> {
        let kind = library.library.name();
        match self.hooks.attach(path, &library.points) {
            Ok(probes) => {
                tracing::info!(pid, file, kind, "TLS library probed");
                Some(probes)
            }
            Err(error) => {
                let reason = format!("{error:#}");
                tracing::warn!(pid, file, kind, reason, "TLS library not probed");
                None
            }
        }
    }
}

fn detach(hooks: &mut TlsHooks, library: &mut Probed) {
    if let Some(probes) = library.probes.take()
        && let Err(error) = hooks.detach(&probes)
    {
        tracing::debug!(%error, "probes not detached");
    }
}

/// Files that a process runs and that may hold a TLS library: its program, and libraries by name.
/// The paths lead to the very files, also where they are in another file system or removed.
fn mapped(pid: u32) -> Vec<(PathBuf, Content)> {
    let executable = PathBuf::from(format!("/proc/{pid}/exe"));
    let mut files = Vec::new();
    let mut add = |path: PathBuf| {
        if let Ok(metadata) = fs::metadata(&path) {
            files.push((path, Content::of(&metadata)));
        }
    };
    add(executable);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    for mapping in text::executable_mappings(&maps) {
        if tls::is_library_name(mapping.file_name()) {
            let range = mapping.range;
            add(PathBuf::from(format!("/proc/{pid}/map_files/{range}")));
        }
    }
    files
}

fn read(path: &Path) -> Result<Option<TlsLibrary>> {
    tls_file::library(&ReadCache::new(tls_file::open(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The functions of a stripped program are let go of when nothing that they carried was
    /// understood; one session that is understood proves them for good, as symbols do.
    #[test]
    fn trials() {
        let mut unknown = Trial::of(FoundBy::Reports);
        let gone = (0..OPAQUE_SESSIONS + 10).position(|_| unknown.handle(false));
        assert_eq!(gone, Some(OPAQUE_SESSIONS as usize - 1));
        let mut proven = Trial::of(FoundBy::Reports);
        assert!((1..OPAQUE_SESSIONS).all(|_| !proven.handle(false)));
        assert!(!proven.handle(true));
        let mut named = Trial::of(FoundBy::Symbols);
        for trial in [&mut proven, &mut named] {
            assert!((0..100).all(|_| !trial.handle(false)));
        }
    }
}
