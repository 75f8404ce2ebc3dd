//! Requests and responses paired: the session.
//!
//! Responses answer requests in order (RFC 9112, section 9.3.2), so the front of the queue is
//! the one that is being answered. An exchange ends with its response; a request body that is
//! still on its way then is not waited for.

use std::collections::VecDeque;

use super::body::{Body, Framing, Openness};
use super::describe::{self, Draft, Outcome};
use super::message::{Chunk, Found, MessageReader, Stage, Start};
use super::{OUTSTANDING_LIMIT, parse};
use crate::protocol::{
    Awaited, EndCause, Endpoint, ExchangeNumber, Flow, Input, Progress, Session, Standing,
};

/// `ebpf_agent.unobserved`: no status was seen.
const RESPONSE: &str = "response";
/// `ebpf_agent.unobserved`: the status was seen, the end was not.
const RESPONSE_END: &str = "response_end";

#[derive(Debug)]
pub(super) struct Http1 {
    endpoint: Endpoint,
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
    response_announced: bool,
    /// Of the final response.
    status: Option<u16>,
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
            endpoint,
            outstanding: VecDeque::new(),
            next_number: 0,
            current: None,
            request_flow_closed: false,
            progress: VecDeque::new(),
            standing: Standing::Going,
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

    // Requests.

    fn request_bytes(&mut self, mut chunk: Chunk<'_>) {
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
    fn abandon_unsent_body(&mut self, chunk: &Chunk<'_>) {
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
    fn request_line(&mut self, line: &[u8], time_ns: u64) {
        let Some(line) = parse::request_line(line) else {
            self.requests.lose();
            self.current = None;
            if self.next_number == 0 && self.endpoint.complete {
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

    fn start(&mut self, start: Start, method: Method, time_ns: u64) {
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
            response_announced: false,
            status: None,
            response_lost: false,
        });
    }

    /// A request that begins a turn proves that what was sent before it has been read: a response
    /// whose end could not be seen in its bytes has ended.
    fn settle_before(&mut self, start: Start) {
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

    fn request_head(&mut self, head: &[u8], time_ns: u64) {
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
        let draft = describe::request(&self.endpoint, &line, &fields);
        if let Some(exchange) = self.current_exchange() {
            exchange.draft = Some(draft);
            exchange.expects_continue = fields.expects_continue;
            exchange.request = RequestState::Body { begun: false };
            // An answer may overtake the head it refuses; then it is too late to say more of it.
            if !exchange.response_announced {
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

    fn request_done(&mut self, size: Option<u64>) {
        if let Some(exchange) = self.current_exchange() {
            exchange.request = RequestState::Done { size };
        }
        self.current = None;
    }

    /// Its head has a hole or no end: what was seen is used, and the next turn is waited for.
    fn request_cut(&mut self, head: &[u8]) {
        let draft = self.draft_of(head);
        if let Some(exchange) = self.current_exchange() {
            exchange.draft = draft;
        }
        self.request_lost();
    }

    fn request_lost(&mut self) {
        if let Some(exchange) = self.current_exchange() {
            exchange.request = RequestState::Cut;
        }
        self.requests.lose();
        self.current = None;
    }

    fn draft_of(&self, head: &[u8]) -> Option<Draft> {
        let (line, block) = parse::split_start_line(head)?;
        let line = parse::request_line(line)?;
        Some(describe::request(
            &self.endpoint,
            &line,
            &parse::fields(block),
        ))
    }

    fn request_hole(&mut self, length: u64, time_ns: u64) {
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
    fn requests_swallowed(&mut self) {
        if self.outstanding.is_empty() {
            self.requests.lose();
        } else {
            self.give_up();
        }
    }

    // Responses.

    fn response_bytes(&mut self, mut chunk: Chunk<'_>) {
        let time_ns = chunk.time_ns;
        while self.standing == Standing::Going {
            if self.outstanding.is_empty() {
                // An answer to a request that was not seen.
                self.responses.lose();
                return;
            }
            let before = chunk.data.len();
            let found = self.responses.next(&mut chunk);
            if chunk.data.len() < before {
                self.response_seen(time_ns);
            }
            match found {
                Found::Nothing => return,
                Found::Beginning => self.response_begins(&chunk),
                Found::StartLine(line) => {
                    if parse::status_line(&line).is_none() {
                        self.response_lost();
                    }
                }
                Found::Head(head) => self.response_head(&head),
                Found::CutHead(head) => self.response_cut(&head),
                Found::BodyEnd { size } => self.finish_front(Outcome::Complete, size, None),
            }
        }
    }

    /// Bytes of the front's response, or of what can be nothing else.
    fn response_seen(&mut self, time_ns: u64) {
        let is_lost = matches!(self.responses.stage, Stage::Lost);
        if let Some(front) = self.outstanding.front_mut()
            && (!is_lost || front.response_lost)
        {
            front.response_ns = front.response_ns.max(Some(time_ns));
        }
    }

    fn response_begins(&mut self, chunk: &Chunk<'_>) {
        if chunk.data.first() != Some(&b'H') {
            self.response_lost();
        } else if let Some(front) = self.outstanding.front_mut()
            && !front.response_announced
        {
            front.response_announced = true;
            let Chunk { time_ns, .. } = *chunk;
            self.progress.push_back(Progress::ResponseStarted {
                exchange: front.number,
                time_ns,
            });
        }
    }

    fn response_lost(&mut self) {
        self.responses.lose();
        if let Some(front) = self.outstanding.front_mut() {
            front.response_lost = true;
        }
    }

    fn response_head(&mut self, head: &[u8]) {
        let parsed = parse::split_start_line(head)
            .and_then(|(line, block)| Some((parse::status_line(line)?, block)));
        let Some((line, block)) = parsed else {
            self.response_lost();
            return;
        };
        let Some(front) = self.outstanding.front_mut() else {
            return;
        };
        front.response_lost = false;
        let is_interim = matches!(line.code, 100..200) && line.code != 101;
        if is_interim {
            front.expects_continue = false;
            self.responses.enter(Stage::Between);
            return;
        }
        front.status = Some(line.code);
        let leaves_http =
            line.code == 101 || (front.method == Method::Connect && line.code / 100 == 2);
        if leaves_http {
            self.responses.enter(Stage::Between);
            self.finish_front(Outcome::Complete, None, None);
            self.give_up();
            self.standing = Standing::Over;
            return;
        }
        let has_no_body = front.method == Method::Head || matches!(line.code, 204 | 304);
        let framing = if has_no_body {
            Framing::Empty
        } else {
            parse::fields(block).response_framing()
        };
        let body = Body::new(framing);
        if body.is_done() {
            let size = body.size().filter(|_| framing != Framing::Empty);
            self.responses.enter(Stage::Between);
            self.finish_front(Outcome::Complete, size, None);
        } else {
            self.responses.enter(Stage::Body(body));
        }
    }

    /// A response head with a hole, or without an end.
    fn response_cut(&mut self, head: &[u8]) {
        let parsed = parse::split_start_line(head)
            .and_then(|(line, block)| Some((parse::status_line(line)?, block)));
        let Some((line, block)) = parsed else {
            self.response_lost();
            return;
        };
        let Some(front) = self.outstanding.front_mut() else {
            return;
        };
        if matches!(line.code, 100..200) {
            // What follows an interim head is unknown too.
            self.response_lost();
            return;
        }
        front.status = Some(line.code);
        let is_chunked = parse::fields(block).response_framing() == Framing::Chunked
            && front.method != Method::Head;
        let body = if is_chunked {
            Body::lost_in_chunks()
        } else {
            Body::new(Framing::Unknown)
        };
        self.responses.enter(Stage::Body(body));
    }

    fn response_hole(&mut self, length: u64, time_ns: u64) {
        if self.outstanding.is_empty() {
            self.responses.lose();
            return;
        }
        let mut rest = length;
        if let Stage::Body(body) = &mut self.responses.stage {
            rest -= body.skip(rest);
            let finished = body.is_done().then(|| body.size());
            self.response_seen(time_ns);
            if let Some(size) = finished {
                self.responses.enter(Stage::Between);
                // Whether the last byte of the hole was this response's is not known.
                let outcome = match rest {
                    0 => Outcome::Complete,
                    _ => Outcome::Unobserved(RESPONSE_END),
                };
                self.finish_front(outcome, size, None);
            }
        }
        if rest == 0 {
            return;
        }
        match self.responses.stage {
            Stage::Head => {
                let head = self.responses.partial_head().to_vec();
                self.response_cut(&head);
                self.response_seen(time_ns);
            }
            Stage::Between => {
                // An answer that was not asked for, or one of several that cannot be told apart.
                match self.outstanding.len() {
                    0 => self.responses.lose(),
                    1 => {
                        self.response_lost();
                        self.response_seen(time_ns);
                    }
                    _ => self.give_up(),
                }
            }
            // The answer to what is outstanding may have begun in the hole.
            Stage::Lost => {
                self.response_lost();
                self.response_seen(time_ns);
            }
            Stage::Body(_) => {}
        }
    }

    // Ends.

    fn end(&mut self, flow: Flow, cause: EndCause, time_ns: u64) {
        if flow == Flow::Request && cause == EndCause::Closed {
            // Half-closed: a response may still come.
            self.request_flow_closed = true;
            if self.outstanding.is_empty() {
                self.standing = Standing::Over;
            }
            return;
        }
        while let Some(front) = self.outstanding.front() {
            let outcome = self.outcome_of_end(front, cause);
            let size = match &self.responses.stage {
                Stage::Body(body) if outcome == Outcome::Complete => body.size(),
                _ => None,
            };
            // It lasted until the connection ended, whatever came of it.
            let failed_ns = (cause != EndCause::Unobserved).then_some(time_ns);
            self.finish_front(outcome, size, failed_ns);
            self.responses.lose();
        }
        self.standing = Standing::Over;
    }

    /// What the end of the response flow, or of both, means for the oldest open exchange.
    fn outcome_of_end(&self, front: &Exchange, cause: EndCause) -> Outcome {
        let status = front.status.or_else(|| self.partial_status());
        let unobserved = Outcome::Unobserved(if status.is_some() {
            RESPONSE_END
        } else {
            RESPONSE
        });
        let openness = match &self.responses.stage {
            Stage::Body(body) => Some(body.openness()),
            _ => None,
        };
        match cause {
            EndCause::Closed if openness.is_some_and(Openness::ends_by_close) => Outcome::Complete,
            _ if front.response_lost => unobserved,
            EndCause::Unobserved => unobserved,
            // The client left first: what it did not wait for is no failure.
            EndCause::Closed | EndCause::Reset if self.request_flow_closed => unobserved,
            EndCause::Closed => Outcome::Broken("connection_closed"),
            EndCause::Reset => Outcome::Broken("connection_reset"),
            EndCause::TimedOut => Outcome::Broken("timeout"),
        }
    }

    /// The status of a head that is still incomplete.
    fn partial_status(&self) -> Option<u16> {
        if !matches!(self.responses.stage, Stage::Head) {
            return None;
        }
        let (line, _) = parse::split_start_line(self.responses.partial_head())?;
        parse::status_line(line)
            .map(|line| line.code)
            .filter(|code| !matches!(code, 100..200))
    }

    /// Nothing that follows could be told apart with certainty.
    fn give_up(&mut self) {
        while let Some(front) = self.outstanding.front() {
            let what = if front.status.is_some() {
                RESPONSE_END
            } else {
                RESPONSE
            };
            self.finish_front(Outcome::Unobserved(what), None, None);
        }
        self.standing = Standing::Lost;
    }

    /// Ends the oldest exchange. `failed_ns`: when an exchange without a response failed.
    fn finish_front(
        &mut self,
        outcome: Outcome,
        response_size: Option<u64>,
        failed_ns: Option<u64>,
    ) {
        let partial_status = self.partial_status();
        let Some(front) = self.outstanding.pop_front() else {
            return;
        };
        let draft = front
            .draft
            .or_else(|| self.draft_of(self.requests.partial_head()));
        let Some(draft) = draft else { return };
        let request_size = match front.request {
            RequestState::Done { size } => size,
            _ => None,
        };
        if front.expects_continue && front.request == (RequestState::Body { begun: false }) {
            // Told not to: the body may never come.
            self.requests.lose();
            self.current = None;
        }
        let status = front.status.or(partial_status);
        let result = describe::Result {
            status,
            request_size,
            response_size,
            outcome,
        };
        let last_ns = front.response_ns.or(failed_ns).unwrap_or(front.request_ns);
        self.progress.push_back(Progress::Finished {
            exchange: front.number,
            start_ns: front.start_ns,
            end_ns: last_ns.max(front.start_ns),
            details: Box::new(describe::finish(draft, self.endpoint.kind, result)),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::protocol::Address;
    use crate::protocol::http1::HEAD_LIMIT;
    use crate::span::Kind;

    const GIGABYTE: u64 = 1 << 30;

    fn session() -> Http1 {
        let address = Address::Inet {
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 80,
        };
        let (local, peer) = (address.clone(), address);
        Http1::new(Endpoint {
            kind: Kind::Server,
            local,
            peer,
            complete: true,
        })
    }

    fn feed(session: &mut Http1, flow: Flow, data: &[u8], time_ns: u64) {
        session.handle(
            flow,
            Input::Bytes {
                data,
                position: 0,
                time_ns,
                turn_start: true,
            },
        );
    }

    fn skip(session: &mut Http1, length: u64, last_ns: u64, tail: [u8; 8]) {
        let input = Input::Skipped {
            length,
            position: 0,
            last_ns,
            tail,
        };
        session.handle(Flow::Response, input);
    }

    /// End of the only finished exchange, and its response size if known.
    fn finished(session: &mut Http1) -> Option<(u64, Option<String>)> {
        std::iter::from_fn(|| session.poll()).find_map(|progress| match progress {
            Progress::Finished {
                end_ns, details, ..
            } => {
                let size = details
                    .attributes
                    .iter()
                    .find(|attribute| attribute.key == "http.response.body.size")
                    .map(|attribute| format!("{:?}", attribute.value));
                Some((end_ns, size))
            }
            _ => None,
        })
    }

    /// A gigabyte by length: exactly the missing bytes are awaited, and the last one ends it.
    #[test]
    fn a_long_response_is_awaited_by_length() {
        let mut session = session();
        feed(
            &mut session,
            Flow::Request,
            b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
            100,
        );
        assert_eq!(session.awaited(Flow::Response), None);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {GIGABYTE}\r\n\r\n0123456789");
        feed(&mut session, Flow::Response, head.as_bytes(), 200);
        assert_eq!(session.awaited(Flow::Request), None);
        assert_eq!(
            session.awaited(Flow::Response),
            Some(Awaited::Bytes(GIGABYTE - 10))
        );
        skip(&mut session, GIGABYTE - 11, 300, *b"abcdefgh");
        assert_eq!(session.awaited(Flow::Response), Some(Awaited::Bytes(1)));
        assert_eq!(finished(&mut session), None);
        skip(&mut session, 1, 400, *b"bcdefghi");
        assert_eq!(session.awaited(Flow::Response), None);
        assert_eq!(
            finished(&mut session),
            Some((400, Some(format!("Int({GIGABYTE})"))))
        );
    }

    /// A gigabyte in chunks whose sizes were not captured: the tail proves the end, nothing less.
    #[test]
    fn a_long_chunked_response_ends_by_its_tail() {
        let mut session = session();
        feed(
            &mut session,
            Flow::Request,
            b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
            100,
        );
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8000\r\nxyz";
        feed(&mut session, Flow::Response, head, 200);
        assert_eq!(session.awaited(Flow::Response), Some(Awaited::End));
        skip(&mut session, GIGABYTE / 2, 300, [0; 8]);
        assert_eq!(session.awaited(Flow::Response), Some(Awaited::End));
        assert_eq!(finished(&mut session), None);
        skip(&mut session, GIGABYTE / 2, 400, *b"z\r\n0\r\n\r\n");
        assert_eq!(finished(&mut session), Some((400, None)));
        assert_eq!(session.awaited(Flow::Response), None);
    }

    /// Without a known tail, the next request's turn proves the end, with the time of the last
    /// byte that is known.
    #[test]
    fn a_long_chunked_response_ends_by_the_next_turn() {
        let mut session = session();
        feed(
            &mut session,
            Flow::Request,
            b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
            100,
        );
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8000\r\nxyz";
        feed(&mut session, Flow::Response, head, 200);
        skip(&mut session, GIGABYTE, 300, [0; 8]);
        assert_eq!(finished(&mut session), None);
        feed(
            &mut session,
            Flow::Request,
            b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n",
            900,
        );
        assert_eq!(finished(&mut session), Some((300, None)));
    }

    /// Of a head beyond the limit what was kept is used, and its response still finishes it.
    #[test]
    fn an_endless_head_is_cut_at_the_limit() {
        let mut session = session();
        let head = format!(
            "GET /x HTTP/1.1\r\nHost: a\r\nX: {}",
            "h".repeat(2 * HEAD_LIMIT)
        );
        feed(&mut session, Flow::Request, head.as_bytes(), 100);
        assert!(session.requests.partial_head().is_empty());
        feed(
            &mut session,
            Flow::Response,
            b"HTTP/1.1 431 X\r\nContent-Length: 0\r\n\r\n",
            200,
        );
        assert_eq!(
            finished(&mut session),
            Some((200, Some("Int(0)".to_owned())))
        );
    }
}
