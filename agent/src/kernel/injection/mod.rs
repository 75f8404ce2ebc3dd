//! EDGE: injection of headers and TCP options, loaded only when the user asks for it.
//!
//! Prerequisites are found by trying: the programs are loaded and attached, and a trial with the
//! agent's own sockets shows whether every byte arrives as it should ([`trial`]).

mod cgroup;
pub mod grammar;
mod option;
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

/// What carries trace context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carriers {
    /// Headers in HTTP/1 requests.
    pub headers: bool,
    /// A TCP option on the segment where a request begins.
    pub option: bool,
}

impl Carriers {
    pub const fn is_none(self) -> bool {
        !self.headers && !self.option
    }
}

/// How trace context is injected, and into whose requests.
pub struct Injection {
    headers: Option<Headers>,
    carries_option: bool,
    armed: HashMap<MapData, u32, u32>,
}

struct Headers {
    sockets: SockHash<MapData, u64>,
    leaving: Queue<MapData, u64>,
    waiting_bytes: WaitingBytes,
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
    pub(super) fn start(ebpf: &mut Ebpf, carriers: Carriers) -> Result<Self> {
        let mut table: Array<MapData, [u8; GRAMMAR_BYTES]> = take(ebpf, "GRAMMAR")?.try_into()?;
        let rows: [u8; GRAMMAR_BYTES] = grammar::table()
            .try_into()
            .map_err(|_| anyhow!("the grammar does not fit its map"))?;
        table.set(0, rows, 0).context("cannot write the grammar")?;
        if carriers.option {
            option::start(ebpf)?;
        }
        let headers = carriers.headers.then(|| Headers::start(ebpf)).transpose()?;
        Ok(Self {
            headers,
            carries_option: carriers.option,
            armed: take(ebpf, "ARMED")?.try_into()?,
        })
    }

    /// What is injected.
    pub fn carriers(&self) -> Carriers {
        Carriers {
            headers: self.headers.is_some(),
            option: self.carries_option,
        }
    }

    /// Whether a program that asks how many bytes wait (`FIONREAD`) is told the truth; `None` when
    /// no headers are injected, and it always is.
    pub fn waiting_bytes(&self) -> Option<WaitingBytes> {
        self.headers.as_ref().map(|headers| headers.waiting_bytes)
    }

    /// Connections that the process begins from now on are injected into.
    pub fn arm(&mut self, process: ProcessId, mode: Mode, carriers: Carriers) -> Result<()> {
        let bit = |bit, is_set| if is_set { bit } else { 0 };
        let bits = bit(process::HEADERS, carriers.headers)
            | bit(process::OPTION, carriers.option)
            | bit(process::LOOP, mode == Mode::Loop);
        self.armed
            .insert(process.pid, bits, 0)
            .with_context(|| format!("the table of injected processes refused {}", process.pid))
    }

    /// Connections that the process begins from now on are left alone, as are requests that it
    /// sends from now on where they would get TCP options.
    pub fn disarm(&mut self, process: ProcessId) {
        // It may have exited and left the table by itself.
        let _ = self.armed.remove(&process.pid);
    }

    /// Takes a connection out of the map: the kernel then treats it as any other.
    pub fn release(&mut self, connection: u64) {
        if let Some(headers) = &mut self.headers {
            // It may be closed already.
            let _ = headers.sockets.remove(&connection);
        }
    }

    /// Takes connections out of the map that were given up since the last call.
    pub fn release_given_up(&mut self) {
        while let Some(headers) = &mut self.headers
            && let Ok(connection) = headers.leaving.pop(0)
        {
            self.release(connection);
        }
    }
}

impl Headers {
    fn start(ebpf: &mut Ebpf) -> Result<Self> {
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
            waiting_bytes,
        })
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
