//! HTTP/2, and gRPC, gRPC-Web and Connect on top of it.
//!
//! Specifications: RFC 9113 (HTTP/2), <https://www.rfc-editor.org/rfc/rfc9113>; RFC 7541 (HPACK),
//! <https://www.rfc-editor.org/rfc/rfc7541>; RFC 8441 (extended CONNECT). The calls: see
//! [`grpc`]. Spans by the OpenTelemetry semantic conventions, docs/http/http-spans.md and
//! docs/rpc/rpc-spans.md.
//!
//! Covered: any number of concurrent streams; DATA and HEADERS with padding and priority,
//! CONTINUATION, trailers, interim responses, SETTINGS of both sides, `RST_STREAM`, GOAWAY, PING
//! and `WINDOW_UPDATE`, frames of extensions; clear text by prior knowledge and by Upgrade (the
//! request that asked for it is a span of HTTP/1 that ends with the switch); CONNECT, plain and
//! extended, which ends with the response head; responses that were recorded before their request;
//! gaps; connections older than the agent. Pushed responses keep the header tables right and are
//! no spans.
//!
//! Deliberately not: flow control, priorities, header lists beyond what a span needs, the content
//! of messages, and what is spoken in a tunnel.
//!
//! A span lasts from the first byte of the request's HEADERS until both directions of the stream
//! have ended. Its path is read or it is missing, never guessed.
//!
//! # What the kernel half must give
//!
//! Everything works on captured pieces at known positions with counted gaps, so less capture costs
//! knowledge and never correctness. A gap is free where it lies within the payload of one frame
//! whose header was captured. It is dear where it swallows a frame header: the header table of that
//! flow is forgotten, and streams may end unseen. For nothing to be unknown, a connection must give
//!
//! 1. the nine bytes of every frame header,
//! 2. all payload of every frame that is neither DATA nor PRIORITY, PING, `WINDOW_UPDATE` or of an
//!    extension, up to [`HEAD_LIMIT`],
//! 3. of DATA the pad length and, where messages are to be counted, the five bytes before each
//!    message (the next begins after as many bytes as they say, across frames of one stream),
//!
//! each piece with its position in the flow. It gives the first two whole, and of DATA what
//! `agent_common::frames` says: short frames whole and of longer ones the beginning, so that
//! messages are counted where each begins with a frame or fits a short one.
//!
//! # Limits
//!
//! [`STREAMS_LIMIT`] streams of one connection are followed; more are counted as lost.
//! [`HEAD_LIMIT`] bytes of one head are kept. Header tables are bounded in bytes ([`hpack`]).

mod describe;
mod exchange;
mod field;
mod frame;
pub(super) mod grpc;
mod hpack;
mod huffman;
mod stream;
#[cfg(test)]
mod vector_tests;
mod walker;

use super::{Endpoint, Flow, Session, Verdict};

/// Bytes of one head that are kept: more than servers accept (16 KiB Node, 32 KiB nginx).
pub const HEAD_LIMIT: usize = 64 * 1024;

/// Streams of one connection that are open at one time. Servers allow 100 to 250.
pub const STREAMS_LIMIT: usize = 4_096;

/// Evidence in bits that each direction must have to be frames: what one small head alone has,
/// because quiet connections send nothing else in a turn. Both together are twice that.
const DETECTED_BITS: u32 = 44;

pub fn session(endpoint: Endpoint) -> Box<dyn Session> {
    Box::new(exchange::Http2::new(endpoint))
}

/// A client begins with a preface that nothing else begins with. On a connection older than the
/// agent, frames that follow each other speak for HTTP/2, if they do in both directions; their
/// heads say which is which.
pub fn detect(flow: Flow, bytes: &[u8]) -> Verdict {
    if flow == Flow::Request {
        if bytes.starts_with(frame::PREFACE) {
            return Verdict::Certain;
        }
        if frame::PREFACE.starts_with(bytes) {
            return Verdict::NeedMore;
        }
    }
    let bits = frame::evidence(flow, bytes, &|_| false);
    match frame::head_flow(bytes) {
        Some(other) if other != flow => Verdict::No,
        _ if bits >= DETECTED_BITS => Verdict::Maybe,
        _ if bits > 0 || frame::may_begin(bytes) => Verdict::NeedMore,
        _ => Verdict::No,
    }
}
