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
