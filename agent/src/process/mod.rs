//! Which processes to watch, and what is known of each.

use std::path::PathBuf;

use crate::event::ProcessId;

/// What was learned of one process, from `/proc` or from its exec. Pure data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub parent_pid: u32,
    /// Target of `/proc/PID/exe`, without a ` (deleted)` suffix; empty where unreadable.
    pub executable: PathBuf,
    /// `/proc/PID/cmdline`, split.
    pub arguments: Vec<String>,
    /// `OTEL_*` variables of the target only; other variables are not kept.
    pub environment: Vec<(String, String)>,
    /// 64 hexadecimal digits, from the cgroup path.
    pub container_id: Option<String>,
    /// `/proc/PID/comm`.
    pub command: String,
    /// Seconds since the Unix epoch with fraction, as RFC 3339.
    pub creation_time: Option<String>,
}

/// A process and what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub id: ProcessId,
    pub facts: Facts,
}
