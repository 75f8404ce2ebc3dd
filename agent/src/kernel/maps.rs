//! EDGE: maps that user space reads or writes.

use agent_common::{
    connection::ConnectionState,
    drop_reason::DropReason,
    process::{FOLLOWED, GO, PROVISIONAL, TLS},
};
use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, PerCpuArray},
};

use super::skipped::Skipped;
use crate::event::{ConnectionId, ProcessId};

pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map> {
    ebpf.take_map(name)
        .with_context(|| format!("map {name} is not in the eBPF object"))
}

/// State of connections, to learn how far one has come.
pub struct Connections {
    map: HashMap<MapData, u64, ConnectionState>,
}

impl Connections {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            map: take(ebpf, "CONNECTIONS")?.try_into()?,
        })
    }

    /// `None` when the connection is gone or was never seen.
    pub fn state(&self, connection: ConnectionId) -> Option<ConnectionState> {
        self.map.get(&connection.0, 0).ok()
    }
}

/// Which processes are traced.
pub struct Processes {
    map: HashMap<MapData, u32, u64>,
}

impl Processes {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            map: take(ebpf, "PROCESSES")?.try_into()?,
        })
    }

    /// Traces a process and, from now on, its descendants. The kernel side fills in the exact
    /// start time on first use.
    pub fn trace(&mut self, process: ProcessId) -> Result<()> {
        // One that was traced provisionally keeps what the kernel side has noted of it.
        let known = self.map.get(&process.pid, 0).unwrap_or(0);
        self.map
            .insert(process.pid, known & !PROVISIONAL, 0)
            .with_context(|| format!("the kernel's process table refused pid {}", process.pid))
    }

    /// The process is made by Go, and the kernel side was told how to read it; or it is not, any
    /// more. One that is not traced, because it ended, stays so.
    pub fn mark_go(&mut self, process: ProcessId, is_go: bool) -> Result<()> {
        self.mark(process, GO, is_go)
    }

    /// The process speaks TLS by functions that are probed.
    pub fn mark_tls(&mut self, process: ProcessId) -> Result<()> {
        self.mark(process, TLS, true)
    }

    /// What threads of the process hand to each other is watched, or not any more.
    pub fn mark_followed(&mut self, process: ProcessId, is_followed: bool) -> Result<()> {
        self.mark(process, FOLLOWED, is_followed)
    }

    fn mark(&mut self, process: ProcessId, bit: u64, is_set: bool) -> Result<()> {
        let Ok(before) = self.map.get(&process.pid, 0) else {
            return Ok(());
        };
        let after = if is_set { before | bit } else { before & !bit };
        if before == after {
            return Ok(());
        }
        self.map
            .insert(process.pid, after, 0)
            .with_context(|| format!("the kernel's process table refused pid {}", process.pid))
    }

    /// Stops tracing a process.
    pub fn forget(&mut self, pid: u32) {
        // It may have exited and left the table by itself.
        let _ = self.map.remove(&pid);
    }

    /// All that are traced, and those of which that is not decided.
    pub fn pids(&self) -> Vec<u32> {
        self.map.keys().flatten().collect()
    }

    /// Whether the process is traced, and not only until that is decided.
    pub fn is_selected(&self, pid: u32) -> bool {
        self.map
            .get(&pid, 0)
            .is_ok_and(|start| start & PROVISIONAL == 0)
    }
}

/// The kernel side's loss counters, and the kernel's own.
pub struct Drops {
    map: PerCpuArray<MapData, u64>,
    skipped: Skipped,
}

impl Drops {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            map: take(ebpf, "DROPS")?.try_into()?,
            skipped: Skipped::of(ebpf),
        })
    }

    /// Totals of all CPUs since the start, by reason.
    pub fn totals(&self) -> Vec<(DropReason, u64)> {
        DropReason::ALL
            .iter()
            .map(|reason| (*reason, self.total(*reason)))
            .collect()
    }

    /// Total of all CPUs since the start.
    pub fn total(&self, reason: DropReason) -> u64 {
        match reason {
            DropReason::HookSkipped => self.skipped.total(),
            _ => total(&self.map, reason as u32),
        }
    }

    /// What is missing among the records, of which nothing else tells.
    pub fn missing_records(&self) -> u64 {
        self.total(DropReason::RingFull) + self.total(DropReason::HookSkipped)
    }
}

/// A counter that every CPU has for itself, summed.
pub(super) fn total(counters: &PerCpuArray<MapData, u64>, index: u32) -> u64 {
    counters.get(&index, 0).map_or(0, |cpus| cpus.iter().sum())
}
