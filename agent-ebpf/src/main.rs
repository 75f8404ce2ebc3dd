//! The kernel side: bytes, turns and identities out of the kernel. It gives bytes no meaning.
#![no_std]
#![no_main]
#![expect(
    clippy::inline_always,
    reason = "a call between BPF functions costs a stack frame of the 512 bytes they share"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's attributes call hooks with an owned context"
)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "keys and values of maps are passed by address, as the kernel's helpers take them"
)]
#![expect(
    clippy::doc_markdown,
    reason = "the lines `hook:` name kernel symbols in a fixed form that can be searched"
)]

mod connection;
mod debug;
mod emit;
mod frames;
mod hooks;
mod maps;
mod process;
mod read;
mod scratch;
mod tls;
mod user_buffer;

/// The verifier refuses any program in which a panic can be reached.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers such as `bpf_probe_read_kernel` are for GPL-compatible programs only; this declares
/// the licence to the kernel.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
