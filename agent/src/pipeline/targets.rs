//! EDGE: the processes the user chose, told to the kernel side.

use crate::{
    event::ProcessId,
    kernel::maps::Processes,
    process::{Process, select::Selection, watch::ProcFs},
};

pub(super) struct Targets {
    selection: Selection,
    procfs: ProcFs,
    traced: Processes,
}

impl Targets {
    pub(super) const fn new(selection: Selection, procfs: ProcFs, traced: Processes) -> Self {
        Self { selection, procfs, traced }
    }

    /// Traces what runs already, `command` included; returns what is known of each. Looks twice,
    /// because a process may start another one between the look and its being traced.
    pub(super) fn select_running(&mut self, command: Option<u32>) -> anyhow::Result<Vec<Process>> {
        let mut chosen = Vec::new();
        if let Some(pid) = command {
            let process = self.procfs.read(pid)?;
            self.traced.trace(process.id)?;
            chosen.push(process);
        }
        for _ in 0..2 {
            let candidates = self.procfs.candidates()?;
            let reasons = self.selection.choose(&candidates, std::process::id());
            for candidate in candidates {
                let process = candidate.process;
                let Some(reason) = reasons.get(&process.id.pid) else { continue };
                if !chosen.iter().any(|known: &Process| known.id == process.id) {
                    tracing::debug!(pid = process.id.pid, ?reason, "traced");
                    self.traced.trace(process.id)?;
                    chosen.push(process);
                }
            }
        }
        Ok(chosen)
    }

    /// A process that replaced its program or began to listen may be one that was chosen.
    pub(super) fn consider(&mut self, id: ProcessId) -> Option<Process> {
        let process = self.read(id)?;
        let listening = self.procfs.listening_ports(std::iter::once(id.pid));
        let ports = listening.get(&id.pid).cloned().unwrap_or_default();
        let reason = self.selection.matches(id.pid, &process.facts, &ports)?;
        if let Err(error) = self.traced.trace(id) {
            tracing::warn!(pid = id.pid, %error, "process not traced");
            return None;
        }
        tracing::debug!(pid = id.pid, ?reason, "traced");
        Some(process)
    }

    /// What `/proc` says now; `None` when the process is gone, or is another one by now.
    pub(super) fn read(&self, id: ProcessId) -> Option<Process> {
        self.procfs.read(id.pid).ok().filter(|process| id.start_ticks == 0 || process.id == id)
    }
}
