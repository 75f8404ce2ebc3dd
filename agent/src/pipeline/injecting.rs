//! EDGE: whose requests get headers, told to the kernel side.

use std::{collections::BTreeSet, path::PathBuf};

use crate::{
    event::{ConnectionId, ProcessId},
    kernel::injection::{Injection, Mode, WaitingBytes},
    process::{
        Facts,
        injectable::{self, Verdict},
    },
};

pub(super) struct Injecting {
    /// `None`: nothing is injected.
    injection: Option<Injection>,
    /// Executables that were said to be left alone.
    named: BTreeSet<String>,
    /// Executables whose requests fared worse with headers.
    stopped: BTreeSet<PathBuf>,
}

/// Executables named in the log at most.
const NAMED: usize = 256;

impl Injecting {
    pub(super) fn new(injection: Option<Injection>) -> Self {
        if let Some(injection) = &injection {
            tracing::info!(
                waiting_bytes = ?injection.waiting_bytes,
                "headers are injected into HTTP/1 requests in plain text"
            );
        }
        Self {
            injection,
            named: BTreeSet::new(),
            stopped: BTreeSet::new(),
        }
    }

    /// What a traced process runs is known, or has changed.
    pub(super) fn handle_program(&mut self, process: ProcessId, facts: &Facts) {
        let Some(injection) = &mut self.injection else {
            return;
        };
        if self.stopped.contains(&facts.executable) {
            injection.disarm(process);
            return;
        }
        match injectable::judge(facts, injection.waiting_bytes == WaitingBytes::Told) {
            Verdict::Loop => arm(injection, process, Mode::Loop),
            Verdict::Threads => arm(injection, process, Mode::Threads),
            Verdict::LeftAlone(reason) => {
                injection.disarm(process);
                let name = facts.executable_name().unwrap_or("unknown").to_owned();
                if self.named.len() < NAMED && self.named.insert(name.clone()) {
                    tracing::info!(executable = name, reason, "no headers are injected");
                }
            }
        }
    }

    /// Requests fare worse with headers: none are put into those of this program any more.
    pub(super) fn stop(
        &mut self,
        process: ProcessId,
        facts: Option<&Facts>,
        connections: &[ConnectionId],
    ) {
        let Some(injection) = &mut self.injection else {
            return;
        };
        injection.disarm(process);
        for connection in connections {
            injection.release(connection.0);
        }
        let executable = facts.map_or_else(PathBuf::new, |facts| facts.executable.clone());
        tracing::warn!(
            pid = process.pid,
            executable = %executable.display(),
            "requests with an injected header were refused or broke more often than others: no \
             more headers for this program"
        );
        if !executable.as_os_str().is_empty() {
            self.stopped.insert(executable);
        }
    }

    pub(super) fn handle_tick(&mut self) {
        if let Some(injection) = &mut self.injection {
            injection.release_given_up();
        }
    }
}

fn arm(injection: &mut Injection, process: ProcessId, mode: Mode) {
    tracing::debug!(pid = process.pid, ?mode, "headers are injected");
    if let Err(error) = injection.arm(process, mode) {
        tracing::warn!(pid = process.pid, %error, "no headers are injected");
    }
}
