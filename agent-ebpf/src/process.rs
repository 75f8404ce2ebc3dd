//! Which processes are traced.

use agent_common::{drop_reason::DropReason, process::ExecutionUnit};

use crate::{
    emit,
    maps::{PROCESSES, config},
    read::task,
};

/// Value of [`PROCESSES`]; user space inserts it as one `u64`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ProcessState {
    /// Start of the process since boot; 0 when the inserter did not know.
    pub(crate) start_ns: u64,
}

/// The current thread, if its process is traced.
#[inline(always)]
pub(crate) fn traced_unit() -> Option<ExecutionUnit> {
    let process_id = task::process_id();
    let thread_id = task::thread_id();
    // SAFETY: an entry may be replaced while it is read; a torn start time cannot result from a
    // single aligned word.
    if let Some(state) = unsafe { PROCESSES.get(&process_id) } {
        let mut process_start_ns = state.start_ns;
        if process_start_ns == 0 {
            process_start_ns = trace(process_id, task::process_start_ns(task::current()));
        }
        return Some(ExecutionUnit { process_id, thread_id, process_start_ns });
    }
    if config!(trace_all) == 0 || process_id == 0 || process_id == config!(agent_process_id) {
        return None;
    }
    let process_start_ns = trace(process_id, task::process_start_ns(task::current()));
    Some(ExecutionUnit { process_id, thread_id, process_start_ns })
}

/// Whether a process is traced or would be on its first socket call.
#[inline(always)]
pub(crate) fn is_traced(process_id: u32) -> bool {
    // SAFETY: only presence is used.
    unsafe { PROCESSES.get(&process_id) }.is_some()
        || (config!(trace_all) == 1 && process_id != config!(agent_process_id))
}

/// Traces a process from now on; returns its start time.
#[inline(always)]
pub(crate) fn trace(process_id: u32, start_ns: u64) -> u64 {
    if PROCESSES.insert(&process_id, &ProcessState { start_ns }, 0).is_err() {
        emit::count(DropReason::ProcessTableFull);
    }
    start_ns
}

#[inline(always)]
pub(crate) fn forget(process_id: u32) {
    let _ = PROCESSES.remove(&process_id);
}
