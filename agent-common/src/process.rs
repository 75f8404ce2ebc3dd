//! Who did it: processes, threads and their life.

use crate::wire;

wire! {
    /// The thread that was running, and the process it belongs to. A process is its id *and* its
    /// start time, because ids are reused.
    pub struct ExecutionUnit {
        /// Process id (the kernel's thread group id) in the initial PID namespace.
        pub process_id: u32,
        /// Thread id in the initial PID namespace.
        pub thread_id: u32,
        /// Start of the process since boot in nanoseconds (`task_struct.start_boottime` of the
        /// group leader); 0 where the kernel does not have the field.
        pub process_start_ns: u64,
    }
}

wire! {
    /// A process replaced its program. Followed by the path of the executable, its arguments, and
    /// the start of the new environment block (`NAME=value`), all read before the program could
    /// overwrite them; arguments and variables end in NUL.
    pub struct ProcessExec {
        pub header: crate::record::RecordHeader,
        pub unit: ExecutionUnit,
        pub parent_process_id: u32,
        /// Bytes of the executable's path: the file the kernel runs, for a script its interpreter.
        pub executable_length: u32,
        /// Bytes of the arguments. They and the environment are at most
        /// [`crate::limits::PROGRAM_BYTES`] together.
        pub arguments_length: u32,
        /// Bytes of the environment.
        pub environment_length: u32,
        /// A [`Traced`] as an integer.
        pub traced: u32,
        pub reserved: u32,
        /// Name of the program, NUL padded (`task_struct.comm`).
        pub command: [u8; 16],
    }
}

/// Whether a process is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Traced {
    No = 0,
    /// It, or an ancestor, was selected.
    Yes = 1,
    /// Until user space decides: the program may be one that the user chose by its executable.
    Provisionally = 2,
}

impl From<u32> for Traced {
    fn from(traced: u32) -> Self {
        match traced {
            1 => Self::Yes,
            2 => Self::Provisionally,
            _ => Self::No,
        }
    }
}

/// Marks the start time of a process that is traced provisionally in the kernel's process table.
pub const PROVISIONAL: u64 = 1 << 63;

/// Marks the start time of a process made by Go in the kernel's process table: `GO_PROCESSES` has
/// a [`GoProcess`] for it.
pub const GO: u64 = 1 << 62;

/// Marks the start time of a process that has called a TLS library, in the kernel's process table.
pub const TLS: u64 = 1 << 61;

/// Marks the start time of a process in the kernel's process table whose threads are watched for
/// work that they hand to each other.
pub const FOLLOWED: u64 = 1 << 60;

wire! {
    /// A thread woke another one of its process, on purpose. Either that one had waited since
    /// before the waker read the answer to a call, or the waker has read a request, and the other
    /// one had waited since before that, or without a time-out.
    pub struct HandOff {
        pub header: crate::record::RecordHeader,
        pub unit: ExecutionUnit,
        /// Since when the woken thread had waited, `CLOCK_BOOTTIME` in nanoseconds.
        pub waiting_since_ns: u64,
        /// When the waker last read the beginning of a request; 0 where the woken thread is no
        /// worker.
        pub request_ns: u64,
        /// When it last read the beginning of an answer; 0 where the woken thread does not wait for
        /// that.
        pub answer_ns: u64,
        /// The thread that was woken.
        pub woken_thread_id: u32,
        pub reserved: u32,
    }
}

/// Of [`GoProcess::tls_since_ns`].
pub const NOT_YET: u64 = u64::MAX;

wire! {
    /// How to read the goroutine of a running Go program: byte offsets in the runtime's structures,
    /// [`crate::kernel_config::ABSENT`] where the release lacks a field, and addresses in the
    /// process, 0 where unknown.
    pub struct GoProcess {
        /// `runtime.g`: its thread, id, and the id of the goroutine that started it.
        pub thread: u32,
        pub id: u32,
        pub parent_id: u32,
        /// `runtime.m`: the goroutine it runs, its processor, and the one it left for a system
        /// call.
        pub running: u32,
        pub processor: u32,
        pub left_processor: u32,
        /// `runtime.p`: the next id it gives, and behind it the end of its batch of ids.
        pub next_id: u32,
        /// `net/http.persistConn`: the connection.
        pub connection: u32,
        /// Where `crypto/tls.(*Conn).Read` keeps its connection when it has plaintext, in bytes
        /// above the stack pointer.
        pub tls_connection: u32,
        /// `transport.Stream` of grpc-go: its identifier.
        pub stream_identifier: u32,
        /// Since when all plaintext of `crypto/tls` is seen, `CLOCK_BOOTTIME` in nanoseconds;
        /// [`NOT_YET`] before, or where it is not probed.
        pub tls_since_ns: u64,
        /// Address of the highest id that processors were allotted.
        pub allotted: u64,
        /// The program's own address range. A word of it in an interface is its method table.
        pub image_start: u64,
        pub image_end: u64,
    }
}

wire! {
    /// A goroutine is about to use a connection for a request of `net/http`'s client.
    pub struct GoCall {
        pub header: crate::record::RecordHeader,
        pub unit: ExecutionUnit,
        /// The goroutine's id, and that of the one which started it; 0 unknown.
        pub task: u64,
        pub task_parent: u64,
        /// File descriptor of the connection;
        /// [`UNKNOWN_DESCRIPTOR`](crate::payload::UNKNOWN_DESCRIPTOR): a goroutine that this one
        /// starts writes the headers of the request, which is a stream.
        pub descriptor: u32,
        pub reserved: u32,
    }
}

wire! {
    /// A goroutine serves a stream of HTTP/2 for the one that started it, or has begun one that
    /// another goroutine writes.
    pub struct GoStream {
        pub header: crate::record::RecordHeader,
        pub unit: ExecutionUnit,
        /// The goroutine that serves or has begun it, and the one which started that; 0 unknown.
        pub task: u64,
        pub task_parent: u64,
        /// The goroutine that is about to write its headers; 0: the stream is served.
        pub writer: u64,
        /// The stream's identifier.
        pub stream: u32,
        pub reserved: u32,
    }
}

wire! {
    /// A traced process started another, or a thread; it is traced from its first instruction.
    pub struct ProcessFork {
        pub header: crate::record::RecordHeader,
        pub parent: ExecutionUnit,
        pub child: ExecutionUnit,
    }
}

wire! {
    /// A thread of a traced process ended; as [`crate::record::RecordKind::ProcessExit`] the last
    /// one.
    pub struct ProcessExit {
        pub header: crate::record::RecordHeader,
        pub unit: ExecutionUnit,
    }
}

wire! {
    /// A process began to listen on a TCP port.
    pub struct ProcessListen {
        pub header: crate::record::RecordHeader,
        pub unit: ExecutionUnit,
        pub port: u16,
        pub reserved: u16,
        /// 1 when the process is traced already.
        pub traced: u32,
    }
}
