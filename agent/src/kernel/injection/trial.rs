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

use agent_common::{
    injection::{HEADER_BYTES, OutgoingStream},
    outgoing_frames::{FIELD_BEGIN, FIELD_BYTES, PREFACE, PeerSettings, UNLIMITED},
};
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, MapData, SockHash};
use rustix::{io::ioctl_fionread, net::sockopt::socket_cookie};
use zerocopy::FromZeros as _;

use super::WaitingBytes;

/// Far longer than bytes take on the loopback interface.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the trial changes.
pub(super) struct Maps<'a> {
    pub(super) sockets: &'a mut SockHash<MapData, u64>,
    pub(super) streams: &'a mut HashMap<MapData, u64, OutgoingStream>,
    pub(super) settings: &'a mut HashMap<MapData, u64, PeerSettings>,
}

/// Sends what programs send, in the ways they send it, and compares what arrives.
pub(super) fn run(maps: &mut Maps<'_>) -> Result<WaitingBytes> {
    let mut waiting = WaitingBytes::Told;
    for (name, pieces, expected) in cases().into_iter().chain(cases_of_frames()) {
        let pair = Pair::open(maps)?;
        let cookie = pair.cookie;
        let outcome = pair.send(&pieces, expected, &mut waiting);
        // The socket leaves the map with its end, too.
        let _ = maps.sockets.remove(&cookie);
        let _ = maps.streams.remove(&cookie);
        let _ = maps.settings.remove(&cookie);
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

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [.., middle, low] = payload.len().to_be_bytes();
    let head = [0, middle, low, kind, flags, 0, 0, 0, stream];
    [&head[..], payload].concat()
}

/// As [`cases`], in HTTP/2.
fn cases_of_frames() -> Vec<(&'static str, Vec<Vec<u8>>, usize)> {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    const PADDED: u8 = 8;
    let begin = [&PREFACE[..], &frame(4, 0, 0, &[])].concat();
    // :method GET, :scheme http, :path /
    let block = b"\x82\x86\x84";
    let head = |flags, stream| frame(HEADERS, END_HEADERS | flags, stream, block);
    let call = |stream| {
        let content = [b'x'; 9_000];
        [head(0, stream), frame(DATA, END_STREAM, stream, &content)].concat()
    };
    let padded = |stream| {
        frame(
            HEADERS,
            END_HEADERS | PADDED,
            stream,
            b"\x02\x82\x86\x84\0\0",
        )
    };
    let own = [&block[..], b"\x00\x0btraceparent\x01x"].concat();
    let own = frame(HEADERS, END_HEADERS, 1, &own);
    let indexed = [&block[..], b"\x40\x0btraceparent\x01x"].concat();
    let indexed = frame(HEADERS, END_HEADERS, 1, &indexed);
    let at_once = [
        &begin[..],
        &call(1),
        &head(END_STREAM, 3),
        &padded(5),
        &call(7),
    ]
    .concat();
    let in_pieces = at_once.chunks(7_000).map(<[u8]>::to_vec).collect();
    let single = vec![begin.clone(), call(1), head(END_STREAM, 3), head(0, 5)];
    vec![
        ("streams in one call", vec![at_once], 4),
        ("a stream for each call", single, 3),
        ("streams in pieces", in_pieces, 4),
        (
            "a field of its own",
            vec![[begin.clone(), own].concat(), head(0, 3)],
            1,
        ),
        (
            "a field in the table",
            vec![[begin, indexed].concat(), head(0, 3)],
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
    fn open(maps: &mut Maps<'_>) -> Result<Self> {
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
        maps.streams
            .insert(cookie, stream, 0)
            .context("cannot keep state of a socket")?;
        let settings = PeerSettings {
            seen: 1,
            list_limit: UNLIMITED,
        };
        maps.settings
            .insert(cookie, settings, 0)
            .context("cannot keep settings of a peer")?;
        maps.sockets
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
        let has_frames = sent.starts_with(&PREFACE);
        let added_bytes = if has_frames {
            FIELD_BYTES
        } else {
            HEADER_BYTES
        };
        let mut arrived = vec![0; sent.len() + added * added_bytes as usize];
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
        let (rest, headers) = if has_frames {
            without_fields(&arrived)
        } else {
            without_headers(&arrived)
        };
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

/// As [`without_headers`], of frames.
fn without_fields(arrived: &[u8]) -> (Vec<u8>, usize) {
    let (preface, mut left) = arrived.split_at(PREFACE.len());
    let (mut rest, mut count) = (preface.to_vec(), 0);
    while let &[high, middle, low, kind, flags, a, b, c, d, ref behind @ ..] = left {
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let (payload, behind) = behind.split_at(length.min(behind.len()));
        let mut payload = payload.to_vec();
        let place = payload
            .windows(FIELD_BEGIN.len())
            .position(|part| part == FIELD_BEGIN);
        if let Some(place) = place {
            let end = (place + FIELD_BYTES as usize).min(payload.len());
            payload.drain(place..end);
            count += 1;
        }
        let [.., high, middle, low] = payload.len().to_be_bytes();
        rest.extend([high, middle, low, kind, flags, a, b, c, d]);
        rest.extend(payload);
        left = behind;
    }
    rest.extend(left);
    (rest, count)
}
