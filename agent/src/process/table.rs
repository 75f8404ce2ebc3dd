//! What is known of each process, while it lives and a little longer. Pure.
//!
//! | event | effect |
//! |---|---|
//! | found in `/proc` | facts are set |
//! | exec | facts are forgotten but for the environment that came with it; `/proc` is to be read |
//! | fork | the child has the parent's facts until its own exec |
//! | facts read | facts are set; the environment of the exec record wins over `/proc` |
//! | exit | facts stay for [`KEPT_AFTER_EXIT_NS`], because spans may still come |
//!
//! The exec record wins because programs such as nginx and `PostgreSQL` write over their block.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::{
    Facts, Process, Runtime,
    text::{self, Environment},
};
use crate::event::{Exec, ProcessId};

/// Longer than a trace is held for its spans to settle, plus an export round.
pub const KEPT_AFTER_EXIT_NS: u64 = 60_000_000_000;

/// What is remembered of one process.
#[derive(Clone, Debug, Default)]
struct Entry {
    facts: Facts,
    /// Of the last exec seen; `None` when the program was running before the agent.
    exec_environment: Option<Environment>,
    revision: u64,
    /// Of the facts; asked for with every record.
    runtime: Runtime,
}

/// All processes that are, or recently were, traced.
#[derive(Debug)]
pub struct ProcessTable {
    entries: FxHashMap<ProcessId, Entry>,
    /// The living (or last) process of each number.
    by_pid: FxHashMap<u32, ProcessId>,
    /// Processes that ended, with the time to forget them at, in order.
    ended: VecDeque<(u64, ProcessId)>,
    /// Processes to be read from `/proc`.
    to_read: VecDeque<ProcessId>,
    /// Forgotten before their time, since this was last asked.
    evicted: Vec<ProcessId>,
    capacity: usize,
    boot_seconds: u64,
    next_revision: u64,
}

impl ProcessTable {
    /// `capacity` in processes; `boot_seconds` since the Unix epoch, for creation times of forked
    /// children.
    pub fn new(capacity: usize, boot_seconds: u64) -> Self {
        Self {
            entries: FxHashMap::default(),
            by_pid: FxHashMap::default(),
            ended: VecDeque::new(),
            to_read: VecDeque::new(),
            evicted: Vec::new(),
            capacity: capacity.max(1),
            boot_seconds,
            next_revision: 1,
        }
    }

    /// A process that was running before the agent.
    pub fn handle_found(&mut self, process: Process) {
        self.set(
            process.id,
            Entry {
                facts: process.facts,
                ..Entry::default()
            },
        );
    }

    pub fn handle_exec(&mut self, exec: &Exec<'_>) {
        let environment = Environment::parse(exec.environment);
        let before = self.entries.get(&exec.process).map(|entry| &entry.facts);
        let facts = Facts {
            parent_pid: exec.parent_pid,
            // What `/proc` would say, were the process to end before it is read.
            executable: exec.executable.clone().into(),
            arguments: text::parse_arguments(exec.arguments),
            command: exec.command.clone(),
            environment: environment.variables.clone(),
            // An exec leaves the process in its cgroup, and its start as it was.
            container_id: before.and_then(|facts| facts.container_id.clone()),
            creation_time: self.creation_time(exec.process),
            go_version: None,
        };
        let entry = Entry {
            facts,
            exec_environment: Some(environment),
            ..Entry::default()
        };
        self.set(exec.process, entry);
        self.to_read.push_back(exec.process);
    }

    pub fn handle_fork(&mut self, parent: ProcessId, child: ProcessId) {
        let creation_time = self.creation_time(child);
        let Some(known) = self.find(parent).and_then(|id| self.entries.get(&id)) else {
            self.set(
                child,
                Entry {
                    facts: Facts {
                        creation_time,
                        ..Facts::default()
                    },
                    ..Entry::default()
                },
            );
            self.to_read.push_back(child);
            return;
        };
        let mut entry = known.clone();
        entry.facts.parent_pid = parent.pid;
        entry.facts.creation_time = creation_time;
        self.set(child, entry);
        // The parent may itself wait to be read; then the child must be read too.
        if self.to_read.contains(&parent) {
            self.to_read.push_back(child);
        }
    }

    /// What `/proc` said about a process that [`ProcessTable::poll_unread`] named. An answer that
    /// is about a successor of the same number is ignored.
    pub fn handle_read(&mut self, process: Process) {
        let Some(id) = self.find(process.id) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let mut facts = process.facts;
        if let Some(from_exec) = &entry.exec_environment {
            let mut environment = from_exec.variables.clone();
            if from_exec.cut {
                // What lies behind the cut is known from `/proc` only.
                let known = |name: &str| from_exec.variables.iter().any(|(other, _)| other == name);
                environment.extend(
                    facts
                        .environment
                        .into_iter()
                        .filter(|(name, _)| !known(name)),
                );
            }
            facts.environment = environment;
        }
        entry.runtime = facts.runtime();
        entry.facts = facts;
        entry.revision = self.next_revision;
        self.next_revision += 1;
    }

    pub fn handle_exit(&mut self, process: ProcessId, now_ns: u64) {
        if let Some(id) = self.find(process) {
            self.ended.push_back((now_ns + KEPT_AFTER_EXIT_NS, id));
        }
    }

    /// Forgets processes that ended long enough ago; returns them for caches that follow.
    pub fn handle_tick(&mut self, now_ns: u64) -> Vec<ProcessId> {
        let mut forgotten = Vec::new();
        while let Some(&(forget_at_ns, id)) = self.ended.front() {
            if forget_at_ns > now_ns {
                break;
            }
            self.ended.pop_front();
            self.forget(id);
            forgotten.push(id);
        }
        forgotten
    }

    /// Processes that were forgotten to make room, for caches that follow; each is a loss.
    pub fn take_evicted(&mut self) -> Vec<ProcessId> {
        std::mem::take(&mut self.evicted)
    }

    /// The next process whose `/proc` files are wanted, and so for ever until `None`.
    pub fn poll_unread(&mut self) -> Option<ProcessId> {
        while let Some(id) = self.to_read.pop_front() {
            if self.entries.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }

    pub fn facts(&self, process: ProcessId) -> Option<&Facts> {
        self.find(process)
            .and_then(|id| self.entries.get(&id))
            .map(|entry| &entry.facts)
    }

    /// Changes whenever the facts do; 0 for an unknown process.
    pub fn revision(&self, process: ProcessId) -> u64 {
        self.find(process)
            .and_then(|id| self.entries.get(&id))
            .map_or(0, |entry| entry.revision)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The very process, or the one of its number where its start is unknown.
    /// How the process works, as far as it is known.
    pub fn runtime(&self, process: ProcessId) -> Runtime {
        let entry = self.entries.get(&process);
        let entry = entry.or_else(|| self.entries.get(&self.find(process)?));
        entry.map_or(Runtime::Other, |entry| entry.runtime)
    }

    fn find(&self, process: ProcessId) -> Option<ProcessId> {
        if self.entries.contains_key(&process) {
            return Some(process);
        }
        let same_number = *self.by_pid.get(&process.pid)?;
        (process.start_ticks == 0 || same_number.start_ticks == 0).then_some(same_number)
    }

    fn set(&mut self, id: ProcessId, mut entry: Entry) {
        entry.runtime = entry.facts.runtime();
        if !self.entries.contains_key(&id) && self.entries.len() >= self.capacity {
            // Those that ended go first; if all live, any of them is as good as another.
            let oldest = self.ended.pop_front().map(|(_, id)| id);
            if let Some(victim) = oldest.or_else(|| self.entries.keys().next().copied()) {
                self.forget(victim);
                self.evicted.push(victim);
            }
        }
        entry.revision = self.next_revision;
        self.next_revision += 1;
        self.entries.insert(id, entry);
        self.by_pid.insert(id.pid, id);
    }

    fn forget(&mut self, id: ProcessId) {
        self.entries.remove(&id);
        if self.by_pid.get(&id.pid) == Some(&id) {
            self.by_pid.remove(&id.pid);
        }
    }

    fn creation_time(&self, id: ProcessId) -> Option<String> {
        (id.start_ticks != 0).then(|| text::creation_time(self.boot_seconds, id.start_ticks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Traced;

    const SHELL: ProcessId = ProcessId {
        pid: 10,
        start_ticks: 100,
    };
    const CHILD: ProcessId = ProcessId {
        pid: 11,
        start_ticks: 200,
    };

    fn table() -> ProcessTable {
        let mut table = ProcessTable::new(4, 1_700_000_000);
        table.handle_found(Process {
            id: SHELL,
            facts: facts("/bin/sh", "shell"),
        });
        table
    }

    fn facts(executable: &str, service: &str) -> Facts {
        Facts {
            parent_pid: 1,
            executable: executable.into(),
            environment: vec![("OTEL_SERVICE_NAME".to_owned(), service.to_owned())],
            container_id: Some("c0".to_owned()),
            ..Facts::default()
        }
    }

    fn exec(environment: &[u8]) -> Exec<'_> {
        Exec {
            process: CHILD,
            parent_pid: SHELL.pid,
            traced: Traced::Yes,
            command: "nginx".to_owned(),
            executable: "/usr/sbin/nginx".to_owned(),
            arguments: b"nginx\0-g\0daemon off;\0",
            environment,
        }
    }

    fn service(table: &ProcessTable, id: ProcessId) -> Option<&str> {
        table.facts(id)?.variable("OTEL_SERVICE_NAME")
    }

    /// A forked child is known at once, with its own parent and start.
    #[test]
    fn a_fork_inherits() {
        let mut table = table();
        table.handle_fork(SHELL, CHILD);
        let child = table.facts(CHILD).expect("inherited");
        assert_eq!(
            (child.parent_pid, child.executable.to_str()),
            (10, Some("/bin/sh"))
        );
        assert_eq!(
            child.creation_time.as_deref(),
            Some("2023-11-14T22:13:22.00Z")
        );
        assert_eq!(table.poll_unread(), None);
    }

    /// An exec forgets the old program, asks for `/proc`, and its environment outlives what the
    /// program wrote over its block.
    #[test]
    fn an_exec_replaces_and_its_environment_wins() {
        let mut table = table();
        table.handle_fork(SHELL, CHILD);
        let before = table.revision(CHILD);
        table.handle_exec(&exec(b"A=1\0OTEL_SERVICE_NAME=web\0"));
        assert_eq!(service(&table, CHILD), Some("web"));
        assert_eq!(
            table.facts(CHILD).and_then(Facts::executable_name),
            Some("nginx"),
            "the exec's own path, until /proc is read"
        );
        assert_eq!(table.poll_unread(), Some(CHILD));
        assert_eq!(table.poll_unread(), None);

        let mut read = facts("/usr/sbin/nginx", "stale");
        read.environment
            .push(("OTEL_OTHER".to_owned(), "x".to_owned()));
        table.handle_read(Process {
            id: CHILD,
            facts: read,
        });
        let known = table.facts(CHILD).expect("just read");
        assert_eq!(known.executable.to_str(), Some("/usr/sbin/nginx"));
        assert_eq!(
            known.environment,
            [("OTEL_SERVICE_NAME".to_owned(), "web".to_owned())]
        );
        assert!(table.revision(CHILD) > before);
    }

    /// Variables behind the cut of an exec record come from `/proc`.
    #[test]
    fn a_cut_environment_is_completed() {
        let mut table = table();
        table.handle_exec(&exec(b"OTEL_SERVICE_NAME=web\0OTEL_OTH"));
        let mut read = facts("/usr/sbin/nginx", "stale");
        read.environment
            .push(("OTEL_OTHER".to_owned(), "x".to_owned()));
        table.handle_read(Process {
            id: CHILD,
            facts: read,
        });
        let known = table.facts(CHILD).expect("just read");
        assert_eq!(known.variable("OTEL_SERVICE_NAME"), Some("web"));
        assert_eq!(known.variable("OTEL_OTHER"), Some("x"));
    }

    /// Facts outlive the process for a while, then go; a new process of the same number is
    /// another one.
    #[test]
    fn an_exit_forgets_later_and_numbers_are_reused() {
        let mut table = table();
        table.handle_exit(SHELL, 5);
        assert_eq!(table.handle_tick(KEPT_AFTER_EXIT_NS), []);
        assert_eq!(service(&table, SHELL), Some("shell"));

        let successor = ProcessId {
            pid: SHELL.pid,
            start_ticks: 900,
        };
        assert_eq!(table.facts(successor), None);
        table.handle_found(Process {
            id: successor,
            facts: facts("/bin/other", "other"),
        });
        assert_eq!(table.handle_tick(KEPT_AFTER_EXIT_NS + 5), [SHELL]);
        assert_eq!(table.facts(SHELL), None);
        assert_eq!(service(&table, successor), Some("other"));
        assert_eq!(
            service(
                &table,
                ProcessId {
                    pid: SHELL.pid,
                    start_ticks: 0
                }
            ),
            Some("other")
        );
    }

    /// An answer of `/proc` about another process of the same number changes nothing.
    #[test]
    fn a_late_answer_is_ignored() {
        let mut table = table();
        let successor = ProcessId {
            pid: SHELL.pid,
            start_ticks: 900,
        };
        table.handle_read(Process {
            id: successor,
            facts: facts("/bin/other", "other"),
        });
        assert_eq!(service(&table, SHELL), Some("shell"));
    }

    /// The table never grows beyond its capacity, the ended go first, and each that goes is said.
    #[test]
    fn the_table_is_bounded() {
        let mut table = table();
        table.handle_exit(SHELL, 0);
        for pid in 100..110 {
            let id = ProcessId {
                pid,
                start_ticks: 1,
            };
            table.handle_found(Process {
                id,
                facts: Facts::default(),
            });
            assert!(table.facts(id).is_some());
            assert!(table.len() <= 4);
        }
        assert_eq!(table.facts(SHELL), None);
        let evicted = table.take_evicted();
        assert_eq!(evicted.first(), Some(&SHELL));
        assert_eq!(evicted.len(), 1 + 10 - table.len());
        assert_eq!(table.take_evicted(), []);
    }
}
