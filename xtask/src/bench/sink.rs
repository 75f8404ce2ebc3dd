//! A receiver for OTLP over HTTP that costs next to nothing, so that a benchmark on a small
//! machine measures the agent and not its peer. It answers every call with success and counts
//! spans by walking the protobuf framing: `ExportTraceServiceRequest` 1 -> `ResourceSpans` 2 ->
//! `ScopeSpans` 2 -> `Span` (opentelemetry/proto/collector/trace/v1, trace/v1).

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};

/// Runs until the process ends.
pub(super) struct Sink {
    pub(super) port: u16,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    spans: AtomicU64,
    first: OnceLock<Instant>,
}

impl Sink {
    pub(super) fn start() -> Result<Self> {
        Self::start_at(0)
    }

    /// With 0, at a free port.
    pub(super) fn start_at(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("no free port")?;
        let port = listener.local_addr()?.port();
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counts = Arc::clone(&shared);
                thread::spawn(move || serve(stream, &counts));
            }
        });
        Ok(Self { port, counts })
    }

    pub(super) fn spans(&self) -> u64 {
        self.counts.spans.load(Ordering::Relaxed)
    }

    /// When the first call with a span arrived.
    pub(super) fn first_span(&self) -> Option<Instant> {
        self.counts.first.get().copied()
    }
}

/// One connection; it ends when the peer closes it or says what this server does not know.
fn serve(stream: TcpStream, counts: &Counts) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let length = read_head(&mut reader)?;
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let spans = span_count(&body);
        if spans > 0 {
            counts.first.get_or_init(Instant::now);
            counts.spans.fetch_add(spans, Ordering::Relaxed);
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n\
                       Content-Length: 0\r\n\r\n";
        writer.write_all(answer).ok()?;
    }
}

/// Reads up to the empty line and returns the length of the body.
fn read_head(reader: &mut BufReader<TcpStream>) -> Option<usize> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            return Some(length);
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
}

fn span_count(request: &[u8]) -> u64 {
    let resources = fields(request, 1);
    let scopes = resources.iter().flat_map(|resource| fields(resource, 2));
    scopes.map(|scope| fields(scope, 2).len() as u64).sum()
}

/// The length-delimited fields of `message` with this number.
fn fields(mut message: &[u8], number: u64) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((tag, rest)) = varint(message) {
        let next = match tag & 7 {
            0 => varint(rest).map(|(_, rest)| rest),
            1 => rest.get(8..),
            5 => rest.get(4..),
            2 => varint(rest).and_then(|(length, rest)| {
                let (field, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                if tag >> 3 == number {
                    found.push(field);
                }
                Some(rest)
            }),
            _ => None,
        };
        match next {
            Some(rest) => message = rest,
            None => break,
        }
    }
    found
}

/// Base 128, least significant group first.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index as u32);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two resources, one with two scopes; fields of other kinds are stepped over.
    #[test]
    fn spans_are_counted() {
        // Span: trace_id (1) of one byte. Scope: its name (1), then spans (2).
        let span = [0x12, 3, 0x0a, 1, 7];
        let scope = [&[0x0a, 1, b'x'][..], &span, &span].concat();
        let framed = |tag: u8, body: &[u8]| [&[tag, body.len() as u8][..], body].concat();
        let one = framed(0x0a, &framed(0x12, &scope));
        let two = framed(0x0a, &[framed(0x12, &scope), framed(0x12, &span)].concat());
        assert_eq!(span_count(&[&one[..], &two, &[0x18, 1]].concat()), 5);
        assert_eq!(
            span_count(&one[..one.len() - 1]),
            0,
            "a cut request is not guessed at"
        );
    }
}
