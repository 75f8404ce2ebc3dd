//! EDGE: injection of headers and TCP options, loaded only when the user asks for it.
//!
//! Prerequisites are found by trying: the programs are loaded and attached, and a trial with the
//! agent's own sockets shows whether every byte arrives as it should ([`trial`]).

mod adopt;
mod cgroup;
pub mod grammar;
mod option;
mod trial;

use agent_common::{
    injection::{GRAMMAR_BYTES, InjectionOutcome, OutgoingStream, phase, process, proof},
    outgoing_frames::PeerSettings,
};
use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray, Queue, SockHash},
    programs::{CgroupAttachMode, SkMsg, SockOps},
};

use zerocopy::FromZeros as _;

use super::maps::{take, total};
use crate::event::ProcessId;

/// `BPF_NOEXIST`: an entry that is there stays.
const NO_EXIST: u64 = 1;

/// What carries trace context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carriers {
    /// Headers in requests of HTTP/1 and HTTP/2.
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
    streams: HashMap<MapData, u64, OutgoingStream>,
    settings: HashMap<MapData, u64, PeerSettings>,
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
    /// Made by Go.
    Goroutines,
}

impl Injection {
    /// Loads, attaches and tries.
    pub(super) fn start(ebpf: &mut Ebpf, carriers: Carriers) -> Result<Self> {
        // Left to the object: programs that are loaded later refer to it.
        let table = ebpf
            .map_mut("GRAMMAR")
            .context("map GRAMMAR is not in the eBPF object")?;
        let mut table: Array<&mut MapData, [u8; GRAMMAR_BYTES]> = table.try_into()?;
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

    /// Connections that the process begins from now on are injected into, with headers those that
    /// it has, too, once they have proven what they carry.
    pub fn arm(&mut self, process: ProcessId, mode: Mode, carriers: Carriers) -> Result<()> {
        let bit = |bit, is_set| if is_set { bit } else { 0 };
        let bits = bit(process::HEADERS, carriers.headers)
            | bit(process::OPTION, carriers.option)
            | bit(process::LOOP, mode == Mode::Loop)
            | bit(process::GOROUTINES, mode == Mode::Goroutines);
        let is_news = self.armed.get(&process.pid, 0).is_err();
        self.armed
            .insert(process.pid, bits, 0)
            .with_context(|| format!("the table of injected processes refused {}", process.pid))?;
        if let Some(headers) = self
            .headers
            .as_mut()
            .filter(|_| is_news && carriers.headers)
        {
            adopt::each(process, |held| headers.join(held, bits))
                .context("connections that are open already are left alone")?;
        }
        Ok(())
    }

    /// Connections that the process begins from now on are left alone, as are requests that it
    /// sends from now on where they would get TCP options.
    pub fn disarm(&mut self, process: ProcessId) {
        // It may have exited and left the table by itself.
        let _ = self.armed.remove(&process.pid);
    }

    /// A server of HTTP/2 has said what it takes.
    pub fn set_peer(&mut self, connection: u64, settings: PeerSettings) {
        if let Some(headers) = &mut self.headers {
            // Without it, nothing is added to what the connection carries.
            let _ = headers.settings.insert(connection, settings, 0);
        }
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
        let mut streams: HashMap<MapData, u64, OutgoingStream> =
            take(ebpf, "STREAMS")?.try_into()?;
        let mut settings: HashMap<MapData, u64, PeerSettings> =
            take(ebpf, "PEER_SETTINGS")?.try_into()?;
        let waiting_bytes = trial::run(&mut trial::Maps {
            sockets: &mut sockets,
            streams: &mut streams,
            settings: &mut settings,
        })?;
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
            streams,
            settings,
            leaving: take(ebpf, "LEAVING")?.try_into()?,
            waiting_bytes,
        })
    }
}

impl Headers {
    /// Puts a socket into the map. Where the kernel refuses, the socket stays as it is.
    fn join(&mut self, held: &adopt::Held, mode: u32) {
        let mut stream = OutgoingStream::new_zeroed();
        stream.connection = held.cookie;
        stream.phase = phase::AWAITED;
        stream.proof = proof::WANTED;
        stream.mode = u8::try_from(mode).unwrap_or_default();
        // One that was begun under the agent is there already.
        if self.streams.insert(held.cookie, stream, NO_EXIST).is_err() {
            return;
        }
        if let Err(error) = self
            .sockets
            .insert(held.cookie, held.descriptor(), NO_EXIST)
        {
            tracing::debug!(%error, "an open connection is left alone");
            let _ = self.streams.remove(&held.cookie);
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
