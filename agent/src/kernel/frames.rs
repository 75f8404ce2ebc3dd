//! EDGE: whose frames of HTTP/2 the kernel side follows, where it cannot tell from a client's
//! preface: connections older than the agent, or upgraded ones.

use agent_common::frames::{FOLLOWED, FrameState, LEFT_ALONE};
use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError},
};

use super::maps::take;
use crate::event::ConnectionId;

/// `BPF_NOEXIST`, `include/uapi/linux/bpf.h`.
const IF_NEW: u64 = 1;

pub struct Frames {
    states: HashMap<MapData, u64, FrameState>,
    changes: Array<MapData, u32>,
    changed: u32,
}

impl Frames {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            states: take(ebpf, "FRAMES")?.try_into()?,
            changes: take(ebpf, "FRAMES_CHANGED")?.try_into()?,
            changed: 0,
        })
    }

    /// Frames of this connection are followed, if they are not already: from the next call on that
    /// begins with one.
    pub fn follow(&mut self, connection: ConnectionId) -> Result<()> {
        match self
            .states
            .insert(connection.0, FrameState::SEEKING, IF_NEW)
        {
            Ok(()) => self.tell(),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == exists() => Ok(()),
            Err(error) => Err(error).context("the kernel's table of frames refused a connection"),
        }
    }

    /// This connection carries no frames, or no longer does.
    pub fn leave(&mut self, connection: ConnectionId) -> Result<()> {
        const { assert!(LEFT_ALONE != FOLLOWED) };
        let left = FrameState {
            following: LEFT_ALONE,
            ..FrameState::SEEKING
        };
        self.states
            .insert(connection.0, left, 0)
            .context("the kernel's table of frames refused a connection")?;
        self.tell()
    }

    /// The highest stream that the kernel side saw on a connection that has ended; it is forgotten
    /// with this. 0: none, or frames were not followed.
    pub fn take_highest_stream(&mut self, connection: ConnectionId) -> u32 {
        let Ok(state) = self.states.get(&connection.0, 0) else {
            return 0;
        };
        // Gone is gone, whoever removed it.
        let _ = self.states.remove(&connection.0);
        state.highest_stream()
    }

    /// Streams of connections that have ended and of which nothing at all was recorded, when all
    /// others are taken.
    pub fn streams_left(&self, has_ended: impl Fn(ConnectionId) -> bool) -> u64 {
        let left = self.states.iter().filter_map(Result::ok);
        left.filter(|(connection, _)| has_ended(ConnectionId(*connection)))
            .map(|(_, state)| u64::from(state.highest_stream().div_ceil(2)))
            .sum()
    }

    /// The kernel side looks each connection up again.
    fn tell(&mut self) -> Result<()> {
        self.changed = self.changed.wrapping_add(1);
        self.changes
            .set(0, self.changed, 0)
            .context("the kernel side cannot be told of frames")
    }
}

const fn exists() -> std::io::ErrorKind {
    std::io::ErrorKind::AlreadyExists
}
