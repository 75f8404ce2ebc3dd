//! Every size and bound that both sides rely on, with unit and reason.

/// Bytes copied from one socket call at most. Request heads of common servers are limited to
/// 8 KiB (Apache, Tomcat), 16 KiB (Node) or 32 KiB (nginx, four buffers of 8 KiB). A little less
/// than 16 KiB, so that a record, the call's I/O vectors and the slack the verifier wants (see
/// [`SCRATCH_BYTES`]) fit a per-CPU map value, which is bound by 32 KiB (`PCPU_MIN_UNIT_SIZE`).
pub const CAPTURE_BYTES: usize = 16 * 1024 - 512;

/// Where a captured byte may begin at most, plus one; a power of two, for a mask.
pub const CAPTURE_OFFSETS: usize = 16 * 1024;

/// Bytes behind a record header in the scratch area: any offset below [`CAPTURE_OFFSETS`] plus any
/// length up to [`CAPTURE_BYTES`] fits, which the verifier can prove from the two bounds alone.
pub const SCRATCH_BYTES: usize = CAPTURE_OFFSETS + CAPTURE_BYTES;

/// Bytes captured in one request turn.
pub const REQUEST_TURN_BYTES: u32 = CAPTURE_BYTES as u32;

/// Bytes captured in one response turn: room for the heads of pipelined responses.
pub const RESPONSE_TURN_BYTES: u32 = CAPTURE_BYTES as u32;

/// Bytes captured of the call that begins a response: status line and headers, cookies included.
pub const RESPONSE_FIRST_CALL_BYTES: u32 = 2 * 1024;

/// Bytes captured of each later call of a response: chunk sizes, or the head of the next
/// pipelined response.
pub const RESPONSE_CALL_BYTES: u32 = 512;

/// I/O vector elements looked at in one call (`UIO_FASTIOV` is 8; nginx and Node use few).
pub const IO_VECTORS: usize = 16;

/// Bytes of a new program's arguments and environment that an exec record carries.
pub const PROGRAM_BYTES: usize = 8 * 1024;

/// Bytes of a new program's path that an exec record carries. Paths are up to 4,096 (`PATH_MAX`),
/// but hardly ever longer than this.
pub const EXECUTABLE_BYTES: usize = 256;

/// Connections with state at one time. About 200 bytes each of kernel memory.
pub const CONNECTIONS: u32 = 65_536;

/// Processes that can be traced at one time; the default `pid_max` of small machines is 32,768.
pub const PROCESSES: u32 = 65_536;

/// Processes made by Go whose goroutines are followed at one time.
pub const GO_PROCESSES: u32 = 8_192;

/// Threads remembered of processes that are followed for work that threads hand to each other.
pub const FOLLOWED_THREADS: u32 = 8_192;

/// Bytes of the ring buffer for each processor, and its bounds; powers of two of pages. What a
/// burst writes before it is read grows with the processors. It is mapped twice (data pages follow
/// themselves, so that a record never wraps), and counts twice in the agent's RSS.
pub const RING_BYTES_PER_CPU: u32 = 2 * 1024 * 1024;
pub const RING_BYTES: core::ops::RangeInclusive<u32> = 2 * 1024 * 1024..=16 * 1024 * 1024;

/// Port ranges that can be selected on the kernel side.
pub const PORT_RANGES: usize = 16;

/// Scratch areas per CPU: one for each attached program that fills a record, because one may
/// interrupt another. The loader lowers it to what the chosen hooks use.
pub const SCRATCH_SLOTS: u32 = 8;

/// Accepted connections whose first byte has not flowed yet, of all processes.
pub const ACCEPTED: u32 = 16_384;

/// Threads inside a call between the entry and the return half of a kretprobe, or between two
/// messages of a `sendmmsg` or `recvmmsg`.
pub const CALLS_IN_PROGRESS: u32 = 16_384;

/// Injected connections at one time: as many as are traced. Not a round number, because the loader
/// finds the map's definition by it.
pub const INJECTED: u32 = 65_531;

/// Injected connections whose stream is remembered; those beyond are left alone.
pub const STREAMS: u32 = 32_768;

/// Goroutines that serve requests or were started for one, and their connections, remembered to
/// tell what a header's request is for: 16,384 requests in flight.
pub const GOROUTINES: u32 = 16_384;

/// Streams of gRPC that Go programs have made and not begun to write: as many as a few servers
/// allow at one time.
pub const GO_STREAMS: u32 = 8_192;

/// Bytes looked at in one step of reading a message. Steps are verified once, bytes one by one.
pub const INJECT_STEP_BYTES: usize = 64;

/// Steps taken in one message: heads of 512 KiB, more than the kernel hands over at once.
pub const INJECT_STEPS: u32 = 8 * 1024;

/// Bytes of a message that may lie before an inserted header: the kernel copies them into one
/// piece of memory when they are in several.
pub const INJECT_OFFSET: u32 = 256 * 1024;

/// Bytes of a message that are put into one piece: as many as one segment has at most. Longer ones
/// are sent as segments anyway.
pub const INJECT_PIECE: u32 = 64 * 1024;

/// Bytes of a captured request in which its `traceparent` is looked for, one by one and each
/// followed by the verifier. Most servers refuse longer heads (8 KiB).
pub const CONTEXT_BYTES: usize = 8 * 1024;

/// The same before Linux 5.17, whose verifier follows more and gives up after a million
/// instructions.
pub const SHORT_CONTEXT_BYTES: usize = 1024;

/// Connections of HTTP/2 whose frames are followed at one time. Each has many requests.
pub const FRAME_CONNECTIONS: u32 = 16_384;

/// Frames and pieces of memory looked at in one call. 100 concurrent streams send 200 to 300
/// frames at once; each is verified on its own.
pub const FRAME_STEPS: u32 = 2048;

/// TLS sessions whose connection is remembered at one time.
pub const TLS_SESSIONS: u32 = 32_768;

/// Threads inside a call of a TLS library at one time, and as many that were lately.
pub const TLS_THREADS: u32 = 16_384;

/// Connections of rustls whose socket takes nothing at the moment.
pub const RUSTLS_UNSENT: u32 = 4_096;

/// Records of TLS looked at in one socket call, to prove whose they are: the end of a handshake
/// and the first ones of an application.
pub const TLS_RECORDS: usize = 4;

/// Connections that have left the map and wait for user space to remove them.
pub const LEAVING: u32 = 65_536;
