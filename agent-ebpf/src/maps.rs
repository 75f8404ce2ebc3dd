//! Every map: key, value, capacity and why, who inserts, who removes.

use agent_common::{
    connection::ConnectionState, drop_reason::DropReason, kernel_config::KernelConfig, limits,
    process::GoProcess,
};
use aya_ebpf::{
    macros::map,
    maps::{HashMap, LruHashMap, PerCpuArray, RingBuf},
};

use crate::{process::ProcessState, scratch::Scratch, user_buffer::MessageProgress};

/// Set by the loader before load and frozen, so that the verifier prunes what it rules out.
#[unsafe(no_mangle)]
static CONFIG: KernelConfig = KernelConfig::DEFAULT;

/// Reads one field of the configuration. Volatile, or the compiler would fold in the default.
macro_rules! config {
    ($($field:tt)+) => {
        // SAFETY: a valid, aligned static; the loader writes it only before load.
        unsafe { core::ptr::read_volatile(&raw const crate::maps::config_static().$($field)+) }
    };
}
pub(crate) use config;

pub(crate) const fn config_static() -> &'static KernelConfig {
    &CONFIG
}

/// All records, in the order in which they were written.
#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(limits::RING_BYTES_PER_CPU, 0);

/// What was lost, by [`DropReason`]. Never removed; user space sums the CPUs.
#[map]
pub(crate) static DROPS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(DropReason::ALL.len() as u32, 0);

/// Processes that are traced, by process id. Inserted by user space (selection), by fork
/// (descendants), by listen (ports) and on the first socket call (`--all`); removed when the last
/// thread exits.
#[map]
pub(crate) static PROCESSES: HashMap<u32, ProcessState> =
    HashMap::with_max_entries(limits::PROCESSES, 0);

/// How to read goroutines, by process id. Inserted by user space for traced processes made by Go,
/// before it marks them in [`PROCESSES`]; removed on exec and when the last thread exits.
#[map]
pub(crate) static GO_PROCESSES: HashMap<u32, GoProcess> =
    HashMap::with_max_entries(limits::GO_PROCESSES, 0);

/// Connections of traced processes, by connection identity. Inserted on connect or on the first
/// byte; removed when the socket is destroyed. LRU, because unix sockets have no such hook.
#[map]
pub(crate) static CONNECTIONS: LruHashMap<u64, ConnectionState> =
    LruHashMap::with_max_entries(limits::CONNECTIONS, 0);

/// When a connection was accepted, by connection identity: at that moment its process is not
/// known. Inserted for every accepted TCP connection; removed on its first byte or its end; LRU,
/// because those of other processes are not watched further.
#[map]
pub(crate) static ACCEPTED: LruHashMap<u64, u64> =
    LruHashMap::with_max_entries(limits::ACCEPTED, 0);

/// Arguments of a call between the halves of a kretprobe pair, by process and thread id. LRU,
/// because a return can be missed when all of its instances are in use.
#[map]
pub(crate) static ENTRIES: LruHashMap<u64, crate::hooks::kretprobe::Entry> =
    LruHashMap::with_max_entries(limits::CALLS_IN_PROGRESS, 0);

/// How far a thread is in the message array of `sendmmsg` or `recvmmsg`, by process and thread
/// id. Removed at its end or at an error; LRU for what is missed.
#[map]
pub(crate) static MESSAGES: LruHashMap<u64, MessageProgress> =
    LruHashMap::with_max_entries(limits::CALLS_IN_PROGRESS, 0);

/// Space for records that do not fit the 512-byte stack, by [`crate::scratch::Slot`].
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> =
    PerCpuArray::with_max_entries(limits::SCRATCH_SLOTS, 0);
