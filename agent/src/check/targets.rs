//! The processes that would be traced.

use std::collections::BTreeSet;

use super::inside::{self, Inside};
use crate::{
    enrich,
    failure::Failure,
    process::{
        Process,
        select::{Candidate, PidState, Reason, Selection},
        watch::ProcFs,
    },
};

/// Targets looked into and listed at most; `--all` on a busy host has thousands.
pub const LISTED_TARGETS: usize = 20;

/// A process that would be traced.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub candidate: Candidate,
    pub reason: Reason,
    pub service: String,
    pub inside: Inside,
}

/// Refuses a number given as `--pid` that cannot be traced.
pub fn verify(proc_fs: &ProcFs, pids: &BTreeSet<u32>, agent_pid: u32) -> Result<(), Failure> {
    pids.iter()
        .try_for_each(|&pid| refuse(pid, proc_fs.state(pid), agent_pid))
}

/// The same, of what the number is. Pure.
fn refuse(pid: u32, state: PidState, agent_pid: u32) -> Result<(), Failure> {
    match state {
        PidState::Missing => Err(Failure::ProcessMissing { pid }),
        _ if pid == agent_pid => Err(Failure::IsAgent { pid }),
        PidState::Thread { of, .. } if of == agent_pid => Err(Failure::IsAgent { pid: of }),
        PidState::Thread { of, name } => Err(Failure::IsThread {
            thread: pid,
            pid: of,
            name,
        }),
        PidState::KernelThread { name } => Err(Failure::KernelThread { pid, name }),
        PidState::Zombie { name } => Err(Failure::Zombie { pid, name }),
        PidState::Running => Ok(()),
    }
}

/// All that `selection` chooses now; none when nothing is asked for.
pub fn look_at(proc_fs: &ProcFs, selection: &Selection) -> Result<Vec<Target>, Failure> {
    if selection.is_empty() {
        return Ok(Vec::new());
    }
    let candidates = proc_fs.candidates()?;
    let mut chosen = selection.choose(&candidates, std::process::id());
    let mut looked_into = 0;
    let targets = candidates.into_iter().filter_map(|candidate| {
        let pid = candidate.process.id.pid;
        let reason = chosen.remove(&pid)?;
        let service = service_of(&candidate.process);
        Some(Target {
            candidate,
            reason,
            service,
            inside: {
                looked_into += 1;
                if looked_into <= LISTED_TARGETS {
                    inside::look_into(pid)
                } else {
                    Inside::default()
                }
            },
        })
    });
    Ok(targets.collect())
}

fn service_of(process: &Process) -> String {
    let (resource, _) = enrich::apply(process.id, &process.facts, &enrich::Host::default());
    resource.service_name().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind of number has its own answer.
    #[test]
    fn refusals() {
        const AGENT: u32 = 50;
        let name = || "x".to_owned();
        let table = [
            (7, PidState::Missing, Some("no process has the id 7")),
            (
                7,
                PidState::KernelThread { name: name() },
                Some("kernel thread"),
            ),
            (7, PidState::Zombie { name: name() }, Some("zombie")),
            (
                7,
                PidState::Thread {
                    of: 6,
                    name: name(),
                },
                Some("--pid 6"),
            ),
            (
                51,
                PidState::Thread {
                    of: AGENT,
                    name: name(),
                },
                Some("this agent"),
            ),
            (AGENT, PidState::Running, Some("this agent")),
            (7, PidState::Running, None),
        ];
        for (pid, state, expected) in table {
            let label = format!("{pid} {state:?}");
            match (refuse(pid, state, AGENT), expected) {
                (Ok(()), None) => {}
                (Err(failure), Some(part)) => {
                    assert!(failure.to_string().contains(part), "{label}: {failure}");
                    assert_eq!(failure.exit_code(), 2, "{label}");
                }
                (result, expected) => panic!("{label}: {result:?}, expected {expected:?}"),
            }
        }
    }

    /// This machine's own process is refused, whoever asks.
    #[test]
    fn this_process_is_refused() {
        let proc_fs = ProcFs::open().expect("/proc is mounted");
        let own = std::process::id();
        let failure = verify(&proc_fs, &[own].into(), own).expect_err("the agent itself");
        assert!(matches!(failure, Failure::IsAgent { pid } if pid == own));
        assert!(verify(&proc_fs, &[own].into(), own + 1).is_ok());
    }
}
