//! EDGE: whose requests get headers or TCP options, told to the kernel side.

use std::{collections::BTreeSet, path::PathBuf};

use agent_common::outgoing_frames::{PeerSettings, UNLIMITED};

use crate::{
    event::{ConnectionId, ProcessId},
    kernel::injection::{Carriers, Injection, Mode, WaitingBytes},
    process::{
        Facts,
        injectable::{self, Verdict},
    },
    protocol::ServerSettings,
};

pub(super) struct Injecting {
    /// `None`: nothing is injected.
    injection: Option<Injection>,
    /// Executables that were said to be left alone, and by what.
    named: BTreeSet<(String, &'static str)>,
    /// Executables whose requests fared worse with headers.
    stopped: BTreeSet<PathBuf>,
}

/// Executables named in the log at most.
const NAMED: usize = 256;

impl Injecting {
    pub(super) fn new(injection: Option<Injection>) -> Self {
        if let Some(injection) = &injection {
            if let Some(waiting_bytes) = injection.waiting_bytes() {
                tracing::info!(
                    ?waiting_bytes,
                    "headers are injected into requests of HTTP/1 and HTTP/2 in plain text"
                );
            }
            if injection.carriers().option {
                tracing::info!("TCP options carry trace context to agents on other hosts");
            }
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
        let headers = injection
            .waiting_bytes()
            .map(|waiting| injectable::judge(facts, waiting == WaitingBytes::Told));
        let option = injection
            .carriers()
            .option
            .then(|| injectable::judge_option(facts));
        let carriers = Carriers {
            headers: headers.is_some_and(|verdict| mode(verdict).is_some()),
            option: option.is_some_and(|verdict| mode(verdict).is_some()),
        };
        match headers.and_then(mode).or(option.and_then(mode)) {
            Some(mode) => arm(injection, process, mode, carriers),
            None => injection.disarm(process),
        }
        for (verdict, what) in [(headers, "headers"), (option, "TCP options")] {
            if let Some(Verdict::LeftAlone(reason)) = verdict {
                self.name(facts, reason, what);
            }
        }
    }

    /// Says once for each executable why it is left alone.
    fn name(&mut self, facts: &Facts, reason: &str, what: &'static str) {
        let name = facts.executable_name().unwrap_or("unknown").to_owned();
        if self.named.len() < NAMED && self.named.insert((name.clone(), what)) {
            tracing::info!(executable = name, reason, "no {what} are injected");
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
            "requests with an injected header or TCP option were refused or broke more often than \
             others: no more headers for this program, and no options"
        );
        if !executable.as_os_str().is_empty() {
            self.stopped.insert(executable);
        }
    }

    /// A server of HTTP/2 has said what it takes.
    pub(super) fn note_server(&mut self, connection: ConnectionId, settings: ServerSettings) {
        if let Some(injection) = &mut self.injection {
            let settings = PeerSettings {
                seen: settings.seen,
                list_limit: settings.list_limit.unwrap_or(UNLIMITED),
            };
            injection.set_peer(connection.0, settings);
        }
    }

    pub(super) fn handle_tick(&mut self) {
        if let Some(injection) = &mut self.injection {
            injection.release_given_up();
        }
    }
}

/// How calls are tied to requests; `None` for a program that is left alone.
fn mode(verdict: Verdict) -> Option<Mode> {
    match verdict {
        Verdict::Loop => Some(Mode::Loop),
        Verdict::Goroutines => Some(Mode::Goroutines),
        Verdict::Threads => Some(Mode::Threads),
        Verdict::LeftAlone(_) => None,
    }
}

fn arm(injection: &mut Injection, process: ProcessId, mode: Mode, carriers: Carriers) {
    tracing::debug!(
        pid = process.pid,
        ?mode,
        ?carriers,
        "trace context is injected"
    );
    if let Err(error) = injection.arm(process, mode, carriers) {
        tracing::warn!(pid = process.pid, %error, "no trace context is injected");
    }
}
