//! One stream: a request and its response, whichever was recorded first.

use super::describe::Outcome;
use super::field::Fields;
use super::grpc::Messages;
use crate::protocol::rpc::Rpc;
use crate::protocol::{ExchangeNumber, Flow};

/// What was seen of a stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// Missing until the request was seen. Its sender is recorded after the bytes have left, so
    /// the response may be recorded before it.
    pub(super) request: Option<Request>,
    pub(super) response: Response,
    /// From client to server.
    pub(super) up: Side,
    /// From server to client.
    pub(super) down: Side,
    pub(super) rpc: Option<Rpc>,
    /// It was reset before its request was recorded.
    pub(super) early_reset: Option<(Outcome, u64)>,
    /// When it was last heard of.
    pub(super) last_ns: u64,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) exchange: ExchangeNumber,
    pub(super) start_ns: u64,
    pub(super) fields: Fields,
    /// Bytes of its head are missing.
    pub(super) is_cut: bool,
}

#[derive(Debug, Default)]
pub(super) struct Response {
    /// First byte, of interim responses too.
    pub(super) first_ns: Option<u64>,
    /// The head of the final response was seen, at least in part.
    pub(super) has_head: bool,
    pub(super) status: Option<u16>,
    pub(super) grpc_status: Option<u64>,
    /// It is a stream of events.
    pub(super) is_event_stream: bool,
    /// Fields of its head or trailers are not known.
    pub(super) has_unknown: bool,
}

/// One direction of a stream.
#[derive(Debug, Default)]
pub(super) struct Side {
    /// `END_STREAM` was seen, and when the frame with it ended.
    pub(super) ended_ns: Option<u64>,
    pub(super) last_ns: u64,
    /// Bytes of content so far.
    pub(super) size: u64,
    /// Frames, or the length of their padding, are missing: the size is not known, and the end may
    /// have passed unseen.
    pub(super) has_hole: bool,
    pub(super) messages: Messages,
}

impl Stream {
    pub(super) const fn side(&mut self, flow: Flow) -> &mut Side {
        match flow {
            Flow::Request => &mut self.up,
            Flow::Response => &mut self.down,
        }
    }

    pub(super) fn new(now_ns: u64) -> Self {
        Self {
            request: None,
            response: Response::default(),
            up: Side::default(),
            down: Side::default(),
            rpc: None,
            early_reset: None,
            last_ns: now_ns,
        }
    }

    /// Both directions have ended. A request whose end may have passed unseen is not waited for.
    pub(super) const fn is_complete(&self) -> bool {
        self.down.ended_ns.is_some() && (self.up.ended_ns.is_some() || self.up.has_hole)
    }

    /// CONNECT that the server accepted (RFC 9113, section 8.5; RFC 8441): what follows is
    /// another protocol.
    pub(super) fn is_tunnel(&self) -> bool {
        let is_connect = self
            .request
            .as_ref()
            .is_some_and(|request| request.fields.method.as_deref() == Some("CONNECT"));
        is_connect && matches!(self.response.status, Some(200..300))
    }
}

impl Side {
    /// Frames of this direction are missing.
    pub(super) fn lose(&mut self) {
        if self.ended_ns.is_none() {
            self.has_hole = true;
            self.messages.lose();
        }
    }

    pub(super) fn size(&self) -> Option<u64> {
        (self.ended_ns.is_some() && !self.has_hole).then_some(self.size)
    }
}
