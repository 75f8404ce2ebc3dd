//! Go's HTTP client: which goroutine is about to use which connection. A kept connection is written
//! by a goroutine of its own, so the socket call does not say for whom.
//!
//! hook: uprobe net/http.(*persistConn).roundTrip, Go 1.17 and newer (arguments in registers): `rax`
//!       is the connection, `r14` the goroutine; on the entry or behind the stack check
//! hook: uprobe net/http.(*http2ClientConn).RoundTrip (since Go 1.27 of net/http/internal/http2, or
//!       of golang.org/x/net/http2; where there is one, roundTrip), as above: `r14` is the
//!       goroutine, which starts one that writes the request's headers
//! fallback: none; the calls have no parent then

use agent_common::{payload::UNKNOWN_DESCRIPTOR, process::GoCall, record::RecordKind};
use aya_ebpf::{macros::uprobe, programs::ProbeContext};

use super::inject_go;
use crate::{
    emit,
    maps::config,
    process,
    read::go::{self, Goroutine},
};

#[uprobe]
pub(crate) fn go_client_call(ctx: ProbeContext) -> u32 {
    let _ = try_call::<false>(&ctx);
    0
}

#[uprobe]
pub(crate) fn go_stream_call(ctx: ProbeContext) -> u32 {
    let _ = try_call::<true>(&ctx);
    0
}

/// `STREAM`: one that this goroutine starts writes the request, on whatever connection.
#[inline(always)]
fn try_call<const STREAM: bool>(ctx: &ProbeContext) -> Option<()> {
    let (traced, program) = process::traced_go()?;
    // SAFETY: the context of a uprobe is the thread's registers; the verifier checks the loads.
    let (holder, goroutine) = unsafe { ((*ctx.regs).rax, (*ctx.regs).r14) };
    let goroutine = Goroutine::at(program, goroutine)?;
    let descriptor = if STREAM {
        UNKNOWN_DESCRIPTOR
    } else {
        go::descriptor(program, holder)?
    };
    if config!(inject) == 1 && !STREAM {
        inject_go::calling(traced.unit.process_id, &goroutine, descriptor);
    }
    emit::record(&GoCall {
        header: emit::header(RecordKind::GoCall, size_of::<GoCall>(), emit::now_ns()),
        unit: traced.unit,
        task: goroutine.id,
        task_parent: goroutine.parent_id,
        descriptor,
        reserved: 0,
    });
    Some(())
}
