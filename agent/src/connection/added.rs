//! Headers that the kernel side put into what a program sent: TCP counts them, the program does
//! not. Pure.

use std::collections::VecDeque;

use crate::{
    connection::Origin,
    event::{Data, Direction},
};

/// Headers remembered at most: those of pipelined requests in one call.
const ADDED: usize = 1024;

/// Before which position each was put, and how long it is; oldest first.
#[derive(Debug, Default)]
pub(super) struct Added {
    headers: VecDeque<(u64, u32)>,
    place: Place,
}

/// Where in a call something may have been put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Before any of its bytes.
    #[default]
    Before,
    /// Behind any of its bytes.
    Behind,
}

impl Added {
    pub(super) fn handle(&mut self, position: u64, length: u32, place: Place) {
        if self.headers.len() >= ADDED {
            self.headers.pop_front();
        }
        self.headers.push_back((position, length));
        self.place = place;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// TCP sequence number of the call's first byte: the record is right for a call without
    /// headers of ours. Forgets those of calls before.
    ///
    /// A call of frames may make several records, all of them counted from the call's end. Its
    /// fields are known before the first one.
    pub(super) fn first_sequence(&mut self, data: &Data<'_>) -> u32 {
        if data.direction == Direction::Inbound || self.headers.is_empty() {
            return data.tcp_sequence;
        }
        let end = match self.place {
            Place::Before => {
                self.headers.retain(|(at, _)| *at >= data.position);
                data.position.saturating_add(data.original_length.into())
            }
            Place::Behind => {
                self.headers.retain(|(at, _)| *at > data.position);
                u64::MAX
            }
        };
        let added = self.headers.iter().filter(|(at, _)| *at < end);
        added.fold(data.tcp_sequence, |sequence, (_, length)| {
            sequence.wrapping_sub(*length)
        })
    }

    /// Bytes that were added in the call before this position.
    pub(super) fn between(&self, data: &Data<'_>, position: u64) -> u32 {
        if data.direction == Direction::Inbound {
            return 0;
        }
        let before = self.headers.iter().filter(|(at, _)| *at < position);
        before.fold(0, |sum, (_, length)| sum.wrapping_add(*length))
    }

    /// The call's bytes cut where a header was put, each piece with its own sequence number.
    pub(super) fn pieces<'a>(
        &self,
        mut bytes: &'a [u8],
        mut origin: Origin,
    ) -> Vec<(&'a [u8], Origin)> {
        let mut pieces = Vec::new();
        if origin.direction == Direction::Outbound {
            for (at, length) in &self.headers {
                let before = at
                    .checked_sub(origin.position)
                    .and_then(|before| usize::try_from(before).ok());
                let Some((first, rest)) = before.and_then(|at| bytes.split_at_checked(at)) else {
                    continue;
                };
                if !first.is_empty() {
                    pieces.push((first, origin));
                }
                origin.tcp_sequence = origin.sequence_at(*at).wrapping_add(*length);
                origin.position = *at;
                bytes = rest;
            }
        }
        if !bytes.is_empty() {
            pieces.push((bytes, origin));
        }
        pieces
    }
}
