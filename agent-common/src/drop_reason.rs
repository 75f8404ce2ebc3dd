//! Why the kernel side lost a record or bytes: counted there, named in user space.

/// Declares the reasons with the name that users see and what it means for them.
macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Index into the per-CPU loss counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Stable name, used in metrics and in the summary.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means, for people.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The ring buffer was full; the record is lost.
    RingFull = "ring_full",
    /// The connection table was full; the connection is not traced.
    ConnectionTableFull = "connection_table_full",
    /// The process table was full; the process is not traced.
    ProcessTableFull = "process_table_full",
    /// The program's buffer could not be read; the bytes are counted, not captured.
    BufferUnreadable = "buffer_unreadable",
    /// The system call is not one whose buffer is known; the bytes are counted, not captured.
    UnknownSystemCall = "unknown_system_call",
    /// The call came through io_uring; the bytes are counted, not captured.
    IoUring = "io_uring",
    /// The call came from a 32-bit program; the bytes are counted, not captured.
    CompatSystemCall = "compat_system_call",
    /// The call used more buffers than are looked at; the rest is counted, not captured.
    TooManyBuffers = "too_many_buffers",
    /// A kernel structure could not be read; the call is not traced.
    KernelReadFailed = "kernel_read_failed",
    /// The entry half of an entry and return pair was missing; the call is not traced.
    EntryMissing = "entry_missing",
    /// The return half of an entry and return pair did not run, because too many calls were
    /// waiting at once; the call is not traced.
    ReturnMissing = "return_missing",
    /// The kernel left a hook out, because it had interrupted the same one on that processor; the
    /// call is not traced.
    HookSkipped = "hook_skipped",
    /// One call moved more frames of HTTP/2 than are looked at; the rest is counted, not captured.
    FramesBeyondLimit = "frames_beyond_limit",
    /// No frame of HTTP/2 began where one should; calls are looked at anew.
    FramesAstray = "frames_astray",
    /// Too many connections of HTTP/2 were open at once; calls of one are looked at anew.
    FramesForgotten = "frames_forgotten",
    /// The socket under a TLS connection of Go could not be told; what it carries is not traced.
    GoSocketUnknown = "go_socket_unknown",
}
