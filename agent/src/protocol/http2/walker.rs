//! One flow as a sequence of frames: where each begins and ends.
//!
//! | stage     | bytes                                        | bytes that were not captured      |
//! |-----------|----------------------------------------------|-----------------------------------|
//! | `Preface` | compared; of another protocol: `Refused`     | `Lost`                            |
//! | `Header`  | kept until there are nine                    | `Lost`                            |
//! | `Payload` | handed on                                    | counted; beyond the frame: `Lost` |
//! | `Lost`    | searched for a place where frames must begin | ignored                           |
//!
//! A gap within a payload costs nothing but its content: the length of the frame in progress says
//! where the next one begins. A gap that swallowed a frame header does, and then an unknown number
//! of frames is missing. The walk goes on where enough speaks for a frame ([`FOUND_BITS`]).

use super::frame::{self, FrameHeader, FrameKind, HEADER_BYTES, LARGEST_FRAME, PREFACE};
use crate::protocol::Flow;
use crate::protocol::reader::split;

/// Evidence at which a frame is believed to begin, in bits: of the 16,000 places in one captured
/// call, random bytes would pass at one in about 2^34.
const FOUND_BITS: u32 = 48;

/// Captured bytes not walked yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk<'a> {
    pub(super) data: &'a [u8],
    pub(super) position: u64,
    pub(super) time_ns: u64,
}

/// Bytes that flowed uncaptured, not walked yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    pub(super) length: u64,
    pub(super) position: u64,
    pub(super) time_ns: u64,
    /// The last eight of them; zeros when unknown.
    pub(super) tail: [u8; 8],
}

/// Where a frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) position: u64,
    pub(super) time_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// A frame begins.
    Frame(FrameHeader, Start),
    /// More of its payload.
    Payload(&'a [u8]),
    /// So many bytes of its payload were not captured.
    Missing(u64),
    /// All of its payload has passed.
    End,
    /// Frames are missing from here on.
    Lost,
    /// This is no HTTP/2.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Preface { seen: usize },
    Header,
    Payload { remaining: u64 },
    Lost,
    Refused,
}

/// How a flow begins for who watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// With its first byte.
    Whole,
    /// Anywhere.
    Late,
}

#[derive(Debug)]
pub(super) struct Walker {
    flow: Flow,
    stage: Stage,
    /// The first bytes of a frame header, while there are fewer than nine.
    partial: [u8; HEADER_BYTES],
    filled: usize,
    start: Start,
    /// A server begins with SETTINGS (RFC 9113, section 3.4): until then it may be no server of
    /// HTTP/2.
    wants_settings: bool,
    /// Largest payload its receiver allows.
    longest: u32,
}

impl Walker {
    pub(super) fn new(flow: Flow, begin: Begin) -> Self {
        let stage = match (begin, flow) {
            (Begin::Late, _) => Stage::Lost,
            (Begin::Whole, Flow::Request) => Stage::Preface { seen: 0 },
            (Begin::Whole, Flow::Response) => Stage::Header,
        };
        Self {
            flow,
            stage,
            partial: [0; HEADER_BYTES],
            filled: 0,
            start: Start {
                position: 0,
                time_ns: 0,
            },
            wants_settings: (begin, flow) == (Begin::Whole, Flow::Response),
            longest: match begin {
                Begin::Whole => frame::DEFAULT_MAX_FRAME,
                Begin::Late => LARGEST_FRAME,
            },
        }
    }

    /// The receiver allows frames of this size (`SETTINGS_MAX_FRAME_SIZE`).
    pub(super) fn allow(&mut self, longest: u32) {
        self.longest = self.longest.max(longest.min(LARGEST_FRAME));
    }

    /// What its receiver allows is not known any more.
    pub(super) fn allow_all(&mut self) {
        self.longest = LARGEST_FRAME;
    }

    /// Bytes of the frame in progress that are still to come.
    pub(super) const fn remaining(&self) -> Option<u64> {
        match self.stage {
            Stage::Payload { remaining } => Some(remaining),
            _ => None,
        }
    }

    /// Whether it is not known where frames begin.
    pub(super) fn is_lost(&self) -> bool {
        self.stage == Stage::Lost
    }

    /// What the bytes say next; `None` when all are walked. `is_open` knows streams of which frames
    /// may come.
    pub(super) fn next<'a>(
        &mut self,
        chunk: &mut Chunk<'a>,
        is_open: &dyn Fn(u32) -> bool,
    ) -> Option<Event<'a>> {
        loop {
            match self.stage {
                Stage::Refused => return None,
                Stage::Preface { seen } => {
                    let expected = PREFACE.get(seen..).unwrap_or_default();
                    let bytes = chunk.take(expected.len());
                    if bytes.is_empty() {
                        return None;
                    }
                    if !expected.starts_with(bytes) {
                        self.stage = Stage::Refused;
                        return Some(Event::Refused);
                    }
                    let seen = seen + bytes.len();
                    self.stage = if seen == PREFACE.len() {
                        Stage::Header
                    } else {
                        Stage::Preface { seen }
                    };
                }
                Stage::Header => return self.header(chunk),
                Stage::Payload { remaining: 0 } => {
                    self.stage = Stage::Header;
                    return Some(Event::End);
                }
                Stage::Payload { remaining } => {
                    let bytes = chunk.take(usize::try_from(remaining).unwrap_or(usize::MAX));
                    if bytes.is_empty() {
                        return None;
                    }
                    let remaining = remaining - bytes.len() as u64;
                    self.stage = Stage::Payload { remaining };
                    return Some(Event::Payload(bytes));
                }
                Stage::Lost => {
                    let found = find(self.flow, chunk.data, is_open);
                    chunk.take(found.unwrap_or(chunk.data.len()));
                    if chunk.data.is_empty() {
                        return None;
                    }
                    self.stage = Stage::Header;
                }
            }
        }
    }

    fn header<'a>(&mut self, chunk: &mut Chunk<'a>) -> Option<Event<'a>> {
        if self.filled == 0 {
            self.start = Start {
                position: chunk.position,
                time_ns: chunk.time_ns,
            };
        }
        let bytes = chunk.take(HEADER_BYTES - self.filled);
        let room = self.partial.iter_mut().skip(self.filled);
        room.zip(bytes).for_each(|(place, byte)| *place = *byte);
        self.filled += bytes.len();
        if self.filled < HEADER_BYTES {
            return None;
        }
        self.filled = 0;
        let header = FrameHeader::parse(self.partial);
        let wants_settings = std::mem::replace(&mut self.wants_settings, false);
        if wants_settings && header.kind != FrameKind::Settings {
            self.stage = Stage::Refused;
            return Some(Event::Refused);
        }
        if !header.is_valid(self.longest) {
            self.stage = Stage::Lost;
            return Some(Event::Lost);
        }
        self.stage = Stage::Payload {
            remaining: header.length.into(),
        };
        Some(Event::Frame(header, self.start))
    }

    /// What a gap says next; `None` when it is walked. A gap may leave bytes behind that are known:
    /// they come back in `tail`.
    pub(super) fn skip(
        &mut self,
        gap: &mut Gap,
        tail: &mut Option<[u8; HEADER_BYTES]>,
    ) -> Option<Event<'static>> {
        match self.stage {
            Stage::Payload { remaining: 0 } => {
                self.stage = Stage::Header;
                Some(Event::End)
            }
            _ if gap.length == 0 => None,
            Stage::Payload { remaining } => {
                let length = remaining.min(gap.length);
                gap.take(length);
                self.stage = Stage::Payload {
                    remaining: remaining - length,
                };
                Some(Event::Missing(length))
            }
            Stage::Header if self.filled == 0 && gap.ends_with_header(self.longest) => {
                let mut header = [0; HEADER_BYTES];
                let known = header.iter_mut().skip(1);
                known.zip(gap.tail).for_each(|(place, byte)| *place = byte);
                *tail = Some(header);
                None
            }
            Stage::Header | Stage::Preface { .. } => {
                self.filled = 0;
                self.wants_settings = false;
                self.stage = Stage::Lost;
                gap.take(gap.length);
                Some(Event::Lost)
            }
            Stage::Lost | Stage::Refused => {
                gap.take(gap.length);
                None
            }
        }
    }
}

impl<'a> Chunk<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = split(self.data, count);
        self.data = rest;
        self.position = self.position.saturating_add(taken.len() as u64);
        taken
    }
}

impl Gap {
    fn take(&mut self, length: u64) {
        self.length -= length;
        self.position = self.position.saturating_add(length);
    }

    /// Nine bytes are left, a frame begins with them, and all but its first are known. That one is
    /// the highest byte of a length, which is 0 as long as frames are shorter than 65,536 bytes.
    fn ends_with_header(&self, longest: u32) -> bool {
        self.length == HEADER_BYTES as u64 && self.tail != [0; 8] && longest < 1 << 16
    }
}

/// The place from which on most speaks for frames, if it is enough. Not the first one with enough:
/// messages are full of zeros, as frame headers are, so that the bytes just before a frame may pass
/// for one; what follows speaks against them. Of frames in a row the first has all their evidence.
fn find(flow: Flow, data: &[u8], is_open: &dyn Fn(u32) -> bool) -> Option<usize> {
    let mut best = None;
    let mut most = FOUND_BITS - 1;
    for at in 0..data.len() {
        let bits = frame::evidence(flow, split(data, at).1, is_open);
        if bits > most {
            most = bits;
            best = Some(at);
        }
    }
    best
}

#[cfg(test)]
mod tests;
