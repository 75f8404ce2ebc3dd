//! HTTP/1.0 and HTTP/1.1.
//!
//! Specifications: RFC 9110 (semantics), <https://www.rfc-editor.org/rfc/rfc9110>, and RFC 9112
//! (HTTP/1.1), <https://www.rfc-editor.org/rfc/rfc9112>; spans by the OpenTelemetry semantic
//! conventions, docs/http/http-spans.md.
//!
//! Covered: gRPC-Web and Connect, which are requests of HTTP in any version ([`super::rpc`]);
//! every form of request target; keep-alive and pipelining; bodies by length, by chunks
//! with extensions and trailers, and by close; messages without a body (HEAD, 204, 304); interim
//! responses; early responses and requests whose body is never sent; half-closed connections;
//! CONNECT and Upgrade, which end the session with the response head; folded lines, bare line
//! feeds and empty lines before a message; holes in heads and bodies; connections older than the
//! agent, by waiting for a turn that begins like a message.
//!
//! Deliberately not: HTTP/0.9 (no version to recognise it by), routes (a path is never turned
//! into one by guessing), the content of bodies, and what follows a CONNECT or an Upgrade.
//!
//! Limits: [`HEAD_LIMIT`] bytes of a head are kept while it is incomplete; of a longer one, and
//! of one with a hole, what was seen before is used. [`OUTSTANDING_LIMIT`] requests may wait for
//! their responses; a connection that exceeds it, or that loses bytes while several wait, is
//! given up, because a response could no longer be given to its request with certainty.
//!
//! A request counts as started once its request line is whole, so that what is not HTTP starts
//! nothing; its time and position are those of the first byte.

mod body;
mod describe;
mod exchange;
mod message;
mod parse;
#[cfg(test)]
mod vector_tests;

use super::reader::Reader;
use super::{Endpoint, Flow, Session, Verdict};

/// Bytes of an incomplete head that are kept: more than common servers accept (8 KiB nginx and
/// Apache, 16 KiB Node, 64 KiB aiohttp).
pub const HEAD_LIMIT: usize = 64 * 1024;

/// Requests of one connection that may wait for a response.
pub const OUTSTANDING_LIMIT: usize = 1024;

pub fn session(endpoint: Endpoint) -> Box<dyn Session> {
    Box::new(exchange::Http1::new(endpoint))
}

/// A request is HTTP only when its line is whole and ends in `HTTP/1.x`: other line protocols
/// use the same words.
pub fn detect(flow: Flow, bytes: &[u8]) -> Verdict {
    match flow {
        Flow::Request => detect_request(bytes),
        Flow::Response => detect_response(bytes),
    }
}

fn detect_request(bytes: &[u8]) -> Verdict {
    let mut reader = Reader::new(bytes);
    reader.take_while(|byte| matches!(byte, b'\r' | b'\n'));
    let start = reader.rest();
    if let Some(line) = reader.take_line() {
        return match parse::request_line(line) {
            Some(_) => Verdict::Certain,
            None => Verdict::No,
        };
    }
    let mut reader = Reader::new(start);
    let method = reader.take_while(parse::is_token);
    let could_be = match reader.take(1) {
        [] => true,
        [b' '] => !method.is_empty(),
        _ => false,
    };
    let rest = reader.rest();
    let is_text = !rest
        .strip_suffix(b"\r")
        .unwrap_or(rest)
        .iter()
        .any(u8::is_ascii_control);
    if could_be && is_text {
        Verdict::NeedMore
    } else {
        Verdict::No
    }
}

fn detect_response(bytes: &[u8]) -> Verdict {
    const SHAPE: &[u8] = b"HTTP/1.# ###";
    let fits = |(byte, shape): (&u8, &u8)| match shape {
        b'#' => byte.is_ascii_digit(),
        _ => byte == shape,
    };
    match bytes.iter().zip(SHAPE).all(fits) {
        false => Verdict::No,
        true if bytes.len() < SHAPE.len() => Verdict::NeedMore,
        true => Verdict::Certain,
    }
}
