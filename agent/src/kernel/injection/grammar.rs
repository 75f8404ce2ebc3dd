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

/// Methods in use are upper case; WebDAV and UPnP have a hyphen in some.
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
