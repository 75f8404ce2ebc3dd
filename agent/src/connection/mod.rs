//! Connections: what flowed on each, in order and with its gaps, handed to exactly one protocol.
//! Pure.
//!
//! | what comes | what happens |
//! |---|---|
//! | first bytes | kept until [`crate::protocol::detect`] is sure; then handed on, oldest first |
//! | bytes | handed to the session; a hole before them is told first |
//! | bytes of a new turn | what flowed uncaptured the other way is told first |
//! | closing steps | what flowed is told, then the ends of the flows, in the order they ended |
//! | nothing, while the session awaits an end | the kernel is asked how far the flow has come |

pub mod added;
mod beginning;
pub mod stream;
pub mod table;
pub mod tracker;

use crate::{
    event::{Direction, Task, Unit},
    protocol::Progress,
};

pub use table::Table;
pub use tracker::{Connection, Plaintext};

/// Where an observation comes from: the record that led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub unit: Unit,
    pub task: Option<Task>,
    pub descriptor: Option<u32>,
    pub direction: Direction,
    pub non_blocking: bool,
    pub time_ns: u64,
    /// TCP sequence number of the byte at `position`; 0 for unix sockets.
    pub tcp_sequence: u32,
    pub position: u64,
}

impl Origin {
    /// TCP sequence number of another byte of the same flow.
    pub const fn sequence_at(&self, position: u64) -> u32 {
        self.tcp_sequence
            .wrapping_add(position.wrapping_sub(self.position) as u32)
    }
}

/// What a session learned, and from which record; `None` when it was not from a socket call
/// (a close, or a look at the kernel's counts).
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    pub progress: Progress,
    pub origin: Option<Origin>,
}
