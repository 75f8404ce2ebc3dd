//! EDGE: the ring buffer's reading end.

use anyhow::Result;
use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};

use super::maps::take;
use crate::event::decode;

/// Bytes of a batch at which it is handed on.
pub const BATCH_BYTES: usize = 256 * 1024;

pub struct Ring {
    ring: RingBuf<MapData>,
}

/// Whether records may be missing before, among or right after those of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completeness {
    #[default]
    Whole,
    Holed,
}

/// Records copied out of the ring, one after the other; each begins with its header, whose
/// `length` says where the next one begins. All are padded to 8 bytes.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub bytes: Vec<u8>,
    pub records: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds before which every record written is in this batch or in
    /// an earlier one; 0 when there may be more.
    pub drained_ns: u64,
    pub completeness: Completeness,
}

impl Batch {
    /// Empty, for as many bytes as the last one had: it need not grow step by step.
    #[must_use]
    pub fn with_room(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            ..Self::default()
        }
    }
}

impl Ring {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            ring: take(ebpf, "RECORDS")?.try_into()?,
        })
    }

    /// Moves what is there to `batch`, until it is full. Returns whether there may be more.
    pub fn drain(&mut self, batch: &mut Batch) -> bool {
        while batch.bytes.len() < BATCH_BYTES {
            let Some(record) = self.ring.next() else {
                return false;
            };
            batch.bytes.extend_from_slice(decode::trimmed(&record));
            let padded = batch.bytes.len().next_multiple_of(8);
            batch.bytes.resize(padded, 0);
            batch.records += 1;
        }
        true
    }
}
