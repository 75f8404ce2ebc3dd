//! What a process used so far, from `/proc/PID` (proc(5)).

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::steps::capture;

pub(super) struct Usage {
    /// User and kernel CPU time in microseconds.
    pub(super) cpu_us: u64,
    /// `VmRSS`, in kB as the kernel counts them (1,024 bytes).
    pub(super) rss_kb: u64,
    /// `VmHWM`: the most that `VmRSS` was.
    pub(super) peak_kb: u64,
}

impl Usage {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let read = |name: &str| {
            fs::read_to_string(format!("/proc/{pid}/{name}"))
                .with_context(|| format!("process {pid} is gone"))
        };
        let (stat, status) = (read("stat")?, read("status")?);
        let ticks = cpu_ticks(&stat).context("cannot read the CPU time in /proc/PID/stat")?;
        let kilobytes = |name| status_kb(&status, name).context("no memory in /proc/PID/status");
        Ok(Self {
            cpu_us: ticks * 1_000_000 / ticks_per_second()?,
            rss_kb: kilobytes("VmRSS:")?,
            peak_kb: kilobytes("VmHWM:")?,
        })
    }
}

/// Fields 14 and 15, counted behind the name, which may hold spaces and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let (user, kernel) = (fields.next()?, fields.next()?);
    Some(user.parse::<u64>().ok()? + kernel.parse::<u64>().ok()?)
}

fn status_kb(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

/// Clock ticks in a second (`sysconf(_SC_CLK_TCK)`).
fn ticks_per_second() -> Result<u64> {
    let ticks = capture(Command::new("getconf").arg("CLK_TCK"))?;
    ticks
        .trim()
        .parse()
        .context("getconf does not know CLK_TCK")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name with a space and a parenthesis does not move the fields.
    #[test]
    fn names_do_not_move_fields() {
        let stat = "77 (a) b) S 1 77 77 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 1 0 5 0 0";
        assert_eq!(cpu_ticks(stat), Some(42));
    }

    /// Sizes are read by name.
    #[test]
    fn sizes_by_name() {
        let status = "VmPeak:\t  900 kB\nVmHWM:\t  640 kB\nVmRSS:\t  512 kB\n";
        assert_eq!(status_kb(status, "VmRSS:"), Some(512));
        assert_eq!(status_kb(status, "VmHWM:"), Some(640));
    }
}
