//! Bytes and holes of the response flow: they answer the oldest open exchange.

use super::super::body::{Body, Framing};
use super::super::describe::Outcome;
use super::super::message::{Chunk, Found, Stage};
use super::super::parse;
use super::{Http1, Method, RESPONSE_END};
use crate::protocol::{Progress, Standing, Successor};

impl Http1 {
    pub(super) fn response_bytes(&mut self, mut chunk: Chunk<'_>) {
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
                Found::Head(head) => {
                    self.response_head(&head);
                    if let Some(successor) = &mut self.successor {
                        successor.rest = chunk.data.to_vec();
                        successor.position = chunk.position;
                    }
                }
                Found::CutHead(head) => self.response_cut(&head),
                Found::BodyEnd { size } => self.finish_front(Outcome::Complete, size, None),
            }
        }
    }

    /// Bytes of the front's response, or of what can be nothing else.
    pub(super) fn response_seen(&mut self, time_ns: u64) {
        let is_lost = matches!(self.responses.stage, Stage::Lost);
        if let Some(front) = self.outstanding.front_mut()
            && (!is_lost || front.response_lost)
        {
            front.response_ns = front.response_ns.max(Some(time_ns));
        }
    }

    pub(super) fn response_begins(&mut self, chunk: &Chunk<'_>) {
        if chunk.data.first() != Some(&b'H') {
            self.response_lost();
        } else if let Some(front) = self.outstanding.front_mut()
            && front.response_first_ns.is_none()
        {
            let Chunk { time_ns, .. } = *chunk;
            front.response_first_ns = Some(time_ns);
            self.progress.push_back(Progress::ResponseStarted {
                exchange: front.number,
                time_ns,
            });
        }
    }

    pub(super) fn response_lost(&mut self) {
        self.responses.lose();
        if let Some(front) = self.outstanding.front_mut() {
            front.response_lost = true;
        }
    }

    pub(super) fn response_head(&mut self, head: &[u8]) {
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
            let upgrade = parse::fields(block).upgrade.unwrap_or_default();
            // RFC 7540, section 3.2.
            if line.code == 101 && upgrade.eq_ignore_ascii_case(b"h2c") {
                self.successor = Some(Successor {
                    protocol: "http2",
                    rest: Vec::new(),
                    position: 0,
                });
            }
            return;
        }
        let has_no_body = front.method == Method::Head || matches!(line.code, 204 | 304);
        let framing = if has_no_body {
            Framing::Empty
        } else {
            let fields = parse::fields(block);
            front.is_event_stream = fields.is_event_stream();
            fields.response_framing()
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
    pub(super) fn response_cut(&mut self, head: &[u8]) {
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
        let fields = parse::fields(block);
        front.is_event_stream = fields.is_event_stream();
        let is_chunked =
            fields.response_framing() == Framing::Chunked && front.method != Method::Head;
        let body = if is_chunked {
            Body::lost_in_chunks()
        } else {
            Body::new(Framing::Unknown)
        };
        self.responses.enter(Stage::Body(body));
    }

    pub(super) fn response_hole(&mut self, length: u64, time_ns: u64) {
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
}
