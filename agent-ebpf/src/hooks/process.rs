//! Processes: exec, fork, exit.
//!
//! hook: tp_btf sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
//! hook: tp_btf sched_process_fork(struct task_struct *parent, struct task_struct *child)
//! hook: tp_btf sched_process_exit(struct task_struct *p), with `bool group_dead` since 6.16
//! all since 5.5 (BTF tracepoints)

use agent_common::{
    kernel_config::KernelField,
    limits,
    process::{ExecutionUnit, ProcessExec, ProcessExit, ProcessFork, Traced},
    record::RecordKind,
};
use aya_ebpf::{
    helpers::{
        bpf_get_current_comm,
        generated::{bpf_probe_read_kernel_str, bpf_probe_read_user},
    },
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};

use crate::{
    emit,
    hooks::inject_context,
    maps::config,
    process,
    read::{field, task},
    scratch::{self, HEAD_BYTES, Slot},
};

#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let _ = try_exec(ctx.arg(2));
    0
}

/// Runs in the new program before its first instruction: its strings are still untouched. A
/// process that the user may have chosen by its executable is traced until that is decided, or
/// its first requests, and all of a short-lived one, would be missed.
#[inline(always)]
#[expect(
    clippy::cast_ptr_alignment,
    reason = "the record lies inside the area at a multiple of 8"
)]
fn try_exec(program: *const u8) -> Option<()> {
    const LENGTH: usize = size_of::<ProcessExec>();

    let current = task::current();
    let unit = task::unit(current)?;
    if config!(inject) == 1 {
        // Another program: user space decides anew.
        process::disarm(unit.process_id);
    }
    process::forget_program(unit.process_id);
    let mut traced = process::traced(unit.process_id);
    if !matches!(traced, Traced::Yes)
        && config!(consider_execs) == 1
        && unit.process_id != config!(agent_process_id)
    {
        traced = Traced::Provisionally;
        process::trace_provisionally(unit.process_id, unit.process_start_ns);
    }
    if matches!(traced, Traced::No) {
        return None;
    }
    let area = scratch::area(Slot::Exec)?;
    // SAFETY: `bytes` has room for both bounds.
    let strings = unsafe { copy_strings(current, program, (&raw mut (*area).bytes).cast()) };
    // SAFETY: the record ends where the captured bytes begin, inside the area and aligned to 8;
    // nobody else uses this slot now; all bit patterns are valid.
    let record = unsafe {
        &mut *area
            .cast::<u8>()
            .add(HEAD_BYTES - LENGTH)
            .cast::<ProcessExec>()
    };
    let captured = strings.executable + strings.arguments + strings.environment;
    record.header = emit::header(
        RecordKind::ProcessExec,
        LENGTH + captured as usize,
        emit::now_ns(),
    );
    record.unit = unit;
    record.parent_process_id = task::parent_process_id(current);
    record.executable_length = strings.executable;
    record.arguments_length = strings.arguments;
    record.environment_length = strings.environment;
    record.traced = traced as u32;
    record.reserved = 0;
    record.command = bpf_get_current_comm().unwrap_or([0; 16]);
    emit::scratch_record(area, LENGTH, captured);
    Some(())
}

/// Bytes copied of each.
struct Strings {
    executable: u32,
    arguments: u32,
    environment: u32,
}

/// Copies the path of the executable, then arguments and environment behind it.
///
/// # Safety
/// `out` has room for [`limits::EXECUTABLE_BYTES`] and [`limits::PROGRAM_BYTES`].
#[inline(always)]
unsafe fn copy_strings(current: *const u8, program: *const u8, out: *mut u8) -> Strings {
    let mut strings = Strings {
        executable: 0,
        arguments: 0,
        environment: 0,
    };
    if let Some(path) = field::<*const u8>(program, KernelField::ProgramInterpreter) {
        // SAFETY: bounded by the size given; the helper checks the source.
        let length = unsafe {
            bpf_probe_read_kernel_str(out.cast(), limits::EXECUTABLE_BYTES as u32, path.cast())
        };
        // The terminating NUL is counted by the helper, not by us.
        if length > 1 && length <= limits::EXECUTABLE_BYTES as i64 {
            strings.executable = length as u32 - 1;
        }
    }
    let Some(place) = task::program_strings(current) else {
        return strings;
    };
    let offset =
        core::hint::black_box(strings.executable) as usize & (limits::EXECUTABLE_BYTES - 1);
    let mut length = core::hint::black_box(place.end.saturating_sub(place.start) as u32);
    // The verifier wants the bound right before the copy and in the width of the argument: before
    // Linux 6.12 it loses it otherwise ("R2 min value is negative", "R2 unbounded memory access").
    if length > limits::PROGRAM_BYTES as u32 {
        length = limits::PROGRAM_BYTES as u32;
    }
    // SAFETY: offset + length is at most what `out` has room for; the helper checks the source.
    let failed =
        unsafe { bpf_probe_read_user(out.add(offset).cast(), length, place.start as *const _) };
    if failed == 0 {
        let arguments = place.arguments_end.saturating_sub(place.start) as u32;
        strings.arguments = if arguments < length {
            arguments
        } else {
            length
        };
        strings.environment = length - strings.arguments;
    }
    strings
}

#[btf_tracepoint(function = "sched_process_fork")]
pub(crate) fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let _ = try_fork(ctx.arg(0), ctx.arg(1));
    0
}

/// A child of a traced process is traced before it first runs. New threads are reported alike.
#[inline(always)]
fn try_fork(parent: *const u8, child: *const u8) -> Option<()> {
    let parent = task::unit(parent)?;
    let child = task::unit(child)?;
    let traced = process::traced(parent.process_id);
    if matches!(traced, Traced::No) {
        return None;
    }
    let mut kind = RecordKind::ProcessFork;
    if child.process_id == parent.process_id {
        // The process is traced already.
    } else if matches!(traced, Traced::Provisionally) {
        // Whatever becomes of the parent, this one is to be decided upon too.
        kind = RecordKind::ProvisionalFork;
        process::trace_provisionally(child.process_id, child.process_start_ns);
    } else {
        process::trace(child.process_id, child.process_start_ns);
    }
    if config!(inject) == 1 {
        if child.process_id == parent.process_id {
            inject_context::started(thread_key(parent), thread_key(child));
        } else {
            process::inherit_injection(parent.process_id, child.process_id);
        }
    }
    emit::record(&ProcessFork {
        header: emit::header(kind, size_of::<ProcessFork>(), emit::now_ns()),
        parent,
        child,
    });
    Some(())
}

/// As `bpf_get_current_pid_tgid` names a thread.
#[inline(always)]
fn thread_key(unit: ExecutionUnit) -> u64 {
    u64::from(unit.process_id) << 32 | u64::from(unit.thread_id)
}

#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn sched_process_exit(_ctx: BtfTracePointContext) -> i32 {
    let _ = try_exit();
    0
}

#[inline(always)]
fn try_exit() -> Option<()> {
    let current = task::current();
    let unit = task::unit(current)?;
    if !process::is_traced(unit.process_id) {
        return None;
    }
    let kind = if task::is_last_thread(current) {
        process::forget(unit.process_id);
        if config!(inject) == 1 {
            process::disarm(unit.process_id);
        }
        RecordKind::ProcessExit
    } else {
        RecordKind::ThreadExit
    };
    emit::record(&ProcessExit {
        header: emit::header(kind, size_of::<ProcessExit>(), emit::now_ns()),
        unit,
    });
    Some(())
}
