//! What each type of frame does.

use super::super::HEAD_LIMIT;
use super::super::frame::{FrameHeader, FrameKind, flags};
use super::super::walker::Start;
use super::{Block, Current, Http2, Padding};
use crate::protocol::reader::{Reader, split};
use crate::protocol::{Flow, ServerSettings};

/// RFC 9113, section 6.5.2.
const HEADER_TABLE_SIZE: u16 = 1;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;

impl Http2 {
    pub(super) fn frame(&mut self, flow: Flow, header: FrameHeader, start: Start, time_ns: u64) {
        if header.kind != FrameKind::Continuation {
            // Nothing may stand between a head and its continuation (section 6.2).
            self.abandon_block(flow, time_ns);
        }
        let half = self.half_mut(flow);
        half.payload.clear();
        half.current = Some(Current {
            header,
            start,
            offset: 0,
            padding: Padding::Bytes(0),
            is_cut: false,
        });
        if header.kind == FrameKind::Data {
            self.touch(flow, header.stream, time_ns);
        }
    }

    pub(super) fn payload(&mut self, flow: Flow, bytes: &[u8], time_ns: u64) {
        let half = self.half_mut(flow);
        let Some(current) = &mut half.current else {
            return;
        };
        let before = current.offset;
        current.offset = current.offset.saturating_add(bytes.len() as u64);
        match current.header.kind {
            FrameKind::Data => {
                let mut content = bytes;
                if before == 0
                    && current.header.has(flags::PADDED)
                    && let Some((padding, rest)) = bytes.split_first()
                {
                    current.padding = Padding::Bytes(*padding);
                    content = rest;
                }
                let current = *current;
                let from = current.offset - content.len() as u64;
                let content_end = current.content_end();
                let length = content_end.saturating_sub(from);
                let (content, _) = split(content, usize::try_from(length).unwrap_or(usize::MAX));
                self.content(flow, current.header.stream, content, time_ns);
            }
            kind if is_read_whole(kind) && !current.is_cut => {
                if half.payload.len() + bytes.len() > HEAD_LIMIT {
                    current.is_cut = true;
                } else {
                    half.payload.extend_from_slice(bytes);
                }
            }
            _ => {}
        }
    }

    fn content(&mut self, flow: Flow, id: u32, content: &[u8], time_ns: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.last_ns = time_ns;
        let is_call = stream.rpc.is_some();
        let side = stream.side(flow);
        side.last_ns = time_ns;
        if is_call {
            side.messages.take(content);
        } else if !content.is_empty() {
            // It may turn out to be a call later, when its messages are not known any more.
            side.messages.lose();
        }
    }

    pub(super) fn missing(&mut self, flow: Flow, length: u64, time_ns: u64) {
        let Some(current) = &mut self.half_mut(flow).current else {
            return;
        };
        current.is_cut = true;
        if current.header.kind == FrameKind::Data
            && current.offset == 0
            && current.header.has(flags::PADDED)
        {
            current.padding = Padding::Unknown;
        }
        let from = current.offset;
        current.offset = current.offset.saturating_add(length);
        let current = *current;
        if current.header.kind == FrameKind::Data
            && let Some(stream) = self.streams.get_mut(&current.header.stream)
        {
            stream.last_ns = time_ns;
            let side = stream.side(flow);
            side.last_ns = time_ns;
            if current.padding == Padding::Unknown {
                side.messages.lose();
            }
            let content = current.content_end().min(current.offset);
            side.messages.skip(content.saturating_sub(from));
        }
    }

    pub(super) fn frame_end(&mut self, flow: Flow, time_ns: u64) {
        let half = self.half_mut(flow);
        let Some(current) = half.current.take() else {
            return;
        };
        let payload = std::mem::take(&mut half.payload);
        let id = current.header.stream;
        match current.header.kind {
            FrameKind::Data => self.data_end(flow, &current, time_ns),
            FrameKind::Headers | FrameKind::PushPromise | FrameKind::Continuation => {
                self.fragment(flow, &current, &payload, time_ns);
            }
            FrameKind::Settings if !current.header.has(flags::ACK) => {
                self.settings(flow, &current, &payload);
            }
            FrameKind::RstStream => self.reset(flow, id, word(&payload), time_ns),
            FrameKind::GoAway => {
                let (last, code) = split(&payload, 4);
                self.go_away(flow, word(last), word(code), time_ns);
            }
            _ => {}
        }
        // Its capacity serves the next frame.
        self.half_mut(flow).payload = payload;
    }

    fn data_end(&mut self, flow: Flow, current: &Current, time_ns: u64) {
        let Some(stream) = self.streams.get_mut(&current.header.stream) else {
            return;
        };
        stream.last_ns = time_ns;
        let side = stream.side(flow);
        side.last_ns = time_ns;
        let overhead = u64::from(current.header.has(flags::PADDED));
        side.size = side
            .size
            .saturating_add(current.content_end().saturating_sub(overhead));
        side.has_hole |= current.padding == Padding::Unknown;
        if current.header.has(flags::END_STREAM) {
            side.ended_ns = Some(time_ns);
            self.settle(current.header.stream);
        }
    }

    /// The flow's sender says what it accepts: it bounds the other flow.
    fn settings(&mut self, flow: Flow, current: &Current, payload: &[u8]) {
        let bounded = self.half_mut(flow.opposite());
        if current.is_cut {
            bounded.walker.allow_all();
            bounded.hpack.allow(u32::MAX);
        }
        let mut list_limit = None;
        let mut reader = Reader::new(payload);
        while let &[high, low, a, b, c, d] = reader.take(6) {
            let value = u32::from_be_bytes([a, b, c, d]);
            match u16::from_be_bytes([high, low]) {
                HEADER_TABLE_SIZE => bounded.hpack.allow(value),
                MAX_FRAME_SIZE => bounded.walker.allow(value),
                MAX_HEADER_LIST_SIZE => list_limit = Some(value),
                _ => {}
            }
        }
        if flow == Flow::Request {
            return;
        }
        self.server_settings = self
            .server_settings
            .filter(|_| !current.is_cut)
            .map(|before| ServerSettings {
                seen: before.seen.saturating_add(1),
                list_limit: match (before.list_limit, list_limit) {
                    (Some(before), Some(now)) => Some(before.min(now)),
                    (before, now) => before.or(now),
                },
            });
    }

    /// A piece of a head (sections 6.2, 6.6 and 6.10).
    fn fragment(&mut self, flow: Flow, current: &Current, payload: &[u8], time_ns: u64) {
        let header = current.header;
        if header.kind == FrameKind::Continuation {
            let half = self.half_mut(flow);
            match &mut half.block {
                Some(block) if block.header.stream == header.stream => {
                    block.is_cut |= block.bytes.len() + payload.len() > HEAD_LIMIT;
                    if !block.is_cut {
                        block.bytes.extend_from_slice(payload);
                    }
                    block.is_cut |= current.is_cut;
                }
                // Its beginning was not seen: entries of the table are missing.
                _ => half.hpack.restart(),
            }
        } else {
            let (fragment, is_cut) = unwrap_fragment(current, payload);
            let mut block = Block {
                header,
                start: current.start,
                bytes: Vec::new(),
                is_cut,
            };
            if header.has(flags::END_HEADERS) {
                self.head(flow, &block, fragment, time_ns);
                return;
            }
            block.bytes.extend_from_slice(fragment);
            self.half_mut(flow).block = Some(block);
        }
        if header.has(flags::END_HEADERS)
            && let Some(block) = self.half_mut(flow).block.take()
        {
            self.head(flow, &block, &block.bytes, time_ns);
        }
    }

    /// The rest of a head that has begun will not come.
    pub(super) fn abandon_block(&mut self, flow: Flow, time_ns: u64) {
        if let Some(mut block) = self.half_mut(flow).block.take() {
            block.is_cut = true;
            self.head(flow, &block, &block.bytes, time_ns);
        }
    }

    fn touch(&mut self, flow: Flow, id: u32, time_ns: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.last_ns = time_ns;
            stream.side(flow).last_ns = time_ns;
        }
    }
}

impl Current {
    /// Where the padding begins, in bytes of payload.
    fn content_end(&self) -> u64 {
        let padding = match self.padding {
            Padding::Bytes(padding) => padding.into(),
            Padding::Unknown => 0,
        };
        u64::from(self.header.length).saturating_sub(padding)
    }
}

const fn is_read_whole(kind: FrameKind) -> bool {
    matches!(
        kind,
        FrameKind::Headers
            | FrameKind::PushPromise
            | FrameKind::Continuation
            | FrameKind::Settings
            | FrameKind::RstStream
            | FrameKind::GoAway
    )
}

/// A head's fragment without padding, priority and promised stream, and whether bytes of it are
/// missing.
fn unwrap_fragment<'a>(current: &Current, payload: &'a [u8]) -> (&'a [u8], bool) {
    let header = current.header;
    let mut reader = Reader::new(payload);
    let mut padding = 0;
    if header.has(flags::PADDED) {
        padding = reader.take(1).first().copied().map_or(0, usize::from);
    }
    match header.kind {
        FrameKind::Headers if header.has(flags::PRIORITY) => reader.take(5),
        FrameKind::PushPromise => reader.take(4),
        _ => &[],
    };
    let rest = reader.rest();
    if current.is_cut {
        // The padding is at the end, which is missing, or part of it.
        let missing = (header.length as usize).saturating_sub(payload.len());
        let (fragment, _) = split(
            rest,
            rest.len().saturating_sub(padding.saturating_sub(missing)),
        );
        return (fragment, true);
    }
    match rest.len().checked_sub(padding) {
        Some(length) => (split(rest, length).0, false),
        None => (&[], true),
    }
}

fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}
