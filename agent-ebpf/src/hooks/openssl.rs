//! Calls of TLS libraries: OpenSSL and what has its functions (BoringSSL, LibreSSL), and GnuTLS,
//! whose functions take the same arguments.
//!
//! hook: uprobe + uretprobe SSL_read, SSL_write (SSL *s, void *buffer, int length) -> int
//! hook: uprobe + uretprobe gnutls_record_recv, gnutls_record_send
//!       (gnutls_session_t s, void *data, size_t size) -> ssize_t
//! hook: uprobe + uretprobe SSL_read_ex, SSL_write_ex, SSL_read_early_data, SSL_write_early_data
//!       (SSL *s, void *buffer, size_t length, size_t *moved) -> int, 1 for success
//! hook: uprobe + uretprobe SSL_write_ex2
//!       (SSL *s, const void *buffer, size_t length, uint64_t flags, size_t *moved) -> int,
//!       since OpenSSL 3.3
//! hook: uprobe + uretprobe SSL_sendfile (SSL *s, int fd, off_t offset, size_t size, int flags)
//!       -> ssize_t, since OpenSSL 3.0
//! hook: uprobe + uretprobe SSL_do_handshake, gnutls_handshake (session) -> int
//! hook: uretprobe SSL_new (SSL_CTX *context) -> SSL *
//! hook: uprobe + uretprobe gnutls_init (gnutls_session_t *session, unsigned flags) -> int
//! hook: uprobe SSL_free, gnutls_deinit (session)
//! fallback: none; what such a connection carries is then not understood

use aya_ebpf::{
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};

use crate::tls::{self, Action, Call};

/// The call's first arguments; `moved` is the address it writes its count to, 0 for none.
#[inline(always)]
fn enter(ctx: &ProbeContext, action: Action, moved: u64) -> u32 {
    tls::enter(&Call {
        action,
        object: ctx.arg(0).unwrap_or(0),
        buffer: ctx.arg(1).unwrap_or(0),
        moved,
    });
    0
}

#[uprobe]
pub(crate) fn tls_read(ctx: ProbeContext) -> u32 {
    enter(&ctx, Action::Read, 0)
}

#[uprobe]
pub(crate) fn tls_read_ex(ctx: ProbeContext) -> u32 {
    enter(&ctx, Action::Read, ctx.arg(3).unwrap_or(0))
}

#[uprobe]
pub(crate) fn tls_write(ctx: ProbeContext) -> u32 {
    enter(&ctx, Action::Write, 0)
}

#[uprobe]
pub(crate) fn tls_write_ex(ctx: ProbeContext) -> u32 {
    enter(&ctx, Action::Write, ctx.arg(3).unwrap_or(0))
}

#[uprobe]
pub(crate) fn tls_write_ex2(ctx: ProbeContext) -> u32 {
    enter(&ctx, Action::Write, ctx.arg(4).unwrap_or(0))
}

#[uprobe]
pub(crate) fn tls_write_early(ctx: ProbeContext) -> u32 {
    enter(&ctx, Action::WriteEarly, ctx.arg(3).unwrap_or(0))
}

/// There is no buffer: what a file holds is counted, not read.
#[uprobe]
pub(crate) fn tls_send_file(ctx: ProbeContext) -> u32 {
    tls::enter(&Call {
        action: Action::Write,
        object: ctx.arg(0).unwrap_or(0),
        buffer: 0,
        moved: 0,
    });
    0
}

#[uprobe]
pub(crate) fn tls_handshake(ctx: ProbeContext) -> u32 {
    enter(&ctx, Action::Handshake, 0)
}

#[uretprobe]
pub(crate) fn tls_return(ctx: RetProbeContext) -> u32 {
    let _ = tls::leave::<false>(ctx.ret());
    0
}

/// Stands in for `tls_return` where context is injected and the kernel has `bpf_loop`.
#[uretprobe]
pub(crate) fn tls_return_injecting(ctx: RetProbeContext) -> u32 {
    let _ = tls::leave::<true>(ctx.ret());
    0
}

/// `gnutls_init` writes the session's address to where its first argument says.
#[uprobe]
pub(crate) fn tls_make(ctx: ProbeContext) -> u32 {
    enter(&ctx, Action::Make, ctx.arg(0).unwrap_or(0))
}

#[uretprobe]
pub(crate) fn tls_made(ctx: RetProbeContext) -> u32 {
    let _ = tls::made(ctx.ret());
    0
}

#[uprobe]
pub(crate) fn tls_freed(ctx: ProbeContext) -> u32 {
    tls::freed(ctx.arg(0).unwrap_or(0));
    0
}
