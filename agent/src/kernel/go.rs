//! EDGE: Go programs told to the kernel side, and the probes on their HTTP client and their TLS.

use std::{
    collections::HashMap as Map,
    path::Path,
    sync::{Arc, Mutex},
};

use agent_common::process::{GoProcess, NOT_YET};
use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};

use super::{
    maps::take,
    tls::{self, Attached},
};
use crate::process::binary::tls::Point;

/// The map of Go processes, and the probes on each binary.
pub struct GoHooks {
    /// Shared with the guard, which detaches everything at the end.
    ebpf: Arc<Mutex<Ebpf>>,
    processes: HashMap<MapData, u32, GoProcess>,
    attached: Map<u64, Attached>,
    next: u64,
}

/// Probes that are attached.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct ProbeId(u64);

impl GoHooks {
    pub(super) fn take(ebpf: &Arc<Mutex<Ebpf>>) -> Result<Self> {
        let map = take(&mut *lock(ebpf)?, "GO_PROCESSES")?;
        Ok(Self {
            ebpf: Arc::clone(ebpf),
            processes: map.try_into()?,
            attached: Map::new(),
            next: 0,
        })
    }

    /// How to read the goroutines of a process. Since when its TLS is seen stays as it was: the
    /// kernel side forgets a process that runs another program.
    pub fn describe(&mut self, pid: u32, program: &GoProcess) -> Result<()> {
        let known = self.processes.get(&pid, 0);
        let program = GoProcess {
            tls_since_ns: known.map_or(NOT_YET, |known| known.tls_since_ns),
            ..*program
        };
        self.put(pid, &program)
    }

    /// All plaintext of its own TLS is seen from now on, if it was not before.
    pub fn note_tls(&mut self, pid: u32, now_ns: u64) -> Result<()> {
        match self.processes.get(&pid, 0) {
            Ok(known) if known.tls_since_ns == NOT_YET => self.put(
                pid,
                &GoProcess {
                    tls_since_ns: now_ns,
                    ..known
                },
            ),
            _ => Ok(()),
        }
    }

    fn put(&mut self, pid: u32, program: &GoProcess) -> Result<()> {
        self.processes
            .insert(pid, program, 0)
            .with_context(|| format!("the kernel's table of Go processes refused pid {pid}"))
    }

    pub fn forget(&mut self, pid: u32) {
        // It may have ended and left the table by itself.
        let _ = self.processes.remove(&pid);
    }

    /// Probes these places of this file, in every process that runs it: all or none.
    pub fn attach(&mut self, file: &Path, points: &[Point]) -> Result<ProbeId> {
        let links = tls::attach_all(&mut *lock(&self.ebpf)?, file, points)?;
        self.next += 1;
        self.attached.insert(self.next, links);
        Ok(ProbeId(self.next))
    }

    pub fn detach(&mut self, probe: &ProbeId) -> Result<()> {
        if let Some(links) = self.attached.remove(&probe.0) {
            tls::detach(&mut *lock(&self.ebpf)?, links);
        }
        Ok(())
    }
}

impl Drop for GoHooks {
    fn drop(&mut self) {
        let links = self.attached.drain().flat_map(|(_, links)| links).collect();
        if let Ok(mut ebpf) = lock(&self.ebpf) {
            tls::detach_now(&mut ebpf, links);
        }
    }
}

pub(super) fn lock(ebpf: &Arc<Mutex<Ebpf>>) -> Result<std::sync::MutexGuard<'_, Ebpf>> {
    ebpf.lock().map_err(|_| anyhow!("a thread panicked"))
}
