//! How exchanges end: with their response, with the connection, or given up.

use super::super::body::Openness;
use super::super::describe::{self, Outcome};
use super::super::message::Stage;
use super::super::parse;
use super::{Exchange, Http1, RESPONSE, RESPONSE_END, RequestState};
use crate::protocol::{EndCause, Flow, Progress, Standing};

impl Http1 {
    pub(super) fn end(&mut self, flow: Flow, cause: EndCause, time_ns: u64) {
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
    pub(super) fn outcome_of_end(&self, front: &Exchange, cause: EndCause) -> Outcome {
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
    pub(super) fn partial_status(&self) -> Option<u16> {
        if !matches!(self.responses.stage, Stage::Head) {
            return None;
        }
        let (line, _) = parse::split_start_line(self.responses.partial_head())?;
        parse::status_line(line)
            .map(|line| line.code)
            .filter(|code| !matches!(code, 100..200))
    }

    /// Nothing that follows could be told apart with certainty.
    pub(super) fn give_up(&mut self) {
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
    pub(super) fn finish_front(
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
        let last_ns = front.response_ns.or(failed_ns).unwrap_or(front.request_ns);
        let first_ns = front.response_first_ns.filter(|first| *first < last_ns);
        let result = describe::Result {
            status,
            request_size,
            response_size,
            waited_ns: first_ns.map(|first| first.saturating_sub(front.start_ns)),
            is_event_stream: front.is_event_stream,
            outcome,
        };
        self.progress.push_back(Progress::Finished {
            exchange: front.number,
            start_ns: front.start_ns,
            end_ns: last_ns.max(front.start_ns),
            details: describe::finish(draft, self.ends.endpoint.kind, result),
        });
    }
}
