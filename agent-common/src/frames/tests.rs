extern crate std;

use std::{cell::RefCell, vec, vec::Vec};

use super::{header::kind, *};

const STEPS: usize = 100_000;
const ROOM: u32 = 16_000;

/// A record: where in the call its bytes begin, how many it covers, and its pieces.
type Record = (u32, u32, Vec<(u32, Vec<u8>)>);

/// A call whose memory is in buffers of these lengths.
struct Memory<'a> {
    buffers: Vec<&'a [u8]>,
    room: RefCell<Vec<u8>>,
    records: RefCell<Vec<Record>>,
}

impl<'a> Memory<'a> {
    fn new(bytes: &'a [u8], buffer_bytes: usize) -> Self {
        Self {
            buffers: bytes.chunks(buffer_bytes).collect(),
            room: RefCell::new(vec![0xaa; 2 * ROOM as usize]),
            records: RefCell::default(),
        }
    }

    /// A buffer's number and a place in it, as an address.
    const fn address(index: u32, offset: usize) -> u64 {
        (index as u64) << 32 | offset as u64
    }
}

impl Call for Memory<'_> {
    fn buffer(&self, index: u32) -> Option<(u64, u64)> {
        let buffer = self.buffers.get(index as usize)?;
        Some((Self::address(index, 0), buffer.len() as u64))
    }

    fn copy(&self, to: u32, from: u64, length: u32) -> bool {
        assert!(length <= BLOCK_BYTES);
        let buffer = self.buffers[(from >> 32) as usize];
        let from = from as u32 as usize;
        let bytes = &buffer[from..from + length as usize];
        self.room.borrow_mut()[to as usize..to as usize + bytes.len()].copy_from_slice(bytes);
        true
    }

    fn word(&self, at: u32) -> u64 {
        let room = self.room.borrow();
        let word = room[at as usize..].first_chunk().expect("room for a word");
        u64::from_ne_bytes(*word)
    }

    fn byte(&self, at: u32) -> u8 {
        self.room.borrow()[at as usize]
    }

    fn put(&self, at: u32, word: u64) {
        self.room.borrow_mut()[at as usize..at as usize + 8].copy_from_slice(&word.to_ne_bytes());
    }

    fn write(&self, from: u32, covered: u32, kept: u32) {
        assert!(kept <= ROOM);
        let room = self.room.borrow();
        let mut rest = &room[..kept as usize];
        let mut pieces = Vec::new();
        let mut end = 0;
        while !rest.is_empty() {
            let number = |at: usize| {
                let bytes = rest[at..].first_chunk().expect("a piece has a head");
                u32::from_ne_bytes(*bytes)
            };
            let (offset, length) = (number(0), number(4));
            assert!(offset >= end && length > 0);
            end = offset + length;
            assert!(end <= covered);
            pieces.push((offset, rest[8..8 + length as usize].to_vec()));
            rest = &rest[8 + length as usize..];
        }
        self.records.borrow_mut().push((from, covered, pieces));
    }
}

/// Both ends of a walk over calls: what was written, at positions of the flow.
struct Walked {
    flow: FrameFlow,
    position: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Walked {
    fn new(flow: FrameFlow) -> Self {
        Self {
            flow,
            position: 0,
            pieces: Vec::new(),
        }
    }

    fn call(&mut self, bytes: &[u8], buffer_bytes: usize) {
        let moved = bytes.len() as u32;
        if self.flow.passes(moved) {
            self.flow.ahead -= moved;
            self.position += u64::from(moved);
            return;
        }
        let memory = Memory::new(bytes, buffer_bytes);
        let mut walk = Walk::blank();
        walk.begin(&memory, self.flow, moved, ROOM);
        let steps = (0..STEPS).take_while(|_| walk.step(&memory) == Next::Step);
        assert!(steps.count() < STEPS, "the walk ends");
        if walk.is_unfinished() {
            walk.give_up();
        }
        walk.finish(&memory, moved);
        self.flow = walk.flow;
        for (from, _, pieces) in memory.records.take() {
            for (offset, bytes) in pieces {
                let position = self.position + u64::from(from) + u64::from(offset);
                self.pieces.push((position, bytes));
            }
        }
        self.position += u64::from(moved);
    }

    /// All pieces put where they belong; what was not captured is `None`.
    fn seen(&self) -> Vec<Option<u8>> {
        let mut seen = vec![None; self.position as usize];
        for (position, bytes) in &self.pieces {
            for (at, byte) in bytes.iter().enumerate() {
                seen[*position as usize + at] = Some(*byte);
            }
        }
        seen
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A conversation with frames of every type, short and long.
fn flow() -> (Vec<u8>, Vec<bool>) {
    let body: Vec<u8> = (0..40_000u32).map(|at| (at % 251) as u8).collect();
    let frames = [
        frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
        frame(kind::WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]),
        frame(kind::HEADERS, 4, 1, &body[..50]),
        frame(kind::DATA, 0, 1, &body[..16_384]),
        frame(kind::DATA, 0, 1, &[]),
        frame(kind::HEADERS, 0, 3, &body[..3_000]),
        frame(kind::CONTINUATION, 4, 3, &body[..16_000]),
        frame(kind::DATA, 1, 3, &body[..200]),
        frame(kind::PRIORITY, 0, 5, &[0; 5]),
        frame(kind::DATA, 1, 1, &body[..40_000]),
        frame(kind::PING, 0, 0, &[1; 8]),
        frame(0x77, 0xff, 9, &body[..2_000]),
        frame(kind::RST_STREAM, 0, 5, &[0, 0, 0, 8]),
        frame(kind::GOAWAY, 0, 0, &body[..700]),
    ];
    let mut bytes = Vec::new();
    let mut wanted = Vec::new();
    for frame in &frames {
        let payload = frame.len() - 9;
        let kept = match frame[3] {
            kind::DATA if payload > 256 => 6,
            0x77 => 0,
            _ => payload,
        };
        wanted.extend((0..frame.len()).map(|at| at < 9 + kept));
        bytes.extend(frame);
    }
    (bytes, wanted)
}

/// What must be seen is, and what is seen is what flowed.
fn check(walked: &Walked, bytes: &[u8], wanted: &[bool], from: usize) {
    for (at, seen) in walked.seen().into_iter().enumerate().skip(from) {
        assert!(seen.is_some() || !wanted[at], "byte {at} is missing");
        assert!(
            seen.is_none_or(|seen| seen == bytes[at]),
            "byte {at} is wrong"
        );
    }
}

/// However a flow is cut into calls and calls into buffers, all headers and heads are seen, and
/// long content is not.
#[test]
fn any_cut_shows_the_same() {
    let (bytes, wanted) = flow();
    for call_bytes in [
        1,
        2,
        7,
        8,
        9,
        10,
        13,
        100,
        1_000,
        4_096,
        16_384,
        30_000,
        bytes.len(),
    ] {
        for buffer_bytes in [1, 3, 9, 1_000, 1 << 20] {
            let mut walked = Walked::new(FrameFlow::sure(0));
            for call in bytes.chunks(call_bytes) {
                walked.call(call, buffer_bytes);
            }
            check(&walked, &bytes, &wanted, 0);
            assert_eq!(walked.flow.trust, SURE, "{call_bytes} {buffer_bytes}");
            assert_eq!((walked.flow.ahead, walked.flow.held), (0, 0));
            assert_eq!(
                walked.flow.highest_stream, 3,
                "of a head, and of no other frame"
            );
            let captured = walked.seen().iter().flatten().count();
            let needed = wanted.iter().filter(|wanted| **wanted).count();
            assert_eq!(captured, needed, "{call_bytes} {buffer_bytes}");
        }
    }
}

/// Two calls, split at every byte of the first frames.
#[test]
fn any_split_shows_the_same() {
    let (bytes, wanted) = flow();
    for at in 0..300 {
        let mut walked = Walked::new(FrameFlow::sure(0));
        let (first, second) = bytes.split_at(at);
        walked.call(first, 64);
        walked.call(second, 64);
        check(&walked, &bytes, &wanted, 0);
    }
}

/// On a connection older than the agent, a call that begins with a frame is enough.
#[test]
fn a_call_that_begins_with_a_frame_is_found() {
    let (bytes, wanted) = flow();
    let mut walked = Walked::new(FrameFlow::SEEKING);
    let (middle, rest) = bytes.split_at(9 + 6 + 13 + 59 + 5_000);
    walked.call(&middle[9 + 6 + 13 + 59 + 1_000..], 1 << 20);
    assert_eq!(walked.flow.trust, SEEKING, "the middle of a body");
    walked.call(&rest[..16_384 - 5_000 + 9], 1 << 20);
    assert_eq!(walked.flow.trust, SEEKING);
    let at = walked.position as usize;
    let mut walked = Walked::new(walked.flow);
    let later = 9 + 6 + 13 + 59 + 9 + 16_384 + 9;
    walked.call(&bytes[later..], 1 << 20);
    assert_eq!(walked.flow.trust, SURE, "{at}");
    check(&walked, &bytes[later..], &wanted[later..], 0);
}

/// Bytes that are no frames are kept up to a bound, and the flow is looked at anew.
#[test]
fn what_is_no_frame_leads_nowhere() {
    let text = vec![b'x'; 40_000];
    let mut walked = Walked::new(FrameFlow::SEEKING);
    walked.call(&text, 1 << 20);
    assert_eq!(walked.flow, FrameFlow::SEEKING);
    let captured = walked.seen().iter().flatten().count();
    assert!((12_000..14_000).contains(&captured), "{captured}");
    let mut walked = Walked::new(FrameFlow::sure(0));
    walked.call(&[0; 9], 1 << 20);
    assert_eq!(walked.flow, FrameFlow::SEEKING, "DATA of no stream");
}

/// What cannot be read moves the flow on, as far as its frame goes.
#[test]
fn unread_bytes_are_passed() {
    let mut flow = FrameFlow {
        keep: 6,
        ..FrameFlow::sure(1_000)
    };
    flow.pass_unread(400);
    assert_eq!((flow.trust, flow.ahead, flow.keep), (SURE, 600, 0));
    flow.pass_unread(601);
    assert_eq!(flow, FrameFlow::SEEKING);
}

/// The streams of both directions count, and are not forgotten when the walk is lost.
#[test]
fn streams_are_counted() {
    let heads = [
        frame(kind::HEADERS, 5, 7, b"a"),
        frame(kind::HEADERS, 5, 2, b"b"),
    ]
    .concat();
    let mut walked = Walked::new(FrameFlow::sure(0));
    walked.call(&heads, 64);
    walked.call(&[0; 9], 64);
    assert_eq!(
        (walked.flow.trust, walked.flow.highest_stream),
        (SEEKING, 7)
    );
    walked.flow.pass_unread(10);
    let state = FrameState {
        outbound: walked.flow,
        ..FrameState::SEEKING
    };
    assert_eq!(state.highest_stream(), 7);
}
