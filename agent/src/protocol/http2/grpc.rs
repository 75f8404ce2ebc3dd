//! Calls on top of HTTP/2: gRPC, gRPC-Web and Connect.
//!
//! Specifications: gRPC over HTTP/2,
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>; gRPC-Web,
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md>; Connect,
//! <https://connectrpc.com/docs/protocol/>. Spans by the semantic conventions, docs/rpc/grpc.md.

use std::borrow::Cow;

use crate::protocol::reader::Reader;
use crate::span::Kind;

const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

pub(super) const DEADLINE_EXCEEDED: u64 = 4;

/// `rpc.response.status_code`: the name of a code, or the number of one that has none.
pub(super) fn status_name(code: u64) -> Cow<'static, str> {
    usize::try_from(code)
        .ok()
        .and_then(|code| NAMES.get(code))
        .map_or_else(|| Cow::Owned(code.to_string()), |name| Cow::Borrowed(*name))
}

/// The code of a name that [`status_name`] gave.
pub(in crate::protocol) fn code_of(name: &str) -> Option<u64> {
    let found = NAMES.iter().position(|known| *known == name);
    found.map(|code| code as u64).or_else(|| name.parse().ok())
}

/// For a client anything but OK is an error; for a server what is its own doing: UNKNOWN,
/// `DEADLINE_EXCEEDED`, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, `DATA_LOSS`, and what is no code.
pub(in crate::protocol) const fn is_error(kind: Kind, code: u64) -> bool {
    match kind {
        Kind::Client => code != 0,
        Kind::Server => matches!(code, 2 | 4 | 12 | 13 | 14 | 15 | 17..),
    }
}

/// What a client makes of a response without a gRPC status:
/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>.
pub(super) const fn status_of_http(status: u16) -> u64 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Counts the messages of one direction by their prefixes: a byte of flags and four of length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Messages {
    count: u64,
    /// Bytes of the current message that are to come.
    remaining: u64,
    prefix: [u8; 5],
    filled: usize,
    /// A prefix was not captured, or this is no sequence of messages.
    lost: bool,
}

/// Flags: compressed (gRPC and Connect), the last message with the status in it (gRPC-Web has the
/// highest bit, Connect the second).
const COMPRESSED: u8 = 0x01;
const CONNECT_END: u8 = 0x02;
const WEB_TRAILERS: u8 = 0x80;

impl Messages {
    /// Messages so far, if all were seen.
    pub(super) const fn count(&self) -> Option<u64> {
        if self.lost { None } else { Some(self.count) }
    }

    pub(super) fn lose(&mut self) {
        self.lost = true;
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        let mut reader = Reader::new(bytes);
        while !self.lost && !reader.is_empty() {
            if self.remaining > 0 {
                let wanted = usize::try_from(self.remaining).unwrap_or(usize::MAX);
                self.remaining -= reader.take(wanted).len() as u64;
                continue;
            }
            let taken = reader.take(self.prefix.len() - self.filled);
            let room = self.prefix.iter_mut().skip(self.filled);
            room.zip(taken).for_each(|(place, byte)| *place = *byte);
            self.filled += taken.len();
            if self.filled == self.prefix.len() {
                self.filled = 0;
                self.begin();
            }
        }
    }

    fn begin(&mut self) {
        let [flags, a, b, c, d] = self.prefix;
        self.remaining = u32::from_be_bytes([a, b, c, d]).into();
        if flags & !(COMPRESSED | CONNECT_END | WEB_TRAILERS) != 0 {
            self.lost = true;
        } else if flags & !COMPRESSED == 0 {
            self.count += 1;
        }
    }

    /// So many bytes were not captured.
    pub(super) fn skip(&mut self, length: u64) {
        if length <= self.remaining {
            self.remaining -= length;
        } else {
            self.lost = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the semantic conventions, for both kinds.
    #[test]
    fn errors_depend_on_the_kind() {
        let errors = |kind| -> Vec<u64> { (0..18).filter(|code| is_error(kind, *code)).collect() };
        assert_eq!(errors(Kind::Client), (1..18).collect::<Vec<_>>());
        assert_eq!(errors(Kind::Server), [2, 4, 12, 13, 14, 15, 17]);
        assert_eq!(status_name(DEADLINE_EXCEEDED), "DEADLINE_EXCEEDED");
        assert_eq!(status_name(16), "UNAUTHENTICATED");
        assert_eq!(status_name(99), "99");
    }

    /// Messages are counted however their bytes are cut, and over gaps within their content.
    #[test]
    fn messages_are_counted() {
        let bytes = b"\0\0\0\0\x03abc\x01\0\0\0\0\0\0\0\x01\0";
        for at in 0..bytes.len() {
            let mut messages = Messages::default();
            messages.take(&bytes[..at]);
            messages.take(&bytes[at..at]);
            messages.take(&bytes[at..]);
            assert_eq!(messages.count(), Some(3), "split at {at}");
        }
        let mut messages = Messages::default();
        messages.take(b"\0\0\x01\0\0ab");
        messages.skip(65_534);
        messages.take(b"\0\0\0\0\0");
        assert_eq!(messages.count(), Some(2));
        messages.skip(1);
        assert_eq!(messages.count(), None, "a prefix is missing");
        let mut messages = Messages::default();
        messages.take(b"{\"a\":1}");
        assert_eq!(messages.count(), None, "no message begins so");
        let mut messages = Messages::default();
        messages.take(b"\0\0\0\0\x01a\x80\0\0\0\x02b:");
        assert_eq!(messages.count(), Some(1), "trailers are no message");
    }
}
