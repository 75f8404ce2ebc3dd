//! What the kernel half does with a message, on bytes: for tests.

extern crate alloc;

use alloc::vec::Vec;

use super::{FIELD_BEGIN, OutgoingFrames, PeerSettings, Reached, VALUE_BYTES};
use crate::injection::InjectionOutcome;

/// A message as it leaves.
#[derive(Clone, Debug)]
pub struct Sent {
    pub bytes: Vec<u8>,
    /// What became of each request in it, and of the connection if it was given up.
    pub outcomes: Vec<InjectionOutcome>,
    /// 1: nothing behind it is looked at any more.
    pub is_given_up: bool,
}

/// Walks over a message and adds this value where a field may be added.
#[must_use]
pub fn send(
    frames: &mut OutgoingFrames,
    message: &[u8],
    peer: Option<PeerSettings>,
    value: &[u8; VALUE_BYTES as usize],
) -> Sent {
    let mut sent = Sent {
        bytes: message.to_vec(),
        outcomes: Vec::new(),
        is_given_up: false,
    };
    let mut offset = 0;
    frames.begin_message();
    while offset < sent.bytes.len() {
        let rest = &sent.bytes[offset..];
        let mut next = [0; 8];
        let there = rest.len().min(8);
        next[..there].copy_from_slice(&rest[..there]);
        let bytes = u64::from_le_bytes(next);
        let step = frames.step(bytes, rest.len() as u32, offset as u32);
        offset += step.used as usize;
        match step.reached {
            Reached::Nothing => {}
            Reached::Refused(outcome) => {
                sent.outcomes.push(outcome);
                sent.is_given_up = true;
                return sent;
            }
            Reached::Request => {
                let outcome = frames.judge(peer);
                sent.outcomes.push(outcome);
                if outcome == InjectionOutcome::Injected {
                    let field = FIELD_BEGIN.iter().chain(value).copied();
                    sent.bytes.splice(offset..offset, field);
                    let head = frames.frame_at as usize;
                    sent.bytes[head..head + 3].copy_from_slice(&frames.grown());
                    offset += super::FIELD_BYTES as usize;
                    frames.at_once += 1;
                }
            }
        }
    }
    sent
}
