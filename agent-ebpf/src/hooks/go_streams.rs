//! Streams of HTTP/2 in Go programs: which goroutine serves one, and for which one another begins
//! it. One goroutine reads all streams of a connection and one may write them, so the socket calls
//! do not say.
//!
//! hook: uprobe net/http.(*http2serverConn).runHandler (since Go 1.27 of net/http/internal/http2, or
//!       of golang.org/x/net/http2), behind the stack check: `rax` is the connection's server, `rbx`
//!       the response's writer, `r14` the goroutine that serves
//! hook: uprobe google.golang.org/grpc.(*Server).handleStream, as above: `rdi` is the stream
//! hook: uprobe the call of (*controlBuffer).executeAndPut in (*http2Client).NewStream of
//!       google.golang.org/grpc/internal/transport: `rdi` is the frame of headers, `r14` the
//!       goroutine that calls
//! hook: uprobe the call of (*loopyWriter).writeHeader in (*loopyWriter).originateStream (newer
//!       releases: clientHeaderHandler), of the same: `rbx` is the stream's identifier, `rdi` its
//!       list of headers, `r14` the goroutine that writes
//! fallback: none; streams are told apart by when goroutines were started then, and calls have no
//!       parent

use agent_common::{
    process::{GoProcess, GoStream},
    record::RecordKind,
};
use aya_ebpf::{macros::uprobe, programs::ProbeContext};

use crate::{
    emit,
    maps::GO_STREAMS,
    process::{self, TracedUnit},
    read::go::{Goroutine, word},
};

/// `transport.headerFrame`: the stream's identifier in a word, then the list of headers, a slice.
/// grpc-go 1.10 to 1.83.
const FRAME_HEADERS: u64 = 8;

/// `http2.stream`: the server of its connection, then its identifier. Go 1.18 to 1.27.
const STREAM_IDENTIFIER: u64 = 8;

/// A list of headers that waits to be written.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct QueuedHeaders {
    process_id: u64,
    address: u64,
}

/// Who made it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Queuer {
    task: u64,
    task_parent: u64,
}

struct Hit {
    traced: TracedUnit,
    program: &'static GoProcess,
    goroutine: Goroutine,
}

#[inline(always)]
fn hit(ctx: &ProbeContext) -> Option<Hit> {
    let (traced, program) = process::traced_go()?;
    // SAFETY: the context of a uprobe is the thread's registers; the verifier checks the loads.
    let goroutine = unsafe { (*ctx.regs).r14 };
    Some(Hit {
        traced,
        program,
        goroutine: Goroutine::at(program, goroutine)?,
    })
}

#[uprobe]
pub(crate) fn go_stream_served(ctx: ProbeContext) -> u32 {
    let _ = served(&ctx);
    0
}

#[inline(always)]
fn served(ctx: &ProbeContext) -> Option<()> {
    let hit = hit(ctx)?;
    // SAFETY: as in `hit`.
    let (server, writer) = unsafe { ((*ctx.regs).rax, (*ctx.regs).rbx) };
    // The writer's first field is its state, of which the first is the stream.
    let stream = word(word(writer)?)?;
    if word(stream)? != server {
        return None;
    }
    tell(&hit, word(stream.wrapping_add(STREAM_IDENTIFIER))? as u32)
}

#[uprobe]
pub(crate) fn go_grpc_served(ctx: ProbeContext) -> u32 {
    let _ = grpc_served(&ctx);
    0
}

/// A stream that begins with its identifier has that in a word of its own; from grpc-go 1.69 on it
/// was the address of a structure that did, for some releases.
#[inline(always)]
fn grpc_served(ctx: &ProbeContext) -> Option<()> {
    let hit = hit(ctx)?;
    // SAFETY: as in `hit`.
    let stream = unsafe { (*ctx.regs).rdi };
    let offset = hit.program.stream_identifier;
    let mut found = word(stream.wrapping_add(offset.into()))?;
    if offset == 0 && found > u32::MAX.into() {
        found = word(found)?;
    }
    tell(&hit, found as u32)
}

/// Clients give odd identifiers; anything else was read from somewhere else.
#[inline(always)]
fn tell(hit: &Hit, stream: u32) -> Option<()> {
    if stream & 1 == 0 || stream > i32::MAX as u32 {
        return None;
    }
    let Goroutine { id, parent_id, .. } = hit.goroutine;
    write(&hit.traced, id, parent_id, 0, stream);
    Some(())
}

#[uprobe]
pub(crate) fn go_grpc_queued(ctx: ProbeContext) -> u32 {
    let _ = queued(&ctx);
    0
}

#[inline(always)]
fn queued(ctx: &ProbeContext) -> Option<()> {
    let hit = hit(ctx)?;
    // SAFETY: as in `hit`.
    let frame = unsafe { (*ctx.regs).rdi };
    let key = QueuedHeaders {
        process_id: hit.traced.unit.process_id.into(),
        address: word(frame.wrapping_add(FRAME_HEADERS))?,
    };
    let queuer = Queuer {
        task: hit.goroutine.id,
        task_parent: hit.goroutine.parent_id,
    };
    GO_STREAMS.insert(&key, &queuer, 0).ok()
}

#[uprobe]
pub(crate) fn go_grpc_begun(ctx: ProbeContext) -> u32 {
    let _ = begun(&ctx);
    0
}

#[inline(always)]
fn begun(ctx: &ProbeContext) -> Option<()> {
    let hit = hit(ctx)?;
    // SAFETY: as in `hit`.
    let (stream, headers) = unsafe { ((*ctx.regs).rbx, (*ctx.regs).rdi) };
    let key = QueuedHeaders {
        process_id: hit.traced.unit.process_id.into(),
        address: headers,
    };
    // SAFETY: copied at once; only the writer takes it.
    let queuer = unsafe { GO_STREAMS.get(&key) }.copied()?;
    let _ = GO_STREAMS.remove(&key);
    let writer = hit.goroutine.id;
    write(
        &hit.traced,
        queuer.task,
        queuer.task_parent,
        writer,
        stream as u32,
    );
    Some(())
}

#[inline(always)]
fn write(traced: &TracedUnit, task: u64, task_parent: u64, writer: u64, stream: u32) {
    let length = size_of::<GoStream>();
    emit::record(&GoStream {
        header: emit::header(RecordKind::GoStream, length, emit::now_ns()),
        unit: traced.unit,
        task,
        task_parent,
        writer,
        stream,
        reserved: 0,
    });
}
