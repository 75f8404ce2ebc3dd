//! Bytes that sockets moved, where neither the tracepoints nor fexit can be had.
//!
//! The entry half keeps the arguments by thread; the return half takes and removes them.
//!
//! hook: kprobe + kretprobe inet_sendmsg, inet6_sendmsg, unix_stream_sendmsg
//!       (struct socket *sock, struct msghdr *m, size_t size) -> int
//! hook: kprobe + kretprobe inet_recvmsg, inet6_recvmsg, unix_stream_recvmsg
//!       (struct socket *sock, struct msghdr *m, size_t size, int flags) -> int
//! hook: kprobe unix_release(struct socket *sock) -> int

use agent_common::{connection::Direction, drop_reason::DropReason};
use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};

use super::socket_data::{Transfer, handle, socket_sock_probed};
use crate::{
    emit,
    hooks::socket_lifecycle::unix_released,
    maps::{CONNECTIONS, ENTRIES},
    process,
    read::{sock::Sock, task},
    scratch::Slot,
};

/// Arguments of a call in progress.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    sock: u64,
    message_flags: i32,
    reserved: u32,
}

/// Keeps the arguments of a call by a traced process.
#[inline(always)]
fn enter(ctx: &ProbeContext, message_flags: i32) -> u32 {
    if process::is_traced(task::process_id()) {
        let sock = socket_sock_probed(ctx.arg(0).unwrap_or(core::ptr::null()));
        let entry = Entry {
            sock: sock as u64,
            message_flags,
            reserved: 0,
        };
        let thread = bpf_get_current_pid_tgid();
        // SAFETY: only this thread uses its entry.
        if let Some(unfinished) = unsafe { ENTRIES.get(&thread) } {
            return_missed(unfinished.sock);
        }
        let _ = ENTRIES.insert(&thread, &entry, 0);
    }
    0
}

/// The thread's last call returned unseen. The kernel keeps one instance for each call that waits,
/// and has few: `max(10, 2 * CPUs)` for a function. Bytes of that call were not counted, so
/// positions of its connection are no stream positions any more.
#[inline(always)]
fn return_missed(sock: u64) {
    emit::count(DropReason::ReturnMissing);
    if let Some(state) = CONNECTIONS.get_ptr_mut(&sock) {
        // SAFETY: a pointer into the map's value; one byte is written.
        unsafe { (*state).complete = 0 };
    }
}

#[inline(always)]
fn leave(ctx: &RetProbeContext, direction: Direction, slot: Slot) -> u32 {
    if !process::is_traced(task::process_id()) {
        return 0;
    }
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread uses its entry.
    let Some(entry) = (unsafe { ENTRIES.get(&thread) }).copied() else {
        emit::count(DropReason::EntryMissing);
        return 0;
    };
    let _ = ENTRIES.remove(&thread);
    handle(&Transfer {
        sock: entry.sock as *const u8,
        result: ctx.ret(),
        message_flags: entry.message_flags,
        direction,
        slot,
    });
    0
}

#[kprobe]
pub(crate) fn sendmsg_enter(ctx: ProbeContext) -> u32 {
    enter(&ctx, 0)
}

#[kprobe]
pub(crate) fn recvmsg_enter(ctx: ProbeContext) -> u32 {
    enter(&ctx, ctx.arg(3).unwrap_or(0))
}

#[kretprobe]
pub(crate) fn sendmsg_return(ctx: RetProbeContext) -> u32 {
    leave(&ctx, Direction::Outbound, Slot::Send)
}

#[kretprobe]
pub(crate) fn recvmsg_return(ctx: RetProbeContext) -> u32 {
    leave(&ctx, Direction::Inbound, Slot::Receive)
}

#[kprobe]
pub(crate) fn unix_release_enter(ctx: ProbeContext) -> u32 {
    unix_released(Sock(socket_sock_probed(
        ctx.arg(0).unwrap_or(core::ptr::null()),
    )));
    0
}
