//! The beginning of a connection: what it said before its protocol is known, kept so that the
//! session can be told all of it. Pure.

use crate::{
    connection::Origin,
    event::Direction,
    protocol::{Flow, Input, Session, detect},
    span::Kind,
};

/// Inputs kept at most while the protocol is not known; most are known after the first.
pub(super) const KEPT: usize = 1_024;

/// One input in owned form, kept until the protocol is known.
#[derive(Debug)]
pub(super) enum Kept {
    Bytes {
        data: Vec<u8>,
        turn_start: bool,
        origin: Origin,
    },
    Skipped {
        direction: Direction,
        length: u64,
        position: u64,
        last_ns: u64,
        tail: [u8; 8],
    },
}

/// The first bytes of both directions, while it is open what they are.
#[derive(Debug, Default)]
pub(super) struct Undecided {
    pub(super) kept: Vec<Kept>,
    pub(super) inbound: Vec<u8>,
    pub(super) outbound: Vec<u8>,
    pub(super) turns: usize,
}

impl Undecided {
    pub(super) fn add(&mut self, data: &[u8], turn_start: bool, origin: Origin, complete: bool) {
        self.turns += usize::from(turn_start);
        if turn_start && !complete {
            // In the middle of a conversation only the latest turn can begin a message.
            self.kept
                .retain(|kept| kept.direction() != origin.direction);
            self.beginning(origin.direction).clear();
        }
        let beginning = self.beginning(origin.direction);
        let room = detect::LIMIT.saturating_sub(beginning.len());
        beginning.extend_from_slice(data.get(..data.len().min(room)).unwrap_or_default());
        self.kept.push(Kept::Bytes {
            data: data.to_vec(),
            turn_start,
            origin,
        });
    }

    fn beginning(&mut self, direction: Direction) -> &mut Vec<u8> {
        match direction {
            Direction::Inbound => &mut self.inbound,
            Direction::Outbound => &mut self.outbound,
        }
    }

    pub(super) fn is_worth_more(&self) -> bool {
        self.inbound.len() < detect::LIMIT
            && self.outbound.len() < detect::LIMIT
            && self.turns < detect::TURNS
            && self.kept.len() < KEPT
    }
}

impl Kept {
    pub(super) const fn direction(&self) -> Direction {
        match self {
            Self::Bytes { origin, .. } => origin.direction,
            Self::Skipped { direction, .. } => *direction,
        }
    }
}

pub(super) fn hand_over(session: &mut dyn Session, kind: Kind, input: &Kept) {
    match input {
        Kept::Bytes {
            data,
            turn_start,
            origin,
        } => session.handle(
            flow(kind, origin.direction),
            Input::Bytes {
                data,
                position: origin.position,
                time_ns: origin.time_ns,
                turn_start: *turn_start,
            },
        ),
        Kept::Skipped {
            direction,
            length,
            position,
            last_ns,
            tail,
        } => session.handle(
            flow(kind, *direction),
            Input::Skipped {
                length: *length,
                position: *position,
                last_ns: *last_ns,
                tail: *tail,
            },
        ),
    }
}

/// The flow a direction carries, seen from this end.
pub(super) const fn flow(kind: Kind, direction: Direction) -> Flow {
    match (kind, direction) {
        (Kind::Server, Direction::Inbound) | (Kind::Client, Direction::Outbound) => Flow::Request,
        (Kind::Server, Direction::Outbound) | (Kind::Client, Direction::Inbound) => Flow::Response,
    }
}
