//! Functions of rustls, since 0.23. Their arguments are in registers as Rust passes them; what is
//! read of structures is checked before it is believed.
//!
//! hook: uprobe + uretprobe CommonState::buffer_plaintext (&mut self, OutboundChunks,
//!       &mut ChunkVecBuffer) -> usize, as (address, address, address)
//! hook: uprobe + uretprobe ChunkVecBuffer::write_to (&mut self, to: &mut dyn Write)
//!       -> io::Result<usize>
//! hook: uprobe + uretprobe MessageDecrypter::decrypt of the ciphers (&mut self,
//!       InboundOpaqueMessage, sequence: u64) -> Result<InboundPlainMessage>, as (address of the
//!       result, address, address, number)
//! fallback: none; what such a connection carries is then not understood

use aya_ebpf::{
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};

use crate::tls::rustls::{self, Overhead};

#[uprobe]
pub(crate) fn rustls_write(ctx: ProbeContext) -> u32 {
    let _ = rustls::enter_write(argument(&ctx, 0), argument(&ctx, 1));
    0
}

#[uretprobe]
pub(crate) fn rustls_written(ctx: RetProbeContext) -> u32 {
    let _ = rustls::leave_write(ctx.ret());
    0
}

#[uprobe]
pub(crate) fn rustls_send(ctx: ProbeContext) -> u32 {
    rustls::enter_send(argument(&ctx, 0));
    0
}

#[uretprobe]
pub(crate) fn rustls_sent(_: RetProbeContext) -> u32 {
    let _ = rustls::leave_send();
    0
}

#[uprobe]
pub(crate) fn rustls_open_13(ctx: ProbeContext) -> u32 {
    let _ = rustls::enter_open(argument(&ctx, 2), Overhead::Tls13);
    0
}

#[uprobe]
pub(crate) fn rustls_open_12_gcm(ctx: ProbeContext) -> u32 {
    let _ = rustls::enter_open(argument(&ctx, 2), Overhead::Tls12Gcm);
    0
}

#[uprobe]
pub(crate) fn rustls_open_12_chacha(ctx: ProbeContext) -> u32 {
    let _ = rustls::enter_open(argument(&ctx, 2), Overhead::Tls12Chacha);
    0
}

#[uretprobe]
pub(crate) fn rustls_opened(_: RetProbeContext) -> u32 {
    let _ = rustls::leave_open();
    0
}

#[inline(always)]
fn argument(ctx: &ProbeContext, number: usize) -> u64 {
    ctx.arg(number).unwrap_or(0)
}
