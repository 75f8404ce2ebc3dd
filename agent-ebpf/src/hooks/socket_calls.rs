//! Socket calls that have just returned: tracepoints since Linux 6.3, fexit before.
//!
//! hook: tp_btf sock_send_length(struct sock *sk, int ret, int flags), since 6.3
//! hook: tp_btf sock_recv_length(struct sock *sk, int ret, int flags), since 6.3
//! hook: fexit inet_sendmsg, inet6_sendmsg, unix_stream_sendmsg
//!       (struct socket *sock, struct msghdr *m, size_t size) -> int, since 5.5
//! hook: fexit inet_recvmsg, inet6_recvmsg, unix_stream_recvmsg
//!       (struct socket *sock, struct msghdr *m, size_t size, int flags) -> int, since 5.5
//! hook: fexit inet_sendpage, unix_stream_sendpage
//!       (struct socket *sock, struct page *page, int offset, size_t size, int flags) -> ssize_t,
//!       gone in 6.5, where sendfile goes through the send functions
//! fallback: kretprobe on the same functions, in `kretprobe.rs`
//!
//! Where context is injected, other programs stand in for those that receive: requests are searched
//! for the context they carry by a helper that older kernels refuse even where it is not called
//! (`bpf_loop`, Linux 5.17).

use agent_common::connection::Direction;
use aya_ebpf::{
    macros::{btf_tracepoint, fexit},
    programs::{BtfTracePointContext, FExitContext},
};

use super::socket_data::{Transfer, count_pages, handle, handle_in, socket_sock};
use crate::scratch::Slot;

#[btf_tracepoint(function = "sock_send_length")]
pub(crate) fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    handle(&Transfer {
        sock: ctx.arg(0),
        result: ctx.arg(1),
        message_flags: ctx.arg(2),
        direction: Direction::Outbound,
        slot: Slot::Send,
    })
}

/// `LOOPS`: with `bpf_loop`.
#[inline(always)]
fn counted<const LOOPS: bool>(ctx: &BtfTracePointContext) -> i32 {
    handle_in::<LOOPS>(&Transfer {
        sock: ctx.arg(0),
        result: ctx.arg(1),
        message_flags: ctx.arg(2),
        direction: Direction::Inbound,
        slot: Slot::Receive,
    })
}

#[btf_tracepoint(function = "sock_recv_length")]
pub(crate) fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    counted::<false>(&ctx)
}

#[btf_tracepoint(function = "sock_recv_length")]
pub(crate) fn sock_recv_length_injecting(ctx: BtfTracePointContext) -> i32 {
    counted::<true>(&ctx)
}

/// Arguments of the send functions: the result follows three arguments.
#[inline(always)]
fn sent(ctx: &FExitContext, slot: Slot) -> i32 {
    handle(&Transfer {
        sock: socket_sock(ctx.arg(0)),
        result: ctx.arg(3),
        message_flags: 0,
        direction: Direction::Outbound,
        slot,
    })
}

/// Arguments of the receive functions: the result follows four arguments.
#[inline(always)]
fn received<const LOOPS: bool>(ctx: &FExitContext, slot: Slot) -> i32 {
    handle_in::<LOOPS>(&Transfer {
        sock: socket_sock(ctx.arg(0)),
        result: ctx.arg(4),
        message_flags: ctx.arg(3),
        direction: Direction::Inbound,
        slot,
    })
}

#[fexit(function = "inet_sendmsg")]
pub(crate) fn inet_sendmsg_exit(ctx: FExitContext) -> i32 {
    sent(&ctx, Slot::Send)
}

#[fexit(function = "inet6_sendmsg")]
pub(crate) fn inet6_sendmsg_exit(ctx: FExitContext) -> i32 {
    sent(&ctx, Slot::Send6)
}

#[fexit(function = "unix_stream_sendmsg")]
pub(crate) fn unix_stream_sendmsg_exit(ctx: FExitContext) -> i32 {
    sent(&ctx, Slot::SendUnix)
}

#[fexit(function = "inet_recvmsg")]
pub(crate) fn inet_recvmsg_exit(ctx: FExitContext) -> i32 {
    received::<false>(&ctx, Slot::Receive)
}

#[fexit(function = "inet_recvmsg")]
pub(crate) fn inet_recvmsg_injecting(ctx: FExitContext) -> i32 {
    received::<true>(&ctx, Slot::Receive)
}

#[fexit(function = "inet6_recvmsg")]
pub(crate) fn inet6_recvmsg_exit(ctx: FExitContext) -> i32 {
    received::<false>(&ctx, Slot::Receive6)
}

#[fexit(function = "inet6_recvmsg")]
pub(crate) fn inet6_recvmsg_injecting(ctx: FExitContext) -> i32 {
    received::<true>(&ctx, Slot::Receive6)
}

#[fexit(function = "unix_stream_recvmsg")]
pub(crate) fn unix_stream_recvmsg_exit(ctx: FExitContext) -> i32 {
    received::<false>(&ctx, Slot::ReceiveUnix)
}

#[fexit(function = "unix_stream_recvmsg")]
pub(crate) fn unix_stream_recvmsg_injecting(ctx: FExitContext) -> i32 {
    received::<true>(&ctx, Slot::ReceiveUnix)
}

/// Pages of a file that sendfile or splice sent.
#[fexit(function = "inet_sendpage")]
pub(crate) fn inet_sendpage_exit(ctx: FExitContext) -> i32 {
    count_pages(socket_sock(ctx.arg(0)), ctx.arg(5))
}

#[fexit(function = "unix_stream_sendpage")]
pub(crate) fn unix_stream_sendpage_exit(ctx: FExitContext) -> i32 {
    count_pages(socket_sock(ctx.arg(0)), ctx.arg(5))
}
