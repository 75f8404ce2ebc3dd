//! Requests and responses paired: the session.
//!
//! Responses answer requests in order (RFC 9112, section 9.3.2), so the front of the queue is
//! the one that is being answered. An exchange ends with its response; a request body that is
//! still on its way then is not waited for.

mod ends;
mod requests;
mod responses;

use std::collections::VecDeque;

use super::body::Openness;
use super::describe::Draft;
use super::message::{Chunk, MessageReader, Stage};
use crate::protocol::{
    Awaited, Endpoint, ExchangeNumber, Flow, Input, Progress, Session, Standing, Successor,
    semantics::Ends,
};

/// `ebpf_agent.unobserved`: no status was seen.
const RESPONSE: &str = "response";
/// `ebpf_agent.unobserved`: the status was seen, the end was not.
const RESPONSE_END: &str = "response_end";

#[derive(Debug)]
pub(super) struct Http1 {
    ends: Ends,
    requests: MessageReader,
    responses: MessageReader,
    /// Oldest first, numbered without gaps.
    outstanding: VecDeque<Exchange>,
    next_number: ExchangeNumber,
    /// The request whose bytes are passing.
    current: Option<ExchangeNumber>,
    /// The client closed its direction.
    request_flow_closed: bool,
    progress: VecDeque<Progress>,
    standing: Standing,
    successor: Option<Successor>,
}

/// What the rules of bodies need of a method (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Head,
    Connect,
    Other,
}

#[derive(Debug)]
struct Exchange {
    number: ExchangeNumber,
    start_ns: u64,
    method: Method,
    /// Missing until the head has ended.
    draft: Option<Draft>,
    expects_continue: bool,
    request: RequestState,
    /// Last byte of the request so far.
    request_ns: u64,
    /// Last byte of the response so far.
    response_ns: Option<u64>,
    /// First byte of the response, interim ones included; `None` until it is announced.
    response_first_ns: Option<u64>,
    /// Of the final response.
    status: Option<u16>,
    /// The response is a stream of events.
    is_event_stream: bool,
    /// The response began in a hole, or with what is no status line.
    response_lost: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestState {
    Head,
    /// Bytes of it were seen.
    Body {
        begun: bool,
    },
    Done {
        size: Option<u64>,
    },
    /// A hole swallowed its end.
    Cut,
}

impl Session for Http1 {
    fn handle(&mut self, flow: Flow, input: Input<'_>) {
        if self.standing != Standing::Going {
            return;
        }
        match input {
            Input::Bytes {
                data,
                position,
                time_ns,
                turn_start,
            } => {
                self.bytes(
                    flow,
                    Chunk {
                        data,
                        position,
                        time_ns,
                        turn_start,
                    },
                );
            }
            Input::Skipped {
                length,
                position,
                last_ns,
                tail,
            } => {
                self.skipped(flow, length, position, last_ns, tail);
            }
            Input::End { cause, time_ns } => self.end(flow, cause, time_ns),
        }
    }

    fn poll(&mut self) -> Option<Progress> {
        self.progress.pop_front()
    }

    /// Only a response holds up an exchange.
    fn awaited(&self, flow: Flow) -> Option<Awaited> {
        if self.standing != Standing::Going || flow == Flow::Request {
            return None;
        }
        let front = self.outstanding.front()?;
        match &self.responses.stage {
            Stage::Body(body) => Some(match body.openness() {
                Openness::Bytes(remaining) => Awaited::Bytes(remaining),
                Openness::More | Openness::Close | Openness::TurnOrClose => Awaited::End,
            }),
            Stage::Head => Some(Awaited::End),
            Stage::Lost if front.response_lost => Some(Awaited::End),
            Stage::Lost | Stage::Between => None,
        }
    }

    fn standing(&self) -> Standing {
        self.standing
    }

    fn take_successor(&mut self) -> Option<Successor> {
        self.successor.take()
    }
}

impl Http1 {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        // The first bytes of an older connection may be the middle of a message.
        let stage = || {
            if endpoint.complete {
                Stage::Between
            } else {
                Stage::Lost
            }
        };
        Self {
            requests: MessageReader::new(Flow::Request, stage()),
            responses: MessageReader::new(Flow::Response, stage()),
            ends: Ends::new(endpoint),
            outstanding: VecDeque::new(),
            next_number: 0,
            current: None,
            request_flow_closed: false,
            progress: VecDeque::new(),
            standing: Standing::Going,
            successor: None,
        }
    }

    fn bytes(&mut self, flow: Flow, chunk: Chunk<'_>) {
        match flow {
            Flow::Request => self.request_bytes(chunk),
            Flow::Response => self.response_bytes(chunk),
        }
    }

    /// The captured tail of a hole is fed like any bytes, which lets chunks and lengths end there.
    fn skipped(&mut self, flow: Flow, length: u64, position: u64, time_ns: u64, tail: [u8; 8]) {
        let known = tail
            .iter()
            .position(|&byte| byte != 0)
            .and_then(|from| tail.get(from..));
        let known = known.unwrap_or_default();
        let excess = (known.len() as u64).saturating_sub(length) as usize;
        let known = known.get(excess..).unwrap_or_default();
        let hole = length - known.len() as u64;
        if hole > 0 {
            match flow {
                Flow::Request => self.request_hole(hole, time_ns),
                Flow::Response => self.response_hole(hole, time_ns),
            }
        }
        if !known.is_empty() {
            let position = position.saturating_add(hole);
            self.bytes(
                flow,
                Chunk {
                    data: known,
                    position,
                    time_ns,
                    turn_start: false,
                },
            );
        }
    }

    fn exchange(&mut self, number: ExchangeNumber) -> Option<&mut Exchange> {
        let first = self.outstanding.front()?.number;
        let index = usize::try_from(number.checked_sub(first)?).ok()?;
        self.outstanding.get_mut(index)
    }

    fn current_exchange(&mut self) -> Option<&mut Exchange> {
        self.exchange(self.current?)
    }
}

#[cfg(test)]
mod tests;
