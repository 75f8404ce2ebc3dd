//! Frames to streams, streams to exchanges: the session.

mod ends;
mod frames;
mod heads;

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::STREAMS_LIMIT;
use super::frame::FrameHeader;
use super::hpack::{Decoder, Join};
use super::stream::Stream;
use super::walker::{Begin, Chunk, Event, Gap, Start, Walker};
use crate::protocol::{
    Awaited, Endpoint, ExchangeNumber, Flow, Input, Progress, ServerSettings, Session, Shortfall,
    Standing, semantics::Ends,
};

/// Streams are looked over this often, by the time of what is handled.
const SWEEP_NS: u64 = 1_000_000_000;

/// A stream whose end may have passed unseen, and of which nothing was heard for this long, has
/// ended unobserved. Watches and subscriptions may be silent for minutes.
const DOUBTFUL_NS: u64 = 120_000_000_000;

/// A response without its request waits this long for it: its record is late by microseconds.
const EARLY_NS: u64 = 5_000_000_000;

#[derive(Debug)]
pub(super) struct Http2 {
    ends: Ends,
    requests: Half,
    responses: Half,
    /// By identifier: streams whose end is not known.
    streams: FxHashMap<u32, Stream>,
    /// Anything was fed.
    has_begun: bool,
    /// The highest identifier of a request so far: they only rise (RFC 9113, section 5.1.1).
    last_opened: u32,
    next_number: ExchangeNumber,
    /// The client closed its direction.
    request_flow_closed: bool,
    /// What either side said was wrong with the connection (RFC 9113, section 5.4.1).
    connection_error: Option<&'static str>,
    progress: VecDeque<Progress>,
    standing: Standing,
    shortfall: Shortfall,
    /// `None` when a word of it may have been missed.
    server_settings: Option<ServerSettings>,
    /// Not all of it was seen from the beginning on: counted once.
    is_late: bool,
    swept_ns: u64,
}

/// One flow.
#[derive(Debug)]
struct Half {
    walker: Walker,
    hpack: Decoder,
    /// The frame whose payload is passing.
    current: Option<Current>,
    /// Payload of that frame so far, of types that are read whole.
    payload: Vec<u8>,
    /// A head whose CONTINUATION frames are still to come.
    block: Option<Block>,
    /// Requests, or responses, may be missing since the last one that was seen.
    has_hole: bool,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    header: FrameHeader,
    start: Start,
    /// Bytes of payload that passed.
    offset: u64,
    padding: Padding,
    /// Bytes of the payload are missing.
    is_cut: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Padding {
    /// None, or its length has not come yet.
    Bytes(u8),
    /// Its length was not captured.
    Unknown,
}

#[derive(Debug)]
struct Block {
    /// Of the frame that began it.
    header: FrameHeader,
    start: Start,
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Session for Http2 {
    fn handle(&mut self, flow: Flow, input: Input<'_>) {
        if self.standing != Standing::Going {
            return;
        }
        self.note_upgrade(&input);
        match input {
            Input::Bytes {
                data,
                position,
                time_ns,
                ..
            } => {
                self.sweep(time_ns);
                let chunk = Chunk {
                    data,
                    position,
                    time_ns,
                };
                self.bytes(flow, chunk);
            }
            Input::Skipped {
                length,
                position,
                last_ns,
                tail,
            } => {
                self.sweep(last_ns);
                let gap = Gap {
                    length,
                    position,
                    time_ns: last_ns,
                    tail,
                };
                self.gap(flow, gap);
            }
            Input::End { cause, time_ns } => self.end(flow, cause, time_ns),
        }
    }

    fn poll(&mut self) -> Option<Progress> {
        self.progress.pop_front()
    }

    /// Only the rest of a frame that ends a stream is worth asking for.
    fn awaited(&self, flow: Flow) -> Option<Awaited> {
        if self.standing != Standing::Going {
            return None;
        }
        let half = self.half(flow);
        let header = half.current?.header;
        let remaining = half.walker.remaining()?;
        let ends = remaining > 0 && header.ends_stream();
        (ends && self.streams.contains_key(&header.stream)).then_some(Awaited::Bytes(remaining))
    }

    fn standing(&self) -> Standing {
        self.standing
    }

    fn take_shortfall(&mut self) -> Shortfall {
        std::mem::take(&mut self.shortfall)
    }

    fn highest_stream(&self) -> Option<u32> {
        self.counts_from_first().then_some(self.last_opened)
    }

    fn may_lack_fields(&self) -> bool {
        self.standing == Standing::Going
            && (self.requests.hpack.lacks_entries() || self.responses.hpack.lacks_entries())
    }

    fn server_settings(&self) -> Option<ServerSettings> {
        self.server_settings.filter(|settings| settings.seen > 0)
    }
}

impl Http2 {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        let (begin, join) = if endpoint.complete {
            (Begin::Whole, Join::Whole)
        } else {
            (Begin::Late, Join::Late)
        };
        let is_late = !endpoint.complete;
        Self {
            requests: Half::new(Flow::Request, begin, join),
            responses: Half::new(Flow::Response, begin, join),
            ends: Ends::new(endpoint),
            streams: FxHashMap::default(),
            has_begun: false,
            last_opened: 0,
            next_number: 0,
            request_flow_closed: false,
            connection_error: None,
            progress: VecDeque::new(),
            standing: Standing::Going,
            shortfall: Shortfall {
                exchanges: 0,
                late_joins: is_late.into(),
            },
            server_settings: (!is_late).then_some(ServerSettings {
                seen: 0,
                list_limit: None,
            }),
            is_late,
            swept_ns: 0,
        }
    }

    /// What comes first on a connection that was upgraded is not at its beginning. The request that
    /// asked for it is stream 1, and was told in HTTP/1 (RFC 7540, section 3.2).
    fn note_upgrade(&mut self, input: &Input<'_>) {
        let position = match input {
            Input::Bytes { position, .. } | Input::Skipped { position, .. } => *position,
            Input::End { .. } => return,
        };
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        if is_first && position > 0 && self.ends.endpoint.complete {
            self.last_opened = 1;
        }
    }

    /// It is known how many streams there were before any that is seen.
    const fn counts_from_first(&self) -> bool {
        self.ends.endpoint.complete || self.last_opened > 0
    }

    const fn half(&self, flow: Flow) -> &Half {
        match flow {
            Flow::Request => &self.requests,
            Flow::Response => &self.responses,
        }
    }

    const fn half_mut(&mut self, flow: Flow) -> &mut Half {
        match flow {
            Flow::Request => &mut self.requests,
            Flow::Response => &mut self.responses,
        }
    }

    fn bytes(&mut self, flow: Flow, mut chunk: Chunk<'_>) {
        let time_ns = chunk.time_ns;
        while self.standing == Standing::Going {
            let Self {
                requests,
                responses,
                streams,
                ..
            } = self;
            let half = match flow {
                Flow::Request => requests,
                Flow::Response => responses,
            };
            let event = half
                .walker
                .next(&mut chunk, &|id| streams.contains_key(&id));
            let Some(event) = event else { return };
            self.event(flow, event, time_ns);
        }
    }

    fn gap(&mut self, flow: Flow, mut gap: Gap) {
        let mut tail = None;
        while self.standing == Standing::Going {
            let event = self.half_mut(flow).walker.skip(&mut gap, &mut tail);
            let Some(event) = event else { break };
            self.event(flow, event, gap.time_ns);
        }
        if let Some(header) = tail {
            let chunk = Chunk {
                data: &header,
                position: gap.position,
                time_ns: gap.time_ns,
            };
            self.bytes(flow, chunk);
        }
    }

    fn event(&mut self, flow: Flow, event: Event<'_>, time_ns: u64) {
        match event {
            Event::Frame(header, start) => self.frame(flow, header, start, time_ns),
            Event::Payload(bytes) => self.payload(flow, bytes, time_ns),
            Event::Missing(length) => self.missing(flow, length, time_ns),
            Event::End => self.frame_end(flow, time_ns),
            Event::Lost => self.lose(flow, time_ns),
            Event::Refused => self.refuse(time_ns),
        }
    }

    /// The stream, or a new one for a response that was recorded before its request.
    fn stream_or_early(&mut self, id: u32, time_ns: u64) -> Option<&mut Stream> {
        let may_be_new = id > self.last_opened && self.streams.len() < STREAMS_LIMIT;
        if may_be_new {
            return Some(
                self.streams
                    .entry(id)
                    .or_insert_with(|| Stream::new(time_ns)),
            );
        }
        self.streams.get_mut(&id)
    }
}

impl Half {
    fn new(flow: Flow, begin: Begin, join: Join) -> Self {
        Self {
            walker: Walker::new(flow, begin),
            hpack: Decoder::new(join),
            current: None,
            payload: Vec::new(),
            block: None,
            has_hole: false,
        }
    }
}

#[cfg(test)]
mod tests;
