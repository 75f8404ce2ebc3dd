//! EDGE: the processes the user chose, told to the kernel side.

use std::collections::BTreeSet;

use super::{libraries::Libraries, programs::Programs, threads::boottime_ns};
use crate::{
    event::{ProcessId, Unit},
    kernel::maps::Processes,
    process::{Facts, Process, select::Selection, watch::ProcFs},
};

pub(super) struct Targets {
    selection: Selection,
    procfs: ProcFs,
    traced: Processes,
    programs: Programs,
    libraries: Libraries,
}

impl Targets {
    pub(super) fn new(
        selection: Selection,
        procfs: ProcFs,
        traced: Processes,
        programs: Programs,
        libraries: Libraries,
    ) -> Self {
        Self {
            selection,
            procfs,
            traced,
            programs,
            libraries,
        }
    }

    /// Traces what runs already, `command` included; returns what is known of each. Looks twice,
    /// because a process may start another one between the look and its being traced.
    pub(super) fn select_running(
        &mut self,
        command: Option<u32>,
        now_ns: u64,
    ) -> anyhow::Result<Vec<Process>> {
        let mut chosen = Vec::new();
        if self.selection.awaits_programs() {
            // A command that is chosen as it starts has made its request before its memory can be
            // looked at; it runs in this file system more often than not.
            self.libraries.look_at_places(std::process::id());
        }
        if let Some(pid) = command {
            self.libraries.meet_program(pid, now_ns);
            let mut process = self.procfs.read(pid)?;
            self.traced.trace(process.id)?;
            self.inspect(&mut process);
            chosen.push(process);
        }
        for _ in 0..2 {
            let candidates = self.procfs.candidates()?;
            let reasons = self.selection.choose(&candidates, std::process::id());
            for candidate in candidates {
                let mut process = candidate.process;
                let Some(reason) = reasons.get(&process.id.pid) else {
                    continue;
                };
                if !chosen.iter().any(|known: &Process| known.id == process.id) {
                    tracing::debug!(pid = process.id.pid, ?reason, "traced");
                    self.traced.trace(process.id)?;
                    self.inspect(&mut process);
                    chosen.push(process);
                }
            }
        }
        Ok(chosen)
    }

    /// A process that replaced its program or began to listen may be one that was chosen, or the
    /// child of one. `known` is what its exec said, for one that has ended already. `None`: it is
    /// not, and is no longer traced.
    pub(super) fn consider(&mut self, id: ProcessId, known: Option<&Facts>) -> Option<Process> {
        let read = self.read(id);
        let has_ended = read.is_none();
        let mut process = read.or_else(|| {
            known.map(|facts| Process {
                id,
                facts: facts.clone(),
            })
        })?;
        let ports = if has_ended {
            BTreeSet::new()
        } else {
            let mut listening = self.procfs.listening_ports(std::iter::once(id.pid));
            listening.remove(&id.pid).unwrap_or_default()
        };
        let is_child = self.traced.is_selected(process.facts.parent_pid);
        let reason = self.selection.matches(id.pid, &process.facts, &ports);
        if !is_child && reason.is_none() {
            self.traced.forget(id.pid);
            return None;
        }
        tracing::debug!(pid = id.pid, ?reason, "traced");
        if !has_ended && let Err(error) = self.traced.trace(id) {
            tracing::warn!(pid = id.pid, %error, "process not traced");
            return None;
        }
        if !has_ended {
            self.inspect(&mut process);
        }
        Some(process)
    }

    /// What is known of a traced process, its program included.
    pub(super) fn learn(&mut self, id: ProcessId) -> Option<Process> {
        let mut process = self.read(id)?;
        if self.selection.all || self.traced.is_selected(id.pid) {
            self.inspect(&mut process);
        }
        Some(process)
    }

    /// Looks at what a traced process runs.
    fn inspect(&mut self, process: &mut Process) {
        let id = process.id;
        self.libraries.meet(id.pid);
        let is_go = self.programs.inspect(process);
        let marked = if is_go && self.selection.all && !self.traced.is_selected(id.pid) {
            // The kernel side would trace it on its first socket call.
            self.traced.trace(id)
        } else {
            Ok(())
        };
        let settled = marked
            .and_then(|()| self.traced.mark_go(id, is_go))
            .and_then(|()| {
                if is_go && self.programs.probe_tls(id.pid) {
                    self.begin_own_tls(id)
                } else {
                    Ok(())
                }
            });
        if let Err(error) = settled {
            tracing::warn!(pid = id.pid, %error, "goroutines not followed");
        }
    }

    /// From here on the kernel side takes everything that the program's own TLS does. It is marked
    /// before its first plaintext, so that its handshakes are known for what they are.
    fn begin_own_tls(&mut self, id: ProcessId) -> anyhow::Result<()> {
        self.traced.mark_tls(id)?;
        self.programs.note_tls(id.pid, boottime_ns())
    }

    /// What threads of a process hand to each other is watched, or not any more.
    pub(super) fn mark_followed(&mut self, id: ProcessId, is_followed: bool) {
        if let Err(error) = self.traced.mark_followed(id, is_followed) {
            tracing::warn!(pid = id.pid, %error, "work handed from thread to thread not followed");
        }
    }

    /// Lets go of what belongs to programs that ended.
    pub(super) fn sweep(&mut self, now_ns: u64) {
        self.programs.sweep(now_ns);
        let traced = &self.traced;
        self.libraries.sweep(|| traced.pids());
    }

    /// A traced process runs another program.
    pub(super) fn note_program(&mut self, id: ProcessId, now_ns: u64) {
        self.libraries.meet_program(id.pid, now_ns);
    }

    /// A traced process speaks TLS, and what it says is not known.
    pub(super) fn note_tls(&mut self, id: ProcessId, now_ns: u64) {
        self.libraries.meet_tls(id.pid, now_ns);
    }

    /// What a session of a traced process carries is understood, or not.
    pub(super) fn note_plaintext(&mut self, id: ProcessId, is_understood: bool) {
        self.libraries.handle_plaintext(id.pid, is_understood);
    }

    /// Time passes.
    pub(super) fn handle_tick(&mut self, now_ns: u64) {
        self.libraries.handle_tick(now_ns);
    }

    /// Threads of a process, while it is there.
    pub(super) fn threads(&self, process: ProcessId) -> Vec<Unit> {
        let threads = self.procfs.threads(process.pid).into_iter();
        let unit = |thread_id| Unit { process, thread_id };
        threads.map(unit).collect()
    }

    /// Name of a thread, while it is there.
    pub(super) fn thread_name(&self, unit: Unit) -> Option<String> {
        let name = self.procfs.thread_name(unit.process.pid, unit.thread_id);
        name.ok()
    }

    /// What `/proc` says now; `None` when the process is gone, or is another one by now. One that
    /// has ended and waits for its parent has neither executable nor arguments any more.
    fn read(&self, id: ProcessId) -> Option<Process> {
        self.procfs
            .read(id.pid)
            .ok()
            .filter(|process| id.start_ticks == 0 || process.id == id)
            .filter(|Process { facts, .. }| {
                !facts.executable.as_os_str().is_empty() || !facts.arguments.is_empty()
            })
    }
}
