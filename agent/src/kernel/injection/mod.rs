//! EDGE: header injection, loaded only when the user asks for it.
//!
//! Prerequisites are found by trying: the programs are loaded and attached, and a trial with the
//! agent's own sockets shows whether every byte arrives as it should ([`trial`]).

mod cgroup;
pub mod grammar;
mod trial;

use agent_common::injection::{GRAMMAR_BYTES, InjectionOutcome, OutgoingStream, process};
use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray, Queue, SkStorage, SockHash},
    programs::{CgroupAttachMode, SkMsg, SockOps},
};

use super::maps::{take, total};
use crate::event::ProcessId;

/// How headers are injected, and into whose requests.
pub struct Injection {
    sockets: SockHash<MapData, u64>,
    leaving: Queue<MapData, u64>,
    armed: HashMap<MapData, u32, u32>,
    /// Whether a program that asks how many bytes wait (`FIONREAD`) is told the truth.
    pub waiting_bytes: WaitingBytes,
}

/// What `FIONREAD` says on a socket of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitingBytes {
    Told,
    /// Nothing, while bytes wait: programs that ask would stall.
    Denied,
}

/// How a process ties calls to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Threads,
    /// nginx's event loop.
    Loop,
}

impl Injection {
    /// Loads, attaches and tries.
    pub(super) fn start(ebpf: &mut Ebpf) -> Result<Self> {
        let mut table: Array<MapData, [u8; GRAMMAR_BYTES]> = take(ebpf, "GRAMMAR")?.try_into()?;
        let rows: [u8; GRAMMAR_BYTES] = grammar::table()
            .try_into()
            .map_err(|_| anyhow!("the grammar does not fit its map"))?;
        table.set(0, rows, 0).context("cannot write the grammar")?;
        let mut sockets: SockHash<MapData, u64> = take(ebpf, "INJECTED_SOCKETS")?.try_into()?;
        let reader: &mut SkMsg = program(ebpf, "inject_header")?.try_into()?;
        reader
            .load()
            .map_err(|error| anyhow!("sk_msg: {}", super::attach::program_reason(&error)))?;
        reader
            .attach(sockets.fd())
            .context("cannot attach to the socket map")?;
        let mut streams: SkStorage<MapData, OutgoingStream> = take(ebpf, "STREAMS")?.try_into()?;
        let waiting_bytes = trial::run(&mut sockets, &mut streams)?;
        forget_counts(ebpf)?;
        let joiner: &mut SockOps = program(ebpf, "join_injected")?.try_into()?;
        joiner
            .load()
            .map_err(|error| anyhow!("sockops: {}", super::attach::program_reason(&error)))?;
        joiner
            .attach(cgroup::root()?, CgroupAttachMode::Single)
            .context("cannot attach to the root of the control groups")?;
        Ok(Self {
            sockets,
            leaving: take(ebpf, "LEAVING")?.try_into()?,
            armed: take(ebpf, "ARMED")?.try_into()?,
            waiting_bytes,
        })
    }

    /// Connections that the process begins from now on are injected into.
    pub fn arm(&mut self, process: ProcessId, mode: Mode) -> Result<()> {
        let bits = match mode {
            Mode::Threads => process::HEADERS,
            Mode::Loop => process::HEADERS | process::LOOP,
        };
        self.armed
            .insert(process.pid, bits, 0)
            .with_context(|| format!("the table of injected processes refused {}", process.pid))
    }

    /// Connections that the process begins from now on are left alone.
    pub fn disarm(&mut self, process: ProcessId) {
        // It may have exited and left the table by itself.
        let _ = self.armed.remove(&process.pid);
    }

    /// Takes a connection out of the map: the kernel then treats it as any other.
    pub fn release(&mut self, connection: u64) {
        // It may be closed already.
        let _ = self.sockets.remove(&connection);
    }

    /// Takes connections out of the map that were given up since the last call.
    pub fn release_given_up(&mut self) {
        while let Ok(connection) = self.leaving.pop(0) {
            self.release(connection);
        }
    }
}

/// What became of requests and connections.
pub struct Outcomes {
    map: PerCpuArray<MapData, u64>,
}

impl Outcomes {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            map: take(ebpf, "INJECTIONS")?.try_into()?,
        })
    }

    /// Totals of all CPUs since the start.
    pub fn totals(&self) -> Vec<(InjectionOutcome, u64)> {
        InjectionOutcome::ALL
            .iter()
            .map(|outcome| (*outcome, total(&self.map, *outcome as u32)))
            .collect()
    }
}

/// The trial does not count.
fn forget_counts(ebpf: &mut Ebpf) -> Result<()> {
    let map = ebpf
        .map_mut("INJECTIONS")
        .context("map INJECTIONS is not in the eBPF object")?;
    let mut counts: PerCpuArray<&mut MapData, u64> = map.try_into()?;
    for outcome in InjectionOutcome::ALL {
        let index = *outcome as u32;
        let zeros = counts.get(&index, 0)?.iter().map(|_| 0).collect::<Vec<_>>();
        counts.set(index, zeros.try_into()?, 0)?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(name)
        .with_context(|| format!("program {name} is not in the eBPF object"))
}
