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
pub(super) struct Added(VecDeque<(u64, u32)>);

impl Added {
    pub(super) fn handle(&mut self, position: u64, length: u32) {
        if self.0.len() >= ADDED {
            self.0.pop_front();
        }
        self.0.push_back((position, length));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// TCP sequence number of the call's first byte: the record is right for a call without
    /// headers of ours. Forgets those of calls before.
    pub(super) fn first_sequence(&mut self, data: &Data<'_>) -> u32 {
        if data.direction == Direction::Inbound || self.0.is_empty() {
            return data.tcp_sequence;
        }
        self.0.retain(|(at, _)| *at >= data.position);
        let end = data
            .position
            .saturating_add(u64::from(data.original_length));
        let added = self.0.iter().filter(|(at, _)| *at < end);
        added.fold(data.tcp_sequence, |sequence, (_, length)| {
            sequence.wrapping_sub(*length)
        })
    }

    /// The call's bytes cut where a header was put, each piece with its own sequence number.
    pub(super) fn pieces<'a>(
        &self,
        mut bytes: &'a [u8],
        mut origin: Origin,
    ) -> Vec<(&'a [u8], Origin)> {
        let mut pieces = Vec::new();
        if origin.direction == Direction::Outbound {
            for (at, length) in &self.0 {
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
