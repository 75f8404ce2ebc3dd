//! `task_struct` and what hangs on it.

use agent_common::{kernel_config::KernelField, process::ExecutionUnit};
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid,
    generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs},
};

use super::{field, typed_field};
use crate::maps::config;

#[inline(always)]
pub(crate) fn process_id() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Process and thread id.
#[inline(always)]
pub(crate) fn ids() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    ((both >> 32) as u32, both as u32)
}

#[inline(always)]
pub(crate) fn current() -> *const u8 {
    // SAFETY: no preconditions.
    unsafe { bpf_get_current_task() as *const u8 }
}

/// Start of the task's process since boot; 0 where the kernel does not say.
#[inline(always)]
pub(crate) fn process_start_ns(task: *const u8) -> u64 {
    field::<*const u8>(task, KernelField::TaskLeader)
        .and_then(|leader| field(leader, KernelField::TaskStart))
        .unwrap_or(0)
}

/// Identity of a task that need not be the current one.
#[inline(always)]
pub(crate) fn unit(task: *const u8) -> Option<ExecutionUnit> {
    Some(ExecutionUnit {
        process_id: field(task, KernelField::TaskProcessId)?,
        thread_id: field(task, KernelField::TaskThreadId)?,
        process_start_ns: process_start_ns(task),
    })
}

/// User registers at the system call, as far as we need them.
pub(crate) struct Registers {
    /// System call number; -1 outside of one.
    pub(crate) system_call: i64,
    pub(crate) arguments: [u64; 3],
    /// Upper bits of the register carry other state on CPUs with FRED (Linux 6.9).
    pub(crate) code_segment: u16,
}

/// The current task's user registers. They lie at the top of the task's kernel stack; since Linux
/// 5.15 a helper knows where, and the verifier knows what they are.
#[inline(always)]
pub(crate) fn registers() -> Option<Registers> {
    if config!(has_task_registers_helper) == 1 {
        // SAFETY: the task is the current one, as the helper requires.
        let base = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const u8;
        return Some(Registers {
            system_call: typed_field(base, KernelField::RegistersSystemCall)?,
            arguments: [
                typed_field(base, KernelField::RegistersArgument1)?,
                typed_field(base, KernelField::RegistersArgument2)?,
                typed_field(base, KernelField::RegistersArgument3)?,
            ],
            code_segment: typed_field(base, KernelField::RegistersCodeSegment)?,
        });
    }
    let base = registers_probed(current())?;
    Some(Registers {
        system_call: field(base, KernelField::RegistersSystemCall)?,
        arguments: [
            field(base, KernelField::RegistersArgument1)?,
            field(base, KernelField::RegistersArgument2)?,
            field(base, KernelField::RegistersArgument3)?,
        ],
        code_segment: field(base, KernelField::RegistersCodeSegment)?,
    })
}

/// A task's user registers, as they lie on its kernel stack. Not where the verifier knows what they
/// are.
#[inline(always)]
fn registers_probed(task: *const u8) -> Option<*const u8> {
    let stack: *const u8 = field(task, KernelField::TaskStack)?;
    let distance = config!(stack_bytes).checked_sub(config!(registers_bytes))?;
    // SAFETY: only an address is computed; reading it is checked by the helper.
    Some(unsafe { stack.add(distance as usize) })
}

/// One of the current task's user registers.
#[inline(always)]
fn register(name: KernelField) -> Option<u64> {
    if config!(has_task_registers_helper) == 1 {
        // SAFETY: the task is the current one, as the helper requires.
        let base = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const u8;
        return typed_field(base, name);
    }
    field(registers_probed(current())?, name)
}

/// The current task, or another one that the verifier knows as a task.
#[derive(Clone, Copy)]
pub(crate) enum Whose {
    Current,
    Of(*const u8),
}

/// One of the user registers with which a task entered the kernel; all bits set when it cannot be
/// read, which no system call number is. A plain number, as in [`super::file`].
#[inline(always)]
pub(crate) fn entry_register(whose: Whose, name: KernelField) -> u64 {
    if config!(has_task_registers_helper) == 1 {
        let task = match whose {
            // SAFETY: no preconditions.
            Whose::Current => unsafe { bpf_get_current_task_btf() },
            Whose::Of(task) => task.cast_mut().cast(),
        };
        // SAFETY: the helper wants a task; the verifier sees to it.
        let base = unsafe { bpf_task_pt_regs(task) } as *const u8;
        return typed_field(base, name).unwrap_or(u64::MAX);
    }
    let task = match whose {
        Whose::Current => current(),
        Whose::Of(task) => task,
    };
    match registers_probed(task) {
        Some(base) => field(base, name).unwrap_or(u64::MAX),
        None => u64::MAX,
    }
}

/// First argument of the current system call; `UNKNOWN_DESCRIPTOR` when it cannot be read.
#[inline(always)]
pub(crate) fn descriptor() -> u32 {
    register(KernelField::RegistersArgument1)
        .map_or(agent_common::payload::UNKNOWN_DESCRIPTOR, |first| {
            first as u32
        })
}

/// The register in which Go keeps the current goroutine (`r14`, its internal calling convention).
#[inline(always)]
pub(crate) fn goroutine_register() -> Option<u64> {
    register(KernelField::RegistersGoroutine)
}

/// Whether the last thread of the task's process is ending.
#[inline(always)]
pub(crate) fn is_last_thread(task: *const u8) -> bool {
    field::<*const u8>(task, KernelField::TaskSignal)
        .and_then(|signal| field::<i32>(signal, KernelField::SignalLive))
        .is_some_and(|live| live <= 0)
}

pub(crate) fn parent_process_id(task: *const u8) -> u32 {
    field::<*const u8>(task, KernelField::TaskParent)
        .and_then(|parent| field(parent, KernelField::TaskProcessId))
        .unwrap_or(0)
}

/// Where the kernel put a new program's strings in its own memory: the arguments, and right behind
/// them the environment.
pub(crate) struct ProgramStrings {
    pub(crate) start: u64,
    pub(crate) arguments_end: u64,
    pub(crate) end: u64,
}

pub(crate) fn program_strings(task: *const u8) -> Option<ProgramStrings> {
    let memory: *const u8 = field(task, KernelField::TaskMemory)?;
    Some(ProgramStrings {
        start: field(memory, KernelField::MemoryArgumentsStart)?,
        arguments_end: field(memory, KernelField::MemoryArgumentsEnd)?,
        end: field(memory, KernelField::MemoryEnvironmentEnd)?,
    })
}
