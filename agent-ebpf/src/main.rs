//! The kernel side: bytes, turns and identities out of the kernel. It gives bytes no meaning.
#![no_std]
#![no_main]

mod connection;
mod debug;
mod emit;
mod hooks;
mod maps;
mod process;
mod read;
mod scratch;
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
