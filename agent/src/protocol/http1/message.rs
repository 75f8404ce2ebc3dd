//! One flow as a sequence of messages: where each begins, where its head and its body end.
//!
//! | stage     | bytes                                   | hole            |
//! |-----------|-----------------------------------------|-----------------|
//! | `Between` | line ends are skipped, others begin one | `Lost`          |
//! | `Head`    | kept until the head is whole            | the head is cut |
//! | `Body`    | counted                                 | counted         |
//! | `Lost`    | ignored until a turn begins like a message | ignored      |

use std::borrow::Cow;

use super::body::Body;
use super::{HEAD_LIMIT, parse};
use crate::protocol::Flow;
use crate::protocol::reader::{Reader, split};

/// Captured bytes not consumed yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk<'a> {
    pub(super) data: &'a [u8],
    pub(super) position: u64,
    pub(super) time_ns: u64,
    /// `data` begins a turn.
    pub(super) turn_start: bool,
}

impl<'a> Chunk<'a> {
    fn consume(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = split(self.data, count);
        self.data = rest;
        self.position = self.position.saturating_add(taken.len() as u64);
        self.turn_start &= taken.is_empty();
        taken
    }

    fn skip_line_ends(&mut self) {
        let line_ends = Reader::new(self.data).take_while(|byte| matches!(byte, b'\r' | b'\n'));
        // What begins after them still begins the turn.
        let turn_start = self.turn_start;
        self.consume(line_ends.len());
        self.turn_start = turn_start;
    }
}

/// Where and when a message began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) position: u64,
    pub(super) time_ns: u64,
    /// It is the first thing of its turn.
    pub(super) on_turn: bool,
}

/// What a reader came upon. After each the session may change the stage.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// The chunk is used up.
    Nothing,
    /// The first byte of a message; it is still in the chunk.
    Beginning,
    /// The start line, without its line end, of a head that is not whole yet.
    StartLine(Vec<u8>),
    /// A whole head.
    Head(Cow<'a, [u8]>),
    /// What there is of a head that exceeds the limit.
    CutHead(Vec<u8>),
    /// The last byte of a body; the stage is `Between`.
    BodyEnd { size: Option<u64> },
}

#[derive(Debug)]
pub(super) enum Stage {
    Between,
    Head,
    Body(Body),
    Lost,
}

#[derive(Debug)]
pub(super) struct MessageReader {
    flow: Flow,
    pub(super) stage: Stage,
    pub(super) start: Start,
    /// Of an incomplete head.
    buffer: Vec<u8>,
    /// Bytes of `buffer` that hold no end of a head.
    searched: usize,
    start_line_seen: bool,
    /// What came after a loss looked like a message; its start line will show.
    is_tentative: bool,
    /// Only line ends have come since the turn began.
    turn_pending: bool,
}

impl MessageReader {
    pub(super) fn new(flow: Flow, stage: Stage) -> Self {
        Self {
            flow,
            stage,
            start: Start::default(),
            buffer: Vec::new(),
            searched: 0,
            start_line_seen: false,
            is_tentative: false,
            turn_pending: false,
        }
    }

    /// The part of a head that has come so far.
    pub(super) fn partial_head(&self) -> &[u8] {
        &self.buffer
    }

    /// Leaves the message: what follows is ignored until a turn begins like another.
    pub(super) fn lose(&mut self) {
        self.enter(Stage::Lost);
    }

    pub(super) fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.searched = 0;
        self.start_line_seen = false;
        self.is_tentative = false;
        self.turn_pending = false;
        // A connection may live long; a large buffer need not.
        self.buffer = Vec::new();
    }

    /// Goes on until something is found.
    pub(super) fn next<'a>(&mut self, chunk: &mut Chunk<'a>) -> Found<'a> {
        if matches!(self.stage, Stage::Head) && self.is_disproved_by(chunk) {
            self.lose();
        }
        loop {
            match &mut self.stage {
                Stage::Lost => {
                    if !self.may_begin(chunk) {
                        chunk.consume(usize::MAX);
                        return Found::Nothing;
                    }
                    self.enter(Stage::Between);
                    self.is_tentative = true;
                }
                Stage::Between => {
                    self.turn_pending |= chunk.turn_start;
                    chunk.skip_line_ends();
                    if chunk.data.is_empty() {
                        return Found::Nothing;
                    }
                    let on_turn = self.turn_pending;
                    let Chunk {
                        position, time_ns, ..
                    } = *chunk;
                    let is_tentative = self.is_tentative;
                    self.enter(Stage::Head);
                    self.is_tentative = is_tentative;
                    self.start = Start {
                        position,
                        time_ns,
                        on_turn,
                    };
                    return Found::Beginning;
                }
                Stage::Head => return self.next_of_head(chunk),
                Stage::Body(body) => {
                    let used = body.feed(chunk.data);
                    chunk.consume(used);
                    if !body.is_done() {
                        return Found::Nothing;
                    }
                    let size = body.size();
                    self.enter(Stage::Between);
                    return Found::BodyEnd { size };
                }
            }
        }
    }

    /// Bytes at the start of a turn that could be the start of a message.
    fn may_begin(&self, chunk: &Chunk<'_>) -> bool {
        let mut reader = Reader::new(chunk.data);
        reader.take_while(|byte| matches!(byte, b'\r' | b'\n'));
        chunk.turn_start
            && reader.peek().is_none_or(|byte| match self.flow {
                Flow::Request => parse::is_token(byte),
                Flow::Response => byte == b'H',
            })
    }

    /// Another turn, and still no start line: what was taken for a message was none.
    fn is_disproved_by(&self, chunk: &Chunk<'_>) -> bool {
        let has_no_line = !self.buffer.is_empty() && !self.start_line_seen;
        self.is_tentative && has_no_line && chunk.turn_start
    }

    fn next_of_head<'a>(&mut self, chunk: &mut Chunk<'a>) -> Found<'a> {
        if self.buffer.is_empty()
            && let Some(end) = parse::head_end(chunk.data, 0)
        {
            return Found::Head(Cow::Borrowed(chunk.consume(end)));
        }
        if chunk.data.is_empty() {
            return Found::Nothing;
        }
        let kept = self.buffer.len();
        let room = HEAD_LIMIT - kept.min(HEAD_LIMIT);
        self.buffer.extend_from_slice(split(chunk.data, room).0);
        if let Some(end) = parse::head_end(&self.buffer, self.searched) {
            chunk.consume(end - kept);
            self.buffer.truncate(end);
            return Found::Head(Cow::Owned(std::mem::take(&mut self.buffer)));
        }
        // A line end may be cut in two or three.
        self.searched = self.buffer.len().saturating_sub(3);
        if !self.start_line_seen
            && let Some((line, _)) = parse::split_start_line(&self.buffer)
        {
            self.start_line_seen = true;
            chunk.consume(room);
            return Found::StartLine(line.to_vec());
        }
        if self.buffer.len() >= HEAD_LIMIT {
            chunk.consume(room);
            return Found::CutHead(std::mem::take(&mut self.buffer));
        }
        chunk.consume(room);
        Found::Nothing
    }
}
