//! Work that one thread does for another of its process, seen by its begin and its end: who has
//! read a request wakes an idle worker, who has called out wakes who waits for the outcome.
//! Attached only while a process is followed.
//!
//! hook: tp_btf sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next),
//!       with `unsigned int prev_state` since 5.18
//! hook: tp_btf sched_waking(struct task_struct *p)
//! both since 5.5 (BTF tracepoints)
//! fallback: none; such calls have no parent then

use agent_common::{
    connection::{ConnectionState, Direction, Role},
    kernel_config::KernelField,
    process::{ExecutionUnit, HandOff},
    record::RecordKind,
};
use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};

use crate::{
    emit,
    maps::THREADS,
    process,
    read::{
        file::File,
        task::{Whose, entry_register},
        typed_field,
    },
    user_buffer::{USER_CODE_SEGMENT, system_call},
};

/// `TASK_RUNNING`, `include/linux/sched.h`.
const RUNNING: u32 = 0;

/// Descriptors looked at of a thread that waits for several.
const POLLED: u64 = 4;

/// Size of `struct pollfd`, whose first word is the descriptor.
const POLLED_BYTES: u64 = 8;

/// `CLOCK_BOOTTIME` in nanoseconds; 0 never.
#[repr(C)]
#[derive(Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "the unit of each")]
pub(crate) struct ThreadTimes {
    /// It began to wait.
    wait_ns: u64,
    /// It read the beginning of a request, and of an answer to a call of its own.
    request_ns: u64,
    answer_ns: u64,
}

/// The thread's entry, made if there is none. Only the thread itself writes it.
#[inline(always)]
fn times(thread: u64) -> Option<*mut ThreadTimes> {
    if let Some(known) = THREADS.get_ptr_mut(&thread) {
        return Some(known);
    }
    let new = ThreadTimes {
        wait_ns: 0,
        request_ns: 0,
        answer_ns: 0,
    };
    THREADS.insert(&thread, &new, 0).ok()?;
    THREADS.get_ptr_mut(&thread)
}

#[btf_tracepoint(function = "sched_switch")]
pub(crate) fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let _ = try_switch(ctx.arg(1));
    0
}

/// The current thread leaves the processor. When it is not merely preempted, it waits.
#[inline(always)]
fn try_switch(leaving: *const u8) -> Option<()> {
    let thread = bpf_get_current_pid_tgid();
    process::followed((thread >> 32) as u32)?;
    let state: u32 = typed_field(leaving, KernelField::TaskState)?;
    if state != RUNNING {
        // SAFETY: a pointer into the map's value, see `times`.
        unsafe { (*times(thread)?).wait_ns = emit::now_ns() };
    }
    Some(())
}

/// A thread of a followed process began to read what flows the other way from now on: a request or
/// an answer, by what is known of the connection.
#[inline(always)]
pub(crate) fn note_read(direction: Direction, state: &ConnectionState, now_ns: u64) -> Option<()> {
    if !matches!(direction, Direction::Inbound) {
        return None;
    }
    let role = Role::from(state.role);
    // SAFETY: a pointer into the map's value, see `times`.
    let times = unsafe { &mut *times(bpf_get_current_pid_tgid())? };
    if !matches!(role, Role::Client) {
        times.request_ns = now_ns;
    }
    if !matches!(role, Role::Server) {
        times.answer_ns = now_ns;
    }
    Some(())
}

#[btf_tracepoint(function = "sched_waking")]
pub(crate) fn sched_waking(ctx: BtfTracePointContext) -> i32 {
    let _ = try_waking(ctx.arg(0));
    0
}

/// The current thread wakes another one, or an interrupt does that came while it ran: only its
/// system call tells. Nearly all wake-ups end at one of the first questions.
#[inline(always)]
fn try_waking(woken: *const u8) -> Option<()> {
    let thread = bpf_get_current_pid_tgid();
    let process_id = (thread >> 32) as u32;
    let process_start_ns = process::followed(process_id)?;
    if typed_field::<u32>(woken, KernelField::TaskProcessId)? != process_id {
        return None;
    }
    // SAFETY: only this thread writes its entry.
    let own = unsafe { THREADS.get(&thread) }?;
    let woken_thread_id: u32 = typed_field(woken, KernelField::TaskThreadId)?;
    let woken_thread = u64::from(process_id) << 32 | u64::from(woken_thread_id);
    // SAFETY: the thread that writes it is off its processor, see below.
    let other = unsafe { THREADS.get(&woken_thread) }?;
    let waiting_since_ns = other.wait_ns;
    // Who never read a request waits for no outcome, and who never called out is no worker: the
    // threads that a language has for itself are both.
    let may_be_end = waiting_since_ns < own.answer_ns && other.request_ns != 0;
    let may_be_begin = own.request_ns != 0 && other.answer_ns != 0;
    if waiting_since_ns == 0 || !(may_be_end || may_be_begin) {
        return None;
    }
    // One that is about to wait has an older wait noted. The lowest byte: newer kernels have no
    // more (7.2 does), older ones an `int`.
    if typed_field::<u8>(woken, KernelField::TaskOnCpu)? != 0 {
        return None;
    }
    let waiter = Whose::Of(woken);
    let waits_in = entry_register(waiter, KernelField::RegistersSystemCall) as i64;
    if !is_meant(waiter, waits_in) {
        return None;
    }
    let is_unlimited = waits_in != system_call::FUTEX
        || entry_register(waiter, KernelField::RegistersArgument4) == 0;
    let is_begin = may_be_begin && (is_unlimited || waiting_since_ns < own.request_ns);
    if !(may_be_end || is_begin) {
        return None;
    }
    emit::record(&HandOff {
        header: emit::header(RecordKind::HandOff, size_of::<HandOff>(), emit::now_ns()),
        unit: ExecutionUnit {
            process_id,
            thread_id: thread as u32,
            process_start_ns,
        },
        waiting_since_ns,
        request_ns: if is_begin { own.request_ns } else { 0 },
        answer_ns: if may_be_end { own.answer_ns } else { 0 },
        woken_thread_id,
        reserved: 0,
    });
    Some(())
}

/// Whether the waker's system call is one that wakes just this waiter: both name the same futex, or
/// two ends of one channel.
#[inline(always)]
fn is_meant(waiter: Whose, waits_in: i64) -> bool {
    let is_64_bit = |whose| {
        // Upper bits of the register carry other state on CPUs with FRED (Linux 6.9).
        entry_register(whose, KernelField::RegistersCodeSegment) as u16 == USER_CODE_SEGMENT
    };
    if !is_64_bit(Whose::Current) || !is_64_bit(waiter) {
        return false;
    }
    let first = |whose| entry_register(whose, KernelField::RegistersArgument1);
    let wakes_in = entry_register(Whose::Current, KernelField::RegistersSystemCall) as i64;
    match wakes_in {
        system_call::FUTEX => {
            waits_in == system_call::FUTEX && first(Whose::Current) == first(waiter)
        }
        system_call::WRITE | system_call::WRITEV | system_call::SENDTO | system_call::SENDMSG => {
            let written = File::of(first(Whose::Current) as u32);
            let count = entry_register(waiter, KernelField::RegistersArgument2);
            is_read(written, waits_in, first(waiter), count)
        }
        _ => false,
    }
}

/// Whether a waiter, in a system call with these arguments, waits for what is written into a file.
#[inline(always)]
fn is_read(written: File, waits_in: i64, first: u64, count: u64) -> bool {
    match waits_in {
        system_call::READ | system_call::READV | system_call::RECVFROM | system_call::RECVMSG => {
            written.leads_to(File::of(first as u32))
        }
        system_call::POLL | system_call::PPOLL => {
            let mut found = false;
            for index in 0..POLLED {
                if index < count {
                    let place = (first + index * POLLED_BYTES) as *const u32;
                    // SAFETY: the helper checks the address and fails instead of faulting. Threads
                    // of a process share its memory.
                    let descriptor = unsafe { bpf_probe_read_user(place) };
                    found |= written.leads_to(File::of(descriptor.unwrap_or(u32::MAX)));
                }
            }
            found
        }
        _ => false,
    }
}
