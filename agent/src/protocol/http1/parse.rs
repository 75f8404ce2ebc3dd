//! Bytes to message heads: request and status lines, and the header fields that matter here.
//!
//! Fields are read by httparse where it accepts them. What it refuses but peers send and accept
//! (folded lines, more fields than its table, a stray byte in a name) and heads that were cut by
//! a hole are read line by line, leniently: an observer judges no one.

use std::borrow::Cow;

use super::body::Framing;
use crate::protocol::TraceHeaders;
use crate::protocol::reader::{Reader, split};
use crate::protocol::rpc::Rpc;
use crate::protocol::semantics::{decimal, is_event_stream};

/// Longest method that is believed; the longest registered one has 17 letters
/// (`UPDATEREDIRECTREF`).
const METHOD_LIMIT: usize = 64;

/// Fields httparse may collect on the stack; heads with more take the lenient path.
const FIELDS_LIMIT: usize = 48;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestLine<'a> {
    pub(super) method: &'a str,
    /// As it stood on the wire: any form of RFC 9112, section 3.2.
    pub(super) target: &'a [u8],
    /// The digit after `HTTP/1.`.
    pub(super) minor: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StatusLine {
    pub(super) code: u16,
}

/// The values this module or its span needs, as they stood on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields<'a> {
    pub(super) host: Option<&'a [u8]>,
    pub(super) user_agent: Option<&'a [u8]>,
    pub(super) forwarded: Option<&'a [u8]>,
    pub(super) forwarded_for: Option<&'a [u8]>,
    pub(super) forwarded_proto: Option<&'a [u8]>,
    pub(super) upgrade: Option<&'a [u8]>,
    pub(super) content_type: Option<&'a [u8]>,
    /// `Connect-Protocol-Version`.
    pub(super) has_connect_version: bool,
    pub(super) trace: TraceHeaders,
    /// `Expect: 100-continue` (RFC 9110, section 10.1.1).
    pub(super) expects_continue: bool,
    traceparent_count: u32,
    length: Length,
    /// The last transfer coding is `chunked`; `None` without `Transfer-Encoding`.
    chunked: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Length {
    #[default]
    Absent,
    Known(u64),
    /// Not a number, or several that differ.
    Invalid,
}

/// Where the head that begins `data` ends, seen that no end lies before `from`.
pub(super) fn head_end(data: &[u8], from: usize) -> Option<usize> {
    let searched = data.get(from..)?;
    memchr::memchr_iter(b'\n', searched).find_map(|offset| {
        let next = from + offset + 1;
        match (data.get(next), data.get(next + 1)) {
            (Some(b'\n'), _) => Some(next + 1),
            (Some(b'\r'), Some(b'\n')) => Some(next + 2),
            _ => None,
        }
    })
}

/// A whole request line, without its line end.
pub(super) fn request_line(line: &[u8]) -> Option<RequestLine<'_>> {
    let mut reader = Reader::new(line);
    let method = reader.take_while(is_token);
    if method.is_empty() || method.len() > METHOD_LIMIT || reader.take(1) != b" " {
        return None;
    }
    let rest = reader.rest().trim_ascii_end();
    let (target, version) = split(rest, memchr::memrchr(b' ', rest)?);
    let minor = minor_version(version.trim_ascii_start())?;
    let target = target.trim_ascii();
    if target.is_empty() || target.iter().any(u8::is_ascii_control) {
        return None;
    }
    Some(RequestLine {
        method: str::from_utf8(method).ok()?,
        target,
        minor,
    })
}

/// A whole status line, without its line end (RFC 9112, section 4); the reason may be missing.
pub(super) fn status_line(line: &[u8]) -> Option<StatusLine> {
    let mut reader = Reader::new(line);
    minor_version(reader.take_until(b' '))?;
    reader.take_while(|byte| byte == b' ');
    let digits = reader.take_while(|byte| byte.is_ascii_digit());
    if digits.len() != 3 || !matches!(reader.peek(), None | Some(b' ')) {
        return None;
    }
    let code = digits
        .iter()
        .fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    Some(StatusLine { code })
}

/// The digit of `HTTP/1.x`, when this is all there is.
fn minor_version(version: &[u8]) -> Option<u8> {
    match version.strip_prefix(b"HTTP/1.") {
        Some(&[digit]) if digit.is_ascii_digit() => Some(digit - b'0'),
        _ => None,
    }
}

/// RFC 9110, section 5.6.2.
pub(super) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// The start line of a head, without its line end, and what follows it. A head that was cut may
/// end before its line does: then there is none.
pub(super) fn split_start_line(head: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut reader = Reader::new(head);
    let line = reader.take_line()?;
    Some((line, reader.rest()))
}

/// The fields of a head, whole or cut; a last line without its end is not believed.
pub(super) fn fields(block: &[u8]) -> Fields<'_> {
    let mut table = [httparse::EMPTY_HEADER; FIELDS_LIMIT];
    let mut fields = Fields::default();
    if let Ok(httparse::Status::Complete((_, parsed))) = httparse::parse_headers(block, &mut table)
    {
        for field in parsed {
            fields.take(field.name.as_bytes(), field.value);
        }
    } else {
        read_leniently(block, &mut fields);
    }
    fields
}

/// Line by line; a folded line (RFC 9112, section 5.2) belongs to the value before it.
fn read_leniently<'a>(block: &'a [u8], fields: &mut Fields<'a>) {
    let mut rest = block;
    while let Some(length) = field_length(rest) {
        let (field, following) = split(rest, length);
        rest = following;
        if let Some(colon) = memchr::memchr(b':', field) {
            let (name, value) = split(field, colon);
            let value = value.strip_prefix(b":").unwrap_or(value);
            fields.take(name.trim_ascii(), value.trim_ascii());
        } else if field.trim_ascii().is_empty() {
            return;
        }
    }
}

/// Bytes of the first field with its folded lines and line end; `None` when it has no end here.
fn field_length(block: &[u8]) -> Option<usize> {
    let ends = memchr::memchr_iter(b'\n', block).map(|feed| feed + 1);
    let mut first = None;
    for end in ends {
        let is_empty_line = first.is_none() && split(block, end).0.trim_ascii().is_empty();
        first.get_or_insert(end);
        if is_empty_line || !matches!(block.get(end), Some(b' ' | b'\t')) {
            return Some(end);
        }
    }
    first
}

impl<'a> Fields<'a> {
    /// Notes a field. Lengths first: most fields of a head are of no interest.
    fn take(&mut self, name: &[u8], value: &'a [u8]) {
        let is = |wanted: &[u8]| name.eq_ignore_ascii_case(wanted);
        match name.len() {
            4 if is(b"host") => self.host = self.host.or(Some(value)),
            6 if is(b"expect") => {
                self.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
            }
            7 if is(b"upgrade") => self.upgrade = self.upgrade.or(Some(value)),
            9 if is(b"forwarded") => self.forwarded = self.forwarded.or(Some(value)),
            10 if is(b"user-agent") => self.user_agent = self.user_agent.or(Some(value)),
            10 if is(b"tracestate") => self.take_tracestate(value),
            11 if is(b"traceparent") => self.take_traceparent(value),
            12 if is(b"content-type") => self.content_type = self.content_type.or(Some(value)),
            14 if is(b"content-length") => self.take_length(value),
            15 if is(b"x-forwarded-for") => {
                self.forwarded_for = self.forwarded_for.or(Some(value));
            }
            17 if is(b"transfer-encoding") => {
                let last = value.rsplit(|&byte| byte == b',').next().unwrap_or(value);
                self.chunked = Some(last.trim_ascii().eq_ignore_ascii_case(b"chunked"));
            }
            17 if is(b"x-forwarded-proto") => {
                self.forwarded_proto = self.forwarded_proto.or(Some(value));
            }
            24 if is(b"connect-protocol-version") => self.has_connect_version = true,
            _ => {}
        }
    }

    fn take_traceparent(&mut self, value: &[u8]) {
        self.traceparent_count += 1;
        self.trace.traceparent = (self.traceparent_count == 1).then(|| text(value).into_owned());
    }

    fn take_tracestate(&mut self, value: &[u8]) {
        match &mut self.trace.tracestate {
            Some(joined) => {
                joined.push(',');
                joined.push_str(&text(value));
            }
            none => *none = Some(text(value).into_owned()),
        }
    }

    /// The same value may stand there several times, in one field or in several (RFC 9112,
    /// section 6.3, case 5).
    fn take_length(&mut self, value: &[u8]) {
        for item in value.split(|&byte| byte == b',') {
            let number = decimal(item.trim_ascii());
            self.length = match (self.length, number) {
                (Length::Absent, Some(number)) => Length::Known(number),
                (Length::Known(known), Some(number)) if known == number => Length::Known(known),
                _ => Length::Invalid,
            };
        }
    }

    /// What kind of call it begins. gRPC itself has no form in HTTP/1.
    pub(super) fn rpc(&self) -> Option<Rpc> {
        let content_type = self.content_type.unwrap_or_default();
        let content_type = str::from_utf8(content_type).unwrap_or_default();
        let rpc = Rpc::of(content_type, self.has_connect_version);
        rpc.filter(|rpc| *rpc != Rpc::Grpc)
    }

    pub(super) fn is_event_stream(&self) -> bool {
        self.content_type.is_some_and(is_event_stream)
    }

    /// RFC 9112, section 6.3, for a request.
    pub(super) fn request_framing(&self) -> Framing {
        match (self.chunked, self.length) {
            (Some(true), _) => Framing::Chunked,
            (Some(false), _) | (None, Length::Invalid) => Framing::Unknown,
            (None, Length::Known(length)) => Framing::Length(length),
            (None, Length::Absent) => Framing::Empty,
        }
    }

    /// RFC 9112, section 6.3, for a response that may have a body.
    pub(super) fn response_framing(&self) -> Framing {
        match (self.chunked, self.length) {
            (Some(true), _) => Framing::Chunked,
            (None, Length::Invalid) => Framing::Unknown,
            (None, Length::Known(length)) => Framing::Length(length),
            (Some(false), _) | (None, Length::Absent) => Framing::UntilClose,
        }
    }
}

/// A field value as text: what is not UTF-8 is replaced, line folds become spaces.
pub(super) fn text(value: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(value);
    if memchr::memchr2(b'\r', b'\n', value).is_none() {
        return text;
    }
    Cow::Owned(text.lines().map(str::trim).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The four forms of a target (RFC 9112, section 3.2), and any token as a method.
    #[test]
    fn reads_request_lines() {
        for (line, method, target, minor) in [
            ("GET /a?b HTTP/1.1", "GET", "/a?b", 1),
            ("GET http://h/ HTTP/1.0", "GET", "http://h/", 0),
            ("CONNECT h:443 HTTP/1.1", "CONNECT", "h:443", 1),
            ("OPTIONS * HTTP/1.1", "OPTIONS", "*", 1),
            ("M-SEARCH /x HTTP/1.1", "M-SEARCH", "/x", 1),
            ("GET /with space HTTP/1.1", "GET", "/with space", 1),
        ] {
            let expected = RequestLine {
                method,
                target: target.as_bytes(),
                minor,
            };
            assert_eq!(request_line(line.as_bytes()), Some(expected), "{line}");
        }
        for line in [
            "GET /",
            "GET / HTTP/2.0",
            "GET  HTTP/1.1",
            "GET / http/1.1",
            " / HTTP/1.1",
            "GET",
            "G(T / HTTP/1.1",
            "GET / HTTP/1.10",
            "",
            "PRI * HTTP/2.0",
            "GET /\u{1} HTTP/1.1",
        ] {
            assert_eq!(request_line(line.as_bytes()), None, "{line}");
        }
    }

    /// A status is three digits; the reason may be anything or nothing.
    #[test]
    fn reads_status_lines() {
        for line in ["HTTP/1.1 204 No Content", "HTTP/1.0 204", "HTTP/1.1 204 "] {
            assert_eq!(
                status_line(line.as_bytes()),
                Some(StatusLine { code: 204 }),
                "{line}"
            );
        }
        for line in [
            "HTTP/1.1 20",
            "HTTP/1.1 2000",
            "HTTP/2 200",
            "ICY 200 OK",
            "HTTP/1.1",
        ] {
            assert_eq!(status_line(line.as_bytes()), None, "{line}");
        }
    }

    /// Both ways of reading fields agree on everything httparse accepts.
    #[test]
    fn the_lenient_path_agrees_with_httparse() {
        for block in [
            "Host: h:1\r\nUser-Agent:  x y \r\nContent-Length: 5\r\n\r\n",
            "host:h\ntraceparent: a\ntraceparent: b\ntracestate: c\ntracestate: d\n\n",
            "Transfer-Encoding: gzip, chunked\r\nExpect: 100-Continue\r\nX:\r\n\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\nX-Forwarded-For: 1.2.3.4, 5.6.7.8\r\n\r\n",
            "Forwarded: for=1.2.3.4\r\nX-Forwarded-Proto: https\r\n\r\n",
            "\r\n",
        ] {
            let mut lenient = Fields::default();
            read_leniently(block.as_bytes(), &mut lenient);
            assert_eq!(fields(block.as_bytes()), lenient, "{block:?}");
        }
    }

    /// Folded values, bad names and more fields than the table holds do not hide the others.
    #[test]
    fn reads_what_httparse_refuses() {
        let folded = fields(b"User-Agent: one\r\n two\r\nbad name\xff: x\r\nHost: h\r\n\r\n");
        assert_eq!(folded.user_agent.map(text).as_deref(), Some("one two"));
        assert_eq!(folded.host, Some(&b"h"[..]));
        let many = format!("{}Host: last\r\n\r\n", "X: y\r\n".repeat(FIELDS_LIMIT + 1));
        assert_eq!(fields(many.as_bytes()).host, Some(&b"last"[..]));
        let cut = fields(b"Host: h\r\nUser-Agent: curl/7.8");
        assert_eq!((cut.host, cut.user_agent), (Some(&b"h"[..]), None));
    }

    /// Section 6.3: chunked beats a length, equal lengths are one, others are none.
    #[test]
    fn frames_bodies() {
        for (block, request, response) in [
            ("", Framing::Empty, Framing::UntilClose),
            (
                "Content-Length: 7\r\n",
                Framing::Length(7),
                Framing::Length(7),
            ),
            (
                "Content-Length: 7, 7\r\nContent-Length: 7\r\n",
                Framing::Length(7),
                Framing::Length(7),
            ),
            (
                "Content-Length: 7\r\nContent-Length: 8\r\n",
                Framing::Unknown,
                Framing::Unknown,
            ),
            ("Content-Length: +7\r\n", Framing::Unknown, Framing::Unknown),
            (
                "Content-Length: 99999999999999999999\r\n",
                Framing::Unknown,
                Framing::Unknown,
            ),
            (
                "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n",
                Framing::Chunked,
                Framing::Chunked,
            ),
            (
                "Transfer-Encoding: chunked, gzip\r\n",
                Framing::Unknown,
                Framing::UntilClose,
            ),
        ] {
            let whole = format!("{block}\r\n");
            let fields = fields(whole.as_bytes());
            assert_eq!(fields.request_framing(), request, "{block}");
            assert_eq!(fields.response_framing(), response, "{block}");
        }
    }

    /// The end of a head is found whether lines end in CRLF, LF or both.
    #[test]
    fn finds_the_end_of_a_head() {
        assert_eq!(head_end(b"a\r\nb\r\n\r\nc", 0), Some(8));
        assert_eq!(head_end(b"a\nb\n\nc", 0), Some(5));
        assert_eq!(head_end(b"a\nb\n\r\nc", 0), Some(6));
        assert_eq!(head_end(b"a\r\n\r", 0), None);
        assert_eq!(head_end(b"a", 7), None);
    }
}
