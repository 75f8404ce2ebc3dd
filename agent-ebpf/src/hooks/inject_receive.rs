//! Receiving where headers are injected: requests are searched for the context they carry, by a
//! helper that older kernels refuse even where it is not called (`bpf_loop`, Linux 5.17).
//!
//! hook: tp_btf sock_recv_length, fexit inet_recvmsg, inet6_recvmsg, unix_stream_recvmsg, as in
//!       `socket_data.rs`, whose programs these stand in for
//! fallback: none; without them nothing is injected

use agent_common::connection::Direction;
use aya_ebpf::{
    macros::{btf_tracepoint, fexit},
    programs::{BtfTracePointContext, FExitContext},
};

use super::socket_data::{Transfer, handle_in, socket_sock};
use crate::scratch::Slot;

#[btf_tracepoint(function = "sock_recv_length")]
pub(crate) fn sock_recv_length_injecting(ctx: BtfTracePointContext) -> i32 {
    handle_in::<true>(&Transfer {
        sock: ctx.arg(0),
        result: ctx.arg(1),
        message_flags: ctx.arg(2),
        direction: Direction::Inbound,
        slot: Slot::Receive,
    })
}

/// Arguments of the receive functions: the result follows four arguments.
#[inline(always)]
fn received(ctx: &FExitContext, slot: Slot) -> i32 {
    handle_in::<true>(&Transfer {
        sock: socket_sock(ctx.arg(0)),
        result: ctx.arg(4),
        message_flags: ctx.arg(3),
        direction: Direction::Inbound,
        slot,
    })
}

#[fexit(function = "inet_recvmsg")]
pub(crate) fn inet_recvmsg_injecting(ctx: FExitContext) -> i32 {
    received(&ctx, Slot::Receive)
}

#[fexit(function = "inet6_recvmsg")]
pub(crate) fn inet6_recvmsg_injecting(ctx: FExitContext) -> i32 {
    received(&ctx, Slot::Receive6)
}

#[fexit(function = "unix_stream_recvmsg")]
pub(crate) fn unix_stream_recvmsg_injecting(ctx: FExitContext) -> i32 {
    received(&ctx, Slot::ReceiveUnix)
}
