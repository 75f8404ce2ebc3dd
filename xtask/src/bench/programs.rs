//! What the kernel counts of the eBPF programs of a process: how often each ran, and how long.
//!
//! The kernel counts only while `kernel.bpf_stats_enabled` is set, which costs each run two looks
//! at the clock (Documentation/admin-guide/sysctl/kernel.rst), so this is a run of its own.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::steps::{Privilege, capture, find_program};

/// Hits, and nanoseconds of all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) hits: u64,
    pub(super) ns: u64,
}

/// By name of the program.
pub(super) type Runs = BTreeMap<String, Run>;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// While this lives, the kernel counts. Then the switch is as it was.
pub(super) struct Counted {
    before: String,
}

impl Counted {
    pub(super) fn begin() -> Result<Self> {
        let before = as_root(&format!("cat {SWITCH}"))?.trim().to_owned();
        as_root(&format!("echo 1 >{SWITCH}")).context("cannot switch on statistics of eBPF")?;
        Ok(Self { before })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Statistics that stay on cost little; the run itself was fine.
        let _ = as_root(&format!("echo {} >{SWITCH}", self.before));
    }
}

/// What the programs that `pid` holds did so far, while the kernel counted.
pub(super) fn runs_of(pid: u32) -> Result<Runs> {
    let held = as_root(&format!("cat /proc/{pid}/fdinfo/*"))
        .context("cannot look at the open files of the agent")?;
    let bpftool = find_program("bpftool").context("bpftool is not installed")?;
    let mut command = privileged(&bpftool)?;
    let listed = capture(command.args(["--json", "prog", "show"]))?;
    let names = names(&listed).context("cannot read what bpftool lists")?;
    let mut runs = Runs::new();
    for (id, run) in runs_by_id(&held) {
        let name = names.get(&id).cloned();
        let sum: &mut Run = runs
            .entry(name.unwrap_or_else(|| id.to_string()))
            .or_default();
        sum.hits += run.hits;
        sum.ns += run.ns;
    }
    Ok(runs)
}

fn privileged(program: &Path) -> Result<Command> {
    let command = Privilege::detect().command(program, &[]);
    command.context("statistics of eBPF programs need root")
}

fn as_root(script: &str) -> Result<String> {
    capture(privileged(Path::new("sh"))?.args(["-c", script]))
}

/// What happened between two looks; programs that did not run are left out.
pub(super) fn between(before: &Runs, after: &Runs) -> Runs {
    let difference = after.iter().map(|(name, run)| {
        let earlier = before.get(name).copied().unwrap_or_default();
        let run = Run {
            hits: run.hits.saturating_sub(earlier.hits),
            ns: run.ns.saturating_sub(earlier.ns),
        };
        (name.clone(), run)
    });
    difference.filter(|(_, run)| run.hits > 0).collect()
}

/// Of the fdinfo of several files, one behind the other (proc(5)). A file of a program has its id
/// and its statistics; that of a link has the id alone. Several files may be of one program.
fn runs_by_id(held: &str) -> BTreeMap<u64, Run> {
    let mut runs = BTreeMap::new();
    let mut id = None;
    for line in held.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let number = value.trim().parse::<u64>();
        match (key, number, id) {
            ("pos", ..) => id = None,
            ("prog_id", Ok(number), _) => id = Some(number),
            ("run_time_ns", Ok(ns), Some(id)) => runs.entry(id).or_insert(Run::default()).ns = ns,
            ("run_cnt", Ok(hits), Some(id)) => {
                runs.entry(id).or_insert(Run::default()).hits = hits;
            }
            _ => {}
        }
    }
    runs
}

fn names(listed: &str) -> Option<BTreeMap<u64, String>> {
    let listed: Value = serde_json::from_str(listed).ok()?;
    let names = listed.as_array()?.iter().filter_map(|program| {
        let name = program.get("name")?.as_str()?;
        Some((program.get("id")?.as_u64()?, name.to_owned()))
    });
    Some(names.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that two files stand for, one that a link names, and a file that is no program.
    const HELD: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1061
prog_type:\t26\nprog_jited:\t1\nprog_tag:\tb316955fa37cc217\nmemlock:\t20480\nprog_id:\t7
run_time_ns:\t9000\nrun_cnt:\t30\nrecursion_misses:\t0\nverified_insns:\t2200
pos:\t0\nflags:\t02000000\nlink_type:\ttracing\nlink_id:\t3\nprog_id:\t8\nattach_type:\t23
pos:\t0\nflags:\t02\nmap_type:\t27\nrun_cnt:\t5
pos:\t0\nprog_id:\t7\nrun_time_ns:\t9000\nrun_cnt:\t30
";

    /// Only programs count, and each once.
    #[test]
    fn open_files_are_read() {
        let runs = runs_by_id(HELD);
        assert_eq!(
            runs,
            BTreeMap::from([(
                7,
                Run {
                    hits: 30,
                    ns: 9_000
                }
            )])
        );
    }

    /// What ran before the load does not count, and what did not run is not there.
    #[test]
    fn only_the_load_counts() {
        let of = |hits, ns| Run { hits, ns };
        let before = Runs::from([("a".to_owned(), of(10, 100)), ("b".to_owned(), of(3, 30))]);
        let after = Runs::from([("a".to_owned(), of(15, 160)), ("b".to_owned(), of(3, 30))]);
        assert_eq!(
            between(&before, &after),
            Runs::from([("a".to_owned(), of(5, 60))])
        );
    }

    /// As bpftool 7.1.0 lists them.
    #[test]
    fn names_by_id() {
        let listed = r#"[{"id":7,"type":"tracing","name":"sock_send_length"},{"id":8}]"#;
        let expected = BTreeMap::from([(7, "sock_send_length".to_owned())]);
        assert_eq!(names(listed), Some(expected));
        assert_eq!(names("{}"), None);
    }
}
