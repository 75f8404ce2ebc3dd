//! A session of HTTP/2 at either end of a connection, once with every byte that flowed and once
//! with those that the kernel half's walk keeps.
//!
//! The first byte says the end and whether the connection is older than the agent, the second and
//! the third how many bytes a call and a buffer of it have. The rest are the bytes that flowed;
//! [`ESCAPE`] and `>` or `<` begin a direction, and with any other byte stand for that byte.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use agent::{
    protocol::{Address, EndCause, Endpoint, Flow, Input, Progress, Session, http2},
    span::{
        Details, Kind,
        attribute::{RPC_REQUEST_MESSAGES, RPC_RESPONSE_MESSAGES},
    },
};
use agent_common::frames::{
    Call, FrameFlow, HEADER_BYTES, Next, PIECE_HEAD_BYTES, PREFACE_BYTES, Walk,
};

pub const ESCAPE: u8 = 0xff;

/// Bits of the first byte.
pub const CLIENT: u8 = 1;
pub const OLDER: u8 = 2;

/// Steps that one call may take: none of these inputs has as many bytes.
const STEPS: usize = 1 << 20;

/// Bytes of the room for what is kept of a call.
const ROOM: u32 = 16_000;

/// A piece of a call: its offset, and its bytes.
type Piece = (usize, Vec<u8>);

/// Panics when the walk keeps what did not flow, loses what it must keep, or leads a session to
/// anything else than all bytes do.
pub fn run(data: &[u8]) {
    let Some(([head, call, buffer], rest)) = data.split_first_chunk() else {
        return;
    };
    let complete = head & OLDER == 0;
    let kind = if head & CLIENT == 0 {
        Kind::Server
    } else {
        Kind::Client
    };
    let (call, buffer) = (usize::from(*call) * 16 + 1, usize::from(*buffer) * 4 + 1);
    let mut all = http2::session(endpoint(kind, complete));
    let mut kept = http2::session(endpoint(kind, complete));
    let mut outcomes = [Vec::new(), Vec::new()];
    let [whole, parts] = &mut outcomes;
    let mut flows = [
        Direction::new(Flow::Request, complete),
        Direction::new(Flow::Response, complete),
    ];
    let mut time_ns = 100;
    for (flow, bytes) in segments(rest) {
        let [request, response] = &mut flows;
        let direction = if flow == Flow::Request {
            request
        } else {
            response
        };
        for bytes in bytes.chunks(call) {
            let position = direction.position;
            let pieces = direction.call(bytes, buffer);
            feed(
                all.as_mut(),
                flow,
                bytes,
                position,
                time_ns,
                &[(0, bytes.to_vec())],
            );
            feed(kept.as_mut(), flow, bytes, position, time_ns, &pieces);
            collect(all.as_mut(), whole);
            collect(kept.as_mut(), parts);
            time_ns += 100;
        }
    }
    let is_followed = complete
        && all.take_shortfall().late_joins == 0
        && all.take_shortfall().exchanges == 0
        && flows.iter().all(|direction| direction.is_sure);
    for session in [&mut all, &mut kept] {
        for flow in [Flow::Request, Flow::Response] {
            let cause = EndCause::Unobserved;
            session.handle(flow, Input::End { cause, time_ns });
        }
    }
    collect(all.as_mut(), whole);
    collect(kept.as_mut(), parts);
    if is_followed {
        assert_same(whole, parts);
    }
}

fn segments(bytes: &[u8]) -> Vec<(Flow, Vec<u8>)> {
    let mut segments = vec![(Flow::Request, Vec::new())];
    let mut bytes = bytes.iter().copied();
    while let Some(byte) = bytes.next() {
        let code = if byte == ESCAPE { bytes.next() } else { None };
        match code {
            Some(b'>') => segments.push((Flow::Request, Vec::new())),
            Some(b'<') => segments.push((Flow::Response, Vec::new())),
            other => {
                if let Some((_, data)) = segments.last_mut() {
                    data.push(other.unwrap_or(byte));
                }
            }
        }
    }
    segments
}

/// Hands on the pieces of a call, and what is between them as holes.
fn feed(
    session: &mut dyn Session,
    flow: Flow,
    bytes: &[u8],
    position: u64,
    time_ns: u64,
    pieces: &[Piece],
) {
    let mut at = 0;
    let skip = |session: &mut dyn Session, from: usize, to: usize| {
        if to > from {
            let skipped = Input::Skipped {
                length: (to - from) as u64,
                position: position + from as u64,
                last_ns: time_ns,
                tail: [0; 8],
            };
            session.handle(flow, skipped);
        }
    };
    for (offset, data) in pieces {
        skip(session, at, *offset);
        let input = Input::Bytes {
            data,
            position: position + *offset as u64,
            time_ns,
            turn_start: false,
        };
        session.handle(flow, input);
        at = offset + data.len();
    }
    skip(session, at, bytes.len());
}

fn collect(session: &mut dyn Session, news: &mut Vec<Progress>) {
    while let Some(progress) = session.poll() {
        news.push(progress);
    }
}

/// What both say of each exchange is the same, but that messages may not be counted.
fn assert_same(whole: &[Progress], parts: &[Progress]) {
    let counts = [RPC_REQUEST_MESSAGES, RPC_RESPONSE_MESSAGES];
    let finished = |news: &[Progress]| -> BTreeMap<u64, (u64, u64, Details)> {
        let finished = news.iter().filter_map(|news| match news {
            Progress::Finished {
                exchange,
                start_ns,
                end_ns,
                details,
            } => Some((*exchange, (*start_ns, *end_ns, details.clone()))),
            _ => None,
        });
        finished.collect()
    };
    let (whole, parts) = (finished(whole), finished(parts));
    assert_eq!(whole.len(), parts.len(), "{whole:#?} {parts:#?}");
    for (exchange, (start_ns, end_ns, mut details)) in whole {
        let (part_start_ns, part_end_ns, part) = &parts[&exchange];
        assert_eq!((start_ns, end_ns), (*part_start_ns, *part_end_ns));
        details.attributes.retain(|attribute| {
            !counts.contains(&attribute.key.as_ref())
                || part
                    .attributes
                    .iter()
                    .any(|other| other.key == attribute.key)
        });
        assert_eq!(&details, part, "all bytes (left), kept ones (right)");
    }
}

/// One direction as the kernel half walks it.
struct Direction {
    flow: FrameFlow,
    position: u64,
    /// Where frames begin was known all the time.
    is_sure: bool,
}

impl Direction {
    fn new(flow: Flow, complete: bool) -> Self {
        let flow = if complete && flow == Flow::Request {
            FrameFlow::sure(PREFACE_BYTES)
        } else {
            FrameFlow::SEEKING
        };
        Self {
            flow,
            position: 0,
            is_sure: true,
        }
    }

    fn call(&mut self, bytes: &[u8], buffer: usize) -> Vec<Piece> {
        let moved = bytes.len() as u32;
        self.position += u64::from(moved);
        if self.flow.passes(moved) {
            self.flow.ahead -= moved;
            return Vec::new();
        }
        let memory = Memory {
            buffers: bytes.chunks(buffer).collect(),
            room: RefCell::new(vec![0; 2 * ROOM as usize]),
            pieces: RefCell::default(),
        };
        let mut walk = Walk::blank();
        walk.begin(&memory, self.flow, moved, ROOM);
        let steps = (0..STEPS).take_while(|_| walk.step(&memory) == Next::Step);
        assert!(steps.count() < STEPS, "the walk ends");
        if walk.is_unfinished() {
            walk.give_up();
        }
        walk.finish(&memory, moved);
        self.flow = walk.flow;
        self.is_sure &= walk.went_astray == 0 && (self.flow.trust != 0);
        assert!(u32::from(self.flow.held) < HEADER_BYTES);
        let pieces = memory.pieces.take();
        for (offset, piece) in &pieces {
            let flowed = bytes.get(*offset..offset + piece.len());
            assert_eq!(flowed, Some(piece.as_slice()), "at {offset}");
        }
        pieces
    }
}

/// A call whose memory is in several buffers.
struct Memory<'a> {
    buffers: Vec<&'a [u8]>,
    room: RefCell<Vec<u8>>,
    pieces: RefCell<Vec<Piece>>,
}

impl Memory<'_> {
    fn at<const COUNT: usize>(&self, at: u32) -> [u8; COUNT] {
        let room = self.room.borrow();
        *room[at as usize..].first_chunk().expect("inside the room")
    }
}

impl Call for Memory<'_> {
    fn buffer(&self, index: u32) -> Option<(u64, u64)> {
        let buffer = self.buffers.get(index as usize)?;
        Some((u64::from(index) << 32, buffer.len() as u64))
    }

    fn copy(&self, to: u32, from: u64, length: u32) -> bool {
        let (index, from) = ((from >> 32) as usize, from as u32 as usize);
        let bytes = &self.buffers[index][from..from + length as usize];
        self.room.borrow_mut()[to as usize..to as usize + bytes.len()].copy_from_slice(bytes);
        true
    }

    fn word(&self, at: u32) -> u64 {
        u64::from_ne_bytes(self.at(at))
    }

    fn byte(&self, at: u32) -> u8 {
        let [byte] = self.at(at);
        byte
    }

    fn put(&self, at: u32, word: u64) {
        self.room.borrow_mut()[at as usize..at as usize + 8].copy_from_slice(&word.to_ne_bytes());
    }

    fn write(&self, from: u32, covered: u32, kept: u32) {
        assert!(kept <= ROOM, "more than a record holds");
        let mut at = 0;
        while at < kept {
            let offset = u32::from_ne_bytes(self.at(at));
            let length = u32::from_ne_bytes(self.at(at + 4));
            let begin = at + PIECE_HEAD_BYTES;
            at = begin + length;
            assert!(length > 0 && at <= kept && offset + length <= covered);
            let bytes = self.room.borrow()[begin as usize..at as usize].to_vec();
            self.pieces
                .borrow_mut()
                .push(((from + offset) as usize, bytes));
        }
    }
}

fn endpoint(kind: Kind, complete: bool) -> Endpoint {
    let address = |last, port| Address::Inet {
        ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)),
        port,
    };
    Endpoint {
        kind,
        local: address(1, 8080),
        peer: address(2, 50_000),
        complete,
        encrypted: false,
    }
}
