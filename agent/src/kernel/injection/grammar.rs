//! How the requests of HTTP/1 read, as a table for the kernel side. Pure.
//!
//! RFC 9112, strictly: CR LF at the end of lines, no folded fields, no space before a colon, no
//! empty line before a request. What a lenient server would accept and this does not is left
//! alone. Chunked bodies are read (section 7.1), so that the next request is found behind them.
//!
//! A row of 256 next states for each state; see [`agent_common::injection`] for the events.

use agent_common::injection::{GRAMMAR_BYTES, event, state};

/// Field names that say something, and what they lead to.
const FIELDS: [(&[u8], u8); 5] = [
    (b"traceparent", event::TRACEPARENT),
    (b"content-length", event::LENGTH),
    (b"transfer-encoding", event::TRANSFER_ENCODING),
    (b"upgrade", event::UPGRADE),
    (b"expect", event::EXPECT),
];

/// The method that turns the connection into a tunnel.
const TUNNEL: &[u8] = b"CONNECT";

struct Table {
    bytes: Vec<u8>,
    /// The next state that is free.
    free: u8,
}

impl Table {
    fn new() -> Self {
        Self {
            bytes: vec![event::FAILED; GRAMMAR_BYTES],
            free: state::OTHERS,
        }
    }

    fn add(&mut self) -> u8 {
        let added = self.free;
        assert!(added < state::FOUND, "the states fit the table");
        self.free += 1;
        added
    }

    fn place(from: u8, byte: u8) -> usize {
        usize::from(from) * 256 + usize::from(byte)
    }

    fn next(&self, from: u8, byte: u8) -> u8 {
        self.bytes
            .get(Self::place(from, byte))
            .copied()
            .unwrap_or(event::FAILED)
    }

    fn set(&mut self, from: u8, byte: u8, to: u8) {
        if let Some(entry) = self.bytes.get_mut(Self::place(from, byte)) {
            *entry = to;
        }
    }

    fn set_all(&mut self, from: u8, is_meant: impl Fn(u8) -> bool, to: u8) {
        for byte in 0..=u8::MAX {
            if is_meant(byte) {
                self.set(from, byte, to);
            }
        }
    }

    /// A line feed that must follow: a new state before it.
    fn line_feed(&mut self, to: u8) -> u8 {
        let added = self.add();
        self.set(added, b'\n', to);
        added
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Methods in use are upper case; some have a hyphen (`M-SEARCH`, `BASELINE-CONTROL`).
fn is_method(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte == b'-' || byte == b'_'
}

/// What a target may hold: anything visible. Clients send bytes above ASCII unescaped.
fn is_target(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}

/// RFC 9110, section 5.5, with horizontal tabs.
fn is_value(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// The whole table.
pub fn table() -> Vec<u8> {
    let mut table = Table::new();
    request_line(&mut table);
    let value_end = table.line_feed(state::LINE);
    table.set_all(state::VALUE, is_value, state::VALUE);
    table.set(state::VALUE, b'\r', value_end);
    fields(&mut table);
    table.set(state::LINE, b'\r', event::LAST_LINE);
    table.set(state::HEAD_END, b'\n', event::HEAD_DONE);
    length(&mut table, value_end);
    chunks(&mut table);
    for end in [state::FOUND, state::GIVEN_UP] {
        table.set_all(end, |_| true, end);
    }
    table.bytes
}

fn request_line(table: &mut Table) {
    let method = table.add();
    table.set_all(state::START, |byte| byte.is_ascii_uppercase(), method);
    table.set_all(method, is_method, method);
    table.set(method, b' ', state::TARGET);
    // The tunnel's letters, each falling back to a method of another name.
    let mut from = state::START;
    for letter in TUNNEL {
        let next = table.add();
        table.set_all(next, is_method, method);
        table.set(next, b' ', state::TARGET);
        table.set(from, *letter, next);
        from = next;
    }
    table.set(from, b' ', event::CONNECT);

    let target = table.add();
    table.set_all(state::TARGET, is_target, target);
    table.set_all(target, is_target, target);
    let mut from = target;
    for byte in *b" HTTP/1" {
        let next = table.add();
        table.set(from, byte, next);
        from = next;
    }
    // Behind "HTTP/1": the dot, then the minor version.
    let minor = table.add();
    table.set(from, b'.', minor);
    table.set(minor, b'1', state::VERSION_END);
    table.set(minor, b'0', event::OLD_VERSION);
    let end = table.line_feed(state::LINE);
    table.set(state::VERSION_END, b'\r', end);
}

/// Names of fields in any letter case.
fn fields(table: &mut Table) {
    let other = table.add();
    table.set_all(state::LINE, is_token, other);
    table.set_all(other, is_token, other);
    table.set(other, b':', state::VALUE);
    for (name, found) in FIELDS {
        let mut from = state::LINE;
        for letter in name {
            let known = table.next(from, *letter);
            let next = if known == other {
                let next = table.add();
                table.set_all(next, is_token, other);
                table.set(next, b':', state::VALUE);
                for spelled in [letter.to_ascii_lowercase(), letter.to_ascii_uppercase()] {
                    table.set(from, spelled, next);
                }
                next
            } else {
                known
            };
            from = next;
        }
        table.set(from, b':', found);
    }
}

fn length(table: &mut Table, value_end: u8) {
    let is_space = |byte: u8| byte == b' ' || byte == b'\t';
    table.set_all(state::LENGTH, is_space, state::LENGTH);
    let behind = table.add();
    for from in [state::LENGTH, state::LENGTH_DIGITS] {
        table.set_all(from, |byte| byte.is_ascii_digit(), event::LENGTH_DIGIT);
    }
    for from in [state::LENGTH_DIGITS, behind] {
        table.set_all(from, is_space, behind);
        table.set(from, b'\r', value_end);
    }
}

fn chunks(table: &mut Table) {
    let size_end = table.line_feed(event::CHUNK_DATA);
    let extension = table.add();
    for from in [state::CHUNK, state::CHUNK_DIGITS] {
        table.set_all(from, |byte| byte.is_ascii_hexdigit(), event::CHUNK_DIGIT);
    }
    table.set_all(extension, is_value, extension);
    for separator in *b"; \t" {
        table.set(state::CHUNK_DIGITS, separator, extension);
    }
    for from in [state::CHUNK_DIGITS, extension] {
        table.set(from, b'\r', size_end);
    }
    let data_end = table.line_feed(state::CHUNK);
    table.set(state::CHUNK_END, b'\r', data_end);

    let body_end = table.line_feed(event::BODY_DONE);
    table.set(state::TRAILER, b'\r', body_end);
    let (name, value) = (table.add(), table.add());
    table.set_all(state::TRAILER, is_token, name);
    table.set_all(name, is_token, name);
    table.set(name, b':', value);
    table.set_all(value, is_value, value);
    let line_end = table.line_feed(state::TRAILER);
    table.set(value, b'\r', line_end);
}

#[cfg(test)]
mod tests {
    use agent_common::injection::EVENTS;

    use super::*;

    /// What the kernel side would act on, without what it does itself: bodies are not skipped.
    fn events(bytes: &[u8], begin: u8) -> Vec<u8> {
        let rows = table();
        let (mut row, mut seen) = (begin, Vec::new());
        for byte in bytes {
            let next = rows[usize::from(row) * 256 + usize::from(*byte)];
            if next < EVENTS {
                row = next;
                continue;
            }
            seen.push(next);
            row = match next {
                event::CONNECT => state::TARGET,
                event::OLD_VERSION => state::VERSION_END,
                event::LAST_LINE => state::HEAD_END,
                event::HEAD_DONE | event::BODY_DONE => state::START,
                event::LENGTH => state::LENGTH,
                event::LENGTH_DIGIT => state::LENGTH_DIGITS,
                event::CHUNK_DIGIT => state::CHUNK_DIGITS,
                event::CHUNK_DATA => state::CHUNK_END,
                event::FAILED => return seen,
                _ => state::VALUE,
            };
        }
        seen
    }

    const WHOLE: [u8; 2] = [event::LAST_LINE, event::HEAD_DONE];

    /// Heads as clients write them: what is said in them is noticed, in any letter case.
    #[test]
    fn heads() {
        let table: [(&[u8], &[u8]); 8] = [
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &WHOLE),
            (b"M-SEARCH * HTTP/1.1\r\nA:b\r\nC:\r\n\r\n", &WHOLE),
            (
                b"OPTIONS http://a/\xc3\xa9?x HTTP/1.1\r\ntracestate: a=b\r\nTraceparent2: x\r\n\r\n",
                &WHOLE,
            ),
            (
                b"POST / HTTP/1.1\r\nTRACEparent:00-x\r\ncOnTeNt-LeNgTh: 42 \r\n\r\n",
                &[
                    event::TRACEPARENT,
                    event::LENGTH,
                    event::LENGTH_DIGIT,
                    event::LENGTH_DIGIT,
                    event::LAST_LINE,
                    event::HEAD_DONE,
                ],
            ),
            (
                b"GET / HTTP/1.1\r\nTransfer-Encoding: x\r\nUpgrade: y\r\nExpect: z\r\n\r\n",
                &[
                    event::TRANSFER_ENCODING,
                    event::UPGRADE,
                    event::EXPECT,
                    event::LAST_LINE,
                    event::HEAD_DONE,
                ],
            ),
            (
                b"CONNECT a:1 HTTP/1.1\r\n\r\n",
                &[event::CONNECT, event::LAST_LINE, event::HEAD_DONE],
            ),
            (b"CONNECTED / HTTP/1.1\r\n\r\n", &WHOLE),
            (
                b"COPY / HTTP/1.0\r\n\r\n",
                &[event::OLD_VERSION, event::LAST_LINE, event::HEAD_DONE],
            ),
        ];
        for (bytes, expected) in table {
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(events(bytes, state::START), expected, "{text}");
        }
    }

    /// What is not strictly HTTP/1 fails, and fails before the end of a head.
    #[test]
    fn other_protocols() {
        let table: [&[u8]; 19] = [
            b"\x16\x03\x01\x02\x00",
            b"\x00\x00\x00\x01GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"USER anonymous\r\n",
            b"get key\r\n",
            b"GET key\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"DESCRIBE rtsp://a RTSP/1.0\r\n",
            b"GET  / HTTP/1.1\r\n",
            b"GET / HTTP/1.2\r\n",
            b"GET / HTTP/1.1\n\n",
            b"GET / HTTP/1.1\r\nA: b\n\n",
            b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
            b"GET / HTTP/1.1\r\n folded\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: \0\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\n: b\r\n\r\n",
            b"\r\nGET / HTTP/1.1\r\n\r\n",
        ];
        for bytes in table {
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(events(bytes, state::START), [event::FAILED], "{text}");
        }
        let lengths = b"POST / HTTP/1.1\r\nContent-Length: 4, 4\r\n\r\n";
        assert_eq!(
            events(lengths, state::START),
            [event::LENGTH, event::LENGTH_DIGIT, event::FAILED]
        );
    }

    /// Sizes, extensions, the last chunk and its trailers.
    #[test]
    fn chunked_bodies() {
        assert_eq!(
            events(b"1f;a=b\r\n", state::CHUNK),
            [event::CHUNK_DIGIT, event::CHUNK_DIGIT, event::CHUNK_DATA]
        );
        assert_eq!(
            events(b"\r\nA\r\n", state::CHUNK_END),
            [event::CHUNK_DIGIT, event::CHUNK_DATA]
        );
        assert_eq!(events(b"\r\n", state::TRAILER), [event::BODY_DONE]);
        assert_eq!(
            events(b"Traceparent: x\r\nB:\r\n\r\n", state::TRAILER),
            [event::BODY_DONE]
        );
        for wrong in [b"g".as_slice(), b"\r\n", b"1\n", b"-1\r\n"] {
            assert_eq!(
                events(wrong, state::CHUNK).last(),
                Some(&event::FAILED),
                "{wrong:?}"
            );
        }
    }

    /// Any bytes at all: the table has a next state for each, and no state beyond its rows.
    #[test]
    fn every_entry_is_a_row_or_an_event() {
        let rows = table();
        assert_eq!(rows.len(), GRAMMAR_BYTES);
        assert!(rows.iter().all(|next| *next <= event::BODY_DONE));
        let searched = [state::FOUND, state::GIVEN_UP];
        for end in searched {
            let row = &rows[usize::from(end) * 256..][..256];
            assert!(row.iter().all(|next| *next == end));
        }
    }
}
