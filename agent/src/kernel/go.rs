//! EDGE: Go programs told to the kernel side, and the probe on their HTTP client.

use std::{
    collections::HashMap as Map,
    path::Path,
    sync::{Arc, Mutex},
};

use agent_common::process::GoProcess;
use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
    programs::{
        ProgramError, UProbe,
        uprobe::{UProbeLinkId, UProbeScope},
    },
};

use super::maps::take;

const PROGRAM: &str = "go_client_call";

/// The map of Go processes, and the probes, one for each binary.
pub struct GoHooks {
    /// Shared with the guard, which detaches everything at the end.
    ebpf: Arc<Mutex<Ebpf>>,
    processes: HashMap<MapData, u32, GoProcess>,
    links: Map<u64, UProbeLinkId>,
    next_link: u64,
}

/// A probe that is attached.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct ProbeId(u64);

impl GoHooks {
    pub(super) fn take(ebpf: &Arc<Mutex<Ebpf>>) -> Result<Self> {
        let map = take(&mut *lock(ebpf)?, "GO_PROCESSES")?;
        Ok(Self {
            ebpf: Arc::clone(ebpf),
            processes: map.try_into()?,
            links: Map::new(),
            next_link: 0,
        })
    }

    /// How to read the goroutines of a process.
    pub fn describe(&mut self, pid: u32, program: &GoProcess) -> Result<()> {
        self.processes
            .insert(pid, program, 0)
            .with_context(|| format!("the kernel's table of Go processes refused pid {pid}"))
    }

    pub fn forget(&mut self, pid: u32) {
        // It may have ended and left the table by itself.
        let _ = self.processes.remove(&pid);
    }

    /// Probes the client's call, at this offset of this file, in every process that runs it.
    pub fn attach(&mut self, file: &Path, offset: u64) -> Result<ProbeId> {
        let mut ebpf = lock(&self.ebpf)?;
        let program: &mut UProbe = ebpf
            .program_mut(PROGRAM)
            .with_context(|| format!("program {PROGRAM} is not in the eBPF object"))?
            .try_into()?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(error).context("the kernel refused the program"),
        }
        let link = program
            .attach(offset, file, UProbeScope::AllProcesses)
            .with_context(|| format!("cannot probe offset {offset:#x} of {}", file.display()))?;
        self.next_link += 1;
        self.links.insert(self.next_link, link);
        Ok(ProbeId(self.next_link))
    }

    pub fn detach(&mut self, probe: &ProbeId) -> Result<()> {
        let Some(link) = self.links.remove(&probe.0) else {
            return Ok(());
        };
        let mut ebpf = lock(&self.ebpf)?;
        let program: &mut UProbe = ebpf
            .program_mut(PROGRAM)
            .with_context(|| format!("program {PROGRAM} is not in the eBPF object"))?
            .try_into()?;
        Ok(program.detach(link)?)
    }
}

pub(super) fn lock(ebpf: &Arc<Mutex<Ebpf>>) -> Result<std::sync::MutexGuard<'_, Ebpf>> {
    ebpf.lock().map_err(|_| anyhow!("a thread panicked"))
}
