//! EDGE: a trial of injection with the agent's own sockets, before any other is touched.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: opens sockets on the loopback interface"
)]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    time::Duration,
};

use agent_common::injection::{HEADER_BYTES, OutgoingStream};
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, MapData, SockHash};
use rustix::{io::ioctl_fionread, net::sockopt::socket_cookie};
use zerocopy::FromZeros as _;

use super::WaitingBytes;

/// Far longer than bytes take on the loopback interface.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends what programs send, in the ways they send it, and compares what arrives.
pub(super) fn run(
    sockets: &mut SockHash<MapData, u64>,
    streams: &mut HashMap<MapData, u64, OutgoingStream>,
) -> Result<WaitingBytes> {
    let mut waiting = WaitingBytes::Told;
    for (name, pieces, expected) in cases() {
        let pair = Pair::open(sockets, streams)?;
        let cookie = pair.cookie;
        let outcome = pair.send(&pieces, expected, &mut waiting);
        // The socket leaves the map with its end, too.
        let _ = sockets.remove(&cookie);
        let _ = streams.remove(&cookie);
        outcome.with_context(|| format!("a trial with the agent's own sockets failed: {name}"))?;
    }
    Ok(waiting)
}

/// Name, what is sent in one call each, and how many headers are to be added.
fn cases() -> Vec<(&'static str, Vec<Vec<u8>>, usize)> {
    let plain = b"GET /trial HTTP/1.1\r\nHost: trial\r\n\r\n".to_vec();
    let body = [
        b"POST /trial HTTP/1.1\r\nHost: trial\r\nContent-Length: 40000\r\n\r\n".as_slice(),
        &b"x".repeat(40_000),
        &plain,
    ]
    .concat();
    let chunked = [
        b"PUT /trial HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(),
        b"1f;a=b\r\n",
        &[b'y'; 31],
        b"\r\n0\r\nA: b\r\n\r\n",
        &plain,
    ]
    .concat();
    let long = [
        b"GET /trial HTTP/1.1\r\nCookie: ".as_slice(),
        &b"z".repeat(60_000),
        b"\r\n\r\n",
    ]
    .concat();
    let own = [
        b"GET /trial HTTP/1.1\r\nTraceParent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
            .as_slice(),
        b"-01\r\n\r\n",
    ]
    .concat();
    let bytes = plain.iter().map(|byte| vec![*byte]).collect();
    vec![
        ("one request", vec![plain.clone()], 1),
        ("kept connection", vec![plain.clone(); 3], 3),
        ("pipelined requests", vec![plain.repeat(3)], 3),
        ("one byte at a time", bytes, 1),
        ("a request behind a body", vec![body], 2),
        ("a request behind chunks", vec![chunked], 2),
        ("a long head", vec![long], 1),
        ("a header of its own", vec![own], 0),
        (
            "another protocol",
            vec![b"USER trial\r\n".to_vec(), plain],
            0,
        ),
    ]
}

/// Two ends of a connection, the client's in the map.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    cookie: u64,
}

impl Pair {
    fn open(
        sockets: &mut SockHash<MapData, u64>,
        streams: &mut HashMap<MapData, u64, OutgoingStream>,
    ) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen for the trial")?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_write_timeout(Some(PATIENCE))?;
            end.set_nodelay(true)?;
        }
        let cookie = socket_cookie(&client)?;
        let mut stream = OutgoingStream::new_zeroed();
        stream.connection = cookie;
        stream.is_trial = 1;
        streams
            .insert(cookie, stream, 0)
            .context("cannot keep state of a socket")?;
        sockets
            .insert(cookie, client.as_raw_fd(), 0)
            .context("cannot put a socket into the map")?;
        Ok(Self {
            client,
            server,
            cookie,
        })
    }

    fn send(self, pieces: &[Vec<u8>], added: usize, waiting: &mut WaitingBytes) -> Result<()> {
        let Self {
            mut client,
            mut server,
            ..
        } = self;
        let sent = pieces.concat();
        let mut arrived = vec![0; sent.len() + added * HEADER_BYTES as usize];
        std::thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| {
                pieces
                    .iter()
                    .try_for_each(|piece| client.write_all(piece))
                    .context("cannot send")
            });
            let read = server.read_exact(&mut arrived).context("cannot receive");
            match writer.join() {
                Ok(written) => written.and(read),
                Err(_) => bail!("the sending thread panicked"),
            }
        })?;
        let (rest, headers) = without_headers(&arrived);
        ensure!(rest == sent, "other bytes arrived than were sent");
        ensure!(
            headers == added,
            "{headers} headers were added where {added} were expected"
        );
        server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
        let mut answer = [0; 27];
        client.peek(&mut answer).context("no answer arrived")?;
        if ioctl_fionread(&client)? == 0 {
            *waiting = WaitingBytes::Denied;
        }
        client
            .read_exact(&mut answer)
            .context("no answer arrived")?;
        client.shutdown(Shutdown::Write)?;
        let more = server.read(&mut answer).context("cannot receive the end")?;
        ensure!(more == 0, "more bytes arrived than were sent");
        Ok(())
    }
}

/// What arrived without the headers that were added, and how many there were. They are told from
/// one that was sent by the letter case of their name.
fn without_headers(arrived: &[u8]) -> (Vec<u8>, usize) {
    const BEGIN: &[u8] = b"traceparent: 00-";
    let (mut rest, mut count) = (Vec::with_capacity(arrived.len()), 0);
    let mut left = arrived;
    while let Some((byte, behind)) = left.split_first() {
        let header = left.get(..HEADER_BYTES as usize).filter(|header| {
            header.starts_with(BEGIN) && header.ends_with(b"-01\r\n") && rest.ends_with(b"\r\n")
        });
        if let Some(header) = header {
            count += 1;
            left = left.get(header.len()..).unwrap_or_default();
        } else {
            rest.push(*byte);
            left = behind;
        }
    }
    (rest, count)
}
