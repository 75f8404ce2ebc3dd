//! Every map: key, value, capacity and why, who inserts, who removes.

use agent_common::{
    connection::ConnectionState,
    drop_reason::DropReason,
    frames::FrameState,
    injection::{GRAMMAR_BYTES, InjectionOutcome, OutgoingStream},
    kernel_config::KernelConfig,
    limits,
    outgoing_frames::{OutgoingFrames, PeerSettings},
    process::GoProcess,
    tcp_option::{OptionStream, PATHS as PATH_COUNT, PathState, ReceivedContext},
};
use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, Queue, RingBuf, SockHash},
};

use crate::{
    frames::Progress,
    hooks::{
        go_streams::{QueuedHeaders, Queuer},
        hand_off::ThreadTimes,
        inject_context::{Starter, TraceContext},
        inject_go::{Call, GoroutineKey, Served, Serving, Unborn},
    },
    process::ProcessState,
    scratch::Scratch,
    tls::{
        SessionKey, TlsSession, TlsThread,
        rustls::{RustlsThread, SinkKey},
    },
    user_buffer::MessageProgress,
};

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

/// Connections whose frames of HTTP/2 are followed, by connection identity. Inserted at a client's
/// preface, and by user space, which removes them when the connection has ended and its streams are
/// counted. LRU, because there are fewer of them than connections.
#[map]
pub(crate) static FRAMES: LruHashMap<u64, FrameState> =
    LruHashMap::with_max_entries(limits::FRAME_CONNECTIONS, 0);

/// How often user space has changed [`FRAMES`].
#[map]
pub(crate) static FRAMES_CHANGED: Array<u32> = Array::with_max_entries(1, 0);

/// Walks over the frames of a call, by [`crate::scratch::Slot`].
#[map]
pub(crate) static WALKS: PerCpuArray<Progress> =
    PerCpuArray::with_max_entries(limits::SCRATCH_SLOTS, 0);

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

/// What a thread does in a TLS library, by process and thread id. LRU, because the end of a thread
/// is not told.
#[map]
pub(crate) static TLS_THREADS: LruHashMap<u64, TlsThread> =
    LruHashMap::with_max_entries(limits::TLS_THREADS, 0);

/// TLS sessions. Inserted when one is made or first used; removed when it is freed, LRU for those
/// of processes that end.
#[map]
pub(crate) static TLS_SESSIONS: LruHashMap<SessionKey, TlsSession> =
    LruHashMap::with_max_entries(limits::TLS_SESSIONS, 0);

/// What a thread does in rustls, by process and thread id. LRU, as above.
#[map]
pub(crate) static RUSTLS_THREADS: LruHashMap<u64, RustlsThread> =
    LruHashMap::with_max_entries(limits::TLS_THREADS, 0);

/// Bytes that a connection of rustls took and that were not sent at once. Inserted when its socket
/// took nothing, removed when it takes some; LRU for connections that end before.
#[map]
pub(crate) static RUSTLS_UNSENT: LruHashMap<SinkKey, u64> =
    LruHashMap::with_max_entries(limits::RUSTLS_UNSENT, 0);

/// Space for records that do not fit the 512-byte stack, by [`crate::scratch::Slot`].
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> =
    PerCpuArray::with_max_entries(limits::SCRATCH_SLOTS, 0);

/// What threads of followed processes did last, by process and thread id. LRU, because only the
/// last thread's end is told.
#[map]
pub(crate) static THREADS: LruHashMap<u64, ThreadTimes> =
    LruHashMap::with_max_entries(limits::FOLLOWED_THREADS, 0);

/// Headers of gRPC streams in Go programs that wait to be written, by their address. Inserted by
/// who makes them, removed by who writes them; LRU for those that never are.
#[map]
pub(crate) static GO_STREAMS: LruHashMap<QueuedHeaders, Queuer> =
    LruHashMap::with_max_entries(limits::GO_STREAMS, 0);

// The maps below serve header injection. Without it the loader shrinks them to one entry.

/// Client sockets whose messages are read before they leave, by socket cookie. Inserted when the
/// connection is established; removed by user space, and by the kernel with the socket.
#[map]
pub(crate) static INJECTED_SOCKETS: SockHash<u64> = SockHash::with_max_entries(limits::INJECTED, 0);

/// What is remembered of each of those sockets, by socket cookie. Not in storage of the socket: its
/// memory comes from an allocator that may refuse at any time (`kmalloc_nolock`, Linux 7.x).
/// Inserted before the socket is joined, removed with the connection.
#[map]
pub(crate) static STREAMS: HashMap<u64, OutgoingStream> =
    HashMap::with_max_entries(limits::STREAMS, 0);

/// Where those of them that speak HTTP/2 are among their frames, by socket cookie. Inserted at the
/// preface, removed with the connection.
#[map]
pub(crate) static OUTGOING_FRAMES: HashMap<u64, OutgoingFrames> =
    HashMap::with_max_entries(limits::FRAME_CONNECTIONS, 0);

/// What the servers of those have said of themselves, by socket cookie. Inserted as their first
/// bytes are read, and by user space; removed with the connection. LRU, because user space may be
/// late.
#[map]
pub(crate) static PEER_SETTINGS: LruHashMap<u64, PeerSettings> =
    LruHashMap::with_max_entries(limits::FRAME_CONNECTIONS, 0);

/// How HTTP/1 requests read, see [`agent_common::injection`]. Written by user space.
#[map]
pub(crate) static GRAMMAR: Array<[u8; GRAMMAR_BYTES]> = Array::with_max_entries(1, 0);

/// What became of requests and connections, by [`InjectionOutcome`].
#[map]
pub(crate) static INJECTIONS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(InjectionOutcome::ALL.len() as u32, 0);

/// Processes that are injected for, by process id, with bits of `injection::process`. Inserted by
/// user space and by fork; removed by both, by exec and with the process.
#[map]
pub(crate) static ARMED: HashMap<u32, u32> = HashMap::with_max_entries(limits::PROCESSES, 0);

/// Connections that such a process has begun, by socket cookie, with the bits of its process.
/// Removed when they are established or gone.
#[map]
pub(crate) static INJECTABLE: LruHashMap<u64, u32> =
    LruHashMap::with_max_entries(limits::ACCEPTED, 0);

/// Sockets that are done with and wait for user space to take them out of the map.
#[map]
pub(crate) static LEAVING: Queue<u64> = Queue::with_max_entries(limits::LEAVING, 0);

/// The request that a thread works for, by process and thread id. LRU, because the end of a thread
/// is not told.
#[map]
pub(crate) static WORK: LruHashMap<u64, TraceContext> =
    LruHashMap::with_max_entries(limits::CALLS_IN_PROGRESS, 0);

/// Who started a thread while it worked for a request, by process and thread id. LRU, as above.
#[map]
pub(crate) static STARTED: LruHashMap<u64, Starter> =
    LruHashMap::with_max_entries(limits::CALLS_IN_PROGRESS, 0);

/// The request that a loop's server connection carries, by connection. Removed with it.
#[map]
pub(crate) static REQUESTS: LruHashMap<u64, TraceContext> =
    LruHashMap::with_max_entries(limits::CONNECTIONS, 0);

/// The request that the call on a loop's client connection was made for. Removed with it.
#[map]
pub(crate) static CALLS: LruHashMap<u64, TraceContext> =
    LruHashMap::with_max_entries(limits::CONNECTIONS, 0);

/// What is remembered of client sockets whose requests may get TCP options, by connection. Not in
/// the storage of sockets: programs of this kind get none there on Linux 7.2 (`ENOMEM`).
#[map]
pub(crate) static OPTION_STREAMS: HashMap<u64, OptionStream> =
    HashMap::with_max_entries(limits::STREAMS, 0);

/// The context that came last with a TCP option, by connection. Inserted as the segment arrives,
/// when it is not known yet whose connection it is; removed with the connection. LRU, because those
/// of other processes are not read.
#[map]
pub(crate) static RECEIVED: LruHashMap<u64, ReceivedContext> =
    LruHashMap::with_max_entries(limits::CONNECTIONS, 0);

/// Segments with TCP options that were lost, by the peer's address. Removed when one got through.
#[map]
pub(crate) static PATHS: LruHashMap<[u64; 2], PathState> =
    LruHashMap::with_max_entries(PATH_COUNT, 0);

/// What goroutines serve. LRU, because the end of a goroutine is not told.
#[map]
pub(crate) static SERVING: LruHashMap<GoroutineKey, Serving> =
    LruHashMap::with_max_entries(limits::GOROUTINES, 0);

/// The request that any other goroutine belongs to, for good. LRU, as above.
#[map]
pub(crate) static BOUND: LruHashMap<GoroutineKey, TraceContext> =
    LruHashMap::with_max_entries(limits::GOROUTINES, 0);

/// Ids that goroutines did not have yet at a time. LRU: old ones prove little.
#[map]
pub(crate) static BORN: LruHashMap<GoroutineKey, Unborn> =
    LruHashMap::with_max_entries(limits::GOROUTINES, 0);

/// Who reads a Go server's connection, by connection. Removed with it.
#[map]
pub(crate) static SERVED: LruHashMap<u64, Served> =
    LruHashMap::with_max_entries(limits::GOROUTINES, 0);

/// The latest call announced, by process id and file descriptor. Removed when it leaves.
#[map]
pub(crate) static GO_CALLS: LruHashMap<u64, Call> =
    LruHashMap::with_max_entries(limits::GOROUTINES, 0);
