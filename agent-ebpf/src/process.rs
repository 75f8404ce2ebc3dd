//! Which processes are traced.

use agent_common::{
    drop_reason::DropReason,
    process::{ExecutionUnit, FOLLOWED, GO, GoProcess, PROVISIONAL, TLS, Traced},
};

use crate::{
    emit,
    maps::{ARMED, GO_PROCESSES, PROCESSES, config},
    read::task,
};

/// Value of [`PROCESSES`]; user space inserts it as one `u64`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ProcessState {
    /// Start of the process since boot; 0 when the inserter did not know. With [`PROVISIONAL`]
    /// while user space has not decided, with [`GO`] when it is made by Go, with [`TLS`] when it
    /// has called a TLS library.
    start: u64,
}

impl ProcessState {
    #[inline(always)]
    const fn start_ns(self) -> u64 {
        self.start & !(PROVISIONAL | GO | TLS | FOLLOWED)
    }
}

/// The current thread of a traced process.
#[derive(Clone, Copy)]
pub(crate) struct TracedUnit {
    pub(crate) unit: ExecutionUnit,
    pub(crate) is_go: bool,
    pub(crate) uses_tls: bool,
    pub(crate) is_followed: bool,
}

/// The current thread, if its process is traced.
#[inline(always)]
pub(crate) fn traced_unit() -> Option<TracedUnit> {
    let (process_id, thread_id) = task::ids();
    // SAFETY: an entry may be replaced while it is read; a torn start time cannot result from a
    // single aligned word.
    if let Some(state) = unsafe { PROCESSES.get(&process_id) } {
        let mut process_start_ns = state.start_ns();
        if process_start_ns == 0 {
            process_start_ns = task::process_start_ns(task::current());
            insert(process_id, state.start | process_start_ns);
        }
        let unit = ExecutionUnit {
            process_id,
            thread_id,
            process_start_ns,
        };
        return Some(TracedUnit {
            unit,
            is_go: state.start & GO != 0,
            uses_tls: state.start & TLS != 0,
            is_followed: state.start & FOLLOWED != 0,
        });
    }
    if config!(trace_all) == 0 || process_id == 0 || process_id == config!(agent_process_id) {
        return None;
    }
    let process_start_ns = trace(process_id, task::process_start_ns(task::current()));
    let unit = ExecutionUnit {
        process_id,
        thread_id,
        process_start_ns,
    };
    Some(TracedUnit {
        unit,
        is_go: false,
        uses_tls: false,
        is_followed: false,
    })
}

/// Start of a process whose threads are watched for hand-offs; `None` for others.
#[inline(always)]
pub(crate) fn followed(process_id: u32) -> Option<u64> {
    // SAFETY: as in `traced_unit`.
    let state = unsafe { PROCESSES.get(&process_id) }?;
    if state.start & FOLLOWED == 0 {
        return None;
    }
    Some(state.start_ns())
}

/// The current thread, if its process is traced and made by Go, and how to read its goroutines.
#[inline(always)]
pub(crate) fn traced_go() -> Option<(TracedUnit, &'static GoProcess)> {
    let traced = traced_unit()?;
    if !traced.is_go {
        return None;
    }
    Some((traced, go(traced.unit.process_id)?))
}

/// How to read the goroutines of a process.
#[inline(always)]
pub(crate) fn go(process_id: u32) -> Option<&'static GoProcess> {
    // SAFETY: user space replaces an entry only for a new program under the same number.
    unsafe { GO_PROCESSES.get(&process_id) }
}

/// The process calls a TLS library: from now on its socket calls are looked at for that.
#[inline(always)]
pub(crate) fn note_tls(process_id: u32) {
    if let Some(state) = PROCESSES.get_ptr_mut(&process_id) {
        // SAFETY: a pointer into the map's value, one aligned word. Where it is written elsewhere
        // at the same time, the mark is made by the next call.
        unsafe { (*state).start |= TLS };
    }
}

/// The process runs another program from now on: it is not known to be made by Go, nor to use TLS,
/// nor how its threads work.
#[inline(always)]
pub(crate) fn forget_program(process_id: u32) {
    // SAFETY: as in `traced_unit`.
    let Some(state) = unsafe { PROCESSES.get(&process_id) }.copied() else {
        return;
    };
    if state.start & (GO | TLS | FOLLOWED) != 0 {
        insert(process_id, state.start & !(GO | TLS | FOLLOWED));
        let _ = GO_PROCESSES.remove(&process_id);
    }
}

/// Whether a process is traced or would be on its first socket call.
#[inline(always)]
pub(crate) fn is_traced(process_id: u32) -> bool {
    !matches!(traced(process_id), Traced::No)
}

#[inline(always)]
pub(crate) fn traced(process_id: u32) -> Traced {
    // SAFETY: as in `traced_unit`.
    if let Some(state) = unsafe { PROCESSES.get(&process_id) } {
        if state.start & PROVISIONAL == 0 {
            Traced::Yes
        } else {
            Traced::Provisionally
        }
    } else if config!(trace_all) == 1 && process_id != config!(agent_process_id) {
        Traced::Yes
    } else {
        Traced::No
    }
}

/// Traces a process from now on; returns its start time.
#[inline(always)]
pub(crate) fn trace(process_id: u32, start_ns: u64) -> u64 {
    insert(process_id, start_ns);
    start_ns
}

/// Traces a process until user space has decided.
#[inline(always)]
pub(crate) fn trace_provisionally(process_id: u32, start_ns: u64) {
    insert(process_id, start_ns | PROVISIONAL);
}

#[inline(always)]
fn insert(process_id: u32, start: u64) {
    if PROCESSES
        .insert(&process_id, &ProcessState { start }, 0)
        .is_err()
    {
        emit::count(DropReason::ProcessTableFull);
    }
}

#[inline(always)]
pub(crate) fn forget(process_id: u32) {
    let _ = GO_PROCESSES.remove(&process_id);
    let _ = PROCESSES.remove(&process_id);
}

/// Headers are no longer injected for a process.
#[inline(always)]
pub(crate) fn disarm(process_id: u32) {
    let _ = ARMED.remove(&process_id);
}

/// A child runs its parent's program.
#[inline(always)]
pub(crate) fn inherit_injection(parent: u32, child: u32) {
    // SAFETY: copied at once.
    if let Some(mode) = unsafe { ARMED.get(&parent) }.copied() {
        let _ = ARMED.insert(&child, &mode, 0);
    }
}
