//! What a connection's bytes are, and handing them to the session that reads them. Pure.

use super::{Connection, Understanding};
use crate::{
    connection::{
        Origin,
        beginning::{KEPT, Kept, flow, hand_over},
    },
    event::{Direction, Endpoints, Role},
    protocol::{
        Input,
        detect::{self, Detection, Opening},
    },
    span::Kind,
};

/// Number of the turn that answers the first one.
const ANSWER: usize = 2;

impl Connection {
    pub(super) fn feed_skipped(&mut self, skipped: Kept, origin: Option<Origin>) {
        if self.has_ended(skipped.direction()) {
            return;
        }
        match &mut self.understanding {
            Understanding::Speaks { session, kind } => {
                hand_over(session.as_mut(), *kind, &skipped);
                self.collect(origin);
            }
            Understanding::Undecided(undecided) => {
                undecided.kept.push(skipped);
                if undecided.kept.len() > KEPT {
                    self.understanding = Understanding::Opaque;
                }
            }
            Understanding::Opaque => {}
        }
    }

    pub(super) fn feed_bytes(&mut self, data: &[u8], turn_start: bool, origin: Origin) {
        if self.has_ended(origin.direction) {
            return;
        }
        match &mut self.understanding {
            Understanding::Opaque => {}
            Understanding::Speaks { session, kind } => {
                let input = Input::Bytes {
                    data,
                    position: origin.position,
                    time_ns: origin.time_ns,
                    turn_start,
                };
                session.handle(flow(*kind, origin.direction), input);
                self.collect(Some(origin));
            }
            Understanding::Undecided(_) => self.decide(data, turn_start, origin),
        }
    }

    /// Adds bytes to what is known of the beginning, and asks what it is. A session keeps the ends
    /// that it began with: plaintext waits for the answer, by when its connection is proven, or
    /// for what proves it behind that.
    fn decide(&mut self, data: &[u8], turn_start: bool, origin: Origin) {
        let complete = self.complete && !self.has_lost_track;
        let Understanding::Undecided(undecided) = &mut self.understanding else {
            return;
        };
        undecided.add(data, turn_start, origin, complete);
        let is_known = self.endpoints != Endpoints::Unknown;
        let is_full = !undecided.is_worth_more();
        let is_answered = undecided.turns >= ANSWER;
        if is_known || is_full || (is_answered && !self.waits_for_proof()) {
            self.ask();
        }
    }

    /// Whether it is plaintext of a server that has answered and whose connection is not proven
    /// yet: what leaves right behind the answer may prove it. Of a client the request would have
    /// done so, and a session older than the agent is never proven.
    pub fn waits_for_proof(&self) -> bool {
        let Understanding::Undecided(undecided) = &self.understanding else {
            return false;
        };
        let first = undecided.kept.first().map(Kept::direction);
        self.plaintext.is_some()
            && self.endpoints == Endpoints::Unknown
            && self.complete
            && !self.has_lost_track
            && undecided.turns == ANSWER
            && first == Some(Direction::Inbound)
    }

    /// No proof comes any more.
    pub fn handle_unproven(&mut self) {
        if self.plaintext.is_some() && self.endpoints == Endpoints::Unknown {
            self.ask();
        }
    }

    /// Asks what the bytes that were kept are.
    pub(super) fn ask(&mut self) {
        let kind = self.kind();
        let complete = self.complete && !self.has_lost_track;
        let Understanding::Undecided(undecided) = &mut self.understanding else {
            return;
        };
        let opening = Opening {
            inbound: &undecided.inbound,
            outbound: &undecided.outbound,
            kind,
            complete,
        };
        match detect::detect(opening) {
            Detection::Found { protocol, kind } => {
                let kept = std::mem::take(&mut undecided.kept);
                // It stays what it is when the session is over.
                self.role = match kind {
                    Kind::Server => Role::Server,
                    Kind::Client => Role::Client,
                };
                self.is_multiplexed = protocol.is_multiplexed;
                if let Some(plaintext) = &mut self.plaintext {
                    plaintext.is_understood = true;
                }
                self.understanding = Understanding::Speaks {
                    session: (protocol.session)(self.endpoint(kind)),
                    kind,
                };
                self.replay(kept, kind);
                self.tell_ends();
            }
            Detection::Undecided if undecided.is_worth_more() => {}
            Detection::Unrecognised if !complete && undecided.turns < detect::TURNS => {}
            Detection::Undecided | Detection::Unrecognised => {
                self.understanding = Understanding::Opaque;
            }
        }
    }

    /// Tells a new session what ended before it was known to be one.
    pub(super) fn tell_ends(&mut self) {
        for (direction, ended) in [Direction::Inbound, Direction::Outbound]
            .into_iter()
            .zip(self.ended)
        {
            if let Some((cause, time_ns)) = ended {
                self.tell_end(direction, cause, time_ns);
            }
        }
    }

    fn replay(&mut self, kept: Vec<Kept>, kind: Kind) {
        for input in kept {
            let Understanding::Speaks { session, .. } = &mut self.understanding else {
                return;
            };
            hand_over(session.as_mut(), kind, &input);
            self.collect(match input {
                Kept::Bytes { origin, .. } => Some(origin),
                Kept::Skipped { .. } => None,
            });
        }
    }
}
