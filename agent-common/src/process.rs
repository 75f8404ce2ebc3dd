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
    /// A process replaced its program. Followed by `environment_length` bytes: the start of the
    /// new environment block, `NAME=value` strings that end in NUL, read before the program
    /// could overwrite them.
    pub struct ProcessExec {
        pub header: crate::record::RecordHeader,
        pub unit: ExecutionUnit,
        pub parent_process_id: u32,
        /// Bytes of the environment block that follow, at most
        /// [`crate::limits::ENVIRONMENT_BYTES`].
        pub environment_length: u32,
        /// Bytes the block really has.
        pub environment_original_length: u32,
        /// 1 when the process is traced already (it, or an ancestor, was selected).
        pub traced: u32,
        /// Name of the program, NUL padded (`task_struct.comm`).
        pub command: [u8; 16],
    }
}

wire! {
    /// A traced process started another; the child is traced from its first instruction.
    pub struct ProcessFork {
        pub header: crate::record::RecordHeader,
        pub parent: ExecutionUnit,
        pub child: ExecutionUnit,
    }
}

wire! {
    /// The last thread of a traced process ended.
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
