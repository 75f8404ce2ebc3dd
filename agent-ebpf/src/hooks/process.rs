//! Processes: exec, fork, exit.
//!
//! hook: tp_btf sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
//! hook: tp_btf sched_process_fork(struct task_struct *parent, struct task_struct *child)
//! hook: tp_btf sched_process_exit(struct task_struct *p), with `bool group_dead` since 6.16
//! all since 5.5 (BTF tracepoints)

use agent_common::{
    limits,
    process::{ProcessExec, ProcessExit, ProcessFork},
    record::RecordKind,
};
use aya_ebpf::{
    helpers::{bpf_get_current_comm, generated::bpf_probe_read_user},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};

use crate::{
    emit,
    maps::config,
    process,
    read::task,
    scratch::{self, HEAD_BYTES, Slot},
};

#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn sched_process_exec(_ctx: BtfTracePointContext) -> i32 {
    let _ = try_exec();
    0
}

/// Runs in the new program before its first instruction: its environment is still untouched.
#[inline(always)]
fn try_exec() -> Option<()> {
    let current = task::current();
    let unit = task::unit(current)?;
    let traced = process::is_traced(unit.process_id);
    if !traced && config!(report_all_execs) == 0 {
        return None;
    }
    let area = scratch::area(Slot::Exec)?;
    // SAFETY: `bytes` has room for the environment's bound.
    let (captured, original) = unsafe { environment(current, (&raw mut (*area).bytes).cast()) };
    const LENGTH: usize = size_of::<ProcessExec>();
    // SAFETY: the record ends where the captured bytes begin, inside the area and aligned to 8;
    // nobody else uses this slot now; all bit patterns are valid.
    let record =
        unsafe { &mut *area.cast::<u8>().add(HEAD_BYTES - LENGTH).cast::<ProcessExec>() };
    record.header =
        emit::header(RecordKind::ProcessExec, LENGTH + captured as usize, emit::now_ns());
    record.unit = unit;
    record.parent_process_id = task::parent_process_id(current);
    record.environment_length = captured;
    record.environment_original_length = original;
    record.traced = u32::from(traced);
    record.command = bpf_get_current_comm().unwrap_or([0; 16]);
    emit::scratch_record(area, LENGTH, captured);
    Some(())
}

/// Copies the start of the environment block; returns bytes copied and bytes there are.
///
/// # Safety
/// `out` has room for [`limits::ENVIRONMENT_BYTES`].
#[inline(always)]
unsafe fn environment(current: *const u8, out: *mut u8) -> (u32, u32) {
    let Some((start, end)) = task::environment(current) else { return (0, 0) };
    let original = end.saturating_sub(start) as u32;
    let mut length = core::hint::black_box(original);
    // The verifier wants the bound of the copy next to it.
    if length > limits::ENVIRONMENT_BYTES as u32 {
        length = limits::ENVIRONMENT_BYTES as u32;
    }
    // SAFETY: `length` is at most what `out` has room for; the helper checks the source.
    let failed = unsafe { bpf_probe_read_user(out.cast(), length, start as *const _) };
    (if failed == 0 { length } else { 0 }, original)
}

#[btf_tracepoint(function = "sched_process_fork")]
pub(crate) fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let _ = try_fork(ctx.arg(0), ctx.arg(1));
    0
}

/// A child of a traced process is traced before it first runs. New threads are not reported.
#[inline(always)]
fn try_fork(parent: *const u8, child: *const u8) -> Option<()> {
    let parent = task::unit(parent)?;
    let child = task::unit(child)?;
    if child.process_id == parent.process_id || !process::is_traced(parent.process_id) {
        return None;
    }
    process::trace(child.process_id, child.process_start_ns);
    emit::record(&ProcessFork {
        header: emit::header(RecordKind::ProcessFork, size_of::<ProcessFork>(), emit::now_ns()),
        parent,
        child,
    });
    Some(())
}

#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn sched_process_exit(_ctx: BtfTracePointContext) -> i32 {
    let _ = try_exit();
    0
}

#[inline(always)]
fn try_exit() -> Option<()> {
    let current = task::current();
    if !task::is_last_thread(current) {
        return None;
    }
    let unit = task::unit(current)?;
    if !process::is_traced(unit.process_id) {
        return None;
    }
    process::forget(unit.process_id);
    emit::record(&ProcessExit {
        header: emit::header(RecordKind::ProcessExit, size_of::<ProcessExit>(), emit::now_ns()),
        unit,
    });
    Some(())
}
