//! Heads and trailers: what begins a stream, answers it, or ends it.

use super::super::STREAMS_LIMIT;
use super::super::field::Fields;
use super::super::frame::{FrameKind, flags};
use super::super::hpack::Reading;
use super::super::stream::{Request, Stream};
use super::{Block, Http2};
use crate::protocol::rpc::Rpc;
use crate::protocol::{Flow, Progress};

/// A head, read as far as it was captured.
struct Head {
    stream: u32,
    fields: Fields,
    is_cut: bool,
    ends_stream: bool,
    position: u64,
    start_ns: u64,
    time_ns: u64,
}

impl Http2 {
    pub(super) fn head(&mut self, flow: Flow, block: &Block, bytes: &[u8], time_ns: u64) {
        let half = self.half_mut(flow);
        let mut fields = Fields::default();
        let reading = half
            .hpack
            .decode(bytes, |name, value| fields.take(name, value));
        if block.is_cut {
            half.hpack.restart();
        }
        let id = block.header.stream;
        // A promised request comes from the server and is no exchange of ours; streams of its
        // responses have even identifiers.
        if block.header.kind == FrameKind::PushPromise || id.is_multiple_of(2) {
            return;
        }
        let head = Head {
            stream: id,
            fields,
            is_cut: block.is_cut || reading == Reading::Cut,
            ends_stream: block.header.has(flags::END_STREAM),
            position: block.start.position,
            start_ns: block.start.time_ns,
            time_ns,
        };
        match flow {
            Flow::Request => self.request_head(head),
            Flow::Response => self.response_head(&head),
        }
    }

    fn request_head(&mut self, head: Head) {
        let id = head.stream;
        let (ends_stream, time_ns) = (head.ends_stream, head.time_ns);
        let is_known = self
            .streams
            .get(&id)
            .is_some_and(|stream| stream.request.is_some());
        // Trailers of a stream whose request was not seen are no request. All that is known of a
        // head that was cut may be that it ends the stream, as trailers do.
        let may_be_trailers = (!self.ends.endpoint.complete && self.last_opened == 0)
            || self.requests.has_hole
            || !head.is_cut;
        let may_be_request = head.fields.has_pseudo || !ends_stream || !may_be_trailers;
        if !is_known && (id <= self.last_opened || !may_be_request) {
            return;
        }
        if !is_known && !self.open(head) {
            return;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.last_ns = time_ns;
            stream.up.last_ns = time_ns;
            if ends_stream {
                stream.up.ended_ns = Some(time_ns);
            }
        }
        self.settle(id);
    }

    /// Begins an exchange; `false` when there is no room.
    fn open(&mut self, head: Head) -> bool {
        let id = head.stream;
        self.count_missed(id);
        self.last_opened = id;
        if self.streams.len() >= STREAMS_LIMIT && !self.streams.contains_key(&id) {
            self.shortfall.exchanges += 1;
            return false;
        }
        // Its response may pass before the other flow is understood again.
        let is_out_of_step = self.responses.walker.is_lost();
        let exchange = self.next_number;
        self.next_number += 1;
        self.progress.push_back(Progress::RequestStarted {
            exchange,
            stream: Some(id),
            position: head.position,
            time_ns: head.start_ns,
        });
        if !head.is_cut {
            self.progress.push_back(Progress::RequestHead {
                exchange,
                headers: head.fields.trace.clone(),
            });
        }
        let stream = self
            .streams
            .entry(id)
            .or_insert_with(|| Stream::new(head.time_ns));
        stream.rpc = stream.rpc.or_else(|| head.fields.rpc());
        if let Some(time_ns) = stream.response.first_ns {
            self.progress
                .push_back(Progress::ResponseStarted { exchange, time_ns });
        }
        if is_out_of_step {
            stream.down.lose();
        }
        stream.request = Some(Request {
            exchange,
            start_ns: head.start_ns,
            fields: head.fields,
            is_cut: head.is_cut,
        });
        true
    }

    /// After a hole the identifiers tell how many requests were in it: clients use one after the
    /// other.
    fn count_missed(&mut self, id: u32) {
        if self.requests.has_hole && self.counts_from_first() {
            let missed = self.streams_up_to(id).saturating_sub(1);
            self.shortfall.exchanges += u64::from(missed);
        }
        self.requests.has_hole = false;
    }

    /// Streams that a client opened after the last one that was seen, up to this one: by odd
    /// numbers, of which the first is 1.
    pub(super) const fn streams_up_to(&self, id: u32) -> u32 {
        id.div_ceil(2).saturating_sub(self.last_opened.div_ceil(2))
    }

    fn response_head(&mut self, head: &Head) {
        let id = head.stream;
        let Some(stream) = self.stream_or_early(id, head.time_ns) else {
            return;
        };
        stream.last_ns = head.time_ns;
        stream.down.last_ns = head.time_ns;
        let fields = &head.fields;
        let response = &mut stream.response;
        let is_first = response.first_ns.is_none();
        // Frames with the first byte may be missing; then this is not it.
        if is_first && !stream.down.has_hole {
            response.first_ns = Some(head.start_ns);
        }
        let announced = stream.request.as_ref().map(|request| request.exchange);
        if let (Some(exchange), Some(time_ns), true) = (announced, response.first_ns, is_first) {
            self.progress
                .push_back(Progress::ResponseStarted { exchange, time_ns });
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let response = &mut stream.response;
        let is_interim = matches!(fields.status, Some(100..200));
        if !is_interim {
            if fields.has_pseudo || !response.has_head {
                response.status = response.status.or(fields.status);
                response.has_head = true;
                response.is_event_stream |= fields.is_event_stream();
                stream.rpc = stream.rpc.or_else(|| fields.rpc());
            }
            response.grpc_status = response.grpc_status.or(fields.grpc_status);
            if response.grpc_status.is_some() {
                stream.rpc.get_or_insert(Rpc::Grpc);
            }
            response.has_unknown |= fields.unknown > 0 || head.is_cut;
        }
        if head.ends_stream {
            stream.down.ended_ns = Some(head.time_ns);
        }
        self.settle(id);
    }
}
