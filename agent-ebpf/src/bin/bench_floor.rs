//! The least that can be attached where the agent is: a pair of probes that only count, one
//! counter for each processor. `cargo xtask bench` measures it as the floor of what any agent at
//! these hooks costs. No part of the agent.
//!
//! hook: tp_btf sock_send_length(struct sock *sk, int ret, int flags), since 6.3
//! hook: tp_btf sock_recv_length(struct sock *sk, int ret, int flags), since 6.3
#![no_std]
#![no_main]
#![expect(
    clippy::doc_markdown,
    reason = "the lines `hook:` name kernel symbols in a fixed form that can be searched"
)]

use aya_ebpf::{
    macros::{btf_tracepoint, map},
    maps::PerCpuArray,
    programs::BtfTracePointContext,
};

/// Sends, then receives. Never removed.
#[map]
static HITS: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

#[btf_tracepoint(function = "sock_send_length")]
fn count_send(_ctx: BtfTracePointContext) -> i32 {
    count(0)
}

#[btf_tracepoint(function = "sock_recv_length")]
fn count_receive(_ctx: BtfTracePointContext) -> i32 {
    count(1)
}

fn count(index: u32) -> i32 {
    if let Some(hits) = HITS.get_ptr_mut(index) {
        // SAFETY: a slot of this processor; a program that interrupts this one may lose a count.
        unsafe { *hits += 1 };
    }
    0
}

/// The verifier refuses any program in which a panic can be reached.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// As of the agent's programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
