//! Bytes and holes of the request flow: each request line starts an exchange.

use super::super::body::{Body, Framing};
use super::super::describe::{self, Draft, Outcome};
use super::super::message::{Chunk, Found, Stage, Start};
use super::super::{OUTSTANDING_LIMIT, parse};
use super::{Exchange, Http1, Method, RESPONSE, RequestState};
use crate::protocol::{Progress, Standing};

impl Http1 {
    pub(super) fn request_bytes(&mut self, mut chunk: Chunk<'_>) {
        self.abandon_unsent_body(&chunk);
        let time_ns = chunk.time_ns;
        while self.standing == Standing::Going {
            let before = chunk.data.len();
            let found = self.requests.next(&mut chunk);
            if chunk.data.len() < before
                && let Some(exchange) = self.current_exchange()
            {
                exchange.request_ns = exchange.request_ns.max(time_ns);
                if let RequestState::Body { begun } = &mut exchange.request {
                    *begun = true;
                }
            }
            match found {
                Found::Nothing => return,
                Found::Beginning => {}
                Found::StartLine(line) => self.request_line(&line, time_ns),
                Found::Head(head) => self.request_head(&head, time_ns),
                Found::CutHead(head) => self.request_cut(&head),
                Found::BodyEnd { size } => self.request_done(size),
            }
        }
    }

    /// A body may stay unsent after an early response (RFC 9110, section 10.1.1): then the next
    /// turn begins with another request line, whole at once, where the body was expected.
    pub(super) fn abandon_unsent_body(&mut self, chunk: &Chunk<'_>) {
        let is_answered = self.current.is_some() && self.current_exchange().is_none();
        if is_answered && chunk.turn_start && matches!(self.requests.stage, Stage::Body(_)) {
            let line = parse::split_start_line(chunk.data).map(|(line, _)| line);
            if line.and_then(parse::request_line).is_some() {
                self.requests.enter(Stage::Between);
                self.current = None;
            }
        }
    }

    /// Starts an exchange, if this is a request line; if not, this is no request.
    pub(super) fn request_line(&mut self, line: &[u8], time_ns: u64) {
        let Some(line) = parse::request_line(line) else {
            self.requests.lose();
            self.current = None;
            if self.next_number == 0 && self.ends.endpoint.complete {
                self.standing = Standing::Over;
            }
            return;
        };
        let method = match line.method {
            "HEAD" => Method::Head,
            "CONNECT" => Method::Connect,
            _ => Method::Other,
        };
        self.start(self.requests.start, method, time_ns);
    }

    pub(super) fn start(&mut self, start: Start, method: Method, time_ns: u64) {
        self.settle_before(start);
        if self.outstanding.len() >= OUTSTANDING_LIMIT {
            self.give_up();
        }
        if self.standing != Standing::Going {
            return;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.current = Some(number);
        let Start {
            position,
            time_ns: start_ns,
            ..
        } = start;
        self.progress.push_back(Progress::RequestStarted {
            exchange: number,
            stream: None,
            position,
            time_ns: start_ns,
        });
        self.outstanding.push_back(Exchange {
            number,
            start_ns,
            method,
            draft: None,
            expects_continue: false,
            request: RequestState::Head,
            request_ns: time_ns,
            response_ns: None,
            response_first_ns: None,
            status: None,
            is_event_stream: false,
            response_lost: false,
        });
    }

    /// A request that begins a turn proves that what was sent before it has been read: a response
    /// whose end could not be seen in its bytes has ended.
    pub(super) fn settle_before(&mut self, start: Start) {
        let Some(front) = self.outstanding.front() else {
            return;
        };
        if !start.on_turn {
            return;
        }
        let open_end = match &self.responses.stage {
            Stage::Body(body) => body.openness().ends_by_close(),
            Stage::Lost => front.response_lost,
            Stage::Between | Stage::Head => false,
        };
        if !open_end {
            return;
        }
        if self.outstanding.len() > 1 {
            self.give_up();
            return;
        }
        let outcome = if front.status.is_some() {
            Outcome::Complete
        } else {
            Outcome::Unobserved(RESPONSE)
        };
        self.finish_front(outcome, None, None);
        self.responses.lose();
    }

    pub(super) fn request_head(&mut self, head: &[u8], time_ns: u64) {
        let Some((line, block)) = parse::split_start_line(head) else {
            return;
        };
        // It may have been started by its line, and even have been answered since.
        if self.current.is_none() {
            self.request_line(line, time_ns);
        }
        let Some(line) = parse::request_line(line) else {
            return;
        };
        let fields = parse::fields(block);
        let framing = fields.request_framing();
        let draft = describe::request(&self.ends, &line, &fields);
        if let Some(exchange) = self.current_exchange() {
            exchange.draft = Some(draft);
            exchange.expects_continue = fields.expects_continue;
            exchange.request = RequestState::Body { begun: false };
            // An answer may overtake the head it refuses; then it is too late to say more of it.
            if exchange.response_first_ns.is_none() {
                let exchange = exchange.number;
                let headers = fields.trace;
                self.progress
                    .push_back(Progress::RequestHead { exchange, headers });
            }
        }
        if self.standing != Standing::Going {
            return;
        }
        match framing {
            Framing::Unknown => self.request_lost(),
            Framing::Empty => {
                self.requests.enter(Stage::Between);
                self.request_done(None);
            }
            framing => {
                let body = Body::new(framing);
                if body.is_done() {
                    self.requests.enter(Stage::Between);
                    self.request_done(Some(0));
                } else {
                    self.requests.enter(Stage::Body(body));
                }
            }
        }
    }

    pub(super) fn request_done(&mut self, size: Option<u64>) {
        if let Some(exchange) = self.current_exchange() {
            exchange.request = RequestState::Done { size };
        }
        self.current = None;
    }

    /// Its head has a hole or no end: what was seen is used, and the next turn is waited for.
    pub(super) fn request_cut(&mut self, head: &[u8]) {
        let draft = self.draft_of(head);
        if let Some(exchange) = self.current_exchange() {
            exchange.draft = draft;
        }
        self.request_lost();
    }

    pub(super) fn request_lost(&mut self) {
        if let Some(exchange) = self.current_exchange() {
            exchange.request = RequestState::Cut;
        }
        self.requests.lose();
        self.current = None;
    }

    pub(super) fn draft_of(&self, head: &[u8]) -> Option<Draft> {
        let (line, block) = parse::split_start_line(head)?;
        let line = parse::request_line(line)?;
        Some(describe::request(&self.ends, &line, &parse::fields(block)))
    }

    pub(super) fn request_hole(&mut self, length: u64, time_ns: u64) {
        if let Some(exchange) = self.current_exchange() {
            exchange.request_ns = exchange.request_ns.max(time_ns);
        }
        let mut rest = length;
        if let Stage::Body(body) = &mut self.requests.stage {
            rest -= body.skip(rest);
            if body.is_done() {
                let size = body.size();
                self.requests.enter(Stage::Between);
                self.request_done(size);
            }
        }
        match self.requests.stage {
            Stage::Head => {
                let head = self.requests.partial_head().to_vec();
                self.request_cut(&head);
            }
            Stage::Between if rest > 0 => self.requests_swallowed(),
            Stage::Between | Stage::Body(_) | Stage::Lost => {}
        }
    }

    /// Requests may have begun in a hole. While others wait, the next response could be anyone's.
    pub(super) fn requests_swallowed(&mut self) {
        if self.outstanding.is_empty() {
            self.requests.lose();
        } else {
            self.give_up();
        }
    }
}
