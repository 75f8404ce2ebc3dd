//! The load: a number of clients, each with one kept-alive connection, ask for numbered cases.
//!
//! As over a network, some time passes between a connection and its first request, and some
//! requests arrive in two pieces: servers that read such requests on a thread of their own do so.
//!
//! Each request is timed by the client's own monotonic clock, from before its first byte leaves to
//! after the last byte of its answer was read. Connecting is not part of it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use serde::Deserialize;

use super::{judge::Request, runtime};
use crate::{setup, steps::capture};

/// From a connection to its first byte, and between two pieces of a request: a short round trip.
const ROUND_TRIP: Duration = Duration::from_millis(1);

/// One of so many requests leaves in two pieces.
const PIECES_EVERY: u32 = 8;

/// For one answer: far above what a front on a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks for the cases 0 to `count`, each once, by so many `clients` at a time.
pub(super) fn run(port: u16, clients: u32, count: u32) -> Result<Vec<Request>> {
    let next = AtomicU32::new(0);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|_| scope.spawn(|| client(port, count, &next)))
            .collect();
        let mut requests = Vec::new();
        for client in clients {
            requests.extend(client.join().expect("a client returns its errors")?);
        }
        Ok(requests)
    })
}

/// As [`run`], by gRPC: `tests/fidelity/grpc_load.py`, whose clients share one connection.
pub(super) fn run_grpc(port: u16, clients: u32, count: u32) -> Result<Vec<Request>> {
    let mut command = Command::new(setup::python()?);
    command.arg(runtime::source("grpc_load.py"));
    command.args([port.into(), clients, count].map(|number: u32| number.to_string()));
    let answers = capture(&mut command)?;
    let answers = answers.lines().map(|line| {
        let answer: GrpcAnswer = serde_json::from_str(line)
            .with_context(|| format!("not an answer as the load prints it: {line}"))?;
        let case = answer.case;
        let path = answer
            .body
            .strip_prefix("/fidelity")
            .unwrap_or(&answer.body);
        ensure!(
            path == format!("/case/{case}"),
            "case {case} was answered with {path}"
        );
        Ok(Request {
            case,
            duration_ns: answer.duration_ns,
        })
    });
    answers.collect()
}

#[derive(Deserialize)]
struct GrpcAnswer {
    case: u32,
    duration_ns: u64,
    /// The method that the back was asked for, or its path.
    body: String,
}

fn client(port: u16, count: u32, next: &AtomicU32) -> Result<Vec<Request>> {
    let mut requests = Vec::new();
    let mut open = None;
    loop {
        let case = next.fetch_add(1, Ordering::Relaxed);
        if case >= count {
            return Ok(requests);
        }
        let mut connection = match open.take() {
            Some(connection) => connection,
            None => Connection::open(port)?,
        };
        let path = format!("/case/{case}");
        let pieces = if case.is_multiple_of(PIECES_EVERY) {
            Pieces::Two
        } else {
            Pieces::One
        };
        let started = Instant::now();
        let answer = connection
            .get(&path, pieces)
            .with_context(|| format!("no answer to {path}"))?;
        let duration = started.elapsed();
        // The back answers with the path that it was asked for.
        ensure!(
            answer.status == 200 && answer.body == path.as_bytes(),
            "{path} was answered with {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        requests.push(Request {
            case,
            duration_ns: duration.as_nanos() as u64,
        });
        open = (!answer.closes).then_some(connection);
    }
}

#[derive(Clone, Copy)]
enum Pieces {
    One,
    Two,
}

struct Connection {
    port: u16,
    reader: BufReader<TcpStream>,
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    /// Whether the server ends the connection after it.
    closes: bool,
    body: Vec<u8>,
}

impl Connection {
    fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("cannot connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        thread::sleep(ROUND_TRIP);
        Ok(Self {
            port,
            reader: BufReader::new(stream),
        })
    }

    fn get(&mut self, path: &str, pieces: Pieces) -> Result<Answer> {
        let line = format!("GET {path} HTTP/1.1\r\n");
        let headers = format!("Host: 127.0.0.1:{}\r\n\r\n", self.port);
        let stream = self.reader.get_mut();
        match pieces {
            Pieces::One => stream.write_all((line + &headers).as_bytes())?,
            Pieces::Two => {
                stream.write_all(line.as_bytes())?;
                thread::sleep(ROUND_TRIP);
                stream.write_all(headers.as_bytes())?;
            }
        }
        read_answer(&mut self.reader)
    }
}

/// A response whose length is announced, as that of every front is.
fn read_answer(reader: &mut BufReader<impl std::io::Read>) -> Result<Answer> {
    let status = read_line(reader)?;
    let status = status
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .with_context(|| format!("not a status line: {status:?}"))?;
    let (mut length, mut closes) = (None, false);
    loop {
        let line = read_line(reader)?.to_ascii_lowercase();
        match line.split_once(':') {
            None if line.is_empty() => break,
            None => bail!("not a header: {line:?}"),
            Some(("content-length", value)) => length = Some(value.trim().parse()?),
            Some(("connection", value)) => closes = value.trim() == "close",
            Some(_) => {}
        }
    }
    let mut body = vec![0; length.context("an answer without a length")?];
    reader.read_exact(&mut body)?;
    Ok(Answer {
        status,
        closes,
        body,
    })
}

fn read_line(reader: &mut BufReader<impl std::io::Read>) -> Result<String> {
    let mut line = String::new();
    ensure!(
        reader.read_line(&mut line)? > 0,
        "the server closed the connection"
    );
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two answers on one connection are told apart by their lengths.
    #[test]
    fn answers_are_read_one_by_one() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n/case/1\
                      HTTP/1.1 502 Bad Gateway\r\nCONNECTION: close\r\ncontent-length: 0\r\n\r\n";
        let mut reader = BufReader::new(&bytes[..]);
        let first = read_answer(&mut reader).expect("a whole answer");
        assert_eq!((first.status, first.closes), (200, false));
        assert_eq!(first.body, b"/case/1");
        let second = read_answer(&mut reader).expect("a whole answer");
        assert_eq!((second.status, second.closes), (502, true));
        assert!(read_answer(&mut reader).is_err(), "nothing is left");
    }
}
